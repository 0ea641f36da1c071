"""What the record exporter tells: from real journals, registries and data stores, asked over HTTP."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import recorded_sweep
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import cli
from tiltyard.data.profile import ColumnProfile
from tiltyard.data.store import DatasetStore
from tiltyard.evaluation.folding import PREDICTED
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.journal import Journal, Owner
from tiltyard.settings import Settings
from tiltyard.telemetry import record
from tiltyard.telemetry.exporter import Exporter, RecordReader, exporting, exposition
from tiltyard.telemetry.instruments import DECLARED, Source
from tiltyard.telemetry.record import Known, Readings, of_models
from tiltyard.telemetry.sweeps import class_of


def told(readings: Readings, name: str, *by: str) -> dict[Any, float]:
    found = [(labels, v) for n, labels, v in readings if n == name]
    return {tuple(labels[b] for b in by) if len(by) != 1 else labels[by[0]]: v for labels, v in found}


def night(journal: Journal, name: str, date: str, outcome: str | None) -> None:
    about = {"date": date, "night": {"dataset": "wine"}}
    claim = journal.works.claim(f"{name}/{date}", kind="night", subject=name, about=about, owner=Owner.here())
    if outcome is None:
        journal.works.fail(claim, "no such model")
    else:
        result = {"name": name, "date": date, "outcome": outcome, "steps": [], "version": 1, "ran": True}
        journal.works.finish(claim, result, cause="night")


def test_nights_tell_their_age_outcome_and_the_age_of_their_data(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    settings.ensure_home()
    with Journal.open(settings.journal_uri) as journal:
        night(journal, "good", "2026-11-23", None)
        night(journal, "good", "2026-11-24", "nothing changed")
        night(journal, "bad", "2026-11-23", "promoted")
        night(journal, "bad", "2026-11-24", None)
        works = journal.works.find("night")
        results = journal.works.newest(w.key for w in works)
    readings = record.of_nights(works, results, {"wine": 77.0}, now=time.time() + 3600)
    assert {n: round(v / 3600) for n, v in told(readings, "tiltyard_night_age_seconds", "night").items()} == {
        "good": 1,
        "bad": 1,
    }
    outcomes = told(readings, "tiltyard_night_outcome", "night", "outcome")
    assert [k for k, v in outcomes.items() if v] == [("good", "nothing_changed"), ("bad", "failed")]
    assert len(outcomes) == 2 * len(record.OUTCOMES)
    assert told(readings, "tiltyard_night_data_age_seconds", "dataset") == {"wine": 77.0}


def test_newest_launch_of_each_experiment_tells_its_age_and_its_run(tmp_path: Path) -> None:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        for key, name in (("1", "old"), ("2", "twice"), ("3", "twice"), ("4", "unwritten")):
            claim = journal.claim(key, experiment=name, spec="", owner=Owner.here())
            if name != "unwritten":
                journal.set_parent_run(claim, f"run-{key}")
            journal.release(claim, state="finished", summary={})
        launches = journal.launches()
    readings = record.of_launches(launches, now=launches[0].started + 60)
    ages = told(readings, "tiltyard_launch_age_seconds", "experiment", "run")
    assert set(ages) == {("old", "run-1"), ("twice", "run-3"), ("unwritten", "")}
    assert ages["unwritten", ""] == pytest.approx(60)
    many = [dataclasses.replace(launches[0], experiment=f"e{i}", key=str(i)) for i in range(100)]
    assert len(record.of_launches(many, now=0.0)) == 5 * record.MOST_EXPERIMENTS


def test_budgets_tell_what_is_left_whether_or_not_something_runs_and_are_cut(tmp_path: Path) -> None:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        for number in range(record.MOST_TEAMS + 5):
            journal.budgets.set(f"team{number:02}", limit_cpu_s=3600, limit_gpu_s=None)
        readings = record.of_budgets(journal.budgets.all())
    amounts = told(readings, "tiltyard_budget_seconds", "team", "resource", "kind")
    assert {k[1:]: v for k, v in amounts.items() if k[0] == "team00"} == {
        ("cpu", "limit"): 3600,
        ("cpu", "reserved"): 0,
        ("cpu", "spent"): 0,
        ("gpu", "reserved"): 0,
        ("gpu", "spent"): 0,
    }
    assert len({team for team, _, _ in amounts}) == record.MOST_TEAMS


def evaluated(directory: Path, **changes: Any) -> list[Any]:
    recorded = recorded_sweep.record(directory, trials=12, datasets=["rings"])
    return [dataclasses.replace(r, **changes) for r in recorded_sweep.evaluate_champion(recorded, versions=3)]


def test_models_tell_scores_intervals_slices_calibration_fairness_drift_and_age_of_the_newest_version(
    tmp_path: Path,
) -> None:
    part = Scored(rows=40, labelled=40, scores={"accuracy": Score(value=0.7, low=0.6, high=0.8)})
    shape = ColumnProfile(type="string", count=10, categories={"inner": 7, "outer": 3})
    results = evaluated(
        tmp_path,
        slices={"site": {"east": part}},
        fairness=({"column": "sex", "ratio": {"value": 0.7, "low": 0.6, "high": 0.9}},),
        shapes={PREDICTED: shape},
    )
    name = results[0].model
    known = [Known(name=name, version=1, role="champion", created=1000.0, trained_on=("rings", 1))]
    readings = of_models(known, results, now=4600.0)
    score = told(readings, "tiltyard_model_score", "metric", "bound")
    assert score["accuracy", "value"] == pytest.approx(0.87)
    assert score["accuracy", "low"] == pytest.approx(0.84)
    assert told(readings, "tiltyard_model_slice_score", "column", "slice", "bound")["site", "east", "high"] == 0.8
    assert told(readings, "tiltyard_model_calibration_error", "model") == {name: 0.02}
    assert told(readings, "tiltyard_model_fairness_ratio", "bound")["low"] == 0.6
    assert told(readings, "tiltyard_model_age_seconds", "role", "version") == {("champion", "1"): 3600.0}
    assert told(readings, "tiltyard_drifted_columns", "dataset") == {"rings": 1.0}
    assert told(readings, "tiltyard_column_moved_ratio", "column")["width"] > 0.1
    means = told(readings, "tiltyard_column_mean", "since")
    assert means["now"] > means["training"]
    assert told(readings, "tiltyard_predicted_ratio", "class") == {"inner": 0.7, "outer": 0.3}
    assert told(readings, "tiltyard_model_below_bound", "model") == {name: 0.0}
    for metric, labels, _ in readings:
        assert set(labels) == set(DECLARED[metric].labels)


@pytest.mark.parametrize(
    ("metric", "now", "below"),
    [
        ("accuracy", Score(value=0.7, low=0.6, high=0.8), 1.0),
        ("accuracy", Score(value=0.85, low=0.8, high=0.89), 0.0),  # it overlaps
        ("log_loss", Score(value=0.7, low=0.6, high=0.8), 0.0),  # less is better
        ("log_loss", Score(value=0.99, low=0.98, high=0.995), 1.0),
        ("accuracy", Score(value=0.1), 0.0),  # no interval, nothing is sure
    ],
)
def test_champion_is_below_its_bound_where_the_whole_interval_is_worse(
    tmp_path: Path, metric: str, now: Score, below: float
) -> None:
    first, *_, last = evaluated(tmp_path, metric=metric)
    first = dataclasses.replace(
        first, scored=Scored(rows=9, labelled=9, scores={metric: Score(value=0.9, low=0.86, high=0.95)})
    )
    last = dataclasses.replace(last, scored=Scored(rows=9, labelled=9, scores={metric: now}))
    known = [Known(name=first.model, version=1, role="champion", created=0.0, trained_on=("rings", 1))]
    readings = of_models(known, [last, first], now=1.0)
    assert told(readings, "tiltyard_model_below_bound", "role") == {"champion": below}


def test_many_models_columns_slices_and_experiments_stay_within_the_bound_of_series(tmp_path: Path) -> None:
    """With a sweep's own of 10,000 trials (`bench_telemetry`) below 2,000."""
    part = Scored(rows=40, labelled=40, scores={"accuracy": Score(value=0.7, low=0.6, high=0.8)})
    columns = {f"c{i}": part for i in range(500)}
    result = evaluated(tmp_path, slices={"site": columns})[-1]
    assert result.drift is not None
    many = dataclasses.replace(
        result.drift, columns=tuple(dataclasses.replace(result.drift.columns[0], column=f"c{i}") for i in range(300))
    )
    names = [f"m{i}" for i in range(100)]
    results = [dataclasses.replace(result, model=n, drift=many) for n in names]
    known = [Known(name=n, version=1, role="champion", created=0.0) for n in names]
    readings = of_models(known, results, now=1.0)
    assert len(readings) < 1200
    assert len({(n, *sorted(la.items())) for n, la, _ in readings}) == len(readings), "a series twice"


@given(st.text())
def test_any_text_in_a_label_is_one_line_that_prometheus_reads_back(text: str) -> None:
    line = exposition([("tiltyard_dataset_age_seconds", {"dataset": text}, 1.0)]).rstrip("\n").split("\n")[-1]
    inside = line.removeprefix('tiltyard_dataset_age_seconds{dataset="').removesuffix('"} 1')
    out, i = [], 0
    while i < len(inside):
        if inside[i] == "\\":
            out.append({"n": "\n", "\\": "\\", '"': '"'}[inside[i + 1]])
            i += 2
        else:
            assert inside[i] not in '"\n'
            out.append(inside[i])
            i += 1
    assert "".join(out) == text


def test_reasons_fall_into_few_classes() -> None:
    reasons = {
        "diverged: accuracy is not a finite number": "diverged",
        "out of memory: 3 GiB": "out_of_memory",
        "the worker process died before it could say why": "worker_died",
        "it took longer than budget.trial_s allows (3 s)": "time",
        "it reported no new epoch for 14400 s; where an epoch takes longer, set budget.trial_s": "time",
        "ValueError: boom": "error",
        "": "error",
    }
    assert {r: class_of(r) for r in reasons} == reasons


@pytest.mark.slow
def test_exporter_answers_prometheus_with_real_stores_and_goes_on_when_one_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    settings = Settings.from_env()
    recorded = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"])
    recorded_sweep.evaluate_champion(recorded)
    table = tmp_path / "wine.csv"
    pd.DataFrame({"a": range(90), "y": [0, 1, 2] * 30}).to_csv(table, index=False)
    commit = ["data", "commit", "wine", str(table), "--task", "multiclass", "--label", "y"]
    for more in ([], ["--check", "range:a:min=1000"]):  # the second is refused
        with pytest.raises(SystemExit):
            cli.main([*commit, *more])
    assert DatasetStore(settings.data_uri).resolve("wine").version == 1
    with Journal.open(settings.journal_uri) as journal:
        night(journal, "wine", "2026-11-24", "watched")
        journal.budgets.set("vision", limit_cpu_s=36_000, limit_gpu_s=None)
    with exporting(settings, every_s=0.05) as exporter:
        text = until(exporter, "tiltyard_night_outcome")
        assert 'tiltyard_dataset_versions_refused{dataset="wine"} 1' in text
        assert 'tiltyard_dataset_versions_committed{dataset="wine"} 1' in text
        assert 'tiltyard_night_outcome{night="wine",outcome="watched"} 1' in text
        assert 'tiltyard_night_data_age_seconds{night="wine",dataset="wine"}' in text
        assert 'tiltyard_launches{experiment="recorded",state="finished"} 1' in text
        assert 'tiltyard_budget_seconds{team="vision",resource="cpu",kind="limit"} 36000' in text
        assert 'tiltyard_budget_seconds{team="vision",resource="gpu",kind="spent"} 0' in text
        for line in text.splitlines():
            if not line.startswith("#"):
                assert DECLARED[line.partition("{")[0].partition(" ")[0]].source is Source.RECORD
        if (program := shutil.which("promtool")) is not None:
            done = subprocess.run(
                [program, "check", "metrics"], input=text, capture_output=True, text=True, check=False, timeout=60
            )
            assert done.returncode == 0, done.stdout + done.stderr
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetch(exporter, "/else")
        shutil.move(settings.data_uri, f"{settings.data_uri}.away")
        Path(settings.data_uri).write_text("no folder")
        deadline = time.monotonic() + 60
        while "tiltyard_dataset_age_seconds" in (text := fetch(exporter)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "tiltyard_night_outcome" in text


def fetch(exporter: Exporter, path: str = "/metrics") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{exporter.port}{path}", timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())


def until(exporter: Exporter, name: str) -> str:
    deadline = time.monotonic() + 90
    while name not in (text := fetch(exporter)):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def test_reader_says_which_store_is_away_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        RecordReader, "_known", lambda _: []
    )  # opening MLflow takes seconds, and is not what is asked here
    settings = dataclasses.replace(
        Settings.from_env({"TILTYARD_HOME": str(tmp_path)}), journal_uri="postgresql://ann:s3cret@127.0.0.1:1/journal"
    )
    settings.ensure_home()
    _, problems = RecordReader(settings).read(time.time())
    assert [p.partition(":")[0] for p in problems] == ["journal"]
    assert "s3cret" not in problems[0]
