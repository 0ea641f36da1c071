"""Losses of members against torch's own, with every option a member's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiltyard.training import Member, Pack

VARIED: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.3},
    {"class_weights": "own"},
    {"label_smoothing": 0.1, "class_weights": "own"},
]


def members(world: Any, varied: list[dict[str, Any]], **common: Any) -> list[Member]:
    own = []
    for i, given in enumerate(varied):
        values = {} if str(world.task) == "regression" else dict(given)
        if values.get("class_weights"):
            values["class_weights"] = tuple(0.25 + j for j in range(world.outputs))
        own.append(Member(name=f"m{i}", seed=i, **(values | common)))
    return own


@pytest.mark.parametrize("alike", [False, True])
def test_loss_of_each_member_is_the_one_torch_computes(alike: bool, world: Any, alone: Any) -> None:
    """``alike`` packs take the short way through the loss, which needs no target of each member's own."""
    own = members(world, VARIED[:1] * 3 if alike else VARIED, lr=0.0, init_scale=3.0)
    spec = world.spec("mlp", optimizer="sgd")
    pack = Pack.create(spec, own)
    found = pack.train_epoch(world.batches())
    for i, member in enumerate(own):
        assert found[i] == pytest.approx(alone(spec, member).train([world.batches()]).losses[0], rel=2e-5)


@pytest.mark.parametrize("model", ["linear", "mlp", "cnn"])
def test_gradient_of_each_member_is_the_one_autograd_finds(model: str, world: Any, alone: Any, params_of: Any) -> None:
    """One step of SGD at rate 1 moves parameters by the gradient itself."""
    own = members(world, VARIED, lr=1.0)
    spec = world.spec(model, optimizer="sgd")
    pack = Pack.create(spec, own)
    batch = world.batches()[:1]
    pack.train_epoch(batch)
    for member in own:
        torch.testing.assert_close(
            params_of(pack, member.name), alone(spec, member).train([batch]).flat(), rtol=1e-5, atol=1e-6
        )
