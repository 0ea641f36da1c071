"""The profile kept with a version: exact counts and moments, quantiles of a uniform sample, nothing about one person."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import profile as profiling
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.types import Task


def of(values: Any, kind: pa.DataType | None = None, **more: Any) -> profiling.ColumnProfile:
    return profiling.profile(pa.table({"v": pa.array(values, kind)}), **more).columns["v"]


@given(values=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=1, max_size=60), data=st.data())
@settings(deadline=None, max_examples=50)
def test_profile_in_parts_of_any_size_equals_plain_numpy(values: list[float | None], data: st.DataObject) -> None:
    table = pa.table({"v": pa.array(values, pa.float64())})
    builder = profiling.Builder()
    cut = data.draw(st.integers(0, len(values)))
    for part in (table.slice(0, cut), table.slice(cut)):
        if part.num_rows:
            builder.add(part)
    found = builder.done().columns["v"]
    present = np.array([v for v in values if v is not None])
    assert (found.count, found.nulls, found.nans) == (len(values), len(values) - len(present), 0)
    if not len(present):
        assert found.mean is None
        return
    np.testing.assert_allclose(
        np.array([found.mean, found.std], float), [present.mean(), present.std()], rtol=1e-9, atol=1e-6
    )
    assert (found.minimum, found.maximum) == (present.min(), present.max())
    np.testing.assert_allclose(found.quantiles, np.quantile(present, profiling.QUANTILES))
    assert sum(found.counts) == len(present)
    for i, count in enumerate(found.counts):
        last = i == len(found.counts) - 1
        low, high = found.edges[i], found.edges[i + 1]
        assert count == ((present >= low) & ((present <= high) if last else (present < high))).sum()


def test_profile_of_numbers_with_nan_and_infinity_counts_them_apart() -> None:
    found = of([1.0, float("nan"), None, float("inf"), 3.0])
    assert (found.count, found.nulls, found.nans) == (5, 1, 2)
    assert (found.mean, found.minimum, found.maximum) == (2.0, 1.0, 3.0)


def test_profile_of_texts_names_frequent_categories_and_no_rare_ones() -> None:
    found = of(["rom"] * 7 + ["ulm"] * 5 + ["ann@home"] + [None])
    assert found.categories == {"rom": 7, "ulm": 5}
    assert (found.other, found.nulls, found.distinct) == (1, 1, 3)
    assert found.minimum is None
    many = of([f"name {i}" for i in range(2_000)])
    assert (many.categories, many.distinct) == ({}, 2_000)


def test_profile_of_whole_numbers_booleans_and_times_says_what_each_has() -> None:
    assert of([0, 1, 1, 1, 1, 1, 0, 0, 0, 0]).categories == {"0": 5, "1": 5}
    assert of(list(range(1_000))).categories == {}
    flags = of([True] * 6 + [False] * 2)
    assert (flags.mean, flags.categories, flags.other) == (0.75, {"true": 6}, 2)
    days = of([dt.date(2026, 1, 1), dt.date(2026, 3, 1), None])
    assert (days.minimum, days.maximum) == ("2026-01-01", "2026-03-01")
    times = of([dt.datetime(2026, 1, 1, 12)], pa.timestamp("us", "UTC"))
    assert times.minimum == "2026-01-01T12:00:00+00:00"


def test_profile_of_tensors_is_over_all_their_numbers() -> None:
    images = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.int16)), 4)
    found = profiling.profile(pa.table({"image": images})).columns["image"]
    assert (found.type, found.count, found.mean, found.maximum) == ("int16[4]", 3, 5.5, 11.0)
    assert found.distinct is None


def test_profile_of_a_key_keeps_counts_alone() -> None:
    found = of([10, 20, 20], hidden=("v",))
    assert (found.count, found.distinct) == (3, 2)
    assert (found.minimum, found.mean, found.quantiles, dict(found.categories)) == (None, None, (), {})


def test_profile_of_a_large_split_samples_by_hash_and_counts_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "SAMPLE_ROWS", 500)
    values = np.random.default_rng(0).normal(size=4_000)
    split = profiling.profile(pa.table({"v": values}))
    found = split.columns["v"]
    assert (split.num_rows, split.sampled_rows) == (4_000, 500)
    assert sum(found.counts) == 500
    assert found.mean == pytest.approx(values.mean())
    assert found.maximum == values.max()
    assert found.quantiles[-1] == values[:500].max()


def test_profile_of_a_version_is_kept_with_it_split_by_split(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    n = np.arange(400)
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")
    rows = {"id": n, "x": np.sin(n), "city": [f"c{i % 3}" for i in n], "y": n % 3}
    version = store.commit("toy", rows, spec=spec).version
    assert (tmp_path / "toy" / version.profile_path).is_file()
    found = store.profile(version)
    for split, count in version.split_rows.items():
        values = store.read(version, split=split)["x"].to_numpy()
        column = found.column("x", split)
        assert column.count == count
        np.testing.assert_allclose(np.array([column.mean, column.std], float), [values.mean(), values.std()])
    assert found.column("id").mean is None
    assert profiling.Profile.from_json(json.loads(json.dumps(found.to_json()))) == found
    (tmp_path / "toy" / version.profile_path).unlink()
    again = store.profile("toy")  # computed from the rows
    assert again.column("city") == found.column("city")
    with pytest.raises(DatasetNotFoundError, match="no column 'z'; it has city"):
        found.column("z")
    with pytest.raises(DatasetNotFoundError, match="no split 'dev'"):
        found.column("x", "dev")


def test_profile_of_a_newer_or_damaged_record_is_refused() -> None:
    data = profiling.Profile(splits={}).to_json()
    with pytest.raises(DataError, match="schema version 2"):
        profiling.Profile.from_json({**data, "schema_version": 2})
    with pytest.raises(DataError, match="damaged"):
        profiling.Profile.from_json({**data, "splits": {"train": {}}})
