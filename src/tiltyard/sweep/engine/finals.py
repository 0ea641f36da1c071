"""The one look at the test split: scores the finalists of each dataset on the same rows. A second look is recorded.

The rows come through the preprocessing that was fitted on the training split. Which finalists cannot be told apart from
the best is decided on the ranking metric, by `tiltyard.sweep.comparison`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data.profile import ColumnProfile
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec, DatasetVersion
from tiltyard.errors import TiltyardError
from tiltyard.evaluation.compare import row_metric
from tiltyard.evaluation.scores import ScoreFold, row_values
from tiltyard.evaluation.weaknesses import cuts, groups_alike, weaknesses
from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Claim, Journal
from tiltyard.preprocessing import Preprocessor
from tiltyard.sweep.comparison import Comparison, bootstrap, comparison_of, mcnemar, sign_flip, ties
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.predict import open_trial, predict
from tiltyard.sweep.leaderboard import Result, TestScore, wilson
from tiltyard.sweep.plan import Trial
from tiltyard.types import Task

_LOG = logging.getLogger(__name__)
Array = npt.NDArray[Any]
BOOTSTRAP_CELLS = 4_000_000
"""Resamples x rows of an interval at most; between 50 and 1,000 resamples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What is known of a dataset version's columns: what they are for, and how the training split looked."""

    spec: DatasetSpec
    profiles: Mapping[str, ColumnProfile]


def columns_of(store: DatasetStore, versions: Mapping[str, DatasetVersion]) -> dict[str, Columns]:
    """What is known of versions' columns; without those whose profile cannot be read: no sweep's answer hangs on it."""
    found = {}
    for name, version in versions.items():
        try:
            found[name] = Columns(spec=version.spec, profiles=store.profile(version).splits["train"].columns)
        except (TiltyardError, OSError, KeyError) as error:
            _LOG.warning(
                "The profile of %s cannot be read; its finalists are not told by slices: %s", version.ref, error
            )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was seen on the test split; nothing where it was not looked at.

    Args:
        scores: Of the finalists, by cell.
        tied: Cells that the test rows cannot tell apart from their dataset's best.
        number: How many looks that makes for this key.
        replicates: The ranking metric of the finalists' replicates, by cell.
    """

    scores: Mapping[str, TestScore] = field(default_factory=dict)
    tied: frozenset[str] = frozenset()
    number: int = 0
    replicates: Mapping[str, float] = field(default_factory=dict)


def look_at_test(
    *,
    journal: Journal,
    layout: Layout,
    experiment: Experiment,
    finalists: Mapping[str, Sequence[Result]],
    replicates: Sequence[Result] = (),
    trials: Mapping[str, Trial],
    known: Mapping[tuple[str, int], CellScore],
    prepared: Mapping[str, tuple[pa.Table, Preprocessor]],
    claim: Claim,
    columns: Mapping[str, Columns] | None = None,
) -> Look:
    """Scores finalists, best first, and their replicates, all of them in one look.

    What the rows say beside the scores (confusion, calibration, and with ``columns`` slices and groups) goes to storage.

    Raises:
        FencedError: If the claim was taken over; the look is then the new holder's.
    """
    scores: dict[str, TestScore] = {}
    again: dict[str, float] = {}
    tied: set[str] = set()
    details: dict[str, dict[str, Any]] = {}
    looks = 0
    metric = experiment.objective.metric
    for dataset, results in finalists.items():
        if not results or dataset not in prepared:
            continue
        places = {r.place for r in results}
        seen = [r for r in replicates if r.place in places and r.state == "done"]
        looks = max(
            looks, journal.record_test_look(claim.key, dataset, [r.cell for r in (*results, *seen)], claim=claim)
        )
        table, preprocessor = prepared[dataset]
        x, y = preprocessor.transform(table), preprocessor.transform_label(table)
        task = trials[results[0].cell].task
        outputs = {}
        for result in results:
            outputs[result.cell] = outputs_of(layout, trials[result.cell], known[result.cell, result.epoch], x)
            scores[result.cell] = test_score(experiment, task, outputs[result.cell], y)
            details[result.cell] = detail_of(task, outputs[result.cell], y, preprocessor.classes)
        if columns is not None and dataset in columns:
            told = slices_of(columns[dataset], metric, task, list(outputs.values()), y, table)
            for cell, found_slices in zip(outputs, told, strict=True):
                details[cell] |= found_slices
        for result in seen:
            found = outputs_of(layout, trials[result.cell], known[result.cell, result.epoch], x)
            again[result.cell] = _metrics(task, found, y, (metric,))[metric]
        tied |= ties_with_best(metric, task, outputs, y)
    if details:
        layout.storage.write_json(layout.finalists, {"schema_version": 1, "finalists": details})
    return Look(scores=scores, tied=frozenset(tied), number=looks, replicates=again)


def detail_of(task: Task, outputs: Array, y: Array, classes: Sequence[Any]) -> dict[str, Any]:
    """How a finalist's answers go wrong, counted: confusion and calibration where there are classes. No row of them."""
    if task not in {Task.BINARY, Task.MULTICLASS}:
        return {"classes": [], "confusion": [], "calibration": [], "calibration_error": None}
    fold = ScoreFold(task, outputs.shape[1])
    fold.add(outputs, y)
    found = fold.done(())
    return {
        "classes": [str(c) for c in classes],
        "confusion": [list(row) for row in found.confusion],
        "calibration": [list(of_bin) for of_bin in found.calibration],
        "calibration_error": found.calibration_error,
    }


def slices_of(
    columns: Columns, metric: str, task: Task, outputs: Sequence[Array], y: Array, table: pa.Table
) -> list[dict[str, Any]]:
    """Where each finalist is weak, by the same slices of the rows, and how groups of sensitive columns fare. Counts alone.

    Args:
        columns: Of the dataset version.
        metric: The ranking one; slices are scored by it, or by the mean over rows that is nearest to it.
        task: Of the labels.
        outputs: Of each finalist, best first: ``(rows, outputs)``.
        y: Labels of the rows.
        table: The rows.
    """
    spec, profiles, by = columns.spec, columns.profiles, row_metric(metric)
    has_classes = task in {Task.BINARY, Task.MULTICLASS}
    cut = cuts(
        profiles,
        sensitive=spec.sensitive,
        leave_out=spec.reserved - set(spec.labels),
        classes=spec.labels if has_classes else (),
    )
    groups = [s for s in cut if s.column in spec.sensitive]
    told = weaknesses(
        [row_values(task, o, y, by) for o in outputs],
        table,
        cut,
        profiles,
        metric=by,
        sensitive=spec.sensitive,
    )
    return [
        {
            "slice_metric": by,
            "slices": [s.to_json() for s in slices],
            "fairness": groups_alike(o.argmax(axis=1), y, table, groups, profiles, num_classes=o.shape[1])
            if has_classes
            else [],
        }
        for slices, o in zip(told, outputs, strict=True)
    ]


def outputs_of(layout: Layout, trial: Trial, score: CellScore, x: Array) -> Array:
    """What a trial's parameters at a score's epoch answer on ``x``: ``(rows, outputs)``."""
    trained = open_trial(layout.storage, model=trial.model, folder_uri=score.storage_uri, cell=trial.cell)
    return predict(trained, x)


def ties_with_best(metric: str, task: Task, outputs: Mapping[str, Array], y: Array, *, seed: int = 0) -> frozenset[str]:
    """Cells whose metric cannot be told apart from the first one's on the same rows, at 5% over all of them.

    Args:
        metric: The ranking one; the test follows from it (`tiltyard.sweep.comparison`).
        task: Of the labels.
        outputs: By cell, best first: ``(rows, outputs)``.
        y: Labels of the rows.
        seed: Of what the test draws.
    """
    best, *others = outputs
    if not others:
        return frozenset()
    how = comparison_of(metric)
    if how is Comparison.BOOTSTRAP:
        answers = [_answers(metric, task, out) for out in outputs.values()]
        differing = [int((answer != answers[0]).any(axis=1).sum()) for answer in answers[1:]]
        of_rows = _metric_of_rows(metric, task, list(outputs.values()), y)
        p = bootstrap(of_rows, len(y), differing=differing, seed=seed)
        return ties(dict(zip(others, map(float, p), strict=True)))
    per_row = {cell: _per_row(metric, task, out, y) for cell, out in outputs.items()}
    if how is Comparison.MCNEMAR:
        return ties({cell: mcnemar(per_row[best], per_row[cell]) for cell in others})
    return ties({cell: sign_flip(per_row[best] - per_row[cell], seed=seed) for cell in others})


def _answers(metric: str, task: Task, outputs: Array) -> Array:
    """What the metric sees of each row's outputs: the class, the labels, or all of them; ``(rows, ...)``."""
    if metric in {"f1_macro", "balanced_accuracy"}:
        return outputs > 0 if task is Task.MULTILABEL else outputs.argmax(axis=1)[:, None]
    return outputs


def _metric_of_rows(metric: str, task: Task, outputs: Sequence[Array], y: Array) -> Callable[[Array], Array]:
    """The metric of all models on chosen rows."""
    import torch

    from tiltyard.training import scores

    together, labels = torch.from_numpy(np.stack(outputs)), torch.from_numpy(y)

    def of(rows: Array) -> Array:
        chosen = torch.from_numpy(rows)
        return scores(task, together[:, chosen], labels[chosen], (metric,))[metric]

    return of


def _per_row(metric: str, task: Task, outputs: Array, y: Array) -> Array:
    import torch

    from tiltyard.training.scores import per_row

    return per_row(task, torch.from_numpy(outputs), torch.from_numpy(y), metric)


def row_scores(task: Task, outputs: Array, y: Array) -> Array:
    """One value a row, larger is better: correctness, or the negated squared error."""
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
