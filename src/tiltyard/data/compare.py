"""Compares two versions of the store: reads what `tiltyard.data.diff` decides on."""

from __future__ import annotations

from tiltyard.data import diff, rows
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import SPLITS, DatasetRef, DatasetVersion


def compare(store: DatasetStore, first: DatasetRef | str, second: DatasetRef | str) -> diff.Difference:
    """Two versions beside each other, of one dataset or of two.

    Where both have the same columns, only row hashes are read; else the rows of the columns that both have.

    Raises:
        DatasetNotFoundError: If there is no such version.
        DataError: If one is gone, or a profile is damaged.
    """
    a, b = store.resolve(first), store.resolve(second)
    columns = diff.common_columns(a, b)
    counts = diff.count_rows(_hashes(store, a, columns), _hashes(store, b, columns), columns)
    return diff.compare(a, b, (store.profile(a), store.profile(b)), counts)


def _hashes(store: DatasetStore, version: DatasetVersion, columns: tuple[str, ...] | None) -> diff.Hashes:
    there = [s for s in SPLITS if version.split_rows.get(s)]
    if columns is None:
        return {s: store.read_hashes(version, s) for s in there}
    if not columns:
        return {}
    return {s: rows.row_lanes(store.read(version, split=s, columns=columns))[0] for s in there}
