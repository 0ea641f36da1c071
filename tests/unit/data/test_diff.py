"""Two versions beside each other: rows by hash, duplicates counted, columns, splits, statistics."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import diff
from tiltyard.data.compare import compare
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import SPLITS, DatasetSpec, SplitSpec
from tiltyard.types import Task

SIDES = st.dictionaries(st.sampled_from(SPLITS), st.lists(st.integers(0, 6), max_size=12))


@given(a=SIDES, b=SIDES)
@settings(deadline=None)
def test_rows_of_any_two_versions_are_counted_as_multisets(a: dict[str, list[int]], b: dict[str, list[int]]) -> None:
    arrays = [{s: np.array(h, np.int64) for s, h in side.items()} for side in (a, b)]
    found = diff.count_rows(arrays[0], arrays[1])
    all_a, all_b = (Counter(h for hashes in side.values() for h in hashes) for side in (a, b))
    kept = (all_a & all_b).total()
    assert (found.kept, found.added, found.removed) == (kept, (all_b - all_a).total(), (all_a - all_b).total())
    in_place = sum((Counter(a.get(s, [])) & Counter(b.get(s, []))).total() for s in SPLITS)
    assert found.moved == kept - in_place


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(str(tmp_path))


def test_diff_of_an_append_tells_rows_splits_and_statistics(store: DatasetStore) -> None:
    n = np.arange(300)
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")
    first = store.commit("toy", {"id": n, "x": np.sin(n), "y": n % 3}, spec=spec).version
    second = store.append("toy", {"id": n + 300, "x": np.sin(n) + 2, "y": n % 3}).version
    found = compare(store, "toy@1", "toy@2")
    assert found.rows == diff.RowCounts(added=300, removed=0, kept=300, moved=0)
    assert found.num_rows == (300, 600)
    assert found.split_rows == {s: (first.split_rows[s], second.split_rows[s]) for s in SPLITS}
    a, b = found.columns["train"]["x"]
    assert a is not None
    assert b is not None
    assert (a.mean, b.mean) == tuple(store.profile(v).column("x").mean for v in (first, second))
    assert (found.same, found.declared, found.changed_columns) == (False, {}, {})
    back = compare(store, "toy@2", "toy@1")
    assert (back.rows.added, back.rows.removed) == (0, 300)
    assert compare(store, "toy", "toy@2").same
    assert json.loads(json.dumps(found.to_json()))["rows"]["added"] == 300


def test_diff_of_other_columns_compares_rows_by_those_in_common(store: DatasetStore) -> None:
    n = np.arange(40)
    store.commit("toy", {"id": n, "x": np.sin(n), "old": n}, spec=DatasetSpec(key="id"))
    store.commit("toy", {"id": n[5:], "x": np.sin(n[5:]).astype(np.float32), "new": n[5:]})
    found = compare(store, "toy@1", "toy@2")
    assert (found.added_columns, found.removed_columns) == ({"new": "int64"}, {"old": "int64"})
    assert found.changed_columns == {"x": ("float64", "float32")}
    assert found.rows == diff.RowCounts(added=0, removed=5, kept=35, moved=0, columns=("id",))
    assert found.columns["train"]["old"][1] is None


def test_diff_of_another_split_seed_tells_rows_that_moved(store: DatasetStore) -> None:
    n = np.arange(200)
    store.commit("toy", {"id": n}, spec=DatasetSpec(key="id"))
    store.commit("toy", {"id": n}, spec=DatasetSpec(key="id", split=SplitSpec(seed=1)))
    found = compare(store, "toy@1", "toy@2")
    assert found.rows.kept == 200
    assert 60 < found.rows.moved < 160
    assert found.declared["split"][1]["seed"] == 1
