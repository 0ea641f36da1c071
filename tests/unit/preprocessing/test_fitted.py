"""What a model sees of a row: learned on the training split alone, applied the same everywhere, kept as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import DataError, DatasetNotFoundError, SpecError
from tiltyard.preprocessing import Preprocessor
from tiltyard.types import Task

NAN = float("nan")
TABLE = pa.table(
    {
        "age": pa.array([20.0, None, 40.0, 60.0]),
        "count": pa.array([1, 2, 3, 4]),
        "city": pa.array(["rom", "ulm", None, "rom"]),
        "flag": pa.array([True, False, True, True]),
        "image": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(8, dtype=np.float32)), 2),
        "y": pa.array(["b", "a", "b", "a"]),
    }
)
FEATURES = ("age", "count", "city", "flag", "image")


def fit(table: pa.Table = TABLE, **more: Any) -> Preprocessor:
    return Preprocessor.fit(table, **{"features": FEATURES, "label": "y", "task": Task.BINARY, **more})


def test_transform_of_the_training_rows_is_what_was_stated() -> None:
    fitted = fit()
    assert fitted.feature_names_out == (
        "age",
        "age is missing",
        "count",
        "city=rom",
        "city=ulm",
        "flag",
        "image[0]",
        "image[1]",
    )
    out = fitted.transform(TABLE)
    assert (out.shape, str(out.dtype), out.flags.c_contiguous) == ((4, 8), "float32", True)
    ages = np.array([20, 40, 60], np.float64)  # the median, 40, fills the gap; the gap counts for neither moment
    np.testing.assert_allclose(out[:, 0], (np.array([20, 40, 40, 60]) - ages.mean()) / ages.std(), rtol=1e-6)
    np.testing.assert_array_equal(out[:, 1], [0, 1, 0, 0])
    counts = np.arange(1, 5)
    np.testing.assert_allclose(out[:, 2], (counts - counts.mean()) / counts.std(), rtol=1e-6)
    np.testing.assert_array_equal(out[:, 3:5], [[1, 0], [0, 1], [0, 0], [1, 0]])
    pixels = np.arange(8.0)
    np.testing.assert_allclose(out[:, 6:].ravel(), (pixels - pixels.mean()) / pixels.std(), rtol=1e-6)
    np.testing.assert_array_equal(fitted.transform_label(TABLE), [1, 0, 1, 0])


def test_transform_of_rows_with_gaps_and_unknown_categories_uses_what_was_learned() -> None:
    fitted = fit()
    new = pa.table(
        {
            "age": pa.array([NAN, float("inf"), None]),
            "count": pa.array([None, 2.5, 2.5]),
            "city": pa.array(["oslo", None, "ulm"]),
            "flag": pa.array([None, True, False]),
            "image": pa.FixedSizeListArray.from_arrays(pa.array([0.0, NAN, 3.5, 3.5, 3.5, 3.5]), 2),
        }
    )
    out = fitted.transform(new)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out[:, 0], 0.0, atol=1e-6)
    np.testing.assert_array_equal(out[:, 1], [1, 1, 1])
    np.testing.assert_allclose(out[:, 2], 0.0, atol=1e-6)  # median of 1..4
    np.testing.assert_array_equal(out[:, 3:5], [[0, 0], [0, 0], [0, 1]])
    np.testing.assert_allclose(out[1:, 6:], 0.0, atol=1e-6)


@given(
    values=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=2, max_size=30),
    scaling=st.sampled_from(["standard", "minmax", "none"]),
    at=st.integers(0, 29),
)
@settings(max_examples=60, deadline=None)
def test_transform_of_a_row_does_not_depend_on_its_neighbours(
    values: list[float | None], scaling: str, at: int
) -> None:
    table = pa.table({"x": pa.array(values, pa.float32()), "y": pa.array([0, 1] * 15)[: len(values)]})
    if table["x"].null_count == len(values):
        return
    fitted = fit(table, features=("x",), scaling=scaling)
    again = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again == fitted
    assert again.digest == fitted.digest
    whole = fitted.transform(table)
    assert np.isfinite(whole).all()
    row = at % len(values)
    np.testing.assert_array_equal(again.transform(table.slice(row, 1))[0], whole[row])


def test_transform_of_many_chunks_equals_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = fit()
    whole = fitted.transform(TABLE)
    chunks = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    monkeypatch.setattr("tiltyard.preprocessing.fitted._CHUNK_ROWS", 3)
    np.testing.assert_array_equal(fitted.transform(chunks), whole)


def test_scaling_of_a_constant_column_divides_by_one() -> None:
    table = pa.table({"x": [1e9, 1e9], "y": [0, 1]})
    np.testing.assert_array_equal(fit(table, features=("x",)).transform(table), 0)


def test_categories_beyond_the_most_frequent_are_all_zero() -> None:
    table = pa.table({"c": ["a"] * 3 + ["b"] * 2 + ["z", "q"], "y": [0, 1] * 3 + [0]})
    fitted = fit(table, features=("c",), max_categories=3)
    assert fitted.feature_names_out == ("c=a", "c=b", "c=q")  # of equally frequent ones the first by name
    assert fitted.transform(table)[5].tolist() == [0, 0, 0]


def test_labels_of_each_task_come_as_training_wants_them() -> None:
    table = pa.table({"x": [1, 2], "y": [True, False], "z": [0.5, 1.5], "w": [1, 0]})
    assert fit(table, features=("x",)).transform_label(table).tolist() == [1, 0]
    several = fit(table, features=("x",), label=("z", "w"), task=Task.REGRESSION)
    found = several.transform_label(table)
    assert (str(found.dtype), found.tolist()) == ("float32", [[0.5, 1.0], [1.5, 0.0]])
    assert several.num_classes == 2


def test_classes_that_training_lacks_may_be_named() -> None:
    fitted = fit(classes=("a", "b", "c"), task=Task.MULTICLASS)
    assert fitted.num_classes == 3
    with pytest.raises(DataError, match=r"\['d'\], which is none of the classes"):
        fitted.transform_label(pa.table({"y": ["a", "d"]}))


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"age": None}, DatasetNotFoundError, "no column 'age'; the rows have"),
        ({"age": ["x", "y", "z", "w"]}, DataError, "'age' is string, wanted numbers"),
        ({"city": [1, 2, 3, 4]}, DataError, "'city' is int64; the model was fitted on text"),
        ({"image": np.zeros((4, 3), np.float32)}, DataError, "'image' holds 3 numbers a row.*fitted on 2"),
        ({"image": [1.0, 2.0, 3.0, 4.0]}, DataError, "'image' holds 1 numbers a row"),
        ({"count": np.zeros((4, 2), np.float32)}, DataError, "'count' holds 2 numbers a row"),
    ],
)
def test_transform_with_a_missing_or_wrong_column_names_it(
    change: dict[str, Any], error: type[DataError], told: str
) -> None:
    columns: dict[str, Any] = {n: TABLE[n] for n in TABLE.column_names}
    for name, values in change.items():
        if values is None:
            del columns[name]
        elif isinstance(values, np.ndarray):
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        else:
            columns[name] = pa.array(values)
    with pytest.raises(error, match=told):
        fit().transform(pa.table(columns))


@pytest.mark.parametrize(
    ("more", "error", "told"),
    [
        ({"features": ()}, SpecError, "empty"),
        ({"features": ("age", "age")}, SpecError, "twice"),
        ({"features": ("age", "y")}, SpecError, "'y' is among the features"),
        ({"features": ("agee",)}, DatasetNotFoundError, "no column 'agee'"),
        ({"scaling": "robust"}, SpecError, "'robust' is none of"),
        ({"label": "z"}, DatasetNotFoundError, "no column 'z'"),
    ],
)
def test_fit_that_cannot_be_right_is_refused(more: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        fit(**more)


def test_fit_on_a_column_without_values_or_of_a_strange_type_is_refused() -> None:
    with pytest.raises(DataError, match="no value at all"):
        fit(pa.table({"x": pa.nulls(2, pa.float64()), "y": [0, 1]}), features=("x",))
    with pytest.raises(DataError, match="a model can learn from"):
        fit(pa.table({"x": pa.array([1, 2], pa.timestamp("us")), "y": [0, 1]}), features=("x",))
    with pytest.raises(DataError, match="no rows"):
        fit(TABLE.slice(0, 0))


def test_from_json_of_a_newer_or_damaged_record_is_refused() -> None:
    data = fit().to_json()
    with pytest.raises(DataError, match="schema version 2"):
        Preprocessor.from_json({**data, "schema_version": 2})
    with pytest.raises(DataError, match="damaged"):
        Preprocessor.from_json({**data, "columns": [{"name": "x"}]})


def test_transform_of_plain_numbers_is_the_same_to_the_last_bit_with_and_without_a_gap() -> None:
    """A table of numbers alone goes a faster way; a missing value takes it the long one."""
    random = np.random.default_rng(3)
    rows = 2 * 4096 + 5
    table = pa.table({f"x{i}": pa.array(random.normal(5, 30, rows).astype(np.float32)) for i in range(7)})
    fitted = Preprocessor.fit(
        table.append_column("label", pa.array([0, 1] * (rows // 2) + [0])),
        features=table.column_names,
        label="label",
        task=Task.BINARY,
    )
    gap = table.set_column(3, "x3", pa.array([*table["x3"].to_pylist()[:-1], None], pa.float32()))
    chunked = pa.concat_tables([table.slice(0, 1000), table.slice(1000)])
    fast, slow = fitted.transform(table), fitted.transform(gap)
    assert fast.flags.c_contiguous
    np.testing.assert_array_equal(fast[:-1], slow[:-1])
    np.testing.assert_array_equal(fast, fitted.transform(chunked))
    assert fitted.transform(table.slice(0, 0)).shape == (0, 7)
