"""Where a model does worse than on the rest of the rows: slices that nobody had to declare, counted on one table. Pure.

Columns are cut by what the training split looked like: categories and yes-or-no by their values, numbers at their quartiles,
sensitive columns always. Each slice is held against the rows outside it; p-values are Holm's over all slices that were
looked at, so that a slice that is called weak is not merely the unluckiest of many. Only counts and means leave here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data.profile import QUANTILES, ColumnProfile
from tiltyard.evaluation.corrections import holm
from tiltyard.evaluation.fairness import fairness
from tiltyard.evaluation.scores import Score, Z, wilson
from tiltyard.evaluation.slices import MISSING, OTHER, Slice
from tiltyard.types import METRICS

LEAST_ROWS = 20
"""Rows that a slice needs, and that must lie outside it."""
MOST_COLUMNS = 256
"""Columns that are looked at; a wider table's first ones, sensitive ones before all."""
MOST_NUMBERS = 4
"""Different whole numbers that are values of their own; of more there are quartiles."""
MOST_KEPT = 16
"""Slices of columns that are not sensitive of which something is told: the weakest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceScore:
    """One slice of one model's rows.

    Args:
        column: By which rows were split.
        name: Of the slice.
        sensitive: Whether the column is.
        rows: In it.
        value: The mean of the metric over them.
        low: Lower end of its 95% interval.
        high: Upper end.
        p: That it is worse than the rows outside it, by chance alone; corrected for all slices that were looked at.
    """

    column: str
    name: str
    sensitive: bool
    rows: int
    value: float
    low: float
    high: float
    p: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def cuts(
    profiles: Mapping[str, ColumnProfile],
    *,
    sensitive: Sequence[str],
    leave_out: frozenset[str],
    classes: Sequence[str] = (),
) -> tuple[Slice, ...]:
    """How columns are cut, from the training split's profile.

    Args:
        profiles: By column.
        sensitive: Columns that are cut before all others.
        leave_out: Columns that are not: keys, times.
        classes: Columns of classes, which go by their values however many there are.
    """
    found = []
    for column in [*sensitive, *(c for c in profiles if c not in sensitive and c not in leave_out)]:
        profile = profiles.get(column)
        if profile is None:
            continue
        is_number = profile.type.startswith(("int", "uint", "float", "decimal")) and "[" not in profile.type
        by_value = not is_number or column in classes or len(profile.categories) <= MOST_NUMBERS
        if profile.categories and by_value:
            found.append(Slice(column=column))
        elif is_number and len(profile.quantiles) == len(QUANTILES):
            quartiles = (profile.quantiles[QUANTILES.index(q)] for q in (0.25, 0.5, 0.75))
            edges = sorted({float(q) for q in quartiles if math.isfinite(q) and q > profile.quantiles[0]})
            if edges:
                found.append(Slice(column=column, edges=tuple(edges)))
    return tuple(found[:MOST_COLUMNS])


def weaknesses(
    values: Sequence[npt.NDArray[np.float64]],
    table: pa.Table,
    slices: Sequence[Slice],
    profiles: Mapping[str, ColumnProfile],
    *,
    metric: str,
    sensitive: Sequence[str] = (),
) -> list[list[SliceScore]]:
    """Of each model the same slices: all those of sensitive columns, and of the others the first model's weakest.

    Slices with too few rows in or outside them are left out; of a model whose values are not all finite nothing is told.

    Args:
        values: Of each model the metric of every row, ``(rows,)``; the first model decides which slices are told of.
        table: The rows.
        slices: From `cuts`.
        profiles: Of their columns.
        metric: Its name; shares get Wilson's interval, means the normal one.
        sensitive: Columns of which every slice is told.
    """
    every: list[dict[tuple[str, str], tuple[int, Score, float]]] = [{} for _ in values]
    sign, share = METRICS[metric].mode.sign, metric in {"accuracy", "subset_accuracy"}
    sound = [bool(np.isfinite(of).all()) for of in values]
    for s in slices:
        if s.column not in table.column_names:
            continue
        names = s.names(profiles[s.column])
        codes = s.codes(table[s.column].combine_chunks(), names)
        rows = np.bincount(codes, minlength=len(names))
        kept = [i for i, n in enumerate(rows) if LEAST_ROWS <= n <= table.num_rows - LEAST_ROWS]
        for of, found, is_sound in zip(values, every, sound, strict=True):
            if is_sound:
                scores = _scores(of, codes, kept, rows, share=share, sign=sign)
                found |= {(s.column, names[i]): (int(rows[i]), *score) for i, score in zip(kept, scores, strict=True)}
    corrected = [_corrected(found) for found in every]
    first = corrected[0] if corrected else {}
    weakest = sorted((at for at in first if at[0] not in sensitive), key=lambda at: (every[0][at][2], at))[:MOST_KEPT]
    told = [*(at for at in first if at[0] in sensitive), *weakest]
    return [
        [_slice(at, *found[at][:2], p[at], at[0] in sensitive) for at in told if at in found]
        for found, p in zip(every, corrected, strict=True)
    ]


def _corrected(found: Mapping[tuple[str, str], tuple[int, Score, float]]) -> dict[tuple[str, str], float]:
    p = holm({str(i): p for i, (_, _, p) in enumerate(found.values())})
    return {at: p[str(i)] for i, at in enumerate(found)}


def _slice(at: tuple[str, str], rows: int, score: Score, p: float, sensitive: bool) -> SliceScore:
    low, high = (score.value if end is None else end for end in (score.low, score.high))
    return SliceScore(
        column=at[0], name=at[1], sensitive=sensitive, rows=rows, value=score.value, low=low, high=high, p=p
    )


def _scores(
    values: npt.NDArray[np.float64],
    codes: npt.NDArray[np.int64],
    kept: Sequence[int],
    rows: npt.NDArray[np.int64],
    *,
    share: bool,
    sign: float,
) -> list[tuple[Score, float]]:
    """The mean of each slice with its interval, and the p-value that it is worse than the rows outside it."""
    from scipy.stats import hypergeom, ttest_ind_from_stats

    sums = np.bincount(codes, weights=values, minlength=len(rows))
    if share:  # exact: so few of the right answers among so many rows drawn from all (Fisher 1935)
        hits, total = np.rint(sums).astype(np.int64), round(float(values.sum()))
        return [
            (wilson(int(hits[i]), int(rows[i])), float(hypergeom.cdf(hits[i], len(values), total, rows[i])))
            for i in kept
        ]
    centred = values - values.mean()
    squares, of_all = np.bincount(codes, weights=centred**2, minlength=len(rows)), float((centred**2).sum())
    found = []
    for i in kept:
        n, m = int(rows[i]), len(values) - int(rows[i])
        inside = float(sums[i] / n - values.mean())
        outside = -inside * n / m
        std_in = math.sqrt(max(0.0, squares[i] / n - inside**2) * n / (n - 1))
        std_out = math.sqrt(max(0.0, (of_all - squares[i]) / m - outside**2) * m / (m - 1))
        half = Z * std_in / math.sqrt(n)
        mean = float(values.mean()) + inside
        p = 1.0
        if std_in > 0 or std_out > 0:  # Welch 1947
            ends = (sign * inside, std_in, n, sign * outside, std_out, m)
            p = float(ttest_ind_from_stats(*ends, equal_var=False, alternative="less").pvalue)
        found.append((Score(value=mean, low=mean - half, high=mean + half), p))
    return found


def groups_alike(
    predicted: npt.NDArray[np.int64],
    y: npt.NDArray[np.int64],
    table: pa.Table,
    columns: Sequence[Slice],
    profiles: Mapping[str, ColumnProfile],
    *,
    num_classes: int,
) -> list[dict[str, Any]]:
    """Sensitive columns' groups compared (`tiltyard.evaluation.fairness`); the last class is the good outcome.

    Args:
        predicted: Class numbers, ``(rows,)``.
        y: Of the labels.
        table: The rows, with the columns.
        columns: How they are cut.
        profiles: Of them.
        num_classes: Of the model.
    """
    found = []
    for s in columns:
        if s.column not in table.column_names:
            continue
        names = s.names(profiles[s.column])
        codes = s.codes(table[s.column].combine_chunks(), names)
        size = num_classes * num_classes
        flat = np.bincount(codes * size + y * num_classes + predicted, minlength=len(names) * size)
        counts = flat.reshape(len(names), num_classes, num_classes)
        of = {n: counts[i].tolist() for i, n in enumerate(names) if n not in {OTHER, MISSING} and counts[i].any()}
        if of:
            found.append(_plain(fairness(s.column, of, positive=num_classes - 1).to_json()))
    return found


def _plain(value: Any) -> Any:
    """JSON has no NaN, which a rate of no rows is: it becomes null."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
