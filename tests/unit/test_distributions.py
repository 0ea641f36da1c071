"""Search spaces as values: what is allowed, and that they read back as they were written."""

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tiltyard.distributions import AnyDistribution, Distribution, choice, loguniform, randint, uniform
from tiltyard.errors import SpecError

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyDistribution)
reals = st.floats(-1e6, 1e6, allow_nan=False)
scalars = st.one_of(st.booleans(), st.integers(-99, 99), reals, st.text(max_size=4), st.none())
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
distributions = st.one_of(
    st.tuples(reals, reals).filter(lambda r: r[0] < r[1]).map(lambda r: uniform(*r)),
    st.tuples(st.floats(1e-9, 1), st.floats(1.5, 1e9)).map(lambda r: loguniform(*r)),
    st.tuples(st.integers(-50, 50), st.integers(1, 50)).map(lambda r: randint(r[0], r[0] + r[1])),
    st.tuples(st.integers(1, 50), st.integers(1, 50)).map(lambda r: randint(r[0], r[0] + r[1], log=True)),
    st.lists(values, min_size=1, max_size=4, unique_by=repr).map(lambda v: choice(*v)),
)


@given(dist=distributions, condition=st.none() | st.lists(values, min_size=1, max_size=3))
def test_distribution_through_json_reads_back_equal(dist: Distribution, condition: list[Any] | None) -> None:
    if condition is not None:
        dist = dist.when(other=condition, third=(1, (2, 3)))
    again = ADAPTER.validate_json(ADAPTER.dump_json(dist, exclude_unset=True))
    assert again == dist
    assert repr(again.only_if) == repr(dist.only_if)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: uniform(1, 0), "reversed or empty: low 1.0 is not below high 0.0; swap them"),
        (lambda: uniform(1, 1), "reversed or empty"),
        (lambda: uniform(float("nan"), 1), "not finite"),
        (lambda: uniform(-1e308, 1e308), "not finite"),
        (lambda: loguniform(0, 1), "starts above 0; found low 0"),
        (lambda: loguniform(1e-1, 1e-3), "reversed"),
        (lambda: randint(3, 3), "reversed or empty"),
        (lambda: randint(0, 3, log=True), "starts above 0"),
        (lambda: randint(1, 2.5), "valid integer"),  # type: ignore[arg-type]
        (choice, "at least one"),
        (lambda: choice(1, 2, 1), "same value twice"),
        (lambda: choice(1.0, float("inf")), "NaN and infinities"),
        (lambda: choice((1, (float("nan"),))), "NaN and infinities"),
    ],
)
def test_distribution_that_cannot_be_right_is_refused_with_the_reason(build: Any, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        build()


def test_choice_of_true_and_one_keeps_both() -> None:
    assert choice(True, 1, 1.0).values == (True, 1, 1.0)


def test_when_with_a_set_is_the_same_in_every_process() -> None:
    code = "from tiltyard import uniform; print(uniform(0, 1).when(a={'x', 'y', 'z', 'w'}).only_if)"
    told = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert told == {"{'a': ('w', 'x', 'y', 'z')}\n"}


def test_when_twice_holds_both_conditions() -> None:
    assert uniform(0, 1).when(a=1).when(b=[2, 3]).only_if == {"a": (1,), "b": (2, 3)}
