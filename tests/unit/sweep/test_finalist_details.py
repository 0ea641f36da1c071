"""What is kept of a finalist's test rows beside its score: counts, and only where there are classes."""

from __future__ import annotations

import numpy as np

from tiltyard.sweep.engine.finals import detail_of
from tiltyard.types import Task


def test_detail_of_a_classifier_counts_answers_by_label_and_holds_no_row() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    answers = np.array([0, 1, 1, 2, 2, 0])
    outputs = np.log(np.where(np.eye(3)[answers] == 1, 0.8, 0.1)).astype(np.float32)
    found = detail_of(Task.MULTICLASS, outputs, labels, ["a", "b", "c"])
    assert found["confusion"] == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert found["classes"] == ["a", "b", "c"]
    ((rows, confidence, right),) = found["calibration"]
    assert rows == 6
    assert np.isclose(confidence, 0.8)
    assert np.isclose(right, 4 / 6)
    assert np.isclose(found["calibration_error"], 0.8 - 4 / 6)


def test_detail_of_a_regression_is_empty() -> None:
    found = detail_of(Task.REGRESSION, np.zeros((4, 1)), np.zeros((4, 1)), [])
    assert (found["confusion"], found["calibration"]) == ([], [])
