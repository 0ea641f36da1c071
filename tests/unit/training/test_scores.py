"""Scores of all members at once, held against scikit-learn's, one member at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from tiltyard.errors import TrainingError
from tiltyard.training import scores
from tiltyard.types import METRICS, Task


def by_sklearn(name: str, task: Task, out: Any, y: Any) -> float:
    out = out.astype(np.float64)
    if task is Task.REGRESSION:
        return float(
            {
                "mse": sk.mean_squared_error,
                "rmse": sk.root_mean_squared_error,
                "mae": sk.mean_absolute_error,
                "r2": sk.r2_score,
            }[name](y, out)
        )
    if task is Task.MULTILABEL:
        if name == "subset_accuracy":
            return float(sk.accuracy_score(y, out > 0))
        if name == "f1_macro":
            return float(sk.f1_score(y, out > 0, average="macro", zero_division=0))
        p = expit(out)
        return float(np.mean([sk.log_loss(y[:, i], p[:, i], labels=[0, 1]) for i in range(y.shape[1])]))
    p, classes = softmax(out, axis=1), np.arange(out.shape[1])
    return float(
        {
            "accuracy": lambda: sk.accuracy_score(y, out.argmax(1)),
            "balanced_accuracy": lambda: sk.balanced_accuracy_score(y, out.argmax(1)),
            "f1_macro": lambda: sk.f1_score(y, out.argmax(1), average="macro", zero_division=0),
            "log_loss": lambda: sk.log_loss(y, p, labels=classes),
            "roc_auc": lambda: sk.roc_auc_score(y, out[:, 1] - out[:, 0]),
            "brier": lambda: (
                sk.brier_score_loss(y, p[:, 1])
                if task is Task.BINARY
                else sk.brier_score_loss(y, p, labels=classes, scale_by_half=False)
            ),
        }[name]()
    )


def problem(task: Task, members: int, rows: int, outputs: int, seed: int, ties: bool) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    out = draw.normal(size=(members, rows, outputs)) * draw.choice([0.1, 1.0, 8.0], size=(members, 1, 1))
    out = (np.round(out) if ties else out).astype(np.float32)
    if task is Task.REGRESSION:
        return out, draw.normal(size=(rows, outputs)).astype(np.float32)
    if task is Task.MULTILABEL:
        return out, draw.integers(0, 2, size=(rows, outputs)).astype(np.float32)
    return out, draw.integers(0, outputs, size=rows)


PAIRS = [(t, n) for n, m in METRICS.items() for t in sorted(m.tasks)]


@pytest.mark.filterwarnings("ignore::UserWarning:sklearn")  # it warns of rare classes, which the examples have
@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_score_of_every_member_agrees_with_sklearn(task: Task, name: str) -> None:
    @settings(max_examples=15, deadline=None)
    @given(
        st.integers(1, 3), st.integers(2, 40), st.integers(3, 6), st.integers(0, 10**6), st.booleans(), st.booleans()
    )
    def check(members: int, rows: int, outputs: int, seed: int, ties: bool, across: bool) -> None:
        outputs = 2 if task is Task.BINARY else outputs
        out, y = problem(task, members, rows, outputs, seed, ties)
        if name == "roc_auc" and len(set(y)) < 2:
            return  # scikit-learn has no answer; ours is held below
        tensor = torch.from_numpy(out)
        if across:  # as the engine lays them out: rows last in memory
            tensor = tensor.transpose(1, 2).contiguous().transpose(1, 2)
        found = scores(task, tensor, torch.from_numpy(y), [name])[name]
        assert found.shape == (members,)
        assert found.dtype == np.float64
        for i in range(members):
            np.testing.assert_allclose(found[i], by_sklearn(name, task, out[i], y), rtol=1e-5, atol=1e-7)

    check()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("task", "name"), PAIRS)
def test_score_of_a_member_that_is_not_finite_is_nan_and_no_others(task: Task, name: str, bad: float) -> None:
    out, y = problem(task, 3, 20, 2 if task is Task.BINARY else 4, 1, False)
    clean = scores(task, torch.from_numpy(out), torch.from_numpy(y), [name])[name]
    out[1, 7, 0] = bad
    found = scores(task, torch.from_numpy(out), torch.from_numpy(y), [name])[name]
    assert math.isnan(found[1])
    assert np.array_equal(found[[0, 2]], clean[[0, 2]])


def test_area_under_the_curve_of_one_class_is_nan() -> None:
    out, _ = problem(Task.BINARY, 2, 5, 2, 0, False)
    found = scores(Task.BINARY, torch.from_numpy(out), torch.ones(5, dtype=torch.int64), ["roc_auc"])["roc_auc"]
    assert np.isnan(found).all()


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_r2_of_a_constant_target_is_what_sklearn_says(target: float) -> None:
    y = torch.full((4, 1), target)
    out = torch.stack([y, y + 1])
    found = scores(Task.REGRESSION, out, y, ["r2"])["r2"]
    assert found.tolist() == [sk.r2_score(y, o) for o in out]


def test_scores_of_no_rows_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"no rows to score.*split is empty"):
        scores(Task.BINARY, torch.zeros(3, 0, 2), torch.zeros(0, dtype=torch.int64), ["accuracy"])


def test_score_that_a_task_has_not_is_refused_by_name() -> None:
    with pytest.raises(TrainingError, match=r"regression.*'accuracy'.*mae, mse, r2, rmse"):
        scores(Task.REGRESSION, torch.zeros(1, 3, 1), torch.zeros(3, 1), ["accuracy"])
    with pytest.raises(TrainingError, match=r"'accuray'"):
        scores(Task.BINARY, torch.zeros(1, 3, 2), torch.zeros(3, dtype=torch.int64), ["accuray"])
