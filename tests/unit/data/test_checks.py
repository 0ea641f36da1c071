"""Checks at the door: what each kind refuses, with the rows; nothing is left behind by a refused commit."""

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

from tiltyard.data import checks, rows
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import Check, DatasetSpec
from tiltyard.errors import CheckFailedError, SpecError
from tiltyard.types import Task

NOW = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
GOOD = pa.table(
    {
        "id": [1, 2, 3, 4],
        "age": [18.0, None, 65.0, 40.0],
        "mail": ["a@b", "c@d", None, "e@f"],
        "day": [dt.date(2026, 11, d) for d in (20, 21, 22, 23)],
        "price": pa.array([1, 2, 3, 4], pa.int64()).cast(pa.decimal128(21, 2)),
        "image": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8)), 2),
        "y": ["a", "b", "a", "b"],
    }
)


def failures(table: pa.Table, *declared: Check, rows_before: int | None = None, **spec: Any) -> list[checks.Failure]:
    the_spec = DatasetSpec(checks=declared, **{"key": "id", "task": Task.BINARY, "label": "y", **spec})
    context = checks.Context(spec=the_spec, rows_before=rows_before, now=NOW)
    return checks.run(rows.canonical(table), context)


def replaced(name: str, values: Any) -> pa.Table:
    return GOOD.set_column(GOOD.column_names.index(name), name, pa.array(values))


CASES: dict[str, tuple[Check, pa.Table, str, tuple[int, ...]]] = {
    "not_null": (Check(kind="not_null", column="age"), GOOD, "1 of 4 rows are null or NaN, such as id 2", (1,)),
    "nan": (
        Check(kind="not_null", column="age"),
        replaced("age", [1.0, 2.0, float("nan"), 4.0]),
        "such as id 3",
        (2,),
    ),
    "range": (
        Check(kind="range", column="age", params={"min": 18, "max": 64.5}),
        GOOD,
        "range of age: 1 of 4 rows lie outside min 18 and max 64.5, such as id 3, age 65.0",
        (2,),
    ),
    "dates": (
        Check(kind="range", column="day", params={"max": "2026-11-21"}),
        GOOD,
        "2 of 4 rows lie outside max 2026-11-21, such as id 3, day '2026-11-22'",
        (2, 3),
    ),
    "money": (Check(kind="range", column="price", params={"min": 1.5}), GOOD, "1 of 4 rows", (0,)),
    "allowed": (
        Check(kind="allowed", column="y", params={"values": ["a", "c"]}),
        GOOD,
        r"2 of 4 rows are none of \['a', 'c'\], such as id 2, y 'b'",
        (1, 3),
    ),
    "matches": (
        Check(kind="matches", column="mail", params={"pattern": "[a-d]@[a-d]"}),
        GOOD,
        "1 of 4 rows do not match",
        (3,),
    ),
    "unique": (
        Check(kind="unique", column="id"),
        replaced("id", [1, 2, 1, 1]),
        "2 of 4 rows are there already, by id, such as id 1",
        (2, 3),
    ),
    "together": (Check(kind="unique", columns=("y", "mail")), replaced("mail", ["q"] * 4), "by y, mail", (2, 3)),
    "schema": (
        Check(kind="schema", params={"columns": {"id": "int32", "z": "string"}}),
        GOOD,
        "'id' is int64, wanted int32; 'z' is missing, wanted string; 'age' is float64, not wanted",
        (),
    ),
    "row_count": (Check(kind="row_count", params={"min": 5}), GOOD, "4 rows, wanted 5 to inf", ()),
    "label_balance": (
        Check(kind="label_balance", params={"min_share": 0.3}),
        replaced("y", ["a", "a", "a", "b"]),
        "class 'b' has 1 of 4 rows.*25.00%.*wanted 30.00%",
        (),
    ),
    "freshness": (
        Check(kind="freshness", column="day", params={"max_age_hours": 24}),
        GOOD,
        "newest row is of 2026-11-23.*36.0 hours old.*at most 24 hours",
        (),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_check_that_rows_do_not_keep_tells_how_many_and_which(case: str) -> None:
    check, table, told, places = CASES[case]
    (failure,) = failures(table, check)
    assert failure.places == places
    assert failure.num_rows == len(places)
    with pytest.raises(CheckFailedError, match=told):
        checks.refuse("toy", [failure])


@pytest.mark.parametrize(
    "check",
    [
        Check(kind="not_null", column="id"),
        Check(kind="range", column="age", params={"min": 18, "max": 65}),
        Check(kind="range", column="day", params={"min": "2026-11-20", "max": "2026-11-23"}),
        Check(kind="allowed", column="mail", params={"values": ["a@b", "c@d", "e@f"]}),
        Check(kind="matches", column="mail", params={"pattern": ".@."}),
        Check(kind="unique", columns=("id", "y")),
        Check(kind="schema", params={"columns": {"id": "int64", "image": "float64[2]"}, "exact": False}),
        Check(kind="row_count", params={"min": 4, "max": 4}),
        Check(kind="row_count_change", params={"max_drop": 0.5}),
        Check(kind="label_balance", params={"min_share": 0.5}),
        Check(kind="freshness", column="day", params={"max_age_hours": 36}),
    ],
    ids=lambda check: check.kind,
)
def test_check_that_rows_keep_on_its_bounds_says_nothing(check: Check) -> None:
    assert failures(GOOD, check, rows_before=None) == []


@pytest.mark.parametrize(("before", "fails"), [(None, False), (4, False), (8, False), (9, True), (3, False), (2, True)])
def test_row_count_change_against_the_version_before_keeps_its_shares(before: int | None, fails: bool) -> None:
    check = Check(kind="row_count_change", params={"max_drop": 0.5, "max_rise": 0.5})
    assert bool(failures(GOOD, check, rows_before=before)) is fails


@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=30), low=st.integers(-5, 5), high=st.integers(-5, 5))
@settings(deadline=None)
def test_range_and_unique_of_any_numbers_agree_with_plain_python(values: list[int], low: int, high: int) -> None:
    table = pa.table({"v": values})
    context = checks.Context(
        spec=DatasetSpec(
            checks=(
                Check(kind="range", column="v", params={"min": low, "max": high}),
                Check(kind="unique", column="v"),
            )
        ),
        rows_before=None,
        now=NOW,
    )
    told = {f.check.kind: f.num_rows for f in checks.run(table, context)}
    assert told.get("range", 0) == sum(not low <= v <= high for v in values)
    assert told.get("unique", 0) == len(values) - len(set(values))


def test_failing_rows_of_a_sensitive_column_hide_its_values() -> None:
    (failure,) = failures(GOOD, Check(kind="range", column="age", params={"max": 20}), sensitive=("age",))
    assert failure.rows[0] == {"id": 3, "age": "(hidden)"}
    assert "65" not in str(failure)


@pytest.mark.parametrize(
    ("declared", "told"),
    [
        ({"kind": "between", "column": "age"}, "no check 'between'. Kinds: not_null, range"),
        ({"kind": "range", "column": "age"}, "needs one of: max, min"),
        ({"kind": "range", "column": "age", "params": {"low": 1}}, "takes max, min; found 'low'"),
        (
            {"kind": "range", "column": "age", "params": {"min": "old"}},
            "cannot use min='old': that is str; wanted a number, or an ISO",
        ),
        ({"kind": "range", "params": {"min": 1}}, "about one column"),
        (
            {"kind": "allowed", "column": "y", "params": {"values": "ab"}},
            "cannot use values='ab': that is str; wanted a list",
        ),
        ({"kind": "row_count", "params": {"min": True}}, "cannot use min=True: that is bool"),
        ({"kind": "row_count", "params": {"min": "many"}}, "cannot use min='many': that is str; wanted a number"),
        ({"kind": "row_count", "params": {"max": "2026-01-01"}}, "wanted a number"),
        ({"kind": "row_count_change", "params": {"max_drop": "10%"}}, "cannot use max_drop='10%'"),
        ({"kind": "freshness", "params": {"max_age_hours": None}}, "that is NoneType"),
        ({"kind": "label_balance", "params": {"min_share": "half"}}, "that is str"),
        ({"kind": "label_balance", "params": {"min_share": float("nan")}}, "min_share=nan"),
        ({"kind": "matches", "column": "mail", "params": {"pattern": 7}}, "wanted a text"),
        ({"kind": "schema", "params": {"columns": ["id"]}}, "wanted an object"),
        ({"kind": "schema", "params": {"columns": {"id": 3}}}, "wanted an object"),
        ({"kind": "schema", "params": {"columns": {}, "exact": 1}}, "wanted true or false"),
        ({"kind": "unique"}, "needs a column"),
    ],
)
def test_check_that_could_never_run_is_refused_when_it_is_declared(declared: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        Check(**declared)


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (Check(kind="range", column="mail", params={"min": 1}), "'mail', which is string, cannot use min=1"),
        (Check(kind="not_null", column="agee"), "names column 'agee'; the rows have age"),
        (Check(kind="unique", column="image"), "cannot compare tensors"),
        (Check(kind="allowed", column="id", params={"values": ["a"]}), "cannot use"),
        (Check(kind="matches", column="id", params={"pattern": "a"}), "is for text"),
        (Check(kind="matches", column="mail", params={"pattern": "("}), "RE2 refuses"),
        (Check(kind="freshness", params={"max_age_hours": 1}), "needs a column"),
        (Check(kind="freshness", column="id", params={"max_age_hours": 1}), "is for dates"),
    ],
)
def test_check_that_cannot_be_run_is_refused_and_never_skipped(check: Check, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        failures(GOOD, check)


def test_check_of_an_unknown_severity_is_refused() -> None:
    with pytest.raises(SpecError, match="severity 'fatal'"):
        Check(kind="not_null", column="a", severity="fatal")
    with pytest.raises(SpecError, match="no plain values"):
        Check(kind="range", column="a", params={"min": object()})


# ---- at the door of the store ------------------------------------------------------------------------------------

SPEC = DatasetSpec(
    task=Task.BINARY,
    label="y",
    key="id",
    checks=(
        Check(kind="range", column="age", params={"min": 0, "max": 120}),
        Check(kind="not_null", column="mail", severity="warning"),
    ),
)


def test_refused_commit_leaves_nothing_and_the_last_version_stands(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    bad = replaced("age", [18.0, 300.0, -1.0, 40.0])
    with pytest.raises(
        CheckFailedError, match=r"(?s)1 of the checks declared on people refused.*2 of 4 rows.*id 2, age 300"
    ):
        store.commit("people", bad, spec=SPEC)
    assert store.names() == []
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    first = store.commit("people", GOOD, spec=SPEC).version
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(CheckFailedError):
        store.commit("people", bad)
    with pytest.raises(CheckFailedError):
        store.append("people", bad)
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    assert store.resolve("people") == first


def test_failed_check_declared_as_warning_is_kept_with_the_version(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    version = store.commit("people", GOOD, spec=SPEC).version
    assert version.warnings == ("not_null of mail: 1 of 4 rows are null or NaN, such as id 3, mail None",)
    assert DatasetStore(str(tmp_path)).resolve("people").warnings == version.warnings
    assert store.commit("people", GOOD).created is False


def test_spec_with_checks_as_json_comes_back_and_is_run(tmp_path: Path) -> None:
    spec = DatasetSpec.from_json(json.loads(json.dumps(SPEC.to_json())))
    assert spec == SPEC
    with pytest.raises(CheckFailedError):
        DatasetStore(str(tmp_path)).commit("people", replaced("age", [1.0, 2.0, 3.0, 999.0]), spec=spec)
