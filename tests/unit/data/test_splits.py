"""Splits as a pure function of key or content, seed and fractions: nothing added later moves what is there."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import rows, splits
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec, SplitSpec
from tiltyard.errors import DataError, SpecError
from tiltyard.types import Task


def assign(table: pa.Table, spec: DatasetSpec) -> npt.NDArray[np.int8]:
    table = rows.canonical(table)
    return splits.assign(table, spec, rows.row_lanes(table)[0])


def customers(numbers: npt.NDArray[np.int64]) -> pa.Table:
    """Rows whose every value follows from their number."""
    return pa.table({"id": numbers, "customer": numbers // 7, "y": numbers % 3, "x": np.sin(numbers)})


@given(
    old=st.integers(1, 200),
    added=st.integers(0, 200),
    seed=st.integers(0, 5),
    names=st.sampled_from([{}, {"key": "id"}, {"group": "customer"}, {"key": ("customer", "id")}]),
    shuffle=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_split_of_old_rows_with_rows_added_in_any_order_stays(
    old: int, added: int, seed: int, names: dict[str, str], shuffle: int
) -> None:
    spec = DatasetSpec(split=SplitSpec(seed=seed), **names)  # type: ignore[arg-type]
    before = assign(customers(np.arange(old)), spec)
    numbers = np.random.default_rng(shuffle).permutation(old + added)
    after = assign(customers(numbers), spec)
    where = {int(n): code for n, code in zip(numbers, after, strict=True)}
    assert [where[n] for n in range(old)] == before.tolist()


def test_fractions_of_a_large_table_hold_and_move_with_the_seed() -> None:
    table = customers(np.arange(20_000))
    first = assign(table, DatasetSpec(key="id", split=SplitSpec(train=0.7, validation=0.2, test=0.1)))
    shares = np.bincount(first, minlength=3) / 20_000
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.015)
    other = assign(table, DatasetSpec(key="id", split=SplitSpec(train=0.7, validation=0.2, test=0.1, seed=1)))
    assert 0.3 < (first != other).mean() < 0.6


def test_groups_with_many_rows_are_never_divided() -> None:
    table = customers(np.arange(7_000))
    codes = assign(table, DatasetSpec(group="customer"))
    per_group = codes.reshape(1_000, 7)
    assert (per_group == per_group[:, :1]).all()
    assert len(np.unique(codes)) == 3


def test_equal_rows_without_a_key_are_in_one_split() -> None:
    table = customers(np.repeat(np.arange(500), 2))
    codes = assign(table, DatasetSpec())
    np.testing.assert_array_equal(codes[::2], codes[1::2])


def test_stratified_fractions_of_a_rare_class_are_drawn_independently() -> None:
    numbers = np.arange(30_000)
    table = pa.table({"id": numbers, "y": (numbers % 10 == 0).astype(np.int64)})
    spec = DatasetSpec(task=Task.BINARY, label="y", key="id", split=SplitSpec(stratify="y"))
    codes = assign(table, spec)
    for label in (0, 1):
        chosen = codes[table["y"].to_numpy() == label]
        np.testing.assert_allclose(np.bincount(chosen, minlength=3) / len(chosen), [0.6, 0.2, 0.2], atol=0.03)


def test_stratified_key_with_two_classes_is_refused_as_leak() -> None:
    table = pa.table({"id": np.repeat(np.arange(200), 2), "y": np.tile([0, 1], 200)})
    with pytest.raises(DataError, match="Rows leak"):
        assign(table, DatasetSpec(key="id", split=SplitSpec(stratify="y")))


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.date32()])
def test_time_cuts_with_rows_on_the_cut_put_them_after_it(kind: pa.DataType) -> None:
    days = [dt.date(2026, 1, 1), dt.date(2026, 1, 31), dt.date(2026, 2, 1), dt.date(2026, 2, 28), dt.date(2026, 3, 1)]
    table = pa.table({"day": pa.array(days, pa.date32()).cast(pa.timestamp("us")).cast(kind), "x": range(5)})
    spec = DatasetSpec(time="day", split=SplitSpec(time_cuts=("2026-02-01", "2026-03-01")))
    assert assign(table, spec).tolist() == [0, 0, 1, 1, 2]


def test_time_cuts_with_one_key_before_and_after_are_refused_with_the_key() -> None:
    table = pa.table({"day": pa.array([dt.date(2026, 1, 1), dt.date(2026, 3, 1)]), "who": ["ann", "ann"]})
    spec = DatasetSpec(time="day", key="who", split=SplitSpec(time_cuts=("2026-02-01", "2026-03-01")))
    with pytest.raises(DataError, match=r"'who': 'ann'.*test and train"):
        assign(table, spec)


def test_time_cuts_with_a_missing_time_are_refused() -> None:
    table = pa.table({"day": pa.array([dt.date(2026, 1, 1), None]), "x": [1, 2]})
    spec = DatasetSpec(time="day", split=SplitSpec(time_cuts=("2026-02-01", "2026-03-01")))
    with pytest.raises(DataError, match="1 nulls"):
        assign(table, spec)


def test_key_in_two_groups_of_two_splits_is_refused_as_leak() -> None:
    table = pa.table({"customer": np.arange(100), "card": np.zeros(100, np.int64)})
    with pytest.raises(DataError, match="Rows leak"):
        assign(table, DatasetSpec(key="card", group="customer"))


def test_folds_of_units_with_units_added_stay_and_are_even() -> None:
    units = rows.columns_hash([pa.chunked_array([pa.array(np.arange(10_000))])])
    first, all_of_them = splits.folds(units[:4_000], 5), splits.folds(units, 5)
    np.testing.assert_array_equal(first, all_of_them[:4_000])
    assert np.bincount(all_of_them, minlength=5).min() > 1_800
    with pytest.raises(SpecError, match="1 folds"):
        splits.folds(units, 1)


@pytest.mark.parametrize("shares", [(0.5, 0.2, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(SpecError, match="add up to 1"):
        SplitSpec(train=shares[0], validation=shares[1], test=shares[2])


@given(
    old=st.integers(20, 120),
    added=st.integers(0, 60),
    of=st.integers(2, 5),
    seed=st.integers(0, 3),
    names=st.sampled_from([{}, {"key": "id"}, {"group": "customer"}]),
)
@settings(max_examples=20, deadline=None)
def test_folds_part_the_training_split_whole_and_stay_when_rows_are_added(
    old: int, added: int, of: int, seed: int, names: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = DatasetStore(str(tmp_path_factory.mktemp("folds")))
    first = store.commit("toy", customers(np.arange(old)), spec=DatasetSpec(**names)).version  # type: ignore[arg-type]
    train = store.read(first, split="train")
    fold_of: dict[int, int] = {}
    for fold in range(of):
        rest, held_out = store.read_fold(first, fold, of=of, seed=seed)
        numbers = held_out["id"].to_pylist()
        assert sorted([*rest["id"].to_pylist(), *numbers]) == sorted(train["id"].to_pylist())
        assert not set(numbers) & set(fold_of)
        if "group" in names:
            assert not set(rest["customer"].to_pylist()) & set(held_out["customer"].to_pylist())
        fold_of |= dict.fromkeys(numbers, fold)
        in_order = [n for n in train["id"].to_pylist() if n in set(numbers)]
        assert numbers == in_order
    assert set(fold_of) == set(train["id"].to_pylist())
    second = store.commit("toy", customers(np.arange(old + added))).version
    for fold in range(of):
        found = store.read_fold(second, fold, of=of, seed=seed, columns=["id"])[1]
        assert {n for n in found["id"].to_pylist() if n < old} == {n for n, f in fold_of.items() if f == fold}
        assert found.column_names == ["id"]


def test_folds_that_are_none_are_refused_and_a_seed_gives_others(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    store.commit("toy", customers(np.arange(400)), spec=DatasetSpec(key="id"))
    for fold, of in ((5, 5), (-1, 5), (0, 1)):
        with pytest.raises(SpecError, match="fold"):
            store.read_fold("toy", fold, of=of)
    one, other = (set(store.read_fold("toy", 0, of=4, seed=s)[1]["id"].to_pylist()) for s in (0, 1))
    assert 0 < len(one & other) < min(len(one), len(other))
