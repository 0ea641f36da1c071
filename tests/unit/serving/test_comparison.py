"""What is counted about two models on the same rows, and that windows add up to one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.serving.answers import Answer
from tiltyard.serving.comparison import (
    BOUNDS_S,
    COMPARED_ROWS,
    Comparison,
    bucketed,
    compared,
    quantile_s,
    together,
)
from tiltyard.types import Task


def _answer(
    outputs: Any, *, version: int = 1, task: Task = Task.BINARY, classes: tuple[Any, ...] = ("no", "yes")
) -> Answer:
    return Answer(
        model="a.b",
        version=version,
        digest=str(version) * 64,
        task=task,
        classes=classes,
        outputs=np.asarray(outputs, np.float32),
    )


def _compared(one: Answer, other: Answer, seconds: tuple[float, float] = (0.01, 0.02)) -> Comparison:
    return compared(one, other, mode="shadow", champion_s=seconds[0], challenger_s=seconds[1], model="a.b")


def test_compared_classes_count_agreeing_rows_and_differences_of_probability() -> None:
    found = _compared(_answer([[0, 1], [0, 1], [2, 0]]), _answer([[0, 1], [1, 0], [2, 0]], version=2))
    assert (found.requests, found.rows, found.agreed, found.values) == (1, 3, 2, 6)
    apart = 1 / (1 + math.exp(-1)) - 1 / (1 + math.exp(1))
    assert found.difference_max == pytest.approx(apart, abs=1e-6)
    assert found.mean_difference == pytest.approx(2 * apart / 6, abs=1e-6)
    assert (found.pair.champion_version, found.pair.challenger_version) == (1, 2)


def test_compared_classes_in_another_order_are_held_by_their_names() -> None:
    found = _compared(_answer([[0, 3]]), _answer([[3, 0]], version=2, classes=("yes", "no")))
    assert found.agreed == 1
    assert found.difference_max == pytest.approx(0, abs=1e-6)
    other = _compared(_answer([[0, 3]]), _answer([[3, 0, 0]], version=2, classes=("yes", "no", "maybe")))
    assert (other.agreed, other.values) == (1, 0)


def test_compared_numbers_agree_within_a_hundredth_and_nan_with_nothing() -> None:
    numbers: dict[str, Any] = {"task": Task.REGRESSION, "classes": ("price",)}
    one, other = [[100.0], [100.0], [math.nan], [0.0]], [[100.9], [103.0], [math.nan], [0.0]]
    found = _compared(_answer(one, **numbers), _answer(other, version=2, **numbers))
    assert (found.rows, found.agreed, found.values) == (4, 2, 3)
    assert found.difference_max == pytest.approx(3, abs=1e-4)


def test_compared_answers_of_another_task_are_seen_and_not_compared() -> None:
    found = _compared(_answer([[0, 1]]), _answer([[5]], version=2, task=Task.REGRESSION, classes=("price",)))
    assert (found.requests, found.rows, math.isnan(found.agreement)) == (1, 0, True)


def test_compared_rows_of_a_large_request_are_bounded() -> None:
    many = np.zeros((COMPARED_ROWS + 5, 2))
    assert _compared(_answer(many), _answer(many, version=2)).rows == COMPARED_ROWS


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.floats(0, 60)), max_size=20), st.randoms())
def test_windows_in_any_order_add_up_to_the_same(seen: list[tuple[int, int, float]], random: Any) -> None:
    singles = []
    for version, agreed, seconds in seen:
        one = _answer([[0, 1]] * 3)
        other = _answer([[0, 1]] * agreed + [[1, 0]] * (3 - agreed), version=version + 1)
        singles.append(_compared(one, other, (seconds, seconds / 2)))
    mixed = list(singles)
    random.shuffle(mixed)
    recorded = [Comparison.from_evidence(json.loads(json.dumps(c.to_evidence()))) for c in mixed]
    sums, again = (
        {c.pair: (c.requests, c.rows, c.agreed, c.champion_seconds, c.challenger_seconds) for c in together(cs)}
        for cs in (singles, [*together(recorded[:7]), *together(recorded[7:])])
    )
    assert sums == again
    assert sum(c.requests for c in together(recorded)) == len(seen)


def test_quantiles_lie_inside_the_bucket_of_what_was_seen() -> None:
    assert math.isnan(quantile_s((0,) * (len(BOUNDS_S) + 1), 0.5))
    found = tuple(map(sum, zip(*(bucketed(s) for s in [0.004] * 99 + [0.4]), strict=True)))
    assert 0.003 < quantile_s(found, 0.5) <= 0.005
    assert quantile_s(found, 0.99) <= 0.005
    assert 0.2 < quantile_s(found, 0.995) <= 0.5
    assert quantile_s(bucketed(1e6), 0.5) == BOUNDS_S[-1]
