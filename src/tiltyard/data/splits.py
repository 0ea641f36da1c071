"""Which split does a row belong to?

The unit that is assigned is the group where one is declared, else the key, else the row itself. A unit's place is a hash
of its own values and the seed, as a number in [0, 1) compared with the fractions: a pure function, so rows added later
move nothing. By time, the fixed cuts decide instead. Stratified, the hash covers the class too, so that the fractions
hold per class in expectation, independently.

No I/O and no randomness but the seed's.
"""

from __future__ import annotations

import datetime as dt

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiltyard.data import rows
from tiltyard.data.versions import SPLITS, DatasetSpec
from tiltyard.errors import DataError, SpecError

Codes = npt.NDArray[np.int8]
_SALT = 0x73706C6974  # "split": so that places are independent of row order and of folds


def unit_interval(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """The top 53 bits of hashes as numbers in [0, 1)."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _units(table: pa.Table, spec: DatasetSpec, row_hash: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    names = (spec.group,) if spec.group else spec.keys
    if names:
        return rows.columns_hash([table[n] for n in names], _SALT)
    return rows.columns_hash([pa.chunked_array([pa.array(row_hash)])], _SALT)


def _by_time(table: pa.Table, spec: DatasetSpec) -> Codes:
    assert spec.split.time_cuts is not None
    assert spec.time is not None
    when = table[spec.time]
    if when.null_count:
        raise DataError(f"Time column {spec.time!r} has {when.null_count} nulls; a split by time needs every one.")
    if not (pa.types.is_timestamp(when.type) or pa.types.is_date(when.type)):
        raise DataError(f"Time column {spec.time!r} is {when.type}, not dates or timestamps; convert it.")
    codes = np.zeros(table.num_rows, np.int8)
    for code, cut in enumerate(spec.split.time_cuts, start=1):
        try:
            moment = dt.datetime.fromisoformat(cut)
        except ValueError as error:
            raise SpecError(f"time_cuts has {cut!r}, which is not an ISO date such as 2026-01-31.") from error
        aware = pa.types.is_timestamp(when.type) and when.type.tz
        zone = (moment.tzinfo or dt.UTC) if aware else None
        scalar = pa.scalar(moment.replace(tzinfo=zone), pa.timestamp("us", "UTC" if aware else None))
        later = pc.greater_equal(when.cast(scalar.type), scalar)
        codes[later.combine_chunks().to_numpy(zero_copy_only=False)] = code
    return codes


def assign(table: pa.Table, spec: DatasetSpec, row_hash: npt.NDArray[np.int64]) -> Codes:
    """The split of each row, as places in `SPLITS`: int8 ``(rows,)``.

    Args:
        table: Canonical rows (``rows.canonical``) with the columns the spec names.
        spec: Key, group, time and split specification.
        row_hash: ``rows.row_lanes(table)[0]``; decides where neither key nor group is declared.

    Raises:
        DataError: If rows of one key land in two splits.
    """
    if spec.split.time_cuts is not None:
        codes = _by_time(table, spec)
    else:
        units = _units(table, spec, row_hash)
        if spec.split.stratify:
            units = rows.columns_hash([pa.chunked_array([pa.array(units.view(np.int64))]), table[spec.split.stratify]])
        place = unit_interval(rows._mix(units + rows.seed_of("split", str(spec.split.seed))))
        codes = np.searchsorted([spec.split.train, spec.split.train + spec.split.validation], place, "right").astype(
            np.int8
        )
    refuse_leaks(table, spec, codes)
    return codes


def refuse_leaks(table: pa.Table, spec: DatasetSpec, codes: Codes) -> None:
    """Raises where the same key (or group) is in two splits.

    Raises:
        DataError: With the first such key.
    """
    for names in {spec.keys, (spec.group,) if spec.group else ()} - {()}:
        units = rows.columns_hash([table[n] for n in names])
        order = np.lexsort((codes, units))
        same = units[order][1:] == units[order][:-1]
        leaks = same & (codes[order][1:] != codes[order][:-1])
        if leaks.any():
            at = int(order[1:][leaks][0])
            value = {n: table[n][at].as_py() for n in names}
            found = sorted({SPLITS[c] for c in codes[units == units[at]]})
            raise DataError(
                f"Rows leak: {value} has rows in {' and '.join(found)} ({int(leaks.sum())} such crossings). Rows of one "
                "key must stay in one split: split by key or by a group that contains the key, or drop the older rows."
            )


def folds(unit_hashes: npt.NDArray[np.uint64], num_folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """The fold of each unit for k-fold cross-validation: 0 to ``num_folds - 1``, stable when units are added.

    Raises:
        SpecError: If there are fewer than two folds.
    """
    if num_folds < 2:
        raise SpecError(f"{num_folds} folds make no cross-validation; wanted 2 or more.")
    place = unit_interval(rows._mix(unit_hashes + rows.seed_of("fold", str(seed))))
    return np.asarray((place * num_folds).astype(np.int64))


def in_fold(table: pa.Table, spec: DatasetSpec, fold: int, num_folds: int, seed: int = 0) -> npt.NDArray[np.bool_]:
    """Which rows are in one fold: bool ``(rows,)``. The unit is the group, else the key, else the row, as for splits.

    Args:
        table: Rows with the columns of the unit and the column of row hashes.
        spec: Group and key.
        fold: 0 to ``num_folds - 1``.
        num_folds: 2 or more.
        seed: Another seed, other folds.

    Raises:
        SpecError: If there is no such fold.
    """
    if not 0 <= fold < num_folds:
        raise SpecError(f"There is no fold {fold} of {num_folds}; folds count from 0 to {num_folds - 1}.")
    row_hash = table[rows.ROW].combine_chunks().to_numpy(zero_copy_only=False)
    return np.asarray(folds(_units(table, spec, row_hash), num_folds, seed) == fold)
