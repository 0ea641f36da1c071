"""Draws from a space: sequences, independent of each other, inside their ranges."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import Variant, choice, loguniform, randint, uniform
from tiltyard.distributions import Distribution
from tiltyard.errors import SpecError
from tiltyard.sweep.space import draw, grid, value_at

reals = st.floats(-1e9, 1e9)
distributions = st.one_of(
    st.tuples(reals, reals).filter(lambda r: r[0] < r[1]).map(lambda r: uniform(*r)),
    st.tuples(st.floats(1e-30, 1), st.floats(1.01, 1e30)).map(lambda r: loguniform(*r)),
    st.tuples(st.integers(-(2**60), 2**60), st.integers(1, 2**60)).map(lambda r: randint(r[0], r[0] + r[1])),
    st.tuples(st.integers(1, 50), st.integers(1, 2**40)).map(lambda r: randint(r[0], r[0] + r[1], log=True)),
    st.lists(st.integers(), min_size=1, max_size=5, unique=True).map(lambda v: choice(*v)),
)
SPACE = {"lr": loguniform(1e-4, 1e-1), "depth": randint(1, 4), "act": choice("relu", "tanh")}
MLP = Variant(name="mlp", model="mlp", fixed={"batch_size": 32}, space=SPACE)
SEQUENCES = ["random", "sobol"]


@given(dist=distributions, u=st.floats(0, 1, exclude_max=True))
def test_value_at_any_quantile_lies_in_the_range(dist: Any, u: float) -> None:
    value = value_at(dist, u)
    if dist.kind == "choice":
        assert value in dist.values
    else:
        assert dist.low <= value <= dist.high
        assert isinstance(value, int) is (dist.kind == "int")


@given(dist=distributions)
def test_value_at_the_ends_reaches_the_ends_of_the_range(dist: Any) -> None:
    first, last = value_at(dist, 0.0), value_at(dist, 1 - 2**-53)
    if dist.kind == "choice":
        assert (first, last) == (dist.values[0], dist.values[-1])
    elif dist.kind == "int":
        assert first == dist.low
        assert last >= dist.high - abs(dist.high - dist.low) // 2**50 - 1
    else:
        span = dist.high - dist.low
        assert abs(first - dist.low) <= 1e-9 * max(span, abs(dist.low))
        assert abs(last - dist.high) <= 1e-9 * max(span, abs(dist.high))


@pytest.mark.parametrize("log", [False, True])
def test_value_at_of_whole_numbers_gives_each_its_share(log: bool) -> None:
    counts = Counter(value_at(randint(1, 4, log=log), (i + 0.5) / 4000) for i in range(4000))
    assert sorted(counts) == [1, 2, 3, 4]
    if not log:
        assert set(counts.values()) == {1000}
    else:  # between 1/2 and 9/2 the logarithm is uniform
        assert counts[1] / 4000 == pytest.approx(np.log(3) / np.log(9), abs=1e-3)


@pytest.mark.parametrize("algorithm", SEQUENCES)
@given(m=st.integers(0, 40), n=st.integers(0, 40), seed=st.integers(0, 99))
def test_draw_of_fewer_is_the_beginning_of_draw_of_more(algorithm: str, m: int, n: int, seed: int) -> None:
    few, many = sorted((m, n))
    assert draw(MLP, algorithm=algorithm, n=many, seed=seed)[:few] == draw(MLP, algorithm=algorithm, n=few, seed=seed)


@pytest.mark.parametrize("algorithm", SEQUENCES)
def test_draw_with_another_seed_or_variant_gives_others(algorithm: str) -> None:
    first = draw(MLP, algorithm=algorithm, n=8, seed=0)
    assert first == draw(MLP, algorithm=algorithm, n=8, seed=0)
    assert first != draw(MLP, algorithm=algorithm, n=8, seed=1)
    assert first != draw(Variant(name="other", model="mlp", space=SPACE), algorithm=algorithm, n=8, seed=0)


@given(new=distributions, seed=st.integers(0, 99))
def test_draw_with_a_parameter_added_moves_no_other(new: Distribution, seed: int) -> None:
    more = Variant(name="mlp", model="mlp", space={"first": new, **SPACE})
    for before, after in zip(
        draw(MLP, algorithm="random", n=6, seed=seed), draw(more, algorithm="random", n=6, seed=seed), strict=True
    ):
        assert {n: after[n] for n in SPACE} == {n: before[n] for n in SPACE}


def test_draw_at_random_is_uniform_and_uncorrelated() -> None:
    space = {"a": uniform(0, 1), "b": uniform(0, 1)}
    drawn = draw(Variant(name="v", model="mlp", space=space), algorithm="random", n=4000, seed=3)
    a, b = (np.array([c[n] for c in drawn]) for n in "ab")
    for values in (a, b):
        counts, _ = np.histogram(values, bins=10, range=(0, 1))
        assert np.abs(counts - 400).max() < 5 * np.sqrt(400)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08


def test_draw_by_sobol_fills_every_cell_of_the_square_evenly() -> None:
    space = {"a": uniform(0, 1), "b": uniform(0, 1)}
    drawn = draw(Variant(name="v", model="mlp", space=space), algorithm="sobol", n=256, seed=1)
    cells = Counter((int(c["a"] * 16), int(c["b"] * 16)) for c in drawn)
    assert set(cells.values()) == {1}
    assert len(cells) == 256


def test_draw_starts_with_the_points_as_they_are() -> None:
    points = ({"lr": 5.0, "batch_size": 8}, {"act": "gelu"})
    drawn = draw(MLP, algorithm="random", n=4, seed=0, points=points)
    assert drawn[:2] == [{"batch_size": 8, "lr": 5.0}, {"batch_size": 32, "act": "gelu"}]
    assert drawn[2:] == draw(MLP, algorithm="random", n=2, seed=0)
    assert draw(MLP, algorithm="random", n=1, seed=0, points=points) == drawn[:1]


def test_draw_with_a_point_of_an_unknown_parameter_names_it() -> None:
    with pytest.raises(SpecError, match=r"'mlp' sets 'lrr', which is neither fixed nor in its space \(act, batch_size"):
        draw(MLP, algorithm="random", n=1, seed=0, points=({"lrr": 1},))


CONDITIONAL = Variant(
    name="c",
    model="mlp",
    fixed={"kind": "net"},
    space={
        "nesterov": choice(True, False).when(momentum=[0.9]),
        "momentum": choice(0.0, 0.9).when(optimizer="sgd"),
        "optimizer": choice("sgd", "adamw"),
        "beta": uniform(0.8, 0.99).when(optimizer=["adamw"], kind="net"),
        "never": uniform(0, 1).when(kind="tree"),
    },
)


@pytest.mark.parametrize("algorithm", SEQUENCES)
@given(seed=st.integers(0, 999))
def test_draw_of_a_conditional_space_has_a_parameter_where_its_conditions_hold(algorithm: str, seed: int) -> None:
    for config in draw(CONDITIONAL, algorithm=algorithm, n=8, seed=seed):
        assert "never" not in config
        assert ("beta" in config) is (config["optimizer"] == "adamw")
        assert ("momentum" in config) is (config["optimizer"] == "sgd")
        assert ("nesterov" in config) is (config.get("momentum") == 0.9)


GRID = Variant(
    name="g",
    model="mlp",
    fixed={"x": 1},
    space={"momentum": choice(0.0, 0.9).when(optimizer="sgd"), "optimizer": choice("sgd", "adamw"), "b": choice(1, 2)},
)


def test_grid_has_each_combination_that_differs_once() -> None:
    found = grid(GRID)
    assert len(found) == 6  # not 8: adamw has no momentum to differ in
    assert len({repr(sorted(c.items())) for c in found}) == 6
    assert all(c["x"] == 1 for c in found)


def test_draw_of_a_grid_with_points_tries_each_configuration_once() -> None:
    point = {"optimizer": "adamw", "b": 2}
    drawn = draw(GRID, algorithm="grid", n=99, seed=0, points=(point,))
    assert drawn[0] == {"x": 1, **point}
    assert len(drawn) == 6
    assert draw(GRID, algorithm="grid", n=3, seed=5, points=(point,)) == drawn[:3]


def test_grid_too_large_to_write_out_is_refused_with_its_size() -> None:
    axes = {f"p{i}": choice(*range(10)) for i in range(6)}
    with pytest.raises(SpecError, match="1,000,000 combinations; at most 100,000"):
        grid(Variant(name="g", model="mlp", space=axes))
