"""Which finalists cannot be told apart from the best: sound tests, on the metric that ranks."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tiltyard.sweep import comparison
from tiltyard.sweep.comparison import bootstrap, comparison_of, mcnemar, sign_flip, ties
from tiltyard.sweep.engine.finals import row_scores, ties_with_best
from tiltyard.training.scores import ROW_METRICS, per_row, scores
from tiltyard.types import METRICS, Task

Array = Any


def logits(right: Array, y: Array, margin: float = 2.0) -> Array:
    """Binary logits ``(rows, 2)`` that are right where ``right`` says."""
    label = np.where(right, y, 1 - y)
    return (np.eye(2)[label] * margin).astype(np.float32)


def test_mcnemar_of_four_one_sided_rows_of_39_is_an_eighth_and_they_are_tied() -> None:
    y = np.arange(39) % 2
    best, other = np.ones(39, dtype=bool), np.arange(39) >= 4
    assert mcnemar(best.astype(np.float64), other.astype(np.float64)) == pytest.approx(0.125)
    for metric in ("accuracy", "balanced_accuracy", "f1_macro"):
        found = ties_with_best(metric, Task.BINARY, {"best": logits(best, y), "other": logits(other, y)}, y)
        assert found == {"other"}, metric


@given(rows=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_mcnemar_of_any_rows_is_the_binomial_test_of_those_that_differ(rows: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(side, dtype=np.float64) for side in zip(*rows, strict=True))
    only_a, only_b = sum(x > y for x, y in rows), sum(x < y for x, y in rows)
    expected = 1.0 if only_a + only_b == 0 else stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(a, b) == mcnemar(b, a) == pytest.approx(expected)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=9))
def test_sign_flip_of_few_rows_counts_every_combination_of_signs(values: list[int]) -> None:
    sums = [
        abs(sum(s * v for s, v in zip(signs, values, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(values))
    ]
    expected = sum(s >= abs(sum(values)) for s in sums) / len(sums)
    assert sign_flip(np.array(values, dtype=np.float64)) == pytest.approx(expected)


@pytest.mark.parametrize("rows", [60, 5000])
def test_sign_flip_of_many_rows_is_near_the_t_test(rows: int) -> None:
    rng = np.random.default_rng(rows)
    differences = rng.normal(size=rows)
    differences += 2.1 * differences.std() / np.sqrt(rows) - differences.mean()
    assert sign_flip(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.012)
    assert sign_flip(differences) == sign_flip(differences), "it is seeded"


def test_ties_with_best_by_log_loss_tells_confident_from_unsure_with_equal_classes() -> None:
    """The same classes are predicted: by correctness nobody could tell them apart, by the metric that ranks anybody can."""
    y = np.arange(40) % 2
    sure, unsure = logits(np.ones(40, dtype=bool), y, 4.0), logits(np.ones(40, dtype=bool), y, 0.1)
    both = {"sure": sure, "unsure": unsure}
    assert ties_with_best("log_loss", Task.BINARY, both, y) == frozenset()
    assert ties_with_best("brier", Task.BINARY, both, y) == frozenset()
    assert ties_with_best("accuracy", Task.BINARY, both, y) == {"unsure"}


def test_ties_with_best_by_mae_and_by_mse_may_differ() -> None:
    """One row far off is a large squared error and hardly an absolute one."""
    rng = np.random.default_rng(0)
    y = np.zeros((60, 1), dtype=np.float32)
    best = rng.normal(size=(60, 1)).astype(np.float32)
    other = best + 0.5 * np.sign(best)
    other[0] = 40.0
    assert ties_with_best("mae", Task.REGRESSION, {"a": best, "b": other}, y) == frozenset()
    assert ties_with_best("mse", Task.REGRESSION, {"a": best, "b": best * 1.0}, y) == {"b"}


@pytest.mark.parametrize("metric", ["roc_auc", "f1_macro", "balanced_accuracy"])
def test_ties_with_best_by_a_bootstrapped_metric_tells_far_from_equal(metric: str) -> None:
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 120)
    margin = (2 * y - 1) * 1.5 + rng.normal(size=120)
    best = np.stack([-margin, margin], 1).astype(np.float32)
    noise = rng.normal(size=(120, 2)).astype(np.float32)
    found = ties_with_best(metric, Task.BINARY, {"best": best, "same": best.copy(), "noise": noise}, y)
    assert found == {"same"}


@pytest.mark.parametrize("metric", ["rmse", "r2"])
def test_ties_with_best_of_regression_tells_far_from_equal(metric: str) -> None:
    rng = np.random.default_rng(4)
    y = rng.normal(size=(80, 2)).astype(np.float32)
    best = y + 0.1 * rng.normal(size=y.shape).astype(np.float32)
    found = ties_with_best(metric, Task.REGRESSION, {"best": best, "same": best.copy(), "far": best + 1}, y)
    assert found == {"same"}


def test_ties_with_best_of_one_is_nobody() -> None:
    y = np.zeros(3, dtype=np.int64)
    assert ties_with_best("accuracy", Task.BINARY, {"a": logits(y == 0, y)}, y) == frozenset()


def test_ties_by_holm_stops_at_the_first_that_is_not_apart() -> None:
    assert ties({"a": 0.04, "b": 0.03, "c": 0.001}) == {"a", "b"}
    assert ties({"a": 0.03, "b": 0.03}) == {"a", "b"}
    assert ties({}) == frozenset()


# -- how often equally good models are called apart -------------------------------------------------------------------

SIMULATIONS = 400
MOST_APART = 32
"""5% of 400 are 20, with a standard deviation of 4.4: three of them above. The seeds are fixed."""


@pytest.mark.parametrize("rows", [20, 39, 200])
def test_mcnemar_of_equally_good_models_calls_few_apart(rows: int) -> None:
    rng = np.random.default_rng(rows)
    a, b = (rng.random((2, SIMULATIONS, rows)) < 0.9).astype(np.float64)
    assert sum(mcnemar(x, y) <= 0.05 for x, y in zip(a, b, strict=True)) <= MOST_APART


@pytest.mark.parametrize("rows", [12, 39])
def test_sign_flip_of_equally_good_models_calls_few_apart(rows: int) -> None:
    """Losses with a long tail, as log losses have."""
    rng = np.random.default_rng(rows)
    a, b = rng.exponential(size=(2, SIMULATIONS, rows)) ** 2
    apart = sum(sign_flip(x - y) <= 0.05 for x, y in zip(a, b, strict=True))
    assert 0 < apart <= MOST_APART


@pytest.mark.slow
@pytest.mark.parametrize("rows", [39, 150])
def test_bootstrap_of_equally_good_models_calls_few_apart(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root mean squared error of correlated errors, bootstrapped as it stands."""
    monkeypatch.setattr(comparison, "MOST_BOOTSTRAPS", 300)
    rng = np.random.default_rng(rows)
    apart = 0
    for _ in range(SIMULATIONS // 2):
        shared = rng.normal(size=rows)
        squares = np.stack([(shared + rng.normal(size=rows)) ** 2 for _ in range(2)])

        def metric(chosen: Array, squares: Array = squares) -> Array:
            return np.sqrt(squares[:, chosen].mean(1))

        apart += int(bootstrap(metric, rows)[0] <= 0.05)
    assert 0 < apart <= 20  # 5% of 200 are 10, with a standard deviation of 3.1


# -- scores of rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "task"), [(m, t) for m in sorted(ROW_METRICS) for t in sorted(METRICS[m].tasks)])
def test_per_row_scores_have_the_metric_as_their_mean(metric: str, task: Task) -> None:
    rng = np.random.default_rng(1)
    columns = {Task.BINARY: 2, Task.MULTICLASS: 4, Task.MULTILABEL: 3, Task.REGRESSION: 2}[task]
    outputs = torch.from_numpy(rng.normal(size=(50, columns)).astype(np.float32) * 3)
    if task in {Task.BINARY, Task.MULTICLASS}:
        y = torch.from_numpy(rng.integers(0, columns, 50))
    else:
        y = torch.from_numpy((rng.normal(size=(50, columns)) > 0).astype(np.float32))
    rows = per_row(task, outputs, y, metric)
    assert rows.shape == (50,)
    assert rows.mean() == pytest.approx(scores(task, outputs[None], y, (metric,))[metric][0], rel=1e-9)


def test_every_metric_is_compared_by_a_test_that_can_be_made_of_it() -> None:
    means = {name for name in METRICS if comparison_of(name).value != "paired bootstrap"}
    assert means == ROW_METRICS


def test_row_scores_of_classes_are_correctness() -> None:
    y = np.array([0, 1, 1])
    assert row_scores(Task.BINARY, logits(np.array([True, False, True]), y), y).tolist() == [1.0, 0.0, 1.0]
