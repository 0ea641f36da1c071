"""Rows as clients send them (JSON, Arrow IPC) into a table that a model takes, or a refusal that names row and column.

Everything in a request is foreign: an Arrow stream is validated in full before a value of it is read, because a wrong
offset in it would read other memory. Pure: no Ray, no HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tiltyard.errors import ServingError
from tiltyard.serving.answers import InputColumn, Limits

SHOWN_PROBLEMS = 20
PACKED_BYTES = 1 << 20


class RequestError(ServingError):
    """A request that cannot be answered as it is.

    Args:
        status: The HTTP status that says so: 400, 401, 404, 408, 413, 422, 429, 503 or 504.
        message: What was found, what was wanted, what to do now.
        problems: For 422: ``{"row", "column", "found", "wanted"}`` each; ``row`` is None where no single row is at fault.
    """

    def __init__(self, status: int, message: str, problems: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(status, message, tuple(problems))
        self.status, self.message, self.problems = status, message, tuple(problems)

    def __str__(self) -> str:
        return self.message


def table_from_rows(
    rows: Any,
    columns: Sequence[InputColumn],
    limits: Limits,
    *,
    extra: str = "refuse",
    personal: Collection[str] = (),
) -> pa.Table:
    """A table from JSON rows, each an object by column name.

    Args:
        rows: What stood in the JSON.
        columns: What the model takes.
        limits: How many rows are taken.
        extra: ``refuse`` a column that the model does not take, or ``ignore`` it.
        personal: Columns whose values a refusal does not show: whoever gets it may log it.

    Raises:
        RequestError: 413 for too many rows; 422 naming row and column.
    """
    if not isinstance(rows, list) or not rows:
        raise RequestError(422, f"Found {_kind(rows)} for the rows; wanted a list of one or more objects.")
    _check_count(len(rows), limits)
    problems: list[dict[str, Any]] = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.append(_problem(i, None, row, "an object with one value per column"))
    _refuse(problems)
    if extra == "refuse":
        known = {c.name for c in columns}
        for i, row in enumerate(rows):
            problems += [
                _problem(i, name, row[name], "no such column", hidden=name in personal)
                for name in row
                if name not in known
            ]
        _refuse(problems)
    arrays = {}
    for column in columns:
        values = [row.get(column.name, _MISSING) for row in rows]
        arrays[column.name] = _array(column, values, problems, hidden=column.name in personal)
    _refuse(problems)
    return pa.table(arrays)


def rows_from_columns(names: Any, data: Any) -> list[dict[str, Any]]:
    """Rows from a list of column names and a list of lists (pandas' ``split`` form).

    Raises:
        RequestError: 422 naming the row whose length is another.
    """
    if not isinstance(names, list) or not isinstance(data, list) or not all(isinstance(n, str) for n in names):
        raise RequestError(422, "Found no 'columns' (a list of names) and 'data' (a list of rows); wanted both.")
    problems = [
        _problem(i, None, row, f"a list of {len(names)} values")
        for i, row in enumerate(data)
        if not isinstance(row, list) or len(row) != len(names)
    ]
    _refuse(problems)
    return [dict(zip(names, row, strict=True)) for row in data]


def table_from_arrow(body: Any, columns: Sequence[InputColumn], limits: Limits) -> pa.Table:
    """A table from an Arrow IPC stream.

    Raises:
        RequestError: 400 if it is no such stream; 413 for too many rows or bytes; 422 naming the column.
    """
    try:
        with pa.ipc.open_stream(body) as stream:
            batches, count, size = [], 0, 0
            for batch in stream:
                count += batch.num_rows
                size += batch.nbytes
                _check_count(count, limits)
                if size > 4 * limits.body_bytes:
                    raise RequestError(
                        413, f"The stream unpacks to more than {4 * limits.body_bytes} bytes; send less."
                    )
                batch.validate(full=True)
                batches.append(batch)
            table = pa.Table.from_batches(batches, schema=stream.schema)
    except (pa.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise RequestError(400, f"The body is not an Arrow IPC stream: {_brief(error)}") from error
    if not table.num_rows:
        raise RequestError(422, "The stream has no rows; send one or more.")
    return fitted_table(table, columns)


def packed(table: pa.Table) -> bytes | pa.Table:
    """A small table as the bytes of an Arrow stream, for a call to another process: pickling it costs 20 times as much."""
    if table.nbytes > PACKED_BYTES:
        return table  # its columns travel as they lie
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(rows: bytes | pa.Table) -> pa.Table:
    """The table that `packed` was given. For our own bytes alone: nothing of them is checked."""
    if isinstance(rows, pa.Table):
        return rows
    with pa.ipc.open_stream(pa.py_buffer(rows)) as stream:
        return stream.read_all()


def fitted_table(table: pa.Table, columns: Sequence[InputColumn]) -> pa.Table:
    """The columns that a model takes out of a table, each of a type it takes; others are left out.

    Raises:
        RequestError: 422 naming the column.
    """
    problems: list[dict[str, Any]] = []
    taken = {}
    names = table.column_names
    for column in columns:
        if names.count(column.name) != 1:
            found = "nothing" if column.name not in names else "it more than once"
            problems.append(_problem(None, column.name, found, f"one column of {_WANTED[column.kind]}", quote=False))
            continue
        array = table[column.name]
        fitted = _fit(array, column)
        if fitted is None:
            problems.append(_problem(None, column.name, str(array.type), _wanted(column), quote=False))
        else:
            taken[column.name] = fitted
    _refuse(problems)
    return pa.table(taken)


_MISSING = object()
_WANTED = {"number": "numbers", "category": "text", "tensor": "lists of numbers"}


def _wanted(column: InputColumn) -> str:
    if column.kind == "tensor":
        return f"a list of {column.width} numbers"
    return {"number": "a number or null", "category": "text or null"}[column.kind]


def _array(column: InputColumn, values: list[Any], problems: list[dict[str, Any]], *, hidden: bool = False) -> pa.Array:
    """The values as an Arrow array; what is wrong is added to ``problems``."""
    kind = pa.string() if column.kind == "category" else pa.float64()
    if column.kind != "tensor":
        try:
            return pa.array(values, kind)  # the usual case, without a look at each value
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass
    convert: Callable[[Any], Any] = {"number": _number, "category": _text}.get(
        column.kind, lambda value: _tensor(value, column.width)
    )
    found = []
    for i, value in enumerate(values):
        try:
            found.append(convert(value))
        except ValueError:
            shown = "nothing" if value is _MISSING else value
            there = value is not _MISSING
            problems.append(_problem(i, column.name, shown, _wanted(column), quote=there, hidden=hidden and there))
            if len(problems) >= SHOWN_PROBLEMS:
                break
    if problems:
        return pa.nulls(len(values))
    if column.kind == "tensor":
        flat = pa.array([x for row in found for x in row], pa.float32())
        return pa.FixedSizeListArray.from_arrays(flat, column.width)
    return pa.array(found, kind)


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError from error
    raise ValueError


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        if value is not None:
            try:
                value.encode()
            except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
                raise ValueError from error
        return value
    raise ValueError


def _tensor(value: Any, width: int) -> list[float]:
    if not isinstance(value, list):
        raise ValueError  # noqa: TRY004 - one kind of error for every wrong value
    flat: list[float] = []
    for part in value:
        if isinstance(part, list):
            flat += _tensor(part, -1)
        else:
            number = _number(part)
            flat.append(math.nan if number is None else number)
    if width >= 0 and len(flat) != width:
        raise ValueError
    return flat


def _fit(array: Any, column: InputColumn) -> Any | None:
    """The column in a type the model takes, or None."""
    kind = array.type
    try:
        if column.kind == "category":
            if pa.types.is_dictionary(kind):
                array, kind = array.cast(kind.value_type), kind.value_type
            return array.cast(pa.string()) if _is_text(kind) else None
        if column.kind == "tensor":
            inner = getattr(kind, "value_type", None)
            if not pa.types.is_nested(kind) or inner is None or not _is_number(inner) or array.null_count:
                return None
            fixed = pa.list_(pa.float32(), column.width)
            return array if kind == fixed else array.cast(fixed)
    except (pa.ArrowException, TypeError):
        return None
    return array if _is_number(kind) else None


def _is_number(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _check_count(count: int, limits: Limits) -> None:
    if count > limits.rows:
        raise RequestError(
            413, f"Found {count} rows or more, wanted at most {limits.rows} a request. Send them in parts."
        )


def _problem(
    row: int | None, column: str | None, found: Any, wanted: str, *, quote: bool = True, hidden: bool = False
) -> dict[str, Any]:
    shown = "a value that is not shown" if hidden else repr(found) if quote else str(found)
    return {"row": row, "column": column, "found": shown if len(shown) <= 80 else shown[:77] + "...", "wanted": wanted}


def _refuse(problems: list[dict[str, Any]]) -> None:
    if not problems:
        return
    first = problems[0]
    where = ", ".join(
        f"{what} {first[what]!r}" if what == "column" else f"{what} {first[what]}"
        for what in ("row", "column")
        if first[what] is not None
    )
    more = f" ({len(problems)} or more values are wrong; the first {SHOWN_PROBLEMS} are listed)" if problems[1:] else ""
    message = f"At {where}: found {first['found']}, wanted {first['wanted']}.{more}"
    raise RequestError(422, message, problems[:SHOWN_PROBLEMS])


def _kind(value: Any) -> str:
    return "an empty list" if value == [] else f"a {type(value).__name__}"


def _brief(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
