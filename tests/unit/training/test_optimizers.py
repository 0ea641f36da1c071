"""Each optimiser, held against torch.optim member by member, with every value a member's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiltyard.training import Member, Pack

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
TOLERANCE: dict[str, Any] = {"rtol": 2e-4, "atol": 2e-6}
"""After twelve steps. The order of sums differs; twelve steps of Adam amplify that to some 1e-5 of a parameter."""


def members(**common: Any) -> list[Member]:
    own: list[dict[str, Any]] = [
        {"lr": 0.01},
        {"lr": 0.003, "weight_decay": 0.1, "schedule": "cosine", "momentum": 0.5, "beta1": 0.8},
        {"lr": 0.05, "weight_decay": 0.01, "schedule": "linear", "warmup_epochs": 1.5, "beta2": 0.95, "eps": 1e-6},
        {"lr": 0.02, "clip_norm": 0.05, "momentum": 0.0, "beta1": 0.8},
        {"lr": 0.0},
        {"lr": 0.02, "clip_norm": 1e9, "init_scale": 0.5, "warmup_epochs": 2.0},
    ]
    return [Member(name=f"m{i}", seed=40 + i, **(o | common)) for i, o in enumerate(own)]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_with_values_of_each_member_agrees_with_torch_optim(
    optimizer: str, model: str, worlds: Any, alone: Any, params_of: Any
) -> None:
    world = worlds["multiclass"]
    spec, epochs = world.spec(model, optimizer=optimizer), [world.batches(e) for e in range(4)]
    own = members()
    pack = Pack.create(spec, own, chunk=4)
    losses = [pack.train_epoch(batches) for batches in epochs]
    for i, member in enumerate(own):
        solo = alone(spec, member).train(epochs)
        torch.testing.assert_close(params_of(pack, member.name), solo.flat(), **TOLERANCE)
        torch.testing.assert_close(torch.tensor([e[i] for e in losses]).float(), torch.tensor(solo.losses), **TOLERANCE)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_of_members_that_share_betas_agrees_with_torch_optim(
    optimizer: str, worlds: Any, alone: Any, params_of: Any
) -> None:
    world = worlds["regression"]
    spec, epochs = world.spec("mlp", optimizer=optimizer), [world.batches(e) for e in range(3)]
    own = members(beta1=0.9, beta2=0.98, eps=1e-8)
    pack = Pack.create(spec, own)
    for batches in epochs:
        pack.train_epoch(batches)
    for member in own:
        torch.testing.assert_close(params_of(pack, member.name), alone(spec, member).train(epochs).flat(), **TOLERANCE)


def test_clipping_of_one_member_leaves_the_others_unclipped(worlds: Any, alone: Any, params_of: Any) -> None:
    world = worlds["multiclass"]
    spec, epochs = world.spec("mlp", optimizer="sgd"), [world.batches()]
    tight = Member(name="tight", seed=1, lr=0.1, clip_norm=1e-3)
    free = Member(name="free", seed=2, lr=0.1)
    pack = Pack.create(spec, [tight, free])
    start = {n: params_of(pack, n) for n in ("tight", "free")}
    pack.train_epoch(epochs[0])
    moved = {n: float((params_of(pack, n) - start[n]).norm()) for n in start}
    assert moved["tight"] <= 0.1 * 1e-3 * len(epochs[0]) * 1.0001
    assert moved["free"] > 10 * moved["tight"]
    torch.testing.assert_close(params_of(pack, "free"), alone(spec, free).train(epochs).flat(), **TOLERANCE)
