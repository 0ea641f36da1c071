"""How good are answers, row by row as they come, in bounded memory? By scikit-learn's definitions, with intervals.

A `ScoreFold` takes parts of outputs and labels and keeps sums: the confusion matrix, sums and squares of losses, bins of
confidence, and, for ROC AUC, a histogram of margins over 65,536 cells of equal *relative* width (the upper half of a
float32), whose error is below 1e-4 (test). Folds of parts add up.

Intervals are of 95%: Wilson's for shares; normal for means of rows; DeLong's on the logit scale for AUC; percentiles of a
seeded multinomial bootstrap of the confusion matrix for balanced accuracy and F1 (where no row is wrong, from each
class's Wilson bound); the delta method for RMSE and R².

Pure; NumPy alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tiltyard.errors import DataError, SpecError
from tiltyard.types import METRICS, Task

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Z = 1.959963984540054
"""Of a two-sided interval of 95%."""
BINS = 15
"""Bins of confidence of a calibration curve."""
CELLS = 1 << 16
"""Cells of the histogram of margins."""
MOST_CLASSES = 200
"""Classes up to which there is a confusion matrix, and balanced accuracy and F1 get an interval."""
DRAWS = 500
_LEAST = math.log(np.finfo(np.float64).eps)
"""As in training: no probability counts as smaller than this."""
_CLASSES = frozenset({Task.BINARY, Task.MULTICLASS})
ROW_METRICS = frozenset({"accuracy", "subset_accuracy", "log_loss", "brier", "mse", "mae"})
"""Metrics that are the mean of a value a row: those that two models can be compared by while rows stream past."""
UNLABELLED, UNKNOWN = -1, -2
"""Class numbers of a row whose label is not there yet, and of one whose label the model has no output for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One score with its interval of 95%; None where none is defined."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.4f}"
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What a fold says.

    Args:
        rows: Answered rows.
        labelled: Of them with a label the model knows.
        unknown_labels: Rows whose label is none of the model's classes: each is an error that no score shows.
        not_finite: Answers that are NaN or infinite; where there is one, every score is NaN.
        scores: By metric.
        confusion: Rows by (actual, predicted) class; empty for other tasks, and for very many classes.
        calibration: Per bin of confidence: rows, mean confidence, share that was right (for two classes: the probability of
            the second class and how often it was the second).
        calibration_error: Mean distance of confidence and share, weighted by rows; None where there are no probabilities.
    """

    rows: int
    labelled: int
    unknown_labels: int = 0
    not_finite: int = 0
    scores: Mapping[str, Score] = field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration: tuple[tuple[int, float, float], ...] = ()
    calibration_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scored:
        """What ``to_json`` gave."""
        return cls(
            **{
                **data,
                "scores": {n: Score(**s) for n, s in data["scores"].items()},
                "confusion": tuple(tuple(r) for r in data["confusion"]),
                "calibration": tuple((r[0], r[1], r[2]) for r in data["calibration"]),
            }
        )


def label_numbers(task: Task, classes: Sequence[Any], columns: Sequence[pa.ChunkedArray]) -> Array:
    """Labels as a fold wants them.

    For classes int64 ``(rows,)``, with `UNLABELLED` and `UNKNOWN`; else float64 ``(rows, n)``, with NaN where there is none.

    Args:
        task: Of the model.
        classes: Label values in the order of its outputs.
        columns: The label column, or one for each of several labels or targets.

    Raises:
        DataError: If a label column is of a type that labels cannot be.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        if task in _CLASSES:
            found = pc.index_in(columns[0], value_set=pa.array(classes, type=columns[0].type))
            numbers = found.fill_null(UNKNOWN).to_numpy().astype(np.int64)
            if columns[0].null_count:
                numbers[columns[0].is_null().to_numpy()] = UNLABELLED
            return np.asarray(numbers)
        wide = [c.cast(pa.float64(), safe=False).to_numpy() for c in columns]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise DataError(
            f"A label column is {columns[0].type}, and the model's labels are {list(classes)[:5]}: {error}. "
            "Commit the version with the labels as the model was trained on."
        ) from error
    return np.stack(wide, axis=1)


class ScoreFold:
    """Answers and labels of one model version, counted.

    Args:
        task: What it predicts.
        num_outputs: Classes, labels or targets.
        centre: Near the mean of a regression's targets: sums of squares are taken about it.
    """

    def __init__(self, task: Task, num_outputs: int, *, centre: float = 0.0) -> None:
        self.task, self.num_outputs, self.centre = task, num_outputs, centre
        self.rows = self.labelled = self.unknown_labels = self.not_finite = 0
        n = num_outputs
        self._sums: dict[str, Any] = {"rows": _Means()}
        if task in _CLASSES:
            self._sums |= {
                "confusion": np.zeros((n, n) if n <= MOST_CLASSES else (0, 0), np.int64),
                "per_label": np.zeros((3, n)),
                "bins": np.zeros((BINS, 3)),
                "margins": np.zeros((2, CELLS if task is Task.BINARY else 0), np.int64),
            }
        elif task is Task.MULTILABEL:
            self._sums |= {"per_label": np.zeros((3, n))}
        else:
            self._sums |= {"moments": np.zeros((8, n))}

    def add(self, outputs: Array, y: Array) -> None:
        """The next rows.

        Args:
            outputs: ``(rows, outputs)`` raw.
            y: As `label_numbers` gives them.
        """
        self.rows += len(outputs)
        known = y >= 0 if self.task in _CLASSES else ~np.isnan(y).any(axis=1)
        if self.task in _CLASSES:
            self.unknown_labels += int(np.count_nonzero(y == UNKNOWN))
        finite = np.isfinite(outputs).all(axis=1)
        self.not_finite += len(outputs) - int(np.count_nonzero(finite))
        known &= finite
        if not known.all():
            outputs, y = outputs[known], y[known]
        self.labelled += len(outputs)
        if len(outputs):
            {Task.MULTILABEL: self._add_labels, Task.REGRESSION: self._add_targets}.get(self.task, self._add_classes)(
                outputs, y
            )

    def merge(self, other: ScoreFold) -> None:
        """Adds the rows of another fold of the same model."""
        self.rows += other.rows
        self.labelled += other.labelled
        self.unknown_labels += other.unknown_labels
        self.not_finite += other.not_finite
        for name, values in other._sums.items():
            self._sums[name] = self._sums[name] + values

    def done(self, metrics: Sequence[str] | None = None) -> Scored:
        """The scores of all rows so far; all of the task's metrics where none are named."""
        names = [n for n, m in METRICS.items() if self.task in m.tasks] if metrics is None else list(metrics)
        scores: dict[str, Score] = {}
        if self.labelled and self.not_finite:
            scores = {n: Score(value=math.nan) for n in names}
        elif self.labelled:
            scores = {n: self._score(n) for n in names}
        bins = self._calibration() if self.task in _CLASSES and self.labelled else ()
        error = sum(n * abs(c - s) for n, c, s in bins) / max(1, sum(n for n, _, _ in bins)) if bins else None
        shows = self.task in _CLASSES and self.num_outputs <= MOST_CLASSES
        return Scored(
            rows=self.rows,
            labelled=self.labelled,
            unknown_labels=self.unknown_labels,
            not_finite=self.not_finite,
            scores=scores,
            confusion=tuple(map(tuple, self._sums["confusion"].tolist())) if shows else (),
            calibration=bins,
            calibration_error=error,
        )

    # -- what is added up -----------------------------------------------------------------------------------------------

    def _add_classes(self, outputs: Array, y: Array) -> None:
        sums, n, rows = self._sums, self.num_outputs, np.arange(len(y))
        predicted = outputs.argmax(axis=1)
        if n <= MOST_CLASSES:
            sums["confusion"] += np.bincount(y * n + predicted, minlength=n * n).reshape(n, n)
        found = (y[predicted == y], predicted, y)
        sums["per_label"] += np.stack([np.bincount(v, minlength=n) for v in found])
        p, loss = _softmax(outputs, y)
        brier = _brier(p, y)
        if self.task is Task.BINARY:
            confidence, right = p[:, 1], y.astype(np.float64)
            sums["margins"] += _margin_counts(outputs, y)
        else:
            confidence, right = p[rows, predicted], (predicted == y).astype(np.float64)
        sums["rows"].add({"log_loss": loss, "brier": brier})
        places = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
        for i, weights in enumerate((None, confidence, right)):
            sums["bins"][:, i] += np.bincount(places, weights, minlength=BINS)

    def _add_labels(self, outputs: Array, y: Array) -> None:
        on, x = outputs > 0, outputs.astype(np.float64)
        self._sums["per_label"] += np.stack([(on * y).sum(0), on.sum(0), y.sum(0)])
        losses = _label_losses(x, y)
        self._sums["rows"].add(
            {
                "log_loss": losses.mean(axis=1),
                "subset_accuracy": (on == (y > 0.5)).all(axis=1).astype(np.float64),
            }
        )

    def _add_targets(self, outputs: Array, y: Array) -> None:
        e, d = outputs.astype(np.float64) - y, y - self.centre
        e2, d2 = e * e, d * d
        self._sums["moments"] += np.stack(
            [v.sum(axis=0) for v in (e2, d, d2, d2 * d, d2 * d2, e2 * e2, e2 * d, e2 * d2)]
        )
        self._sums["rows"].add({"mse": e2.mean(axis=1), "mae": np.abs(e).mean(axis=1)})

    # -- what is read off -----------------------------------------------------------------------------------------------

    def _score(self, name: str) -> Score:
        if name in {"balanced_accuracy", "f1_macro"} and self.task in _CLASSES:
            metric = _balanced if name == "balanced_accuracy" else _f1
            return _of_classes(self._sums["per_label"], self._sums["confusion"], metric)
        if name == "accuracy":
            return wilson(int(self._sums["per_label"][0].sum()), self.labelled)
        if name == "subset_accuracy":
            return wilson(round(self._sums["rows"].sums[name][0]), self.labelled)
        if name == "roc_auc":
            return _auc(self._sums["margins"])
        if name == "f1_macro":
            hit, predicted, actual = self._sums["per_label"]
            both = predicted + actual
            return Score(value=float(np.where(both > 0, 2 * hit / np.maximum(both, 1), 0.0).mean()))
        if name in {"rmse", "r2"}:
            return self._of_moments(name)
        return self._sums["rows"].score(name)  # type: ignore[no-any-return]

    def _of_moments(self, name: str) -> Score:
        n, m = self.labelled, self._sums["moments"] / self.labelled
        e2, d1, d2, d3, d4, e4, e2d, e2d2 = m
        if name == "rmse":
            value = float(np.sqrt(e2).mean())
            if self.num_outputs > 1 or value == 0:
                return Score(value=value)
            half = Z * math.sqrt(max(0.0, float(e4[0] - e2[0] ** 2)) / n) / (2 * value)
            return Score(value=value, low=max(0.0, value - half), high=value + half)
        variance = d2 - d1 * d1
        flat = variance <= 1e-12 * np.maximum(d2, 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(flat, (e2 == 0).astype(float), 1 - e2 / variance)
        if self.num_outputs > 1 or flat[0]:
            return Score(value=float(each.mean()))
        ratio, v = float(e2[0] / variance[0]), float(variance[0])
        c4 = d4[0] - 4 * d1[0] * d3[0] + 6 * d1[0] ** 2 * d2[0] - 3 * d1[0] ** 4
        ec = e2d2[0] - 2 * d1[0] * e2d[0] + d1[0] ** 2 * e2[0]
        spread = max(0.0, float(e4[0] - 2 * ratio * ec + ratio * ratio * c4))
        half = Z * math.sqrt(spread / n) / v
        return Score(value=1 - ratio, low=1 - ratio - half, high=min(1.0, 1 - ratio + half))

    def _calibration(self) -> tuple[tuple[int, float, float], ...]:
        rows = self._sums["bins"]
        return tuple((int(n), float(c / n), float(s / n)) for n, c, s in rows if n)


class _Means:
    """Sums and sums of squares of values a row."""

    def __init__(self, sums: Mapping[str, tuple[float, float]] | None = None, rows: int = 0) -> None:
        self.sums = dict(sums or {})
        self.rows = rows

    def add(self, values: Mapping[str, F64]) -> None:
        for name, v in values.items():
            first, second = self.sums.get(name, (0.0, 0.0))
            self.sums[name] = first + float(v.sum()), second + float(np.einsum("i,i", v, v))
        self.rows += len(next(iter(values.values())))

    def __add__(self, other: _Means) -> _Means:
        names = {*self.sums, *other.sums}
        zero = (0.0, 0.0)
        added = {
            n: (self.sums.get(n, zero)[0] + other.sums.get(n, zero)[0], self.sums.get(n, zero)[1] + other.sums.get(n, zero)[1])
            for n in names
        }  # fmt: skip
        return _Means(added, self.rows + other.rows)

    def score(self, name: str) -> Score:
        first, second = self.sums[name]
        mean = first / self.rows
        if self.rows < 2:
            return Score(value=mean)
        half = Z * math.sqrt(max(0.0, second / self.rows - mean * mean) / (self.rows - 1))
        return Score(value=mean, low=max(0.0, mean - half), high=mean + half)


def wilson(hits: int, rows: int) -> Score:
    """A share with Wilson's interval (1927).

    >>> str(wilson(9, 10))
    '0.9000 [0.5958, 0.9821]'
    """
    if not rows:
        return Score(value=math.nan)
    share, z2 = hits / rows, Z * Z
    middle = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = Z * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows * rows)) / (1 + z2 / rows)
    return Score(value=share, low=max(0.0, middle - half), high=min(1.0, middle + half))


def row_values(task: Task, outputs: Array, y: Array, metric: str) -> F64:
    """A metric's value of each row, ``(rows,)``, of a metric that is the mean of its rows; labels must be known.

    Raises:
        SpecError: If the metric is no mean of rows.
    """
    if metric not in ROW_METRICS or task not in METRICS[metric].tasks:
        names = ", ".join(sorted(n for n in ROW_METRICS if task in METRICS[n].tasks))
        raise SpecError(f"{metric!r} is no mean over rows of a {task} task; those that are: {names}.")
    if metric == "accuracy":
        return np.asarray(outputs.argmax(axis=1) == y, dtype=np.float64)
    if metric == "subset_accuracy":
        return np.asarray(((outputs > 0) == (y > 0.5)).all(axis=1), dtype=np.float64)
    if task is Task.REGRESSION:
        e = outputs.astype(np.float64) - y
        return np.asarray((e * e if metric == "mse" else np.abs(e)).mean(axis=1))
    if task is Task.MULTILABEL:
        return np.asarray(_label_losses(outputs.astype(np.float64), y).mean(axis=1))
    p, loss = _softmax(outputs, y)
    return loss if metric == "log_loss" else _brier(p, y)


def _softmax(outputs: Array, y: Array) -> tuple[F64, F64]:
    """Probabilities, and the log loss of each row."""
    wide = outputs.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    own = wide[np.arange(len(y)), y]
    p = np.exp(wide, out=wide)
    total = p.sum(axis=1)
    p /= total[:, None]
    return p, np.asarray(np.minimum(np.log(total) - own, -_LEAST))


def _brier(p: F64, y: Array) -> F64:
    """Of two classes the squared error of the second's probability; of more, summed over them."""
    if p.shape[1] == 2:
        return np.asarray((p[:, 1] - y) ** 2)
    return np.asarray((p * p).sum(axis=1) - 2 * p[np.arange(len(y)), y] + 1)


def _label_losses(x: F64, y: Array) -> F64:
    """Binary log loss of each label, ``(rows, labels)``."""
    return np.asarray(np.minimum(np.maximum(x, 0) - x * y + np.log1p(np.exp(-np.abs(x))), -_LEAST))


def _balanced(hit: F64, predicted: F64, actual: F64) -> F64:
    """``(..., C)`` each to ``(...)``: the mean recall of the classes that are there."""
    del predicted
    recall = np.where(actual > 0, hit / np.maximum(actual, 1), 0.0)
    return np.asarray(recall.sum(-1) / np.maximum((actual > 0).sum(-1), 1))


def _f1(hit: F64, predicted: F64, actual: F64) -> F64:
    """Macro F1 over the classes that are there or are predicted, as scikit-learn's."""
    both = predicted + actual
    f1 = np.where(both > 0, 2 * hit / np.maximum(both, 1), 0.0)
    return np.asarray(f1.sum(-1) / np.maximum((both > 0).sum(-1), 1))


def _of_classes(per_class: F64, confusion: Array, metric: Callable[[F64, F64, F64], F64]) -> Score:
    """A metric of per-class counts, with an interval from resamples of the confusion matrix where there is one."""
    value = float(metric(*per_class))
    if not len(confusion):
        return Score(value=value)
    cells, (n, _), rows = np.flatnonzero(confusion), confusion.shape, int(confusion.sum())
    drawn = np.random.default_rng(rows).multinomial(rows, confusion.reshape(-1)[cells] / rows, size=DRAWS)
    actual, predicted = cells // n, cells % n
    sums = [np.zeros((DRAWS, n)) for _ in range(3)]
    for cell, i, j in zip(drawn.T, actual, predicted, strict=True):
        sums[1][:, j] += cell
        sums[2][:, i] += cell
        if i == j:
            sums[0][:, i] += cell
    low, high = np.quantile(metric(*sums), [0.025, 0.975])
    if not confusion[~np.eye(n, dtype=bool)].any():  # no resample can err where no row did
        low = _least_without_errors(per_class[2])
    return Score(value=value, low=float(min(low, value)), high=float(max(high, value)))


def _least_without_errors(actual: F64) -> float:
    """The lower bound of a mean recall of 1: each class's Wilson bound, put together as independent ones are.

    Zou & Donner 2008, "Construction of confidence limits about effect measures". Macro F1 takes it too.

    >>> round(_least_without_errors(np.array([20.0, 20.0])), 3)
    0.886
    """
    short = [1.0 - (wilson(int(rows), int(rows)).low or 0.0) for rows in actual if rows > 0]
    return 1.0 - math.sqrt(sum(s * s for s in short)) / len(short)


def _margin_counts(outputs: Array, y: Array) -> npt.NDArray[np.int64]:
    """Rows of class 0 and 1 in cells of the margin: the upper 16 bits of a float32, in the order of the numbers."""
    margin = (outputs[:, 1].astype(np.float64) - outputs[:, 0]).astype(np.float32) + np.float32(0)  # no -0
    bits = margin.view(np.uint32)
    cells = (np.where(bits >> 31 == 1, ~bits, bits | np.uint32(0x80000000)) >> 16).astype(np.int64)
    return np.bincount(y * CELLS + cells, minlength=2 * CELLS).reshape(2, CELLS)


def _auc(margins: npt.NDArray[np.int64]) -> Score:
    """The rank statistic, ties counting half, with DeLong's interval (1988) on the logit scale."""
    negative, positive = margins.astype(float)
    n, p = negative.sum(), positive.sum()
    if not n or not p:
        return Score(value=math.nan)
    below = (np.cumsum(negative) - negative / 2) / n  # how many of the others a positive beats
    above = (p - np.cumsum(positive) + positive / 2) / p
    value = float((positive * below).sum() / p)
    if n < 2 or p < 2:
        return Score(value=value)
    spread = (positive * (below - value) ** 2).sum() / (p - 1) / p + (negative * (above - value) ** 2).sum() / (
        n - 1
    ) / n
    if value in {0.0, 1.0} or spread <= 0:
        least = wilson(round(value * min(n, p)), int(min(n, p)))
        return Score(value=value, low=least.low, high=least.high)
    half = Z * math.sqrt(spread) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    return Score(value=value, low=1 / (1 + math.exp(half - logit)), high=1 / (1 + math.exp(-half - logit)))
