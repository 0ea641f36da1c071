"""Rows from clients: every right form becomes the same table, every wrong value is named by row and column."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.serving.answers import InputColumn, Limits
from tiltyard.serving.requests import (
    RequestError,
    packed,
    rows_from_columns,
    table_from_arrow,
    table_from_rows,
    unpacked,
)

COLUMNS = (
    InputColumn(name="x", kind="number"),
    InputColumn(name="c", kind="category"),
    InputColumn(name="t", kind="tensor", width=2),
)
GOOD = {"x": 1, "c": "a", "t": [1, 2.5]}
LIMITS = Limits(rows=100, body_bytes=10_000)


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


NUMBERS = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False))


@given(
    st.lists(
        st.tuples(NUMBERS, st.none() | st.text(alphabet=st.characters(exclude_categories=["Cs"]))),
        min_size=1,
        max_size=20,
    )
)
def test_rows_of_any_right_values_become_a_table_of_them(values: list[tuple[Any, Any]]) -> None:
    rows = [{"x": x, "c": c, "t": [0, [1]]} for x, c in values]
    table = table_from_rows(rows, COLUMNS, LIMITS)
    assert table.column_names == ["x", "c", "t"]
    assert table["x"].to_pylist() == [None if x is None else float(x) for x, _ in values]
    assert table["c"].to_pylist() == [c for _, c in values]
    assert table["t"].to_pylist() == [[0.0, 1.0]] * len(values)


@pytest.mark.parametrize(
    ("change", "column"),
    [
        ({"x": "1"}, "x"),
        ({"x": [1]}, "x"),
        ({"x": 10**400}, "x"),
        ({"c": 1}, "c"),
        ({"c": "\ud800"}, "c"),
        ({"t": [1]}, "t"),
        ({"t": "ab"}, "t"),
        ({"t": [1, "b"]}, "t"),
        ({"y": 1}, "y"),
    ],
)
def test_rows_with_one_wrong_value_name_its_row_and_column(change: dict[str, Any], column: str) -> None:
    with pytest.raises(RequestError) as told:
        table_from_rows([GOOD, {**GOOD, **change}, GOOD], COLUMNS, LIMITS)
    assert told.value.status == 422
    assert [(p["row"], p["column"]) for p in told.value.problems] == [(1, column)]
    assert f"row 1, column {column!r}" in str(told.value)


@pytest.mark.parametrize("name", ["x", "c", "t"])
def test_rows_without_a_column_name_it(name: str) -> None:
    with pytest.raises(RequestError, match=f"row 0, column '{name}': found nothing"):
        table_from_rows([{k: v for k, v in GOOD.items() if k != name}], COLUMNS, LIMITS)


@pytest.mark.parametrize("rows", [None, {}, "x", [], [1], [[1]]])
def test_rows_that_are_no_list_of_objects_are_refused(rows: Any) -> None:
    with pytest.raises(RequestError) as told:
        table_from_rows(rows, COLUMNS, LIMITS)
    assert told.value.status == 422


def test_rows_with_a_column_more_are_taken_where_that_is_ignored() -> None:
    table = table_from_rows([{**GOOD, "more": 1}], COLUMNS, LIMITS, extra="ignore")
    assert table.column_names == ["x", "c", "t"]


def test_rows_above_the_limit_are_413_and_many_problems_are_cut() -> None:
    with pytest.raises(RequestError) as told:
        table_from_rows([GOOD] * 101, COLUMNS, LIMITS)
    assert told.value.status == 413
    with pytest.raises(RequestError) as told:
        table_from_rows([{}] * 100, COLUMNS, LIMITS)
    assert len(told.value.problems) == 20


def test_split_form_with_a_short_row_names_it() -> None:
    assert rows_from_columns(["a", "b"], [[1, 2]]) == [{"a": 1, "b": 2}]
    with pytest.raises(RequestError, match="row 1: found"):
        rows_from_columns(["a", "b"], [[1, 2], [1]])
    with pytest.raises(RequestError, match="wanted both"):
        rows_from_columns(None, [[1]])


def test_arrow_stream_of_other_number_and_text_types_is_fitted() -> None:
    table = pa.table(
        {
            "ignored": pa.array([1, 2]),
            "c": pa.array(["a", None]).dictionary_encode(),
            "x": pa.array([1, None], pa.int8()),
            "t": pa.array([[1, 2], [3, 4]], pa.list_(pa.float64())),
        }
    )
    found = table_from_arrow(_stream(table), COLUMNS, LIMITS)
    assert found.column_names == ["x", "c", "t"]
    assert found["c"].to_pylist() == ["a", None]
    assert found["t"].to_pylist() == [[1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("column", "array"),
    [
        ("x", pa.array(["a"])),
        ("x", pa.array([[1.0]])),
        ("c", pa.array([1])),
        ("t", pa.array([[1.0]])),
        ("t", pa.array([1.0])),
        ("t", pa.array([["a", "b"]])),
        ("t", pa.array([None], pa.list_(pa.float32(), 2))),
    ],
)
def test_arrow_stream_with_a_column_of_another_type_names_it(column: str, array: pa.Array) -> None:
    good = {"x": pa.array([1.0]), "c": pa.array(["a"]), "t": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}
    with pytest.raises(RequestError) as told:
        table_from_arrow(_stream(pa.table({**good, column: array})), COLUMNS, LIMITS)
    assert (told.value.status, told.value.problems[0]["column"]) == (422, column)
    with pytest.raises(RequestError, match=f"column '{column}': found nothing"):
        table_from_arrow(_stream(pa.table({k: v for k, v in good.items() if k != column})), COLUMNS, LIMITS)


@given(data=st.data())
def test_arrow_stream_with_bytes_changed_is_answered_or_refused_and_never_crashes(data: st.DataObject) -> None:
    table = pa.table(
        {"x": np.arange(5.0), "c": ["a", "bb", "", None, "e"], "t": pa.array([[1, 2]] * 5, pa.list_(pa.float32(), 2))}
    )
    body = bytearray(_stream(table))
    for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[place] = data.draw(st.integers(0, 255))
    status = 200
    try:
        table_from_arrow(bytes(body[: data.draw(st.integers(0, len(body)))]), COLUMNS, LIMITS).to_pylist()
    except RequestError as refused:
        status = refused.status
    assert status in {200, 400, 413, 422}


def test_arrow_stream_with_too_much_is_413_and_with_nothing_422() -> None:
    table = pa.table({"x": np.zeros(101), "c": ["a"] * 101, "t": pa.array([[1, 2]] * 101, pa.list_(pa.float32(), 2))})
    with pytest.raises(RequestError) as told:
        table_from_arrow(_stream(table), COLUMNS, LIMITS)
    assert told.value.status == 413
    with pytest.raises(RequestError, match="no rows"):
        table_from_arrow(_stream(table.slice(0, 0)), COLUMNS, LIMITS)


def test_request_error_that_was_pickled_says_the_same() -> None:
    again = pickle.loads(pickle.dumps(RequestError(422, "message", [{"row": 1}])))
    assert (again.status, str(again), again.problems) == (422, "message", ({"row": 1},))


@pytest.mark.parametrize("rows", [0, 1, 300_000], ids=["none", "one", "too-many-to-pack"])
def test_table_packed_for_another_process_is_the_same_unpacked(rows: int) -> None:
    table = pa.table({"n": pa.array(range(rows), pa.float64()), "c": pa.array(["x"] * rows, pa.string())})
    sent = packed(table)
    assert isinstance(sent, pa.Table if rows > 1 else bytes)
    assert unpacked(sent).equals(table)
