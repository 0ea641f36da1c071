"""Rows that are about to be published: canonical, hashed, in splits, with usable labels; and the rules they must keep.

Decides and writes nothing: pyarrow tables in, values out; the clock is handed in. `tiltyard.data.store` writes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data import checks, rows, splits
from tiltyard.data.versions import SPLITS, DatasetSpec, DatasetVersion
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.types import Task


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows ready to be written: canonical, hashed, split and checked."""

    table: pa.Table
    row_hash: npt.NDArray[np.int64]
    second: npt.NDArray[np.uint64]
    codes: npt.NDArray[np.int8]
    spec: DatasetSpec
    classes: tuple[Any, ...]

    @property
    def schema(self) -> dict[str, str]:
        """Column name to type name."""
        return {f.name: rows.type_name(f.type) for f in self.table.schema}

    @property
    def nullable(self) -> tuple[str, ...]:
        """Columns that hold a null."""
        return tuple(f.name for f in self.table.schema if self.table[f.name].null_count)

    @property
    def split_rows(self) -> dict[str, int]:
        """Split name to number of rows."""
        return dict(zip(SPLITS, np.bincount(self.codes, minlength=len(SPLITS)).tolist(), strict=True))

    @property
    def row_sums(self) -> dict[str, str]:
        """Split name to the additive hash of its rows, for splits that have rows."""
        chosen = {name: self.codes == code for code, name in enumerate(SPLITS)}
        return {n: rows.sum_rows(self.row_hash[c], self.second[c]) for n, c in chosen.items() if c.any()}


def _label_classes(table: pa.Table, spec: DatasetSpec) -> tuple[Any, ...]:
    """The values of the label, refused where training could not use it."""
    if spec.task is None:
        return ()
    for name in spec.labels:
        column = table[name]
        missing = column.null_count
        if pa.types.is_floating(column.type):
            missing += int((~np.isfinite(column.drop_null().to_numpy())).sum())
        if missing:
            raise DataError(
                f"Label column {name!r} holds {missing} missing values (null, NaN or infinite) in {table.num_rows} rows. "
                "Training needs every label: drop those rows or fill them in, then commit again."
            )
    if spec.task not in (Task.BINARY, Task.MULTICLASS):
        return spec.labels
    values = table[spec.labels[0]].unique()
    if pa.types.is_floating(values.type) or len(values) > 10_000:
        raise DataError(
            f"Label column {spec.labels[0]!r} is {rows.type_name(values.type)} with {len(values)} values; {spec.task} "
            "wants classes (whole numbers, texts or booleans). Convert it, or declare task='regression'."
        )
    found = {*values.to_pylist(), *spec.classes}
    if len(kinds := {type(v).__name__ for v in found}) > 1:
        raise DataError(
            f"Label column {spec.labels[0]!r} is {rows.type_name(values.type)} and DatasetSpec(classes=...) names "
            f"{list(spec.classes)}: values of different types ({', '.join(sorted(kinds))}). Write them as the column does."
        )
    classes = tuple(sorted(found))
    wanted = "exactly 2" if spec.task is Task.BINARY else "3 or more"
    if (len(classes) == 2) != (spec.task is Task.BINARY) or len(classes) < 2:
        raise DataError(
            f"Label column {spec.labels[0]!r} has {len(classes)} classes {list(classes[:10])}; task {spec.task} wants "
            f"{wanted}. Declare the right task, or name absent classes: DatasetSpec(classes=...)."
        )
    return classes


def prepare(table: pa.Table, spec: DatasetSpec) -> Prepared:
    """Canonical types, declared columns present, labels usable, hashes and splits; writes nothing.

    Raises:
        DataError: With the first thing that is wrong.
    """
    table = rows.canonical(table)
    more = (spec.group, spec.time, spec.split.stratify, *spec.sensitive, *spec.ignore)
    for name in (*spec.labels, *spec.keys, *(n for n in more if n)):
        if name not in table.column_names:
            raise DatasetNotFoundError(
                f"The dataset's spec names column {name!r}, which the source does not have. Its columns: "
                f"{', '.join(table.column_names[:30])}. Mend the spec or the source."
            )
    classes = _label_classes(table, spec)
    row_hash, second = rows.row_lanes(table)
    return Prepared(table, row_hash, second, splits.assign(table, spec, row_hash), spec, classes)


def run_checks(
    prepared: Prepared, name: str, head: DatasetVersion | None, now: dt.datetime, *, refusing: bool = True
) -> tuple[str, ...]:
    """Warnings of the declared checks.

    Args:
        prepared: The rows.
        name: The dataset, for the message.
        head: The version before, where there is one.
        now: The time, aware.
        refusing: False where the rows must be published whatever a check says (a deletion): all failures are warnings.

    Raises:
        CheckFailedError: Where a check refuses the rows.
    """
    context = checks.Context(spec=prepared.spec, rows_before=head.num_rows if head else None, now=now)
    failures = checks.run(prepared.table, context)
    return checks.refuse(name, failures) if refusing else tuple(str(f) for f in failures)


def conform(table: pa.Table, head: DatasetVersion) -> pa.Table:
    """Rows to append in exactly the columns and types of a version.

    Raises:
        DataError: If a column is missing, is new, or has values that do not fit.
    """
    missing, extra = (
        sorted(set(head.schema) - set(table.column_names)),
        sorted(set(table.column_names) - set(head.schema)),
    )
    if missing or extra:
        raise DataError(
            f"The rows to append to {head.ref} lack columns {missing} and bring new ones {extra}. Append rows of the same "
            "columns, or commit the whole dataset anew."
        )
    columns = {}
    for name, kind in head.schema.items():
        try:
            columns[name] = table[name].cast(rows.type_of(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"Column {name!r} of the rows to append is {rows.type_name(table[name].type)}; {head.ref} has {kind}: "
                f"{error}. Convert it first."
            ) from error
    return pa.table(columns)
