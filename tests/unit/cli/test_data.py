"""``tiltyard data`` as a shell sees it: what it prints, what it refuses, and what a script reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.cli.data import parse_check
from tiltyard.cli.tables import size
from tiltyard.data import Check, DatasetSpec
from tiltyard.data.store import DatasetStore
from tiltyard.errors import SpecError
from tiltyard.types import Task

CSV = "id,age,city,day,y\n" + "".join(
    f"{i},{20 + i},{('rom', 'ulm')[i % 2]},2026-01-{i % 28 + 1:02d},{i % 3 % 2}\n" for i in range(60)
)
OPTIONS = ("--task", "binary", "--label", "y", "--key", "id", "--sensitive", "age")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TILTYARD_DATA_URI", raising=False)
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "toy.csv").write_text(CSV)
    return tmp_path


def tiltyard(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", *map(str, args)])
    out, err = capsys.readouterr()
    assert (left.value.code or 0) == code, out + err
    return str(out if code == 0 else err or out)


def store(home: Path) -> DatasetStore:
    return DatasetStore(str(home / "home" / "data"))


def test_commit_list_show_and_history_tell_one_story(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "There is no dataset yet" in tiltyard(capsys, "list")
    said = tiltyard(capsys, "commit", "toy", home / "toy.csv", *OPTIONS, "-m", "first", "--licence", "CC0")
    version = store(home).resolve("toy")
    assert f"Committed toy@1: 60 rows ({version.split_rows['train']} train" in said
    assert "holds exactly these rows already" in tiltyard(capsys, "commit", "toy", home / "toy.csv")
    listed = tiltyard(capsys, "list")
    assert "toy" in listed
    assert "binary" in listed
    shown = tiltyard(capsys, "show", "toy@1")
    for told in (version.content_digest, version.files_digest, "first", "CC0", "by id, seed 0"):
        assert told in shown
    roles = {line.split()[0]: line.split()[-1] for line in shown.splitlines()[-5:]}
    assert roles == {"age": "sensitive", "city": "feature", "day": "feature", "id": "key", "y": "label"}
    assert "first" in tiltyard(capsys, "history", "toy")


def test_json_of_list_show_and_history_is_what_the_store_holds(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(tiltyard(capsys, "list", "--json")) == []
    tiltyard(capsys, "commit", "toy", home / "toy.csv", *OPTIONS)
    version = store(home).resolve("toy")
    shown = json.loads(tiltyard(capsys, "show", "toy", "--json"))
    assert shown["content_digest"] == version.content_digest
    assert shown["features"] == ["city", "day"]
    assert shown["size_bytes"] == version.size_bytes
    assert json.loads(tiltyard(capsys, "list", "--json")) == [shown]
    assert json.loads(tiltyard(capsys, "history", "toy", "--json")) == [shown]


def test_commit_with_every_option_declares_it_and_keeps_it_next_time(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiltyard(
        capsys, "commit", "toy", home / "toy.csv", *OPTIONS, "--group", "id", "--ignore", "day",
        "--split", "0.5,0.3,0.2", "--split-seed", 3, "--check", "range:age:min=0,max=120", "--check", "warn:unique:id+day",
        "--text", "city", "--description", "people", "--origin", "made up",
    )  # fmt: skip
    spec = store(home).resolve("toy").spec
    assert (spec.task, spec.labels, spec.keys, spec.group) == (Task.BINARY, ("y",), ("id",), "id")
    assert (spec.sensitive, spec.ignore) == (("age",), ("day",))
    assert (spec.split.train, spec.split.validation, spec.split.test, spec.split.seed) == (0.5, 0.3, 0.2, 3)
    assert (spec.card.description, spec.card.source) == ("people", "made up")
    assert spec.checks == (
        Check(kind="range", column="age", params={"min": 0, "max": 120}),
        Check(kind="unique", columns=("id", "day"), severity="warning"),
    )
    tiltyard(capsys, "commit", "toy", home / "toy.csv", "--time", "day", "--time-cuts", "2026-01-10,2026-01-20")
    second = store(home).resolve("toy")
    assert second.version == 2
    assert second.spec.checks == spec.checks
    assert second.spec.split.time_cuts == ("2026-01-10", "2026-01-20")
    tiltyard(capsys, "commit", "toy", home / "toy.csv", "--split", "0.6,0.2,0.2")
    assert store(home).resolve("toy").spec.split.time_cuts is None


def test_commit_with_a_spec_file_takes_options_on_top(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = DatasetSpec(task=Task.BINARY, label="y", key="id", checks=(Check(kind="not_null", column="age"),))
    (home / "spec.json").write_text(json.dumps(spec.to_json()))
    tiltyard(capsys, "commit", "toy", home / "toy.csv", "--spec", home / "spec.json", "--sensitive", "age")
    found = store(home).resolve("toy").spec
    assert found.checks == spec.checks
    assert found.sensitive == ("age",)


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--key", "z"), "names column 'z', which the source does not have"),
        (("--task", "ranking"), "'ranking' is not a valid Task"),
        (("--split", "0.6,0.4"), "not three shares"),
        (("--split", "0.6,0.4,0.4"), "add up to 1"),
        (("--time-cuts", "2026-01-01"), "not two dates"),
        (("--time-cuts", "2026-01-01,2026-02-01"), "needs the column that says when"),
        (("--check", "between:age"), "no check 'between'"),
        (("--check", "range:age:min"), "lacks a '='"),
        (("--check", "range:age:max=30"), "lie outside max 30"),
        (("--type", "age"), "is not COLUMN=TYPE"),
        (("--spec", "nowhere.json"), "cannot be read as JSON"),
    ],
)
def test_commit_that_cannot_be_right_ends_with_one_clear_error(
    home: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], told: str
) -> None:
    said = tiltyard(capsys, "commit", "toy", home / "toy.csv", *OPTIONS, *args, code=1)
    assert told in said
    assert said.startswith("error: ")
    assert store(home).names() == []


def test_append_adds_rows_and_other_columns_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiltyard(capsys, "commit", "toy", home / "toy.csv", *OPTIONS)
    (home / "more.csv").write_text("id,age,city,day,y\n100,30,rom,2026-02-01,1\n")
    assert "Committed toy@2: 61 rows" in tiltyard(capsys, "append", "toy", home / "more.csv", "-m", "one more")
    (home / "other.csv").write_text("id,age\n1,2\n")
    assert "lack columns ['city', 'day', 'y']" in tiltyard(capsys, "append", "toy", home / "other.csv", code=1)


def test_show_of_what_is_not_there_names_what_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiltyard(capsys, "commit", "toy", home / "toy.csv", *OPTIONS)
    assert "it has version 1" in tiltyard(capsys, "show", "toy@4", code=1)
    assert "there are: toy" in tiltyard(capsys, "show", "tye", code=1)


def test_parse_check_of_every_form_reads_kind_column_and_params() -> None:
    assert parse_check("not_null:age") == Check(kind="not_null", column="age")
    assert parse_check("row_count:min=10") == Check(kind="row_count", params={"min": 10})
    assert parse_check("range:day:max=2026-01-01").params == {"max": "2026-01-01"}
    assert parse_check('allowed:city:values=["Oslo","Bergen"]').params == {"values": ["Oslo", "Bergen"]}
    assert parse_check("matches:zip:pattern=^[0-9]{4,5}$").params == {"pattern": "^[0-9]{4,5}$"}
    with pytest.raises(SpecError, match="lacks a '='"):
        parse_check("range:age:min")


@pytest.mark.parametrize(("count", "told"), [(0, "0 B"), (999, "999 B"), (1_000, "1 kB"), (1_234_567, "1.23 MB")])
def test_size_of_bytes_is_told_in_steps_of_a_thousand(count: int, told: str) -> None:
    assert size(count) == told
