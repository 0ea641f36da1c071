"""In what do two versions of a dataset differ: columns, rows, splits, and what the columns hold?

Rows are compared by their hash (of all values, see `tiltyard.data.rows`), duplicates counted; statistics come from the
profiles, side by side. Pure: records, profiles and hashes in, values out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.data.profile import ColumnProfile, Profile
from tiltyard.data.versions import SPLITS, DatasetVersion

Hashes = Mapping[str, npt.NDArray[np.int64]]
"""Split name to row hashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCounts:
    """Rows by hash, over the columns that both have.

    Args:
        added: Rows of the second version that the first lacks.
        removed: Rows of the first that the second lacks.
        kept: Rows of both.
        moved: Of those kept, in another split now.
        columns: Columns that were compared; None means all.
    """

    added: int
    removed: int
    kept: int
    moved: int
    columns: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Two versions beside each other; pairs are (first, second).

    Args:
        refs: Which two.
        digests: Content digests; equal ones mean that a trial learns the same from both.
        added_columns: Column to type, only in the second.
        removed_columns: Column to type, only in the first.
        changed_columns: Column to both types.
        declared: What is declared differently, as field to both values.
        rows: How many rows came, went and stayed.
        num_rows: Rows.
        split_rows: Split to its rows.
        columns: Split to column to both profiles; None where one has no such column or split.
    """

    refs: tuple[str, str]
    digests: tuple[str, str]
    added_columns: Mapping[str, str]
    removed_columns: Mapping[str, str]
    changed_columns: Mapping[str, tuple[str, str]]
    declared: Mapping[str, tuple[Any, Any]]
    rows: RowCounts
    num_rows: tuple[int, int]
    split_rows: Mapping[str, tuple[int, int]]
    columns: Mapping[str, Mapping[str, tuple[ColumnProfile | None, ColumnProfile | None]]]

    @property
    def same(self) -> bool:
        """True where a trial would learn the same from both."""
        return self.digests[0] == self.digests[1]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": 1, "same": self.same, **asdict(self)}


def common_columns(a: DatasetVersion, b: DatasetVersion) -> tuple[str, ...] | None:
    """Columns by which rows can be compared; None where the two have the very same ones."""
    if dict(a.schema) == dict(b.schema):
        return None
    return tuple(name for name, kind in sorted(a.schema.items()) if b.schema.get(name) == kind)


def count_rows(a: Hashes, b: Hashes, columns: tuple[str, ...] | None = None) -> RowCounts:
    """Rows that came, went and stayed; a row that is there twice counts twice.

    >>> count_rows({"train": np.array([1, 1, 2])}, {"test": np.array([1, 3])}).removed
    2
    """
    kept = _both(np.concatenate([*a.values(), _NONE]), np.concatenate([*b.values(), _NONE]))
    stayed = sum(_both(a.get(s, _NONE), b.get(s, _NONE)) for s in SPLITS)
    total_a, total_b = (sum(len(h) for h in hashes.values()) for hashes in (a, b))
    return RowCounts(added=total_b - kept, removed=total_a - kept, kept=kept, moved=kept - stayed, columns=columns)


_NONE = np.array([], np.int64)


def _both(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> int:
    (values_a, counts_a), (values_b, counts_b) = (np.unique(h, return_counts=True) for h in (a, b))
    _, in_a, in_b = np.intersect1d(values_a, values_b, assume_unique=True, return_indices=True)
    return int(np.minimum(counts_a[in_a], counts_b[in_b]).sum())


def compare(a: DatasetVersion, b: DatasetVersion, profiles: tuple[Profile, Profile], rows: RowCounts) -> Difference:
    """Two versions beside each other."""
    specs = (a.spec.to_json(), b.spec.to_json())
    splits = [s for s in SPLITS if any(s in p.splits for p in profiles)]
    names = list(dict.fromkeys([*a.schema, *b.schema]))
    found = [{s: p.splits[s].columns for s in p.splits} for p in profiles]
    return Difference(
        refs=(str(a.ref), str(b.ref)),
        digests=(a.content_digest, b.content_digest),
        added_columns={n: k for n, k in b.schema.items() if n not in a.schema},
        removed_columns={n: k for n, k in a.schema.items() if n not in b.schema},
        changed_columns={n: (k, b.schema[n]) for n, k in a.schema.items() if b.schema.get(n, k) != k},
        declared={n: (v, specs[1][n]) for n, v in specs[0].items() if v != specs[1][n]},
        rows=rows,
        num_rows=(a.num_rows, b.num_rows),
        split_rows={s: (a.split_rows.get(s, 0), b.split_rows.get(s, 0)) for s in SPLITS},
        columns={s: {n: (found[0].get(s, {}).get(n), found[1].get(s, {}).get(n)) for n in names} for s in splits},
    )
