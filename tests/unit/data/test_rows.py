"""Row hashes and the additive digest: the same rows whatever their order, files and shards; never the same without them."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import rows
from tiltyard.errors import DataError

ROWS = st.lists(
    st.tuples(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(st.none(), st.floats(width=32)),
        st.one_of(st.none(), st.text(max_size=6)),
        st.booleans(),
        st.lists(st.integers(-5, 5), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=40,
)
SCHEMA = pa.schema(
    [("a", pa.int64()), ("b", pa.float32()), ("c", pa.string()), ("d", pa.bool_()), ("e", pa.list_(pa.int16(), 3))]
)


def table(values: list[tuple[Any, ...]]) -> pa.Table:
    columns = list(zip(*values, strict=True)) or [()] * 5
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def digest(*shards: pa.Table) -> str:
    return rows.add_sums(*(rows.sum_rows(*rows.row_lanes(shard)) for shard in shards))


@given(values=ROWS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_row_sums_with_any_order_and_any_shards_are_equal(values: list[Any], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=3)))
    bounds = [0, *cuts, len(values)]
    shards = [table(shuffled[a:b]) for a, b in itertools.pairwise(bounds) if b > a]
    assert digest(*shards) == digest(table(values))


@given(values=ROWS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_row_sums_with_one_row_dropped_or_doubled_differ(values: list[Any], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(values) - 1))
    whole = digest(table(values))
    assert digest(table([*values, values[at]])) != whole
    assert digest(table([*values, values[at], values[at]])) != whole  # an XOR would not see a pair
    if len(values) > 1:
        assert digest(table(values[:at] + values[at + 1 :])) != whole


@given(values=ROWS, data=st.data())
@settings(max_examples=60, deadline=None)
def test_row_hash_with_one_value_changed_differs(values: list[Any], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(values) - 1))
    a, b, c, d, e = values[at]
    other = data.draw(
        st.sampled_from(
            [
                (0 if a is None else None, b, c, d, e),
                (a, b, None if c is not None else "", d, e),
                (a, b, c, not d, e),
                (a, b, c, d, [e[1], e[0] + 1, e[2]]),
            ]
        )
    )
    before, after = rows.row_lanes(table([values[at]])), rows.row_lanes(table([other]))
    assert before[0][0] != after[0][0]
    assert before[1][0] != after[1][0]


def test_row_hash_with_columns_in_another_order_is_the_same() -> None:
    first = pa.table({"a": [1, 2, 3], "b": ["x", "y", None]})
    second = pa.table({"b": ["x", "y", None], "a": [1, 2, 3]})
    for one, other in zip(rows.row_lanes(first), rows.row_lanes(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_row_hash_with_two_columns_swapped_differs() -> None:
    first, second = pa.table({"a": [1], "b": [2]}), pa.table({"a": [2], "b": [1]})
    assert rows.row_lanes(first)[0][0] != rows.row_lanes(second)[0][0]


def test_row_hash_of_ten_thousand_numbers_has_no_collision_and_even_bits() -> None:
    lanes = rows.row_lanes(pa.table({"a": np.arange(10_000)}))
    for lane in lanes:
        unsigned = lane.view(np.uint64)
        assert len(np.unique(unsigned)) == 10_000
        for bit in range(64):
            ones = int(((unsigned >> np.uint64(bit)) & np.uint64(1)).sum())
            assert abs(ones - 5_000) < 300, f"bit {bit} is set in {ones} of 10,000"  # six standard deviations


def test_nan_with_any_payload_counts_as_one_value_and_not_as_null() -> None:
    payloads = np.array([0x7FC00000, 0x7FC00001, 0xFFC00000], dtype=np.uint32).view(np.float32)
    hashes = rows.row_lanes(pa.table({"a": pa.array(payloads)}))[0]
    assert len(set(hashes.tolist())) == 1
    null = rows.row_lanes(pa.table({"a": pa.array([None], pa.float32())}))[0]
    assert null[0] != hashes[0]


def test_canonical_with_types_of_many_writers_gives_what_is_stored() -> None:
    source = pa.table(
        {
            "z_small": pa.array([1, 2], pa.uint8()),
            "half": pa.array(np.array([1, 2], np.float16)),
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "large": pa.array(["a", None], pa.large_string()),
            "when": pa.array([dt.datetime(2026, 1, 1), None], pa.timestamp("ns")),
            "list": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32())),
            "money": pa.array([Decimal("1.50"), Decimal("2.25")]),
            "nothing": pa.nulls(2),
        }
    )
    found = rows.canonical(source)
    assert {f.name: rows.type_name(f.type) for f in found.schema} == {
        "half": "float32",
        "large": "string",
        "list": "float32[2]",
        "money": "decimal(3,2)",
        "nothing": "string",
        "text": "string",
        "when": "timestamp",
        "z_small": "int16",
    }
    assert found.column_names == sorted(source.column_names)
    for field in found.schema:
        assert rows.type_of(rows.type_name(field.type)) == field.type


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pa.array([[1], [1, 2]], pa.list_(pa.int64())), "lists of different sizes"),
        (pa.array([{"x": 1}, {"x": 2}]), "does not store"),
        (pa.array([2**64 - 1, 1], pa.uint64()), "cannot be stored as int64"),
    ],
)
def test_canonical_with_a_column_that_cannot_be_stored_names_it(column: pa.Array, told: str) -> None:
    with pytest.raises(DataError, match=told) as caught:
        rows.canonical(pa.table({"odd": column}))
    assert "'odd'" in str(caught.value)


@pytest.mark.parametrize("name", ["", rows.ROW, rows.SPLIT])
def test_canonical_with_a_reserved_name_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="keeps for itself"):
        rows.canonical(pa.table({name: [1]}))


def test_columns_hash_with_equal_keys_in_other_widths_is_equal() -> None:
    narrow, wide = pa.chunked_array([pa.array([7, 8], pa.int16())]), pa.chunked_array([pa.array([7, 8], pa.int64())])
    np.testing.assert_array_equal(rows.columns_hash([narrow]), rows.columns_hash([wide]))
