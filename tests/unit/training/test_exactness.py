"""A member's result is its own: whatever pack, place, chunk or neighbours it has, who leaves, and what is restored."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tiltyard.training import Member, Pack, PackSpec

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
EPOCHS = 3
STEP: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
END: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-6}
BITS: dict[str, Any] = {"rtol": 0, "atol": 0}
"""What is promised between alone and packed: after one step, and after the nine of these tests."""


def pool(outputs: int, classes: bool) -> list[Member]:
    """Members that differ in all that may differ."""
    own: list[dict[str, Any]] = [
        {"lr": 0.01, "dropout": 0.3},
        {"lr": 0.003, "weight_decay": 0.1, "schedule": "cosine", "momentum": 0.5, "beta1": 0.8, "input_noise": 0.2},
        {"lr": 0.02, "clip_norm": 0.1, "dropout": 0.5},
        {"lr": 0.01, "feature_mask": (True, False) * 8, "warmup_epochs": 1.0, "schedule": "linear"},
        {"lr": 0.005, "init_scale": 0.5, "beta2": 0.95, "eps": 1e-6},
        {"lr": 0.02, "dropout": 0.1, "input_noise": 0.1, "momentum": 0.0},
    ]
    if classes:
        own[2]["label_smoothing"] = 0.1
        own[4]["class_weights"] = tuple(1.0 + 0.5 * c for c in range(outputs))
    return [Member(name=f"m{i}", seed=(1 << 40) * i + 11 * i, **o) for i, o in enumerate(own)]


@functools.cache
def solo(spec_of: Any, index: int) -> tuple[tuple[Tensor, ...], tuple[float, ...], Tensor]:
    """A member in a pack of its own, straight through: parameters after each epoch, losses, outputs."""
    world, spec = spec_of.world, spec_of.spec
    pack = Pack.create(spec, [spec_of.members[index]])
    params, losses = [], []
    for epoch in range(EPOCHS):
        losses.append(float(pack.train_epoch(world.batches(epoch))[0]))
        params.append(flat(pack, f"m{index}"))
    return tuple(params), tuple(losses), pack.predict(world.rows(20, 5)[0])[0]


def flat(pack: Pack, name: str) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in pack.extract(name).parameters()])


class Case:
    def __init__(self, world: Any, spec: PackSpec) -> None:
        self.world, self.spec = world, spec
        self.members = pool(spec.num_outputs, classes=str(spec.task) in {"binary", "multiclass"})


@st.composite
def lives(draw: st.DrawFn) -> tuple[list[int], int | None, list[tuple[str, list[int]]]]:
    """Who is in the pack and in which order, in what chunks, and what happens after each epoch but the last."""
    who = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True))
    chunk = draw(st.sampled_from([None, 1, 2, 3, 5]))
    events, left = [], who
    for _ in range(EPOCHS - 1):
        kind = draw(st.sampled_from(["none", "keep", "restore", "restore some", "split and merge"]))
        some = draw(st.permutations(left).map(tuple))
        size = draw(st.integers(1, len(left)))
        left = list(some[:size]) if kind in {"keep", "restore some"} else list(left)
        events.append((kind, left if kind in {"keep", "restore some"} else list(some)))
    return who, chunk, events


def happen(pack: Pack, kind: str, indices: Sequence[int]) -> Pack:
    names = [f"m{i}" for i in indices]
    if kind == "keep":
        return pack.keep(names)
    if kind == "split and merge":
        half = max(1, len(names) // 2)
        parts = [pack.keep(part) for part in (names[:half], names[half:]) if part]
        return Pack.merge(parts)
    if kind in {"restore", "restore some"}:
        with tempfile.TemporaryDirectory() as folder:
            pack.save(Path(folder) / "pack")
            return Pack.load(Path(folder) / "pack", names=None if kind == "restore" else names)
    return pack


CASES = [
    *[("multiclass", "mlp", o) for o in OPTIMIZERS],
    ("multiclass", "linear", "adamw"),
    ("multiclass", "linear", "sgd"),
    ("multiclass", "resmlp", "adamw"),
    ("regression", "resmlp", "nesterov"),
    ("regression", "linear", "adam"),
    ("binary", "mlp", "adamw"),
    ("multilabel", "mlp", "momentum"),
    ("multiclass", "cnn", "adamw"),
    ("binary", "cnn", "sgd"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("task", "model", "optimizer"), CASES)
def test_member_in_any_pack_life_ends_as_it_would_alone(task: str, model: str, optimizer: str, worlds: Any) -> None:
    world = worlds[task]
    case = Case(world, world.spec(model, optimizer=optimizer))

    @settings(max_examples=3 if model == "cnn" else 6, deadline=None, suppress_health_check=list(HealthCheck))
    @given(lives())
    def check(life: tuple[list[int], int | None, list[tuple[str, list[int]]]]) -> None:
        who, chunk, events = life
        pack = Pack.create(case.spec, [case.members[i] for i in who], chunk=chunk)
        for epoch in range(EPOCHS):
            losses = pack.train_epoch(world.batches(epoch))
            for place, member in enumerate(pack.members):
                params, alone, _ = solo(case, int(member.name[1:]))
                torch.testing.assert_close(flat(pack, member.name), params[epoch], **(END if model == "cnn" else BITS))
                np.testing.assert_allclose(losses[place], alone[epoch], rtol=END["rtol"], atol=END["atol"])
            if epoch < len(events):
                pack = happen(pack, *events[epoch])
        outputs = pack.predict(world.rows(20, 5)[0])
        for place, member in enumerate(pack.members):
            torch.testing.assert_close(outputs[place], solo(case, int(member.name[1:]))[2], rtol=1e-3, atol=1e-5)

    check()


@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_member_after_one_step_in_a_pack_is_as_it_would_be_alone(model: str, worlds: Any) -> None:
    world = worlds["multiclass"]
    case = Case(world, world.spec(model, optimizer="sgd"))
    batch = world.batches()[:1]
    pack = Pack.create(case.spec, case.members)
    pack.train_epoch(batch)
    for member in case.members:
        own = Pack.create(case.spec, [member])
        own.train_epoch(batch)
        torch.testing.assert_close(flat(pack, member.name), flat(own, member.name), **STEP)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_member_that_diverges_touches_no_other(model: str, optimizer: str, worlds: Any) -> None:
    world = worlds["regression"]
    spec = world.spec(model, optimizer=optimizer)
    good = [Member(name=f"g{i}", seed=i, lr=0.01, clip_norm=1.0 if i else None) for i in range(3)]
    bad = Member(name="bad", seed=9, lr=1e38)
    mixed = Pack.create(spec, [good[0], bad, *good[1:]])
    clean = Pack.create(spec, good)
    for epoch in range(2):
        mixed_losses = mixed.train_epoch(world.batches(epoch))
        clean_losses = clean.train_epoch(world.batches(epoch))
    assert not np.isfinite(mixed_losses[1])
    np.testing.assert_allclose(np.delete(mixed_losses, 1), clean_losses, rtol=1e-5)
    for member in good:
        torch.testing.assert_close(flat(mixed, member.name), flat(clean, member.name), **END)
    assert list(mixed.failures()) == ["bad"]
    assert "not a finite number at epoch 1, step" in mixed.failures()["bad"]
    x, y = world.rows(10, 3)
    scored = mixed.score(x, y, ["mse"])["mse"]
    assert np.isnan(scored[1])
    assert np.isfinite(np.delete(scored, 1)).all()


@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_training_run_twice_is_the_same_to_the_last_bit(model: str, worlds: Any) -> None:
    world = worlds["multiclass"]
    case = Case(world, world.spec(model))
    ends = []
    for _ in range(2):
        pack = Pack.create(case.spec, case.members)
        losses = [pack.train_epoch(world.batches(e)) for e in range(EPOCHS)]
        x, y = world.rows(40, 3)
        scores = pack.score(x, y, ["accuracy", "log_loss"])
        ends.append((losses, scores, [flat(pack, m.name) for m in case.members]))
    (losses, scores, params), (again, scores_again, params_again) = ends
    assert np.array_equal(losses, again)
    assert all(np.array_equal(scores[n], scores_again[n]) for n in scores)
    assert all(torch.equal(a, b) for a, b in zip(params, params_again, strict=True))


@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_training_on_rows_that_lie_elsewhere_in_memory_is_the_same_to_the_last_bit(model: str, worlds: Any) -> None:
    """As rows from shared memory do, from run to run."""
    world = worlds["multiclass"]
    case = Case(world, world.spec(model))
    batches = world.batches()
    moved = []
    for i, (x, y) in enumerate(batches):
        room = torch.zeros(x.numel() + 7)
        elsewhere = room[1 + i : 1 + i + x.numel()].view(x.shape)
        elsewhere.copy_(x)
        moved.append((elsewhere, y))
    packs = [Pack.create(case.spec, case.members) for _ in range(2)]
    packs[0].train_epoch(batches)
    packs[1].train_epoch(moved)
    for member in case.members:
        assert torch.equal(flat(packs[0], member.name), flat(packs[1], member.name))
