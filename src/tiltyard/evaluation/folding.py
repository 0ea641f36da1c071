"""One model version's answers on one dataset version, folded as they come, and what they say at the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tiltyard.data.profile import Builder, ColumnProfile
from tiltyard.evaluation.compare import Paired, PairFold, row_metric
from tiltyard.evaluation.drift import ColumnDrift, DriftFold, DriftReport, schema_changes
from tiltyard.evaluation.fairness import fairness
from tiltyard.evaluation.scores import Array, Scored, ScoreFold, label_numbers, row_values
from tiltyard.evaluation.slices import MISSING, OTHER, Slice, SlicedFold
from tiltyard.types import Task

SCHEMA_VERSION = 1
PREDICTED, CONFIDENCE = "(prediction)", "(confidence)"
"""Columns of what was predicted, beside the inputs, where drift is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The result of one model version on one dataset version.

    Args:
        model: Registered name.
        model_version: Its number.
        dataset: Name.
        dataset_version: Its number.
        metric: What models are chosen by.
        rows: Which rows were asked about.
        scored: All rows.
        slices: Column to slice to scores.
        fairness: Sensitive columns' groups compared.
        drift: Against the training split; None where there was nothing to compare with.
        against: The champion, ``NAME@VERSION``; empty where this is it.
        paired: The differences to the champion on the same rows; None where there is none, or no label yet.
        predictions: Folder of the kept answers.
        shapes: Profiles of what was predicted: what later versions' predictions are compared with.
        seconds: Wall time.
        problem: Why nothing could be predicted; empty where it could.
        task: What the model predicts.
        classes: Label values in the order of its outputs, or names of its targets.
        labels: Label columns.
        keys: Columns that late labels are joined by.
        spec: The `tiltyard.evaluation.spec.Evaluation` it was made by, as JSON: a revision keeps to it.
    """

    model: str
    model_version: int
    dataset: str
    dataset_version: int
    metric: str
    rows: str
    scored: Scored
    slices: Mapping[str, Mapping[str, Scored]] = field(default_factory=dict)
    fairness: tuple[Mapping[str, Any], ...] = ()
    drift: DriftReport | None = None
    against: str = ""
    paired: Paired | None = None
    predictions: str = ""
    shapes: Mapping[str, ColumnProfile] = field(default_factory=dict)
    seconds: float = 0.0
    problem: str = ""
    task: Task | None = None
    classes: tuple[Any, ...] = ()
    labels: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    spec: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``MODEL@VERSION``."""
        return f"{self.model}@{self.model_version}"

    @property
    def on(self) -> str:
        """``DATASET@VERSION``."""
        return f"{self.dataset}@{self.dataset_version}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``; not-a-numbers as null."""
        return {"schema_version": SCHEMA_VERSION, **_plain(asdict(self))}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluated:
        """What ``to_json`` gave.

        Raises:
            ValueError: If a newer Tiltyard wrote it.
        """
        values = dict(data)
        if values.pop("schema_version") > SCHEMA_VERSION:
            raise ValueError("a newer Tiltyard wrote this evaluation; install it")
        drift, paired = values["drift"], values["paired"]
        values["scored"] = _scored(values["scored"])
        values["slices"] = {c: {n: _scored(s) for n, s in of.items()} for c, of in values["slices"].items()}
        values["fairness"] = tuple(values["fairness"])
        for name in ("classes", "labels", "keys"):
            values[name] = tuple(values[name])
        values["task"] = None if values["task"] is None else Task(values["task"])
        values["paired"] = None if paired is None else Paired.from_json(paired)
        values["shapes"] = {n: ColumnProfile.from_json(c) for n, c in values["shapes"].items()}
        values["drift"] = None if drift is None else _drift(drift)
        return cls(**values)


def _plain(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _scored(data: Mapping[str, Any]) -> Scored:
    scores = {n: {**s, "value": float("nan") if s["value"] is None else s["value"]} for n, s in data["scores"].items()}
    return Scored.from_json({**data, "scores": scores})


def _drift(data: Mapping[str, Any]) -> DriftReport:
    columns = tuple(
        ColumnDrift(**{**c, "most_moved": tuple(c["most_moved"]) if c["most_moved"] else None}) for c in data["columns"]
    )
    return DriftReport(
        **{
            **data,
            "columns": columns,
            "missing_columns": tuple(data["missing_columns"]),
            "new_columns": tuple(data["new_columns"]),
            "changed_types": {n: tuple(t) for n, t in data["changed_types"].items()},
        }
    )


def prediction_table(task: Task, classes: Sequence[Any], outputs: Array) -> pa.Table:
    """What was predicted, as columns: the class and its probability, one column a label, or the number."""
    if task is Task.REGRESSION:
        names = classes if outputs.shape[1] > 1 else [""]
        return pa.table({f"{PREDICTED}{n}": pa.array(outputs[:, i]) for i, n in enumerate(names)})
    if task is Task.MULTILABEL:
        return pa.table({f"{PREDICTED}{n}": pa.array(outputs[:, i] > 0) for i, n in enumerate(classes)})
    predicted = outputs.argmax(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        best = outputs[np.arange(len(outputs)), predicted][:, None]
        confidence = (1 / np.exp(outputs - best).sum(axis=1)).astype(np.float32)
    names = pa.array([str(c) for c in classes])
    return pa.table({PREDICTED: names.take(pa.array(predicted)), CONFIDENCE: pa.array(confidence)})


class Folding:
    """Everything that is folded for one model version.

    Args:
        task: What it predicts.
        classes: Label values in the order of its outputs, or names of its targets.
        labels: Label columns in the rows.
        metric: What models are chosen by.
        slices: What scores are split by.
        sensitive: Columns compared for fairness.
        positive: Which class is the good outcome.
        profiles: Of the training split's columns.
        references: Of the columns in which drift is looked for: inputs, label and predictions.
    """

    def __init__(
        self,
        *,
        task: Task,
        classes: Sequence[Any],
        labels: Sequence[str],
        metric: str,
        slices: Sequence[Slice] = (),
        sensitive: Sequence[str] = (),
        positive: int = -1,
        profiles: Mapping[str, ColumnProfile],
        references: Mapping[str, ColumnProfile],
    ) -> None:
        self.task, self.classes, self.labels, self.metric = task, tuple(classes), tuple(labels), metric
        self._sensitive, self._positive = tuple(sensitive), positive
        first = profiles.get(self.labels[0]) if self.labels and task is Task.REGRESSION else None
        centre = first.mean if first is not None and first.mean is not None else 0.0
        self._scores = ScoreFold(task, len(self.classes), centre=centre)
        self._slices = SlicedFold(slices, profiles, task=task, num_outputs=len(self.classes), centre=centre)
        self._drift = DriftFold(references) if references else None
        self._shapes = Builder()
        self._pairs: PairFold | None = None

    def add(self, table: pa.Table, outputs: Array, y: Array | None = None) -> Array:
        """The next rows; returns their labels as numbers.

        Args:
            table: Rows with the inputs, and labels and slices where they are there.
            outputs: The model's raw answers.
            y: Labels where they are known from elsewhere.
        """
        if y is None:
            y = self.label_numbers(table)
        self._scores.add(outputs, y)
        self._slices.add(table, outputs, y)
        predicted = prediction_table(self.task, self.classes, outputs)
        self._shapes.add(predicted)
        if self._drift is not None:
            for name in predicted.column_names:
                table = table.append_column(name, predicted[name])
            self._drift.add(table)
        return y

    def label_numbers(self, table: pa.Table) -> Array:
        """The labels of rows; none known where the columns are not there."""
        if not self.labels or any(n not in table.column_names for n in self.labels):
            if self.task in (Task.BINARY, Task.MULTICLASS):
                return np.full(table.num_rows, -1, np.int64)
            return np.full((table.num_rows, len(self.classes)), np.nan)
        return label_numbers(self.task, self.classes, [table[n] for n in self.labels])

    def add_pair(self, champion: Array, outputs: Array, y: Array) -> None:
        """The champion's answers to the same rows; rows without one, or without a label, do not count."""
        known = (y >= 0) if y.ndim == 1 else ~np.isnan(y).any(axis=1)
        known &= ~np.isnan(champion).all(axis=1)
        if self._pairs is None:
            self._pairs = PairFold(row_metric(self.metric))
        if known.any():
            values = [row_values(self.task, o[known], y[known], self._pairs.metric) for o in (champion, outputs)]
            self._pairs.add(values[0], values[1])

    def done(self, *, alpha: float, least_effect: float, schema: Mapping[str, str] | None = None) -> dict[str, Any]:
        """The fields of an `Evaluated` that come from the rows."""
        slices = self._slices.done()
        groups = []
        for column in self._sensitive:
            of = {
                n: s.confusion for n, s in slices.get(column, {}).items() if n not in {OTHER, MISSING} and s.confusion
            }
            if of:
                groups.append(fairness(column, of, positive=self._positive).to_json())
        drift = None
        if self._drift is not None:
            report = self._drift.report(alpha=alpha, least_effect=least_effect)
            drift = report if schema is None else with_schema(report, self._drift.references, schema)
        pairs = self._pairs.done() if self._pairs is not None and self._pairs.rows else None
        return {
            "scored": self._scores.done(),
            "slices": slices,
            "fairness": tuple(groups),
            "drift": drift,
            "paired": pairs,
            "shapes": dict(self._shapes.done().columns) if self._scores.rows else {},
        }


def with_schema(report: DriftReport, references: Mapping[str, ColumnProfile], schema: Mapping[str, str]) -> DriftReport:
    """The report with what changed in the schema; predictions are no columns of it."""
    inputs = {n: p.type for n, p in references.items() if not n.startswith((PREDICTED, CONFIDENCE))}
    gone, _, changed = schema_changes(inputs, schema, inputs)
    return replace(report, missing_columns=gone, changed_types=changed)
