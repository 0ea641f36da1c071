"""Drift from folds: the same whatever the parts, found where it is, quiet where it is not."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, ks_2samp

from tiltyard.data.profile import ColumnProfile, profile
from tiltyard.evaluation.corrections import cauchy, holm
from tiltyard.evaluation.drift import DriftFold, DriftReport, schema_changes

RNG = np.random.default_rng(3)
REGIONS = np.array(["north", "south", "east", "west"])


def rows(n: int, *, seed: int, shift: float = 0.0, north: float = 0.4) -> pa.Table:
    rng = np.random.default_rng(seed)
    rest = (1 - north) / 3
    return pa.table(
        {
            "amount": pa.array((rng.normal(size=n) + shift).astype(np.float32)),
            "region": pa.array(rng.choice(REGIONS, size=n, p=[north, rest, rest, rest])),
            "visits": pa.array(rng.poisson(2.0, size=n).astype(np.int64)),
        }
    )


@pytest.fixture(scope="module")
def before() -> dict[str, ColumnProfile]:
    return dict(profile(rows(20_000, seed=0)).columns)


def report(references: dict[str, ColumnProfile], *tables: pa.Table, **more: object) -> DriftReport:
    fold = DriftFold(references)
    for table in tables:
        fold.add(table)
    return fold.report(**more)  # type: ignore[arg-type]


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 3_000), max_size=4), split=st.integers(0, 3_000))
def test_fold_of_any_parts_equals_that_of_the_whole(
    before: dict[str, ColumnProfile], cuts: list[int], split: int
) -> None:
    table = rows(3_000, seed=5, shift=0.1)
    whole = report(before, table)
    edges = sorted({0, *cuts, 3_000})
    parted = report(before, *(table.slice(a, b - a) for a, b in itertools.pairwise(edges)))
    first, second = DriftFold(before), DriftFold(before)
    first.add(table.slice(0, split))
    second.add(table.slice(split))
    first.merge(second)
    merged = first.report()
    for found in (parted, merged):
        for one, other in zip(found.columns, whole.columns, strict=True):
            assert one.column == other.column
            assert one.p_values == other.p_values
            assert (one.psi, one.js, one.moved, one.ks) == (other.psi, other.js, other.moved, other.ks)


def test_fold_of_parts_in_another_order_gives_the_same_report(before: dict[str, ColumnProfile]) -> None:
    table = rows(3_000, seed=5)
    parts = [table.slice(i * 500, 500) for i in range(6)]
    one, other = report(before, *parts), report(before, *parts[::-1])
    assert [c.p_values for c in one.columns] == [c.p_values for c in other.columns]


def test_counts_in_bins_with_values_on_the_edges_equal_the_profile_of_the_same_rows() -> None:
    for dtype in (np.float32, np.float64, np.int64):
        values = (
            RNG.integers(0, 500, 5_000).astype(dtype) if dtype is np.int64 else RNG.normal(size=5_000).astype(dtype)
        )
        table = pa.table({"x": pa.array(values)})
        known = profile(table).columns["x"]
        fold = DriftFold({"x": known})
        fold.add(table)
        found = fold.report().column("x")
        assert found is not None
        assert (found.moved, found.js, found.ks) == (0.0, 0.0, 0.0)
        assert found.mean_now == pytest.approx(known.mean, rel=1e-6)


def test_distances_and_tests_agree_with_scipy(before: dict[str, ColumnProfile]) -> None:
    now = rows(4_000, seed=9, shift=0.2, north=0.45)
    found = report(before, now)
    amount, region = found.column("amount"), found.column("region")
    assert amount is not None
    assert region is not None
    old = rows(20_000, seed=0)
    exact = ks_2samp(old["amount"].to_numpy(), now["amount"].to_numpy())
    assert exact.statistic - 0.06 <= (amount.ks or 0) <= exact.statistic
    a = np.array([before["region"].categories[n] for n in REGIONS], float)
    b = np.array([(now["region"].to_numpy(zero_copy_only=False) == n).sum() for n in REGIONS], float)
    assert region.p_values["chi_square"] == pytest.approx(chi2_contingency(np.stack([a, b]))[1])
    assert region.js == pytest.approx(jensenshannon(a / a.sum(), b / b.sum(), base=2))
    assert region.most_moved is not None
    assert region.most_moved[0] == "north"
    assert region.ks is None


def test_report_with_a_shift_and_a_moved_category_names_both_and_not_the_rest(
    before: dict[str, ColumnProfile],
) -> None:
    found = report(before, rows(5_000, seed=1, shift=0.15, north=0.46))
    assert set(found.drifted) == {"amount", "region"}
    visits = found.column("visits")
    assert visits is not None
    assert not visits.drifted
    assert visits.ks is not None  # whole numbers have an order


def test_report_on_very_many_rows_with_a_tiny_shift_is_significant_and_no_drift(
    before: dict[str, ColumnProfile],
) -> None:
    large = dict(profile(rows(400_000, seed=0)).columns)
    found = report(large, rows(400_000, seed=1, shift=0.023)).column("amount")
    assert found is not None
    assert found.p_adjusted < 0.05
    assert found.effect < 0.01
    assert not found.drifted


def test_report_of_missing_values_that_were_not_missing_before_is_drift(before: dict[str, ColumnProfile]) -> None:
    now = rows(2_000, seed=2)
    values = now["amount"].to_numpy().copy()
    values[:200] = np.nan
    gaps = now.set_column(0, "amount", pa.array(values)).set_column(
        1, "region", pa.array([None] * 200 + now["region"].to_pylist()[200:])
    )
    found = report(before, gaps)
    for name in ("amount", "region"):
        column = found.column(name)
        assert column is not None
        assert column.missing_now == pytest.approx(0.1)
        assert column.drifted


def test_new_categories_are_named_unless_they_have_too_few_rows(before: dict[str, ColumnProfile]) -> None:
    now = pa.table({"region": ["north"] * 400 + ["abroad"] * 60 + ["one person"] * 2})
    found = report(before, now).column("region")
    few = report(before, pa.table({"region": ["north"] * 60 + ["south", "east", "west"] * 11 + ["abroad"] * 7}))
    assert few.drifted == ("region",)  # seven rows of a hundred, of a category that none of 20,000 had
    assert found is not None
    assert found.new_categories == {"abroad": 60}
    assert found.drifted


def test_schema_with_missing_new_and_changed_columns_is_told(before: dict[str, ColumnProfile]) -> None:
    now = pa.table({"amount": ["a", "b"] * 50, "region": ["north"] * 100, "extra": [1.0] * 100})
    schema = {"amount": "string", "region": "string", "extra": "float64"}
    found = report(before, now, schema=schema)
    assert found.missing_columns == ("visits",)
    assert found.new_columns == ("extra",)
    assert found.changed_types == {"amount": ("float32", "string")}
    assert found.has_schema_change
    assert "amount" in found.drifted
    assert schema_changes({"a": "int64"}, {"a": "int64"}, ["a"]) == ((), (), {})


def test_columns_without_a_shape_in_the_profile_are_told_and_never_drift() -> None:
    table = pa.table({"id": pa.array(np.arange(2_000)), "x": pa.array(RNG.normal(size=2_000))})
    references = dict(profile(table, hidden=["id"]).columns)
    found = report(references, table).column("id")
    assert found is not None
    assert (found.kind, found.drifted) == ("unknown", False)
    assert "no shape" in found.note


def test_tensor_column_counts_a_row_once() -> None:
    pictures = pa.FixedSizeListArray.from_arrays(pa.array(RNG.normal(size=64_000).astype(np.float32)), 64)
    table = pa.table({"picture": pictures})
    found = report(dict(profile(table).columns), table.slice(0, 500)).column("picture")
    assert found is not None
    assert found.rows == 500
    assert not found.drifted


def test_clean_versions_are_flagged_at_most_as_often_as_stated(before: dict[str, ColumnProfile]) -> None:
    flagged = sum(bool(report(before, rows(1_000, seed=100 + i), least_effect=0.0).drifted) for i in range(200))
    # 5% of 200 is 10; 20 or more happens by chance once in 500 times
    assert flagged < 20


def test_holm_with_any_p_values_is_monotone_and_no_smaller_than_they_are() -> None:
    p = {str(i): float(v) for i, v in enumerate(RNG.random(30))}
    adjusted = holm(p)
    ordered = sorted(p, key=lambda n: p[n])
    assert all(adjusted[n] >= p[n] for n in p)
    assert [adjusted[n] for n in ordered] == sorted(adjusted.values())
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_cauchy_of_any_p_values_is_a_p_value_and_small_where_one_is_and_none_speaks_against_it(p: list[float]) -> None:
    together = cauchy(p)
    assert 0 <= together <= 1
    assert math.isfinite(together)
    if min(p) < 0.01 and max(p) <= 0.5:  # a p-value near 1 speaks against the others: the combination is known for that
        assert together <= min(p) * len(p) * 1.1 + 1e-290
    assert cauchy([0.3]) == pytest.approx(0.3)
    assert cauchy([1e-200, 0.5]) == pytest.approx(2e-200)
