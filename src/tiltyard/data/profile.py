"""What a version looks like, column by column and split by split: counts, moments, quantiles, histograms, categories.

A profile is computed while the version is written, window by window, and kept with it; drift is measured against the
training split's later, without reading a row of it again.

Exact over all rows: rows, nulls, NaN, minimum, maximum, mean, standard deviation, and counts of categories. From a uniform
sample, the first `SAMPLE_ROWS` rows by hash (all rows where there are fewer; ``sampled_rows`` says how many): quantiles,
histogram, and the number of distinct values. Key columns and texts of very many values get counts alone, and a category of
fewer than `LEAST_ROWS` rows is not named: a profile must not remember one person.

Pure: takes Arrow tables, returns values with a JSON form.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiltyard.data import rows
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.types import check_schema_version

SCHEMA_VERSION = 1
SAMPLE_ROWS = 65_536
"""Rows that quantiles and histograms are taken from."""
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99, 1.0)
BINS = 20
"""Bins of a histogram, of about equally many rows each."""
CATEGORIES = 64
"""Categories that are named; whole numbers with more values than that have none."""
LEAST_ROWS = 5
"""Rows a category needs to be named."""
_MANY = 1_000  # a text with so many values in its first window is no category


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnProfile:
    """One column of one split.

    Args:
        type: Its type name.
        count: Rows.
        nulls: Of them null.
        nans: Of them NaN or infinite.
        distinct: Different values in the sample; None for tensors and bytes.
        minimum: Smallest value: a number, or an ISO date; None where there is none or it would name a person.
        maximum: Largest value.
        mean: Of the numbers (tensors: of all their numbers; times: seconds since 1970; booleans: share of true).
        std: Standard deviation of them.
        quantiles: Values at `QUANTILES`, from the sample.
        edges: Edges of the histogram, ascending: one more than ``counts``; the outer two are minimum and maximum of the sample.
        counts: Rows of the sample in each bin; a bin holds its left edge, the last one its right edge too.
        categories: Category to number of rows (exact), most frequent first.
        other: Rows in categories that are not named.
    """

    type: str
    count: int
    nulls: int = 0
    nans: int = 0
    distinct: int | None = None
    minimum: float | str | None = None
    maximum: float | str | None = None
    mean: float | None = None
    std: float | None = None
    quantiles: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    categories: Mapping[str, int] = field(default_factory=dict)
    other: int = 0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The column that ``asdict`` made."""
        return cls(**{**data, **{n: tuple(data[n]) for n in ("quantiles", "edges", "counts")}})


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitProfile:
    """One split: its rows, how many of them the sample has, and its columns."""

    num_rows: int
    sampled_rows: int
    columns: Mapping[str, ColumnProfile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All splits of a version that have rows."""

    splits: Mapping[str, SplitProfile]

    def column(self, name: str, split: str = "train") -> ColumnProfile:
        """One column of one split.

        Raises:
            DatasetNotFoundError: If there is none; names what there is.
        """
        if split not in self.splits:
            raise DatasetNotFoundError(f"The profile has no split {split!r}; it has {', '.join(self.splits)}.")
        columns = self.splits[split].columns
        if name not in columns:
            raise DatasetNotFoundError(f"The profile has no column {name!r}; it has {', '.join(list(columns)[:30])}.")
        return columns[name]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, "quantiles_at": QUANTILES, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The profile that ``to_json`` wrote.

        Raises:
            DataError: If it was written by a newer Tiltyard, or is damaged.
        """
        check_schema_version(data.get("schema_version"), SCHEMA_VERSION, "A profile")
        try:
            return cls(
                splits={
                    split: SplitProfile(
                        num_rows=part["num_rows"],
                        sampled_rows=part["sampled_rows"],
                        columns={n: ColumnProfile.from_json(c) for n, c in part["columns"].items()},
                    )
                    for split, part in data["splits"].items()
                }
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"The record of a profile is damaged: {error}.") from error


def category(value: Any) -> str:
    """How a value is named as a category: texts as they are, booleans ``true`` and ``false``, numbers in decimals."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Builder:
    """Profiles one split from its parts, which come in canonical order.

    Args:
        hidden: Columns that get counts alone (keys).
    """

    def __init__(self, hidden: Sequence[str] = ()) -> None:
        self._hidden = frozenset(hidden)
        self._columns: dict[str, _Column] = {}
        self._rows = 0

    def add(self, part: pa.Table) -> None:
        """The next rows."""
        for name, column in zip(part.column_names, part.columns, strict=True):
            if name == rows.ROW:
                continue
            known = self._columns.get(name) or self._columns.setdefault(
                name, _Column(column.type, name in self._hidden)
            )
            known.add(column.chunk(0) if column.num_chunks == 1 else column.combine_chunks())
        self._rows += part.num_rows

    def done(self) -> SplitProfile:
        """The profile of all rows that were added."""
        return SplitProfile(
            num_rows=self._rows,
            sampled_rows=min(self._rows, SAMPLE_ROWS),
            columns={name: column.done() for name, column in self._columns.items()},
        )


def profile(table: pa.Table, hidden: Sequence[str] = ()) -> SplitProfile:
    """The profile of rows in canonical order (``DatasetStore.read``)."""
    builder = Builder(hidden)
    builder.add(table)
    return builder.done()


class _Column:
    def __init__(self, kind: pa.DataType, hidden: bool) -> None:
        self._kind, self._hidden = kind, hidden
        self._count = self._nulls = self._nans = self._sampled = 0
        self._moments = _Moments()
        self._sample: list[pa.Array] = []
        is_text = pa.types.is_string(kind) or pa.types.is_boolean(kind)
        self._counter: Counter[Any] | None = Counter() if is_text or pa.types.is_integer(kind) else None
        if hidden:
            self._counter = None
        self._most = _MANY if is_text else CATEGORIES

    def add(self, array: pa.Array) -> None:
        self._count += len(array)
        self._nulls += array.null_count
        if self._sampled < SAMPLE_ROWS:
            self._sample.append(array.slice(0, SAMPLE_ROWS - self._sampled))
            self._sampled += len(self._sample[-1])
        if self._hidden:
            return
        values = _numbers(array)
        if values is not None:
            self._nans += self._moments.add(values)
        if self._counter is not None:
            counts = array.drop_null().value_counts()
            if len(counts) > self._most or len(self._counter) > self._most:
                self._counter = None
            else:
                self._counter.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))

    def done(self) -> ColumnProfile:
        sample = pa.concat_arrays(self._sample)
        flat = pa.types.is_fixed_size_list(self._kind)
        distinct = None if flat or pa.types.is_binary(self._kind) else pc.count_distinct(sample).as_py()
        common = ColumnProfile(
            type=rows.type_name(self._kind), count=self._count, nulls=self._nulls, nans=self._nans, distinct=distinct
        )
        if self._hidden:
            return common
        found = {**asdict(common), **self._named()}
        if self._moments.count:
            found |= {"mean": self._moments.mean, "std": self._moments.std}
            found |= {"minimum": self._shown(self._moments.low), "maximum": self._shown(self._moments.high)}
            values = _numbers(sample)
            assert values is not None
            found |= _shape(np.sort(values[np.isfinite(values)]))
        return ColumnProfile(**found)

    def _named(self) -> dict[str, Any]:
        if not self._counter:
            return {}
        ranked = sorted(self._counter.items(), key=lambda item: (-item[1], str(item[0])))
        named = [(value, count) for value, count in ranked[:CATEGORIES] if count >= LEAST_ROWS]
        left = sum(self._counter.values()) - sum(count for _, count in named)
        return {"categories": {category(v): c for v, c in named}, "other": left}

    def _shown(self, value: float) -> float | str:
        if pa.types.is_timestamp(self._kind) or pa.types.is_date(self._kind):
            moment = dt.datetime.fromtimestamp(value, dt.UTC)
            return moment.date().isoformat() if pa.types.is_date(self._kind) else moment.isoformat()
        return value


def _numbers(array: pa.Array) -> npt.NDArray[Any] | None:
    """Values without nulls as numbers (tensors flattened, times in seconds); None where there is no such thing."""
    kind = array.type
    if pa.types.is_fixed_size_list(kind):
        array = array.flatten()
    elif pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pa.types.is_decimal(kind):
        array = array.cast(pa.float64())
    elif pa.types.is_date(kind):
        return np.asarray(array.drop_null().cast(pa.int32()).to_numpy() * 86_400.0)
    elif pa.types.is_timestamp(kind):
        return np.asarray(array.drop_null().cast(pa.int64()).to_numpy() / 1e6)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        return None
    return np.asarray((array.drop_null() if array.null_count else array).to_numpy(zero_copy_only=False))


class _Moments:
    """Count, mean, variance, minimum and maximum of numbers that come in parts (Chan, Golub, LeVeque 1979)."""

    def __init__(self) -> None:
        self.count, self.mean, self._m2 = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    @property
    def std(self) -> float:
        return math.sqrt(self._m2 / self.count)

    def add(self, values: npt.NDArray[Any]) -> int:
        """Adds the finite ones; returns how many are not."""
        given = len(values)
        wide = values.astype(np.float64)
        total = float(wide.sum())
        if not math.isfinite(total):
            wide = wide[np.isfinite(wide)]
            total = float(wide.sum())
        count = len(wide)
        if count:
            mean = total / count
            self.low, self.high = min(self.low, float(wide.min())), max(self.high, float(wide.max()))
            wide -= mean
            shift, together = mean - self.mean, self.count + count
            self._m2 += float(np.einsum("i,i", wide, wide)) + shift * shift * self.count * count / together
            self.mean += shift * count / together
            self.count = together
        return given - count


def _shape(ordered: npt.NDArray[Any]) -> dict[str, Any]:
    """Quantiles and histogram of ascending numbers."""
    if not len(ordered):
        return {}
    ordered = ordered.astype(np.float64)
    quantiles = np.quantile(ordered, QUANTILES)
    edges = np.unique(np.quantile(ordered, np.linspace(0, 1, BINS + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    starts = np.searchsorted(ordered, edges[:-1], side="left")
    counts = np.diff(np.append(starts, len(ordered)))
    return {"quantiles": tuple(quantiles.tolist()), "edges": tuple(edges.tolist()), "counts": tuple(counts.tolist())}
