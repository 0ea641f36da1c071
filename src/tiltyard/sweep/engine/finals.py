"""The one look at the test split: scores the finalists of each dataset on the same rows. A second look is recorded.

The rows come through the preprocessing that was fitted on the training split. Intervals and ties are
`tiltyard.sweep.leaderboard`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Journal
from tiltyard.preprocessing import Preprocessor
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.predict import open_trial, predict
from tiltyard.sweep.leaderboard import Result, TestScore, ties_with_best, wilson
from tiltyard.sweep.plan import Trial
from tiltyard.types import Mode, Task

Array = npt.NDArray[Any]
BOOTSTRAP_CELLS = 4_000_000
"""Resamples x rows of an interval at most; between 50 and 1,000 resamples."""


def look_at_test(
    *,
    journal: Journal,
    layout: Layout,
    experiment: Experiment,
    finalists: Mapping[str, Sequence[Result]],
    trials: Mapping[str, Trial],
    known: Mapping[tuple[str, int], CellScore],
    prepared: Mapping[str, tuple[pa.Table, Preprocessor]],
    key: str,
) -> tuple[dict[str, TestScore], frozenset[str], int]:
    """Test scores by cell, the cells that cannot be told apart from their dataset's best, and how many looks that makes."""
    scores: dict[str, TestScore] = {}
    tied: set[str] = set()
    looks = 0
    for dataset, results in finalists.items():
        if not results or dataset not in prepared:
            continue
        looks = max(looks, journal.record_test_look(key, dataset, [r.cell for r in results]))
        table, preprocessor = prepared[dataset]
        x, y = preprocessor.transform(table), preprocessor.transform_label(table)
        per_row = {}
        for result in results:
            outputs = outputs_of(layout, trials[result.cell], known[result.cell, result.epoch], x)
            per_row[result.cell] = row_scores(trials[result.cell].task, outputs, y)
            scores[result.cell] = test_score(experiment, trials[result.cell].task, outputs, y)
        tied |= ties_with_best(per_row, Mode.MAX)
    return scores, frozenset(tied), looks


def outputs_of(layout: Layout, trial: Trial, score: CellScore, x: Array) -> Array:
    """What a trial's parameters at a score's epoch answer on ``x``: ``(rows, outputs)``."""
    trained = open_trial(layout.storage, model=trial.model, folder_uri=score.storage_uri, cell=trial.cell)
    return predict(trained, x)


def row_scores(task: Task, outputs: Array, y: Array) -> Array:
    """One value a row, larger is better: correctness, or the negated squared error. Paired comparisons are made on it."""
    if task in {Task.BINARY, Task.MULTICLASS}:
        return np.asarray(outputs.argmax(axis=1) == y, dtype=np.float64)
    if task is Task.MULTILABEL:
        return np.asarray(((outputs > 0) == (y > 0.5)).mean(axis=1), dtype=np.float64)
    return np.asarray(-((outputs - y) ** 2).mean(axis=1), dtype=np.float64)


def test_score(experiment: Experiment, task: Task, outputs: Array, y: Array) -> TestScore:
    """The ranking metric on the test rows with its 95% interval, and the metrics beside it.

    Accuracy has Wilson's interval; any other metric the percentile bootstrap over rows, seeded.
    """
    metric = experiment.objective.metric
    values = _metrics(task, outputs, y, experiment.objective.metrics)
    if metric == "accuracy":
        low, high = wilson(values[metric] * len(y), len(y))
    else:
        draws = int(np.clip(BOOTSTRAP_CELLS // max(1, len(y)), 50, 1000))
        rng = np.random.default_rng(0)
        resampled = [
            _metrics(task, outputs[rows], y[rows], (metric,))[metric]
            for rows in (rng.integers(0, len(y), len(y)) for _ in range(draws))
        ]
        low, high = (float(v) for v in np.nanpercentile(resampled, (2.5, 97.5)))
    others = {name: value for name, value in values.items() if name != metric}
    return TestScore(metric=metric, value=values[metric], low=low, high=high, rows=len(y), others=others)


def _metrics(task: Task, outputs: Array, y: Array, names: Sequence[str]) -> dict[str, float]:
    import torch

    from tiltyard.training import scores

    found = scores(task, torch.from_numpy(outputs)[None], torch.from_numpy(y), names)
    return {name: float(value[0]) for name, value in found.items()}
