"""What is written about a launch and its trials, as plain values; and how a long history is thinned. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_POINTS = 64
"""Points of a history that reach MLflow. All of them stand in the curves (Parquet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchRecord:
    """A launch: becomes the parent run."""

    experiment: str
    key: str
    launch_id: str
    spec: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """A trial that ended: becomes a child run. ``history`` is (epoch, metrics) in order; times in milliseconds."""

    cell: str
    name: str
    variant: str
    dataset: str
    dataset_version: int
    dataset_digest: str
    params: Mapping[str, Any]
    history: Sequence[tuple[int, Mapping[str, float]]]
    state: str
    reason: str | None
    duration_s: float
    cpu_s: float
    start_ms: int
    end_ms: int
    test: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> tuple[str, int, int]:
        """What tells one writing of this trial from the next: its state, its last epoch, its test scores."""
        return self.state, self.history[-1][0] if self.history else 0, len(self.test)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """A model version on a dataset version: becomes a run of its own, with one step a revision.

    Args:
        experiment: The MLflow experiment.
        key: Of the evaluation; a run is found again by it.
        revision: Of the result, from 1.
        model: ``NAME@VERSION``.
        model_run_id: The run that the model version came from.
        dataset: Name of the dataset.
        dataset_version: Its number.
        dataset_digest: Of its content.
        metrics: Scores, with their intervals' ends.
        params: How it was evaluated.
        result: All of it, as JSON.
        at_ms: When, in milliseconds since 1970.
        duration_s: Wall time.
    """

    experiment: str
    key: str
    revision: int
    model: str
    model_run_id: str
    dataset: str
    dataset_version: int
    dataset_digest: str
    metrics: Mapping[str, float]
    params: Mapping[str, Any]
    result: str
    at_ms: int
    duration_s: float = 0.0


def thin(
    history: Sequence[tuple[int, Mapping[str, float]]], limit: int = MAX_POINTS
) -> list[tuple[int, Mapping[str, float]]]:
    """At most ``limit`` points, evenly spaced, the first and the last among them.

    >>> [epoch for epoch, _ in thin([(i, {}) for i in range(1, 101)], 4)]
    [1, 34, 67, 100]
    """
    if len(history) <= limit:
        return list(history)
    last = len(history) - 1
    return [history[round(i * last / (limit - 1))] for i in range(limit)]
