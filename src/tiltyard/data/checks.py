"""Checks at the door: may these rows become a version?

A `Check` is declared on the dataset (`DatasetSpec.checks`) and run on each commit, on all rows of the version that is
about to be published, before anything is written. The kinds, and what each takes in ``params``:

==================  ==========================================================  =====================================
kind                what every row (or the table) must keep                     params
==================  ==========================================================  =====================================
not_null            no null and no NaN in ``column``                            none
range               values of ``column`` within both bounds, which belong to it ``min``, ``max``: numbers or ISO dates
allowed             values of ``column`` among some                             ``values``
matches             the whole text in ``column`` matches (RE2 syntax)           ``pattern``
unique              no two rows equal in ``column`` or ``columns``              none
schema              these columns with these types, and no others               ``columns``: name to type; ``exact``
row_count           number of rows within bounds                                ``min``, ``max``
row_count_change    number of rows against the version before, as shares        ``max_drop``, ``max_rise``
label_balance       share of the rarest class                                   ``min_share``
freshness           age of the newest row by ``column`` or the time column      ``max_age_hours``
==================  ==========================================================  =====================================

Nulls pass every kind but ``not_null``. Pure but for pyarrow: the clock and the version before are handed in.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiltyard.data import rows
from tiltyard.data.versions import Check, DatasetSpec
from tiltyard.errors import CheckFailedError, SpecError
from tiltyard.types import Task

EXAMPLES = 3
"""Failing rows that a message shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A check that the rows did not keep.

    Args:
        check: Which one.
        told: What was found and what was wanted.
        num_rows: Rows that failed; 0 where the table as a whole did.
        places: Places of the first failing rows in the table that was checked.
        rows: Those rows: key and checked columns, values of sensitive columns hidden.
    """

    check: Check
    told: str
    num_rows: int = 0
    places: tuple[int, ...] = ()
    rows: tuple[dict[str, Any], ...] = ()

    def __str__(self) -> str:
        on = self.check.column or ", ".join(self.check.columns)
        shown = "; ".join(", ".join(f"{name} {value!r}" for name, value in row.items()) for row in self.rows)
        return f"{self.check.kind}{f' of {on}' if on else ''}: {self.told}" + (f", such as {shown}" if shown else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a check may look at besides the rows: spec, rows in the version before (or None), and the time (aware)."""

    spec: DatasetSpec
    rows_before: int | None
    now: dt.datetime


def run(table: pa.Table, context: Context) -> list[Failure]:
    """Every declared check that the rows do not keep, in the order of declaration.

    Args:
        table: Canonical rows (`rows.canonical`) of the whole version.
        context: What else there is to know.

    Raises:
        SpecError: If a check names a column that is not there, or does not fit its column.
    """
    for check in context.spec.checks:
        validate(check, table.column_names)
    found = (_KINDS[check.kind](table, check, context) for check in context.spec.checks)
    return [failure for failure in found if failure is not None]


def refuse(ref: str, failures: Sequence[Failure]) -> tuple[str, ...]:
    """The failures that are warnings, as texts to keep with the version.

    Raises:
        CheckFailedError: If one of the others failed; names all of them with the rows.
    """
    errors = [f for f in failures if f.check.severity == "error"]
    if errors:
        told = "\n".join(f"  {failure}" for failure in errors)
        raise CheckFailedError(
            f"{len(errors)} of the checks declared on {ref} refused these rows; nothing was committed.\n{told}\n"
            "Mend the rows and commit again; or, where the rule is wrong, commit with a spec that says so (another bound, "
            "or severity='warning')."
        )
    return tuple(str(f) for f in failures)


def validate(check: Check, columns: Sequence[str]) -> None:
    """Raises where a check names a column that the rows lack; the rest was said when it was declared.

    Raises:
        SpecError: Naming the column and what there is.
    """
    named = [n for n in (check.column, *check.columns) if n is not None]
    if missing := [n for n in named if n not in columns]:
        raise SpecError(
            f"Check {check.kind!r} names column {missing[0]!r}; the rows have {', '.join(list(columns)[:30])}."
        )


def _failure(
    table: pa.Table, check: Check, context: Context, bad: pa.ChunkedArray | npt.NDArray[np.bool_], told: str
) -> Failure | None:
    """A failure of the rows where ``bad`` is true; None where it is nowhere."""
    mask = bad if isinstance(bad, np.ndarray) else bad.fill_null(False).to_numpy()
    places = np.flatnonzero(mask)
    if not len(places):
        return None
    spec = context.spec
    shown = list(dict.fromkeys([*spec.keys, *((check.column,) if check.column else check.columns)]))
    first = tuple(int(p) for p in places[:EXAMPLES])
    examples = tuple(
        {n: "(hidden)" if n in spec.sensitive else _plain(table[n][at].as_py()) for n in shown} for at in first
    )
    said = f"{len(places):,} of {table.num_rows:,} rows {told}"
    return Failure(check=check, told=said, num_rows=len(places), places=first, rows=examples)


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, dt.date) else value


def _not_null(table: pa.Table, check: Check, context: Context) -> Failure | None:
    bad = pc.is_null(table[str(check.column)], nan_is_null=pa.types.is_floating(table[str(check.column)].type))
    return _failure(table, check, context, bad, "are null or NaN")


def _bound(check: Check, name: str, kind: pa.DataType) -> pa.Scalar | None:
    value = check.params.get(name)
    if value is None:
        return None
    unusable = SpecError(
        f"Check 'range' of {check.column!r}, which is {rows.type_name(kind)}, cannot use {name}={value!r}."
    )
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        try:
            moment = dt.datetime.fromisoformat(str(value))
        except ValueError as error:
            raise unusable from error
        if pa.types.is_date(kind):
            return pa.scalar(moment.date())
        return pa.scalar(moment.replace(tzinfo=(moment.tzinfo or dt.UTC) if kind.tz else None), kind)
    ordered = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if isinstance(value, str) or not ordered:
        raise unusable
    return pa.scalar(value)


def _range(table: pa.Table, check: Check, context: Context) -> Failure | None:
    column = table[str(check.column)]
    low, high = _bound(check, "min", column.type), _bound(check, "max", column.type)
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    bad = pa.chunked_array([np.zeros(table.num_rows, bool)])
    if low is not None:
        bad = pc.or_kleene(bad, pc.less(column, low))
    if high is not None:
        bad = pc.or_kleene(bad, pc.greater(column, high))
    wanted = " and ".join(f"{n} {check.params[n]}" for n in ("min", "max") if n in check.params)
    return _failure(table, check, context, bad, f"lie outside {wanted}")


def _allowed(table: pa.Table, check: Check, context: Context) -> Failure | None:
    column, values = table[str(check.column)], check.params["values"]
    try:
        allowed = pa.array(values, type=column.type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise SpecError(
            f"Check 'allowed' of column {check.column!r}, which is {rows.type_name(column.type)}, cannot use {values!r}: {error}."
        ) from error
    bad = pc.and_(pc.is_valid(column), pc.invert(pc.is_in(column, value_set=allowed)))
    return _failure(table, check, context, bad, f"are none of {values[:10]}")


def _matches(table: pa.Table, check: Check, context: Context) -> Failure | None:
    column, pattern = table[str(check.column)], str(check.params["pattern"])
    if not pa.types.is_string(column.type):
        raise SpecError(f"Check 'matches' is for text; column {check.column!r} is {rows.type_name(column.type)}.")
    try:
        bad = pc.invert(pc.match_substring_regex(column, f"^(?:{pattern})$"))
    except pa.ArrowInvalid as error:
        raise SpecError(
            f"Check 'matches' of column {check.column!r} has a pattern that RE2 refuses: {error}."
        ) from error
    return _failure(table, check, context, bad, f"do not match {pattern!r}")


def _unique(table: pa.Table, check: Check, context: Context) -> Failure | None:
    names = (check.column,) if check.column else check.columns
    if wide := [n for n in names if pa.types.is_fixed_size_list(table[n].type)]:
        raise SpecError(f"Check 'unique' cannot compare tensors; column {wide[0]!r} holds some.")
    hashes = rows.columns_hash([table[n] for n in names])
    order = np.argsort(hashes, kind="stable")
    again = np.zeros(table.num_rows, bool)
    again[order[1:]] = hashes[order][1:] == hashes[order][:-1]
    return _failure(table, check, context, again, "are there already, by " + ", ".join(map(str, names)))


def _schema(table: pa.Table, check: Check, context: Context) -> Failure | None:
    del context
    wanted = {str(n): str(t) for n, t in dict(check.params["columns"]).items()}
    found = {f.name: rows.type_name(f.type) for f in table.schema}
    wrong = [f"{n!r} is {found.get(n, 'missing')}, wanted {t}" for n, t in wanted.items() if found.get(n) != t]
    if check.params.get("exact", True):
        wrong += [f"{n!r} is {found[n]}, not wanted" for n in found if n not in wanted]
    return Failure(check=check, told="; ".join(wrong[:10])) if wrong else None


def _row_count(table: pa.Table, check: Check, context: Context) -> Failure | None:
    del context
    low, high = check.params.get("min", 0), check.params.get("max", float("inf"))
    if low <= table.num_rows <= high:
        return None
    return Failure(check=check, told=f"{table.num_rows:,} rows, wanted {low:,} to {high:,}")


def _row_count_change(table: pa.Table, check: Check, context: Context) -> Failure | None:
    before = context.rows_before
    if not before:
        return None
    change = table.num_rows / before - 1
    drop, rise = check.params.get("max_drop", 1.0), check.params.get("max_rise", float("inf"))
    if -drop <= change <= rise:
        return None
    told = f"{table.num_rows:,} rows after {before:,}: {change:+.1%}, wanted {-drop:+.0%} to {rise:+.0%}"
    return Failure(check=check, told=told)


def _label_balance(table: pa.Table, check: Check, context: Context) -> Failure | None:
    spec = context.spec
    if spec.task not in (Task.BINARY, Task.MULTICLASS):
        raise SpecError(f"Check 'label_balance' is for classes; the task is {spec.task or 'not declared'}.")
    counts = table[spec.labels[0]].value_counts()
    per_class = dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
    per_class = dict.fromkeys(spec.classes, 0) | per_class
    rarest = min(per_class, key=lambda c: (per_class[c], str(c)))
    share, wanted = per_class[rarest] / table.num_rows, float(check.params["min_share"])
    if share >= wanted:
        return None
    told = f"class {rarest!r} has {per_class[rarest]:,} of {table.num_rows:,} rows ({share:.2%}), wanted {wanted:.2%}"
    return Failure(check=check, told=told)


def _freshness(table: pa.Table, check: Check, context: Context) -> Failure | None:
    name = check.column or context.spec.time
    if name is None:
        raise SpecError("Check 'freshness' needs a column, or the dataset's time column: DatasetSpec(time='...').")
    kind = table[name].type
    if not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise SpecError(f"Check 'freshness' is for dates and timestamps; column {name!r} is {rows.type_name(kind)}.")
    newest = pc.max(table[name].cast(pa.timestamp("us", "UTC" if getattr(kind, "tz", None) else None))).as_py()
    limit = float(check.params["max_age_hours"])
    if newest is None:
        return Failure(check=check, told=f"no row has a time in {name!r}, wanted one of the last {limit:g} hours")
    age = (context.now - newest.replace(tzinfo=newest.tzinfo or dt.UTC)).total_seconds() / 3600
    if age <= limit:
        return None
    told = f"the newest row is of {newest.isoformat()} ({age:,.1f} hours old), wanted at most {limit:g} hours"
    return Failure(check=check, told=told)


_KINDS: dict[str, Callable[[pa.Table, Check, Context], Failure | None]] = {
    "not_null": _not_null,
    "range": _range,
    "allowed": _allowed,
    "matches": _matches,
    "unique": _unique,
    "schema": _schema,
    "row_count": _row_count,
    "row_count_change": _row_count_change,
    "label_balance": _label_balance,
    "freshness": _freshness,
}
KINDS = tuple(_KINDS)
"""Every kind of check; what each takes stands in `tiltyard.data.rules`."""
