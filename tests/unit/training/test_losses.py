"""Losses of members against torch's own, with every option a member's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiltyard.errors import TrainingError
from tiltyard.training import Member, Pack

VARIED: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.3},
    {"class_weights": "own"},
    {"label_smoothing": 0.1, "class_weights": "own"},
]
LOSSES: dict[str, list[dict[str, Any]]] = {
    "binary": [{"loss": "focal"}, {"loss": "focal", "focal_gamma": 0.5, "class_weights": "own"}],
    "multiclass": [{"loss": "cross_entropy"}, {"loss": "focal", "focal_gamma": 0.0}, {"loss": "focal"}],
    "multilabel": [{"loss": "binary_cross_entropy"}],
    "regression": [{"loss": "absolute"}, {"loss": "huber"}, {"loss": "huber", "huber_delta": 0.2}, {"loss": "squared"}],
}


def members(world: Any, varied: list[dict[str, Any]], **common: Any) -> list[Member]:
    own = []
    regression = str(world.task) == "regression"
    for i, given in enumerate([*([{}] * len(varied) if regression else varied), *LOSSES[str(world.task)]]):
        values = dict(given)
        if values.get("class_weights"):
            values["class_weights"] = tuple(0.25 + j for j in range(world.outputs))
        own.append(Member(name=f"m{i}", seed=i, **(values | common)))
    return own


@pytest.mark.parametrize("alike", [False, True])
def test_loss_of_each_member_is_the_one_torch_computes(alike: bool, world: Any, alone: Any) -> None:
    """``alike`` packs take the short way through the loss, which needs no target of each member's own."""
    own = members(world, VARIED, lr=0.0, init_scale=3.0)
    own = own[:1] if alike else own
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


def test_loss_of_a_member_does_not_depend_on_its_neighbours_losses(world: Any, params_of: Any) -> None:
    own = members(world, VARIED, lr=0.1)
    spec = world.spec("mlp", optimizer="sgd")
    packs = [Pack.create(spec, own), *(Pack.create(spec, [m]) for m in own)]
    losses = [pack.train_epoch(world.batches()) for pack in packs]
    for i, member in enumerate(own):
        assert losses[0][i] == losses[i + 1][0]
        assert torch.equal(params_of(packs[0], member.name), params_of(packs[i + 1], member.name))


def test_loss_that_a_task_has_not_is_refused_by_member_and_name(worlds: Any) -> None:
    huber = Member(name="bold", seed=0, loss="huber")
    with pytest.raises(TrainingError, match=r"'bold': loss is 'huber', and a multiclass task has cross_entropy, focal"):
        Pack.create(worlds["multiclass"].spec("mlp"), [huber])
    with pytest.raises(TrainingError, match=r"bold: loss is 'hinge'; known: absolute, auto, binary_cross_entropy"):
        Member(name="bold", seed=0, loss="hinge")
    with pytest.raises(TrainingError, match=r"focal loss has no smoothed form"):
        Member(name="bold", seed=0, loss="focal", label_smoothing=0.1)
    for delta in (0.0, float("nan")):
        with pytest.raises(TrainingError, match=r"huber_delta is (0\.0|nan); wanted above 0"):
            Member(name="bold", seed=0, loss="huber", huber_delta=delta)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_batch_whose_rows_all_weigh_nothing_teaches_a_member_nothing(loss: str, worlds: Any, params_of: Any) -> None:
    """An epoch's last batch may be a row of a class of weight 0; by torch's formula that is 0 / 0, and the member's end."""
    world = worlds["multiclass"]
    x, y = world.rows(6, 1)
    y[:] = 0
    blind = Member(name="blind", seed=0, lr=0.1, loss=loss, class_weights=(0.0, 1.0, 1.0, 1.0, 1.0))
    pack = Pack.create(world.spec("mlp", optimizer="sgd"), [blind, Member(name="plain", seed=0, lr=0.1)])
    before = params_of(pack, "blind")
    losses = pack.train_epoch([(x, y)])
    assert losses[0] == 0
    assert pack.failures() == {}
    assert torch.equal(params_of(pack, "blind"), before)
    assert not torch.equal(params_of(pack, "plain"), before)
