"""leaderboard, runs and trial show, on a real journal with a small finished and a small stopped launch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tiltyard import cli
from tiltyard.distributions import loguniform
from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment, Halving, Objective, Search, Variant
from tiltyard.journal import Attempt, CellScore, Claim, Journal, Owner, TrialRow, TrialUpdate
from tiltyard.report import record
from tiltyard.settings import Settings
from tiltyard.sweep import leaderboard as ranking
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.types import DatasetRef, Mode

OLD, NEW = "0" * 63 + "1", "f" * 64


def experiment(name: str) -> Experiment:
    return Experiment(
        name=name,
        variants=(Variant(name="mlp", model="mlp", space={"lr": loguniform(1e-3, 1e-1)}),),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=3, halving=Halving(rungs=(1, 3))),
    )


def cell(index: int) -> str:
    return f"{index:02x}ab" + "0" * 60


def trial(key: str, index: int) -> TrialRow:
    return TrialRow(
        cell=cell(index),
        key=key,
        group="mlp@digits",
        index=index,
        variant="mlp",
        model="mlp",
        dataset="digits",
        dataset_version=1,
        config={"lr": 0.01 * (index + 1), "hidden": [64, 32]},
        seed=index,
        data_seed=0,
    )


def launch(journal: Journal, key: str, name: str, *, state: str) -> Claim:
    claim = journal.claim(key, experiment=name, spec=experiment(name).to_json(), owner=Owner.here())
    journal.add_trials(claim, [trial(key, i) for i in range(3)])
    journal.set_trial_states(
        claim,
        [
            TrialUpdate(cell=cell(0), state="stopped", epoch=1, score=0.5),
            TrialUpdate(cell=cell(1), state="done", epoch=3, score=0.9),
            TrialUpdate(cell=cell(2), state="failed", epoch=0, reason="the loss became NaN in epoch 1"),
        ],
    )
    journal.release(claim, state=state, summary={})
    return claim


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in ("TILTYARD_JOURNAL_URI", "TILTYARD_STORAGE_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "160")
    settings = Settings.from_env()
    with Journal.open(settings.journal_uri) as journal:
        launch(journal, OLD, "first", state="stopped")
        launch(journal, NEW, "second", state="finished")
        attempt = Attempt(key=NEW, pack_id="mlp@digits/r1/0", number=1, fence=1)
        claim = journal.claim(NEW[:-1] + "0", experiment="third", spec="{}", owner=Owner.here())
        attempt = journal.start_attempt(claim, "mlp@digits/r1/0", rung=1, cells=[cell(1)], device_kind="cpu", layout={})
        folder = Storage(settings.storage_uri).uri("pack")
        journal.finish_attempt(
            attempt,
            scores=[
                CellScore(cell=cell(1), epoch=3, metrics={"accuracy": 0.9}, storage_uri=folder, pack_id="p", attempt=1)
            ],
            metered_s=1.0,
            storage_uri=folder,
        )
    Path(folder).mkdir(parents=True)
    curve = {"cell": [cell(1)] * 3 + [cell(0)], "epoch": [1, 2, 3, 1], "train_loss": [2.0, 1.0, 0.5, 9.0]}
    pq.write_table(pa.table({**curve, "accuracy": [0.5, 0.7, 0.9, 0.1]}), Path(folder) / "curves.parquet")
    return settings


def tell(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    out, err = capsys.readouterr()
    assert (left.value.code or 0) == code, err
    return out if code == 0 else err


def test_leaderboard_of_a_stopped_launch_ranks_what_the_journal_has(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [line.split() for line in tell(capsys, "leaderboard", "first").splitlines()]
    ranked = [row for row in rows if row and row[0] in {"1", "2", "3"}]
    assert [row[1] for row in ranked] == ["mlp@digits/001", "mlp@digits/000", "mlp@digits/002"]
    assert ranked[0][2:] == ["0.9000", "3", "lr=0.02"]
    assert "failed: the loss became NaN" in " ".join(ranked[2])


def test_leaderboard_of_a_finished_launch_is_the_one_it_wrote(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with record.reading(settings) as journal:
        found = record.pick_launch(journal, "second")
        so_far = record.board_so_far(journal, found)
    best = so_far.tables["digits"][0]
    test = ranking.TestScore(metric="accuracy", value=0.875, low=0.8, high=0.95, rows=100, others={})
    board = ranking.leaderboard(
        experiment="second",
        key=NEW,
        metric="accuracy",
        mode=Mode.MAX,
        results=[],
        tests={},
        tied=frozenset(),
    )

    board = replace(board, tables={"digits": (replace(best, test=test),)}, test_looks=2)
    layout = Layout(Storage(settings.storage_uri), NEW)
    layout.storage.write_json(layout.leaderboard, board.to_json())
    told = tell(capsys, "leaderboard", "second")
    assert "0.8750 [0.8000, 0.9500]" in told
    assert "looked at 2 times" in told
    assert json.loads(tell(capsys, "leaderboard", "second", "--json")) == json.loads(json.dumps(board.to_json()))


def test_leaderboard_with_top_tells_how_many_more_there_are(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "2 more: tiltyard leaderboard first --all" in tell(capsys, "leaderboard", "first", "--top", "1")
    assert "mlp@digits/002" in tell(capsys, "leaderboard", "first", "--all")


def test_leaderboard_of_an_unknown_name_lists_the_known(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert "Recorded: " in tell(capsys, "leaderboard", "nope", code=1)
    assert "it has: digits" in tell(capsys, "leaderboard", "first", "--dataset", "iris", code=1)


def test_runs_list_launches_with_state_and_counts(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    told = {line.split()[0]: line for line in tell(capsys, "runs").splitlines() if line.strip()}
    assert "stopped" in told["first"]
    assert "1 done, 1 failed, 1 stopped" in told["second"]
    assert tell(capsys, "runs", "nope", code=1).startswith("error: No launch of 'nope'")
    found = json.loads(tell(capsys, "runs", "first", "--json"))
    assert [(f["experiment"], f["trials"]) for f in found] == [("first", {"done": 1, "failed": 1, "stopped": 1})]


def test_trial_show_by_name_and_by_cell_tells_the_same_with_its_curve(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    by_name = json.loads(tell(capsys, "trial", "show", "mlp@digits/001", "--json"))
    by_cell = json.loads(tell(capsys, "trial", "show", cell(1)[:6], "--json"))
    assert by_name["cell"] == by_cell["cell"] == cell(1)
    assert by_name["scores"] == {"3": {"accuracy": 0.9}}
    assert [(p["epoch"], p["train_loss"]) for p in by_name["curve"]] == [(1, 2.0), (2, 1.0), (3, 0.5)]
    told = tell(capsys, "trial", "show", "mlp@digits/001")
    assert "tiltyard trial rerun mlp@digits/001" in told
    assert cell(1) in told


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("mlp@digits/999", "No trial 'mlp@digits/999'"),
        ("zz", "names no trial"),
        ("dead", "No cell that begins with dead"),
    ],
)
def test_find_trial_with_a_wrong_name_says_what_is_wanted(settings: Settings, wanted: str, told: str) -> None:
    with record.reading(settings) as journal, pytest.raises(SpecError, match=told):
        record.find_trial(journal, wanted)


def test_pick_launch_with_nothing_named_takes_the_newest_and_a_key_by_its_beginning(settings: Settings) -> None:
    with record.reading(settings) as journal:
        newest = max(journal.launches(), key=lambda one: one.started)
        assert record.pick_launch(journal, None).key == newest.key
        assert record.pick_launch(journal, OLD[:8]).experiment == "first"
