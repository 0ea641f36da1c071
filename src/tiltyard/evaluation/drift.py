"""Do new rows look like those a model was trained on? Column by column, from the training split's profile alone.

New rows are *folded*: counted into the cells of the training profile (bins of numbers, named categories), so that any
number of them takes a few kilobytes, and folds of parts add up. Then each column is compared:

- **psi**, the population stability index; **js**, the Jensen-Shannon distance (base 2, 0 to 1); **moved**, the share of
  rows that would have to change their cell (total variation, less what chance moves in samples of these sizes); **ks**,
  the largest difference of the two cumulative shares (Kolmogorov-Smirnov, at the edges of the cells);
- p-values by Kolmogorov-Smirnov, by chi-square over cells, by the one category that moved most, and of the share of missing
  values; they are combined into one a column (`corrections.cauchy`) and corrected for the number of columns (Holm; of
  ``alpha`` categories get `CATEGORY_ALPHA`, numbers the rest).

A column has *drifted* where its corrected p-value is at most ``alpha`` **and** ``moved`` (or the change of the missing
share) is at least ``least_effect``: at ten million rows everything is significant, at a hundred everything moves. The
chance that a version without any drift has a drifted column is at most ``alpha``, however many columns there are.

Pure: no file, no engine; pyarrow tables in, values out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data.profile import LEAST_ROWS, ColumnProfile, category
from tiltyard.data.profile import _numbers as numbers_of
from tiltyard.evaluation.corrections import cauchy, holm

ALPHA = 0.05
"""Chance of any false alarm in one version, at most."""
LEAST_EFFECT = 0.01
"""Share of rows that must have moved for a difference to matter."""
CATEGORY_ALPHA = 0.9
"""Share of ``alpha`` that categories get where there are numbers too. A shift of numbers is seen long before it matters."""
TEST_WEIGHTS = {"one_category": 3.0}
"""How much a test counts among those of a column, 1 where it does not stand here: what moves is a category, as a rule."""
LEAST_EXPECTED = 5.0
"""Rows a cell of a chi-square test must expect; cells with fewer are joined."""
MOST_NEW = 1_000
"""Categories never seen in training that are counted by name."""
_OTHER = "(other)"
Counts = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnDrift:
    """One column, new rows against the training split.

    Args:
        column: Its name.
        kind: ``number``, ``category``, or ``unknown`` where the profile remembers no shape (keys, free text, bytes).
        rows: New rows.
        psi: Population stability index.
        js: Jensen-Shannon distance, 0 to 1.
        ks: Kolmogorov-Smirnov distance; None where values have no order.
        moved: Share of rows in another cell, 0 to 1.
        missing_before: Share of missing values in training.
        missing_now: Share of missing values now.
        mean_before: Mean in training, of numbers.
        mean_now: Mean now.
        p_values: By test.
        p: Of the column.
        p_adjusted: Corrected for all columns of the report.
        drifted: Whether it counts as drift.
        most_moved: The category whose share changed most, with the shares before and now.
        new_categories: Categories never seen in training and their rows, most frequent first; of at least 5 rows.
        note: What could not be compared, and why.
    """

    column: str
    kind: str
    rows: int
    psi: float = 0.0
    js: float = 0.0
    ks: float | None = None
    moved: float = 0.0
    missing_before: float = 0.0
    missing_now: float = 0.0
    mean_before: float | None = None
    mean_now: float | None = None
    p_values: Mapping[str, float] = field(default_factory=dict)
    p: float = 1.0
    p_adjusted: float = 1.0
    drifted: bool = False
    most_moved: tuple[str, float, float] | None = None
    new_categories: Mapping[str, int] = field(default_factory=dict)
    note: str = ""

    @property
    def effect(self) -> float:
        """The larger of ``moved`` and the change of the missing share: what is held against ``least_effect``."""
        return max(self.moved, abs(self.missing_now - self.missing_before))


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftReport:
    """All columns, and what changed in the schema.

    Args:
        rows: New rows.
        alpha: Chance of any false alarm, at most.
        least_effect: What counts as an effect.
        columns: By name, the most drifted first.
        missing_columns: In training and not in the new rows.
        new_columns: In the new rows and not in training.
        changed_types: Column to its type before and now.
    """

    rows: int
    alpha: float
    least_effect: float
    columns: tuple[ColumnDrift, ...]
    missing_columns: tuple[str, ...] = ()
    new_columns: tuple[str, ...] = ()
    changed_types: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def drifted(self) -> tuple[str, ...]:
        """Columns that have drifted, the largest effect first."""
        return tuple(c.column for c in self.columns if c.drifted)

    @property
    def has_schema_change(self) -> bool:
        """A column is gone or has another type; new columns alone harm no model."""
        return bool(self.missing_columns or self.changed_types)

    def column(self, name: str) -> ColumnDrift | None:
        """One column, if it was compared."""
        return next((c for c in self.columns if c.column == name), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def schema_changes(
    before: Mapping[str, str], now: Mapping[str, str], needed: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[str, str]]]:
    """Columns of ``needed`` that are gone, columns that are new, and needed ones of another type, with both types.

    >>> schema_changes({"a": "float32", "b": "int64"}, {"a": "string", "c": "int64"}, ["a", "b"])
    (('b',), ('c',), {'a': ('float32', 'string')})
    """
    wanted = list(needed)
    gone = tuple(n for n in wanted if n not in now)
    changed = {n: (before[n], now[n]) for n in wanted if n in before and n in now and before[n] != now[n]}
    return gone, tuple(n for n in now if n not in before), changed


class DriftFold:
    """New rows, counted into the cells of training profiles.

    Args:
        references: Column name to its profile in the training split. Columns that a table does not have count as absent.
    """

    def __init__(self, references: Mapping[str, ColumnProfile]) -> None:
        self.references = dict(references)
        self._folds: dict[str, _Numbers | _Categories | _Gaps] = {n: _fold_of(p) for n, p in references.items()}
        self.rows = 0

    def add(self, table: pa.Table) -> None:
        """The next rows; a column of a type that cannot be counted into its cells is noted and left out."""
        self.rows += table.num_rows
        for name, column_fold in self._folds.items():
            if name in table.column_names and table.num_rows:
                column = table[name]
                column_fold.add(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())

    def merge(self, other: DriftFold) -> None:
        """Adds the rows of another fold over the same references."""
        self.rows += other.rows
        for name, column_fold in self._folds.items():
            column_fold.merge(other._folds[name])

    def report(
        self,
        *,
        alpha: float = ALPHA,
        least_effect: float = LEAST_EFFECT,
        schema: Mapping[str, str] | None = None,
    ) -> DriftReport:
        """What the rows say.

        Args:
            alpha: Chance of any false alarm, over all columns.
            least_effect: Share of rows that must have moved.
            schema: Column types of the new rows, for what is missing, new or changed.
        """
        found = {n: _compared(n, self.references[n], f) for n, f in self._folds.items()}
        adjusted = _adjusted(found.values())
        columns = []
        for name, c in found.items():
            p = adjusted.get(name, 1.0)
            columns.append(_with(c, p_adjusted=p, drifted=p <= alpha and c.effect >= least_effect))
        columns.sort(key=lambda c: (not c.drifted, -c.effect, c.column))
        gone: tuple[str, ...] = ()
        new: tuple[str, ...] = ()
        changed: dict[str, tuple[str, str]] = {}
        if schema is not None:
            before = {n: p.type for n, p in self.references.items()}
            gone, new, changed = schema_changes(before, schema, self.references)
        return DriftReport(
            rows=self.rows,
            alpha=alpha,
            least_effect=least_effect,
            columns=tuple(columns),
            missing_columns=gone,
            new_columns=new,
            changed_types=changed,
        )


def _adjusted(columns: Iterable[ColumnDrift]) -> dict[str, float]:
    """Corrected p-values of the columns that were tested.

    Numbers and categories get parts of ``alpha`` of their own (`CATEGORY_ALPHA`): a few categories, whose small moves are the
    hardest to see, do not pay for a great many numbers.
    """
    groups: dict[bool, dict[str, float]] = {}
    for c in columns:
        if c.p_values:
            groups.setdefault(c.kind == "category", {})[c.column] = c.p
    parts = {True: CATEGORY_ALPHA, False: 1 - CATEGORY_ALPHA} if len(groups) > 1 else dict.fromkeys(groups, 1.0)
    return {n: min(1.0, v / parts[kind]) for kind, group in groups.items() for n, v in holm(group).items()}


def _with(column: ColumnDrift, **changes: Any) -> ColumnDrift:
    return replace(column, **changes)


def _fold_of(profile: ColumnProfile) -> _Numbers | _Categories | _Gaps:
    if profile.categories:
        return _Categories(profile)
    return _Numbers(profile) if len(profile.edges) > 1 else _Gaps()


class _Gaps:
    """Rows and missing values alone."""

    kind = "unknown"

    def __init__(self) -> None:
        self.rows = self.missing = 0
        self.note = ""

    def add(self, array: pa.Array) -> None:
        self.rows += len(array)
        self.missing += array.null_count

    def merge(self, other: _Gaps) -> None:
        self.rows += other.rows
        self.missing += other.missing
        self.note = self.note or other.note


class _Numbers(_Gaps):
    """Counts of numbers in the bins of a profile; what lies outside its edges counts in the outer bins."""

    kind = "number"

    def __init__(self, profile: ColumnProfile) -> None:
        super().__init__()
        self._inner = np.array(profile.edges[1:-1], dtype=np.float64)
        self._single = _rounded_up(self._inner)
        self.counts = np.zeros(len(self._inner) + 1, np.int64)
        self.total = 0.0

    def add(self, array: pa.Array) -> None:
        values = numbers_of(array)
        self.rows += len(array)
        if values is None:
            self.note = f"its values are {array.type} now, no numbers"
            self.missing += len(array)
            return
        width = array.type.list_size if pa.types.is_fixed_size_list(array.type) else 1
        finite = np.isfinite(values)
        kept = values if finite.all() else values[finite]
        self.missing += array.null_count + (len(values) - len(kept)) // width
        # counting what lies below each edge takes 2 ns a value; searching the edges for each value 49 ns (measured)
        edges = self._single if kept.dtype == np.float32 else self._inner
        below = np.array([0, *(np.count_nonzero(kept < e) for e in edges), len(kept)])
        self.counts += np.diff(below)
        self.total += float(kept.sum(dtype=np.float64))

    def merge(self, other: _Gaps) -> None:
        super().merge(other)
        assert isinstance(other, _Numbers)
        self.counts = self.counts + other.counts
        self.total += other.total


class _Categories(_Gaps):
    """Counts of named categories; the rest counts as other, by name as far as there are not too many."""

    kind = "category"

    def __init__(self, profile: ColumnProfile) -> None:
        super().__init__()
        self.names = list(profile.categories)
        self._place = {n: i for i, n in enumerate(self.names)}
        self.counts = np.zeros(len(self.names) + 1, np.int64)
        self.others: Counter[str] = Counter()

    def add(self, array: pa.Array) -> None:
        self.rows += len(array)
        self.missing += array.null_count
        if pa.types.is_nested(array.type) or pa.types.is_binary(array.type):
            self.note = f"its values are {array.type} now, no categories"
            self.missing += len(array) - array.null_count
            return
        found = array.drop_null().value_counts()
        for value, count in zip(found.field(0).to_pylist(), found.field(1).to_pylist(), strict=True):
            name = category(value)
            place = self._place.get(name, len(self.names))
            self.counts[place] += count
            if place == len(self.names) and (name in self.others or len(self.others) < MOST_NEW):
                self.others[name] += count

    def merge(self, other: _Gaps) -> None:
        super().merge(other)
        assert isinstance(other, _Categories)
        self.counts = self.counts + other.counts
        for name, count in other.others.items():
            if name in self.others or len(self.others) < MOST_NEW:
                self.others[name] += count


def _rounded_up(edges: Counts) -> npt.NDArray[np.float32]:
    """The smallest float32 at or above each edge: a float32 is below the one exactly where it is below the other."""
    with np.errstate(over="ignore"):
        single = edges.astype(np.float32)
    short = single.astype(np.float64) < edges
    single[short] = np.nextafter(single[short], np.float32(np.inf))
    return single


def _compared(name: str, before: ColumnProfile, now: _Gaps) -> ColumnDrift:
    """One column; its p-value not yet corrected."""
    missing_before = (before.nulls + before.nans / _width(before)) / before.count if before.count else 0.0
    found = ColumnDrift(
        column=name,
        kind=now.kind,
        rows=now.rows,
        missing_before=missing_before,
        missing_now=now.missing / now.rows if now.rows else 0.0,
        note=now.note or ("" if now.kind != "unknown" else "the profile remembers no shape of it"),
    )
    if not now.rows:
        return _with(found, note="no new rows have it")
    p: dict[str, float] = {}
    if now.missing or missing_before:
        before_missing = round(missing_before * before.count)
        p["missing"] = _share_p(before_missing, before.count, now.missing, now.rows)
    if isinstance(now, _Numbers | _Categories):
        if now.rows == now.missing:
            return _with(found, note=found.note or "all values are missing", p_values=p, p=_together(p))
        measured, more = _shapes(before, now)
        p |= more
        found = _with(found, **measured)
    return _with(found, p_values=p, p=_together(p))


def _together(p: Mapping[str, float]) -> float:
    return cauchy(list(p.values()), [TEST_WEIGHTS.get(name, 1.0) for name in p])


def _width(profile: ColumnProfile) -> int:
    """Numbers in a value: more than one in a tensor, e.g. ``float32[8,8]``."""
    _, bracket, size = profile.type.partition("[")
    sizes = size.rstrip("]").split(",")
    return math.prod(int(n) for n in sizes) if bracket and all(n.isdigit() for n in sizes) else 1


def _shapes(before: ColumnProfile, now: _Numbers | _Categories) -> tuple[dict[str, Any], dict[str, float]]:
    """Distances between the two shapes, and p-values."""
    order: list[int] | None = None
    if isinstance(now, _Numbers):
        # the numbers of one tensor are not independent: it counts as one row
        width = _width(before)
        a, b, ordered = np.array(before.counts, float) / width, now.counts / width, True
    else:
        a = np.array([*before.categories.values(), before.other], float)
        b = now.counts.astype(float)
        order = _numeric_order(now.names)
        ordered = order is not None  # unnamed ones stand last: any order that was fixed in training makes a valid test
        if order is not None:
            a[:-1], b[:-1] = a[:-1][order], b[:-1][order]
    p, q = a / a.sum(), b / b.sum()
    measured: dict[str, Any] = {
        "psi": _psi(a, b),
        "js": _js(p, q),
        "moved": _moved(a, b),
        "mean_before": before.mean,
    }
    tests = {"chi_square": _chi_square(a, b)}
    if ordered:
        measured["ks"] = float(np.abs(np.cumsum(p - q)).max())
        tests["ks"] = _ks_p(measured["ks"], float(a.sum()), float(b.sum()))
    if isinstance(now, _Numbers):
        measured["mean_now"] = now.total / float(now.counts.sum())
        return measured, tests
    names = [*now.names, _OTHER]
    if order is not None:
        names[:-1] = [now.names[i] for i in order]
    most = int(np.abs(p - q).argmax())
    measured["most_moved"] = (names[most], float(p[most]), float(q[most]))
    tests["one_category"] = _one_category_p(a, b)
    if before.other == 0:
        new = [(n, c) for n, c in now.others.most_common(20) if c >= LEAST_ROWS]
        measured["new_categories"] = dict(new)
    return measured, tests


def _numeric_order(names: list[str]) -> list[int] | None:
    """Places of categories that are numbers, in ascending order; None where one is no number."""
    try:
        return sorted(range(len(names)), key=lambda i: float(names[i]))
    except ValueError:
        return None


def _moved(a: Counts, b: Counts) -> float:
    """Total variation of the shares, less (in squares) what chance alone moves in samples of these sizes."""
    n, m = float(a.sum()), float(b.sum())
    share = (a + b) / (n + m)
    by_chance = float(np.sqrt(2 / math.pi * share * (1 - share) * (1 / n + 1 / m)).sum())
    found = float(np.abs(a / n - b / m).sum())
    return math.sqrt(max(0.0, found * found - by_chance * by_chance)) / 2


def _psi(a: Counts, b: Counts) -> float:
    """Population stability index; half a row is added to every cell so that an empty one does not make it infinite."""
    p, q = (a + 0.5) / (a + 0.5).sum(), (b + 0.5) / (b + 0.5).sum()
    return float(((q - p) * np.log(q / p)).sum())


def _js(p: Counts, q: Counts) -> float:
    """Jensen-Shannon distance: the root of the divergence in bits, 0 to 1."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * np.log2(p / middle), 0.0) + np.where(q > 0, q * np.log2(q / middle), 0.0)
    return math.sqrt(max(0.0, float(terms.sum()) / 2))


def _chi_square(a: Counts, b: Counts) -> float:
    """p-value that two samples have the same shares (Pearson); cells that expect too few rows are joined."""
    from scipy.stats import chi2

    n, m = float(a.sum()), float(b.sum())
    if not n or not m:
        return 1.0
    expected = (a + b) * min(n, m) / (n + m)
    few = expected < LEAST_EXPECTED
    if few.any():
        a, b = np.append(a[~few], a[few].sum()), np.append(b[~few], b[few].sum())
        if len(a) > 1 and 0 < (a[-1] + b[-1]) * min(n, m) / (n + m) < 1:  # even together too few to approximate
            a, b = a[:-1], b[:-1]
    both = a + b
    a, b, both = a[both > 0], b[both > 0], both[both > 0]
    if len(a) < 2:
        return 1.0
    statistic = float(((math.sqrt(m / n) * a - math.sqrt(n / m) * b) ** 2 / both).sum())
    return float(chi2.sf(statistic, len(a) - 1))


def _one_category_p(a: Counts, b: Counts) -> float:
    """p-value of the one category whose share changed most for its size, corrected for their number."""
    n, m = int(a.sum()), int(b.sum())
    there = [(int(x), int(y)) for x, y in zip(a, b, strict=True) if x + y]
    return min(1.0, len(there) * min(_share_p(x, n, y, m) for x, y in there))


def _share_p(a: int, n: int, b: int, m: int) -> float:
    """Two-sided p-value that ``a`` of ``n`` and ``b`` of ``m`` rows are the same share.

    By the normal approximation; where too few rows are expected for it, by the exact binomial test of ``b`` among ``a + b``,
    which errs upward.
    """
    from scipy.stats import binomtest, norm

    share, least = (a + b) / (n + m), min(n, m)
    if share in {0.0, 1.0}:
        return 1.0
    if min(share, 1 - share) * least < LEAST_EXPECTED:
        if share > 0.5:
            a, b = n - a, m - b
        return float(binomtest(b, a + b, m / (n + m)).pvalue)
    z = abs(a / n - b / m) / math.sqrt(share * (1 - share) * (1 / n + 1 / m))
    return float(2 * norm.sf(z))


def _ks_p(distance: float, n: float, m: float) -> float:
    """Asymptotic two-sample p-value; at the edges of cells the distance is at most the true one, so it errs upward."""
    from scipy.stats import kstwobign

    return float(kstwobign.sf(distance * math.sqrt(n * m / (n + m))))
