"""Slices that nobody declared: how columns are cut, that a weak one is found and chance is not called weak, groups compared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from scipy.stats import fisher_exact, ttest_ind

from tiltyard.data.profile import SplitProfile, profile
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.evaluation.slices import Slice
from tiltyard.evaluation.weaknesses import LEAST_ROWS, SliceScore, cuts, groups_alike, weaknesses
from tiltyard.sweep.engine.finals import Columns, columns_of, slices_of
from tiltyard.types import Task

ROWS = 4_000
SPEC = DatasetSpec(task=Task.BINARY, label="target", key="row_id", sensitive=("sex", "age"))


def table_of(rows: int = ROWS, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "row_id": np.arange(rows),
            "site": pa.array(rng.choice(["north", "south", "<b>east</b>"], rows, p=[0.5, 0.4, 0.1])),
            "sex": pa.array(rng.choice(["f", "m"], rows)),
            "age": rng.integers(18, 90, rows),
            "width": rng.normal(size=rows).astype(np.float32),
            "rooms": rng.integers(1, 4, rows),
            "picture": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=rows * 4).astype(np.float32)), 4),
            "target": rng.integers(0, 2, rows),
        }
    )


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return table_of()


@pytest.fixture(scope="module")
def seen(table: pa.Table) -> SplitProfile:
    return profile(table, hidden=SPEC.keys)


def cut(seen: SplitProfile) -> tuple[Slice, ...]:
    return cuts(seen.columns, sensitive=SPEC.sensitive, leave_out=SPEC.reserved)


def found(
    table: pa.Table, seen: SplitProfile, values: npt.NDArray[np.float64], metric: str = "accuracy"
) -> dict[tuple[str, str], SliceScore]:
    (told,) = weaknesses([values], table, cut(seen), seen.columns, metric=metric, sensitive=SPEC.sensitive)
    return {(s.column, s.name): s for s in told}


def test_cuts_of_a_table_are_values_quartiles_and_sensitive_columns_first(seen: SplitProfile) -> None:
    of = {s.column: s.edges for s in cut(seen)}
    assert list(of)[:2] == ["sex", "age"]
    assert {"row_id", "target", "picture"}.isdisjoint(of)
    assert of["site"] == of["sex"] == of["rooms"] == ()
    assert len(of["age"]) == len(of["width"]) == 3
    assert list(of["width"]) == pytest.approx(seen.columns["width"].quantiles[5:12:3])


def test_weaknesses_of_a_model_that_fails_in_one_place_name_it_with_the_right_figures(
    table: pa.Table, seen: SplitProfile
) -> None:
    rng = np.random.default_rng(1)
    east = np.array(table["site"].to_pylist()) == "<b>east</b>"
    right = (rng.random(ROWS) < np.where(east, 0.7, 0.9)).astype(np.float64)
    told = found(table, seen, right)
    weak = [at for at, s in told.items() if s.p < 0.05]
    assert weak == [("site", "<b>east</b>")]
    s = told["site", "<b>east</b>"]
    assert s.rows == east.sum()
    assert s.value == pytest.approx(right[east].mean())
    assert s.low < s.value < s.high
    counts = [[right[east].sum(), (1 - right[east]).sum()], [right[~east].sum(), (1 - right[~east]).sum()]]
    num_slices = sum(len(of.edges) + 1 or 1 for of in cut(seen))
    assert (
        fisher_exact(counts, alternative="less").pvalue
        <= s.p
        <= fisher_exact(counts, alternative="less").pvalue * (num_slices + 8)
    )
    assert {s.column for s in told.values() if s.sensitive} == {"sex", "age"}


def test_weaknesses_of_a_mean_agree_with_welch(table: pa.Table, seen: SplitProfile) -> None:
    rng = np.random.default_rng(2)
    loss = rng.gamma(2.0, size=ROWS)
    female = np.array(table["sex"].to_pylist()) == "f"
    (only,) = weaknesses([loss], table, [Slice(column="sex")], seen.columns, metric="log_loss", sensitive=["sex"])
    expected = [
        ttest_ind(loss[of], loss[~of], equal_var=False, alternative="greater").pvalue for of in (female, ~female)
    ]
    by_name = {s.name: s for s in only}
    assert min(s.p for s in only) == pytest.approx(min(1.0, 2 * min(expected)))
    assert by_name["f"].value == pytest.approx(loss[female].mean())


def test_weaknesses_of_chance_alone_are_mostly_none() -> None:
    false_alarms = 0
    for seed in range(40):
        table = table_of(250, seed)
        seen = profile(table, hidden=SPEC.keys)
        right = (np.random.default_rng(1000 + seed).random(250) < 0.85).astype(np.float64)
        false_alarms += any(s.p < 0.05 for s in found(table, seen, right).values())
    assert false_alarms <= 6  # 5% of 40 are 2; more than 6 happens once in 2,000


def test_weaknesses_of_few_rows_or_of_answers_that_are_not_finite_are_not_told(seen: SplitProfile) -> None:
    few = table_of(LEAST_ROWS + 5)
    assert found(few, seen, np.ones(few.num_rows)) == {}
    many = table_of(300)
    assert found(many, seen, np.full(300, np.nan), "log_loss") == {}
    assert weaknesses([], many, cut(seen), seen.columns, metric="accuracy") == []


def test_groups_that_are_selected_otherwise_are_flagged_by_their_counts(table: pa.Table, seen: SplitProfile) -> None:
    female = np.array(table["sex"].to_pylist()) == "f"
    rng = np.random.default_rng(3)
    predicted = (rng.random(ROWS) < np.where(female, 0.3, 0.6)).astype(np.int64)
    y = table["target"].to_numpy()
    groups = [s for s in cut(seen) if s.column == "sex"]
    (of,) = groups_alike(predicted, y, table, groups, seen.columns, num_classes=2)
    assert (of["column"], of["verdict"], of["lowest"], of["highest"]) == ("sex", "flagged", "f", "m")
    rates = {g["name"]: g["selected"]["value"] for g in of["groups"]}
    assert rates["f"] == pytest.approx(predicted[female].mean())
    assert sum(g["rows"] for g in of["groups"]) == ROWS


def test_columns_of_versions_leave_out_those_whose_profile_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = DatasetStore(str(tmp_path))
    versions = {n: store.commit(n, table_of(60), spec=SPEC).version for n in ("whole", "broken")}
    broken = store.root / "broken" / versions["broken"].profile_path
    broken.write_bytes(b'{"schema_version": 99}')
    found = columns_of(store, versions)
    assert list(found) == ["whole"]
    assert found["whole"].spec.sensitive == ("sex", "age")
    assert "profile of broken@1 cannot be read" in caplog.text


def test_slices_of_finalists_hold_counts_alone_and_the_same_slices_of_each(table: pa.Table, seen: SplitProfile) -> None:
    rng = np.random.default_rng(4)
    y = table["target"].to_numpy()
    outputs = [rng.normal(size=(ROWS, 2)).astype(np.float32) for _ in range(3)]
    columns = Columns(spec=SPEC, profiles=seen.columns)
    told = slices_of(columns, "accuracy", Task.BINARY, outputs, y, table)
    names = [[(s["column"], s["name"]) for s in of["slices"]] for of in told]
    assert names[0] == names[1] == names[2] != []
    assert [[f["column"] for f in of["fairness"]] for of in told] == [["sex", "age"]] * 3
    number = slices_of(columns, "rmse", Task.REGRESSION, [o[:, :1] for o in outputs], y[:, None].astype(float), table)
    assert [(of["slice_metric"], of["fairness"]) for of in number] == [("mse", [])] * 3
