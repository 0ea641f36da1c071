"""A challenger against the champion on the same rows: one night, and several added up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from tiltyard.errors import SpecError
from tiltyard.evaluation.compare import Paired, PairFold, row_metric
from tiltyard.evaluation.scores import row_values
from tiltyard.sweep.comparison import mcnemar
from tiltyard.types import METRICS, Task

RNG = np.random.default_rng(1)


def pair(metric: str, champion: np.ndarray, challenger: np.ndarray) -> Paired:
    fold = PairFold(metric)
    fold.add(champion, challenger)
    return fold.done()


def test_one_night_by_accuracy_is_mcnemars_test() -> None:
    a, b = (RNG.random(500) < 0.8).astype(float), (RNG.random(500) < 0.85).astype(float)
    found = pair("accuracy", a, b)
    assert found.p == pytest.approx(mcnemar(a, b))
    assert found.difference == pytest.approx(b.mean() - a.mean())
    assert (found.won, found.lost) == (int((b > a).sum()), int((a > b).sum()))


@pytest.mark.parametrize("metric", ["log_loss", "mse"])
def test_losses_are_signed_so_that_positive_is_better(metric: str) -> None:
    champion = RNG.random(400)
    challenger = champion - 0.05 + 0.2 * RNG.normal(size=400)
    found = pair(metric, champion, challenger)
    assert found.difference > 0
    low, high = found.interval
    assert low < 0.05 < high
    expected = ttest_1samp(champion - challenger, 0).pvalue
    assert found.p is not None
    assert found.p == pytest.approx(expected, rel=0.6, abs=0.002)
    assert found.p_better() < 0.01 < found.p_worse()


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 300), metric=st.sampled_from(["accuracy", "log_loss"]))
def test_merged_folds_and_added_nights_equal_the_whole(cut: int, metric: str) -> None:
    rng = np.random.default_rng(cut)
    a, b = rng.integers(0, 2, (2, 300)).astype(float)
    first, second = PairFold(metric), PairFold(metric)
    first.add(a[:cut], b[:cut])
    second.add(a[cut:], b[cut:])
    added = first.done() + second.done()
    first.merge(second)
    whole = pair(metric, a, b)
    merged = first.done()
    assert (merged.rows, merged.won, merged.lost) == (whole.rows, whole.won, whole.lost)
    assert (added.rows, added.total, added.squares) == (whole.rows, whole.total, whole.squares)
    assert added.p_better() == whole.p_better()
    assert Paired.from_json(whole.to_json()) == whole


def test_equal_models_are_called_better_no_more_often_than_the_level() -> None:
    for metric in ("accuracy", "log_loss"):
        better = 0
        for i in range(400):
            rng = np.random.default_rng(i)
            a, b = (
                (rng.random((2, 500)) < 0.85).astype(float) if metric == "accuracy" else rng.exponential(size=(2, 500))
            )
            fold = PairFold(metric)
            fold.add(a, b)
            better += fold.done(tested=False).p_better() <= 0.05
        assert better <= 36  # 20 wanted at most; 36 happens once in a thousand times


def test_models_that_never_differ_are_not_told_apart() -> None:
    same = np.ones(100)
    assert pair("accuracy", same, same).p == 1.0
    assert pair("mse", same, same).p_better() == 1.0
    with pytest.raises(ValueError, match="does not add up"):
        pair("mse", same, same) + pair("accuracy", same, same)


def test_row_metric_of_every_objective_can_be_computed_row_by_row() -> None:
    for name, metric in METRICS.items():
        task = next(t for t in (Task.BINARY, Task.REGRESSION, Task.MULTILABEL) if t in metric.tasks)
        y = np.zeros(4, np.int64) if task is Task.BINARY else np.zeros((4, 2))
        values = row_values(task, np.ones((4, 2), np.float32), y, row_metric(name))
        assert values.shape == (4,)
    with pytest.raises(SpecError, match="no mean over rows"):
        row_values(Task.BINARY, np.ones((4, 2)), np.zeros(4, np.int64), "roc_auc")
