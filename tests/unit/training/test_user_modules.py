"""A user's own nn.Module in a pack: initialised under its member's seed, with all that it carries."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tiltyard.training import Member, Pack, dense, explain_unpackable, rebuild_module
from tiltyard.training.spec import PackSpec

HERE = "models_of_a_user_in_a_pack"


class Normed(nn.Module):
    """Batch norm, a frozen scale, dropout, an activation that no stack has."""

    def __init__(self, num_outputs: int, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(16, width, bias=False)  # under a norm its gradient is 0, whose rounding Adam blows up
        self.norm = nn.BatchNorm1d(width)
        self.scale = nn.Parameter(torch.full((width,), 1.5), requires_grad=False)
        self.drop = nn.Dropout(0.3)
        self.outer = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.drop(torch.tanh(self.norm(self.inner(x)) * self.scale)))
        return out


class Stack(nn.Sequential):
    """A subclass: what it does in forward is its own business, so it is not taken apart."""


def mlp_by_hand(num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(8, num_outputs),
    )  # fmt: skip


def mlp_closed(num_outputs: int) -> nn.Module:
    return Stack(*mlp_by_hand(num_outputs))


@pytest.fixture(autouse=True)
def modules_of_these_tests_draw_on_their_own() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture
def module_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    return lambda name: {"model": f"{HERE}:{name}", "model_args": {}}


def members() -> list[Member]:
    return [
        Member(name="a", seed=1, lr=0.01, dropout=0.3),
        Member(name="b", seed=2, lr=0.02, input_noise=0.1),
        Member(name="c", seed=3, lr=0.005, dropout=0.5, feature_mask=(True, False) * 8),
    ]


def test_module_with_running_statistics_agrees_with_plain_torch(worlds: Any, alone: Any, module_of: Any) -> None:
    world = worlds["multiclass"]
    spec, epochs = world.spec(**module_of("Normed")), [world.batches(e) for e in range(3)]
    pack = Pack.create(spec, members()[:2], chunk=1)
    for batches in epochs:
        pack.train_epoch(batches)
    for member in pack.members:
        expected = alone(spec, member).train(epochs).module.state_dict()
        found = pack.extract(member.name).state_dict()
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=2e-4, atol=2e-6)
        assert int(found["norm.num_batches_tracked"]) == 9
        assert torch.equal(found["scale"], torch.full((8,), 1.5)), "what does not train is not decayed"


def test_running_statistics_go_with_their_member_wherever_it_goes(worlds: Any, module_of: Any, tmp_path: Path) -> None:
    world = worlds["multiclass"]
    spec = world.spec(**module_of("Normed"))
    straight = Pack.create(spec, members())
    moved = Pack.create(spec, members(), chunk=2)
    for epoch in range(2):
        straight.train_epoch(world.batches(epoch))
        moved.train_epoch(world.batches(epoch))
        moved.save(tmp_path)
        moved = Pack.merge([Pack.load(tmp_path, names=["c"]), moved.keep(["a", "b"])])
    for name in ("a", "b", "c"):
        expected, found = straight.extract(name).state_dict(), moved.extract(name).state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


def test_stack_of_a_user_steps_by_hand_and_as_the_same_module_closed_does(
    worlds: Any, module_of: Any, params_of: Any
) -> None:
    """The two ways through a step, the written-out one and vmap's, hold each other."""
    world = worlds["multiclass"]
    packs = [Pack.create(world.spec(**module_of(name)), members()) for name in ("mlp_by_hand", "mlp_closed")]
    assert dense.plan(mlp_by_hand(5)) is not None
    assert dense.plan(mlp_closed(5)) is None
    for epoch in range(2):
        for pack in packs:
            pack.train_epoch(world.batches(epoch))
    x, _ = world.rows(9, 2)
    torch.testing.assert_close(packs[0].predict(x), packs[1].predict(x), rtol=1e-3, atol=1e-5)
    for name in ("a", "b"):
        torch.testing.assert_close(params_of(packs[0], name), params_of(packs[1], name), rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn", "Normed"])
def test_member_with_a_mask_taken_out_and_rebuilt_predicts_as_in_the_pack(
    model: str, worlds: Any, module_of: Any
) -> None:
    world = worlds["multiclass"]
    spec: PackSpec = world.spec(**module_of(model)) if model == "Normed" else world.spec(model)
    pack = Pack.create(spec, members())
    pack.train_epoch(world.batches())
    x, _ = world.rows(9, 2)
    taken = pack.extract("c")
    back = rebuild_module(spec, taken.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(taken(x), pack.predict(x)[2], rtol=1e-4, atol=1e-6)
        assert torch.equal(back(x), taken(x))
        hidden = x.clone()
        hidden[:, 1::2] = 7.0
        assert torch.equal(taken(hidden), taken(x)), "what it did not see does not matter"


def test_explanation_of_a_module_changes_neither_it_nor_the_random_state() -> None:
    module = Normed(5)
    before = {n: v.clone() for n, v in module.state_dict().items()}
    assert explain_unpackable(module, (16,)) == []
    assert all(torch.equal(v, before[n]) for n, v in module.state_dict().items())
    assert explain_unpackable(nn.LSTM(3, 4)) == ["the model: LSTM has no batched form under vmap"]
    double = nn.Linear(3, 2).double()
    assert "float64" in " ".join(explain_unpackable(double))


def test_plan_takes_only_what_it_knows_exactly() -> None:
    shared = nn.Linear(4, 4)
    frozen = nn.Linear(4, 4)
    frozen.weight.requires_grad_(False)
    hooked = nn.Sequential(nn.Linear(4, 4))
    hooked[0].register_forward_hook(lambda *_: None)
    for module in (
        nn.Sequential(shared, shared),
        nn.Sequential(frozen, nn.Linear(4, 2)),
        hooked,
        nn.Sequential(nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 2), nn.GELU()),
        nn.Sequential(),
        nn.Linear(4, 2),
    ):
        assert dense.plan(module) is None
