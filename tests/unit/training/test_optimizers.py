"""Each optimiser, held against torch.optim member by member, with every value a member's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tiltyard.training import Member, Pack, optimizers
from tiltyard.training.layout import Buffer, Layout

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
TOLERANCE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}
"""After three steps of SGD."""


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
    optimizer: str, model: str, worlds: Any, near_float64: Any, params_of: Any
) -> None:
    world = worlds["multiclass"]
    spec, epochs = world.spec(model, optimizer=optimizer), [world.batches(e) for e in range(4)]
    own = members()
    pack = Pack.create(spec, own, chunk=4)
    losses = [pack.train_epoch(batches) for batches in epochs]
    for i, member in enumerate(own):
        near_float64(params_of(pack, member.name), spec, member, epochs, [float(e[i]) for e in losses])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_of_members_that_share_betas_agrees_with_torch_optim(
    optimizer: str, worlds: Any, near_float64: Any, params_of: Any
) -> None:
    world = worlds["regression"]
    spec, epochs = world.spec("mlp", optimizer=optimizer), [world.batches(e) for e in range(3)]
    own = members(beta1=0.9, beta2=0.98, eps=1e-8)
    pack = Pack.create(spec, own)
    for batches in epochs:
        pack.train_epoch(batches)
    for member in own:
        near_float64(params_of(pack, member.name), spec, member, epochs)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("direct", [False, True])
def test_update_from_the_same_gradients_is_that_of_torch_optim_from_far_below_eps_up(
    direct: bool, optimizer: str, monkeypatch: pytest.MonkeyPatch, plain_optimizer: Any, worlds: Any
) -> None:
    """Fed by hand, so that nothing but the update can differ: what is left is the rounding of a step."""
    if direct:
        monkeypatch.setattr(optimizers, "DIRECT", 1)
    own, layout = members(clip_norm=None, schedule="constant", warmup_epochs=0.0), Layout({"w": (7, 9), "b": (7,)})
    draw = torch.Generator().manual_seed(5)
    params, grads = (Buffer(layout, len(own), torch.device("cpu")) for _ in range(2))
    params.write(0.01 * torch.randn(len(own), 70, generator=draw))
    moments = {n: Buffer(layout, len(own), torch.device("cpu")) for n in optimizers.MOMENTS[optimizer]}
    ours = optimizers.Optimizer(optimizer, own, params, grads, moments, 0)
    theirs = [nn.Parameter(row.clone()) for row in params.rows()]
    spec = worlds["multiclass"].spec(optimizer=optimizer)
    stepped = [plain_optimizer(spec, m, [p]) for m, p in zip(own, theirs, strict=True)]
    rates = optimizers.Rates.of(own, np.array([[m.lr for m in own]]), torch.device("cpu"))
    for _ in range(5):
        size = 10 ** (14 * torch.rand(len(own), 70, generator=draw) - 12)  # 1e-12 to 100
        g = size * torch.randn(len(own), 70, generator=draw).sign()
        grads.write(g)
        ours.step(rates, 0)
        for parameter, row, step in zip(theirs, g, stepped, strict=True):
            parameter.grad = row.clone()
            step.step()
        wanted = torch.stack([p.detach() for p in theirs])
        torch.testing.assert_close(params.rows(), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


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
