"""What is random in a member comes from its own seed, and what it is given is what torch would do with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from tiltyard.training import Member, Pack, build_module
from tiltyard.training.randomness import at_place, keys, normal, uniform

OWN: dict[str, dict[str, Any]] = {
    "dropout": {"dropout": 0.4},
    "noise": {"input_noise": 0.5},
    "smoothing": {"label_smoothing": 0.2},
    "mask": {"feature_mask": (True, True, False, False) * 4},
    "scale": {"init_scale": 0.3},
    "clip": {"clip_norm": 0.05},
    "schedule": {"schedule": "cosine", "warmup_epochs": 1.0},
}


@pytest.mark.parametrize("what", sorted(OWN))
@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_member_with_values_of_its_own_agrees_with_plain_torch(
    model: str, what: str, worlds: Any, near_float64: Any, params_of: Any
) -> None:
    world = worlds["multiclass"]
    spec, epochs = world.spec(model), [world.batches(e) for e in range(2)]
    own = [Member(name="plain", seed=1, lr=0.01), Member(name="own", seed=1, lr=0.01, **OWN[what])]
    pack = Pack.create(spec, own)
    for batches in epochs:
        pack.train_epoch(batches)
    for member in own:
        near_float64(params_of(pack, member.name), spec, member, epochs)
    if (model, what) != ("linear", "dropout"):  # no dropout layer there
        assert not torch.allclose(params_of(pack, "plain"), params_of(pack, "own"), atol=1e-4)


def test_member_of_every_task_agrees_with_plain_torch(world: Any, near_float64: Any, params_of: Any) -> None:
    spec, epochs = world.spec("mlp"), [world.batches(e) for e in range(2)]
    weights = tuple(0.5 + i for i in range(world.outputs)) if str(world.task) != "regression" else None
    own = [
        Member(name="plain", seed=1, lr=0.01),
        Member(name="own", seed=2, lr=0.02, class_weights=weights, label_smoothing=0.15 if weights else 0.0),
    ]
    pack = Pack.create(spec, own)
    losses = [pack.train_epoch(batches) for batches in epochs]
    for i, member in enumerate(own):
        near_float64(params_of(pack, member.name), spec, member, epochs, [float(e[i]) for e in losses])


@pytest.mark.parametrize("model", ["linear", "mlp", "resmlp", "cnn"])
def test_initialisation_depends_on_the_seed_alone(model: str, worlds: Any, params_of: Any) -> None:
    spec = worlds["multiclass"].spec(model)
    own = [Member(name=n, seed=s, init_scale=c) for n, s, c in (("a", 5, 1.0), ("b", -6, 0.5), ("c", 5, 1.0))]
    pack = Pack.create(spec, own)
    for member in own:
        module = build_module(spec, seed=member.seed, init_scale=member.init_scale)
        expected = torch.cat([p.reshape(-1) for p in module.parameters()]).detach()
        assert torch.equal(params_of(pack, member.name), expected)
    assert torch.equal(params_of(pack, "a"), params_of(pack, "c"))
    assert not torch.equal(params_of(pack, "a"), params_of(pack, "b"))


def test_scale_of_initialisation_leaves_biases_and_norms(worlds: Any) -> None:
    spec = worlds["multiclass"].spec("resmlp")
    plain = dict(build_module(spec, seed=3).named_parameters())
    scaled = dict(build_module(spec, seed=3, init_scale=0.25).named_parameters())
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value * (0.25 if value.ndim > 1 else 1.0))


def test_uniform_numbers_are_a_function_of_seed_step_place_and_element() -> None:
    seeds = torch.tensor([0, 1, 2**40, -3, 2**63 - 1])
    together = uniform(at_place(keys(seeds, 7, 0), 2), (6, 5))
    for i, seed in enumerate(seeds):
        alone = uniform(at_place(keys(seed, 7, 0), 2), (6, 5))
        assert torch.equal(alone, together[i])
    drawn = {
        tuple(uniform(at_place(keys(s, step, 0), place), (8,)).tolist())
        for s in seeds
        for step in range(20)
        for place in range(4)
    }
    assert len(drawn) == len(seeds) * 20 * 4


def test_uniform_numbers_of_many_members_look_uniform_and_unrelated() -> None:
    draw = uniform(keys(torch.arange(400), 1, 0), (1000,)).double()
    assert float(draw.min()) >= 0.0
    assert float(draw.max()) < 1.0
    counts = torch.histc(draw.float(), bins=64, min=0.0, max=1.0)
    expected = draw.numel() / 64
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 63 + 5 * math.sqrt(2 * 63), "64 bins of 400,000 numbers: five deviations above chance"
    correlation = torch.corrcoef(draw) - torch.eye(400)
    assert float(correlation.abs().max()) < 6 / math.sqrt(1000), "between members"
    neighbours = torch.corrcoef(torch.stack([draw[:, :-1].reshape(-1), draw[:, 1:].reshape(-1)]))[0, 1]
    assert abs(float(neighbours)) < 5 / math.sqrt(draw.numel()), "between neighbouring elements"


def test_normal_numbers_of_many_members_have_the_moments_of_a_normal() -> None:
    draw = normal(keys(torch.arange(200), 1, 0), (1000,)).double()
    n = math.sqrt(draw.numel())
    assert abs(float(draw.mean())) < 5 / n
    assert abs(float(draw.var()) - 1) < 5 * math.sqrt(2) / n
    assert abs(float((draw**4).mean()) - 3) < 5 * math.sqrt(96) / n
    assert torch.isfinite(draw).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_of_a_member_drops_its_own_share(rate: float, worlds: Any) -> None:
    u = uniform(at_place(keys(torch.arange(50), 3, 0), 1), (64, 32))
    share = float((u < rate).double().mean())
    assert abs(share - rate) < 5 * math.sqrt(rate * (1 - rate) / u.numel())


def test_dropout_in_evaluation_changes_nothing(worlds: Any) -> None:
    world = worlds["multiclass"]
    pack = Pack.create(
        world.spec("mlp"), [Member(name="a", seed=1, dropout=0.9), Member(name="b", seed=1, dropout=0.0)]
    )
    outputs = pack.predict(world.rows(9, 1)[0])
    assert torch.equal(outputs[0], outputs[1])


def test_extracted_member_of_a_pack_predicts_as_the_pack_does(worlds: Any) -> None:
    world = worlds["multiclass"]
    mask = (False, True) * 8
    pack = Pack.create(
        world.spec("mlp"),
        [Member(name="a", seed=1, dropout=0.5), Member(name="b", seed=2, input_noise=0.3, feature_mask=mask)],
    )
    pack.train_epoch(world.batches())
    x, _ = world.rows(9, 1)
    together = pack.predict(x)
    for i, name in enumerate(("a", "b")):
        module = pack.extract(name)
        assert isinstance(module, nn.Module)
        assert not module.training
        with torch.no_grad():
            torch.testing.assert_close(module(x), together[i], rtol=1e-5, atol=1e-6)
