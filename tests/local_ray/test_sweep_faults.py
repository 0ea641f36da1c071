"""One sweep in which three packs are killed at the worst moments: each runs again, and nothing else is different.

The moments are held open, not guessed at: training waits at a gate, a checkpoint waits at a named pipe, and the journal's
write lock is taken between a pack's files and its record.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import sweeps
from mlflow import MlflowClient

from tiltyard.distributions import uniform
from tiltyard.experiment import Search, Variant
from tiltyard.journal import AttemptRow, Journal
from tiltyard.settings import Settings
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.outcome import Outcome
from tiltyard.training import checkpoint
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray

IN_TRAINING, IN_CHECKPOINT, BEFORE_RECORD, UNTOUCHED = (f"own@rings/{p}" for p in ("r0/0", "r0/1", "r1/0", "r1/1"))


@dataclass
class Scene:
    """The same sweep undisturbed and disturbed."""

    settings: Settings
    gate: Path
    calm: Outcome
    disturbed: Outcome
    recorded_at_the_kill: int

    def attempts(self, pack: str) -> list[AttemptRow]:
        return [a for a in sweeps.attempts(self.settings, self.disturbed.claim.key) if a.pack_id == pack]

    def folder(self, pack: str, attempt: int) -> Path:
        return folder_of(self.settings, self.disturbed.claim.key, pack, attempt)


def folder_of(settings: Settings, key: str, pack: str, attempt: int) -> Path:
    return Path(Layout(Storage(settings.storage_uri), key).attempt(pack, attempt))


@pytest.fixture(scope="module")
def scene(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("faults")
    data, gate = sweeps.commit_small_datasets(folder / "data"), folder / "gate"
    wanted = sweeps.gated(gate, steps=2)
    calm = sweeps.run_launch(sweeps.settings_at(folder / "calm", data), wanted)
    settings, key = sweeps.settings_at(folder / "disturbed", data), calm.claim.key
    recorded = []

    def pid_of(pack: str) -> int:
        def found() -> int | None:
            with Journal.open(settings.journal_uri) as journal:
                first = [a for a in journal.attempts(key) if (a.pack_id, a.number) == (pack, 1)]
                return int(first[0].layout["pid"]) if first else None

        return int(sweeps.until(found, what=f"attempt 1 at {pack}"))

    def kill_three() -> None:
        try:
            pid = pid_of(IN_TRAINING)
            sweeps.until(lambda: pid in sweeps.marks(gate), what="training at the gate")
            os.kill(pid, signal.SIGKILL)
        finally:
            gate.unlink()
        half = folder_of(settings, key, IN_CHECKPOINT, 1)
        sweeps.until(lambda: any(half.glob("*.safetensors")), what="half a checkpoint")
        os.kill(pid_of(IN_CHECKPOINT), signal.SIGKILL)
        recorded.append(kill_before_record(settings, pid_of(BEFORE_RECORD), folder_of(settings, key, BEFORE_RECORD, 1)))

    for pack in (IN_CHECKPOINT, BEFORE_RECORD):
        attempt = folder_of(settings, key, pack, 1)
        attempt.mkdir(parents=True)
        os.mkfifo(attempt / f".{checkpoint.META}")  # opening it to write waits for a reader
    gate.touch()
    with sweeps.meanwhile(kill_three):
        disturbed = sweeps.run_launch(settings, wanted)
    return Scene(settings, gate, calm, disturbed, recorded[0])


def kill_before_record(settings: Settings, pid: int, files: Path) -> int:
    """Kills a pack whose files are whole but not in the journal; how many scores of it the journal then has."""
    sweeps.until(lambda: any(files.glob("*.safetensors")), what="half a checkpoint")
    journal = sqlite3.connect(settings.journal_uri.removeprefix("sqlite:///"), isolation_level=None, timeout=30)
    try:
        journal.execute("BEGIN IMMEDIATE")  # nobody else can write
        (files / f".{checkpoint.META}").read_text()  # lets the checkpoint go on
        sweeps.until((files / "curves.parquet").exists, what="the pack's files")
        row = journal.execute("SELECT COUNT(*) FROM cell_scores WHERE pack_id = ?", (BEFORE_RECORD,)).fetchone()
        os.kill(pid, signal.SIGKILL)
        journal.execute("ROLLBACK")
    finally:
        journal.close()
    return int(row[0])


def test_sweep_with_killed_packs_gives_the_undisturbed_leaderboard(scene: Scene) -> None:
    assert scene.disturbed.state == "finished"
    assert sweeps.standings(scene.disturbed.leaderboard) == sweeps.standings(scene.calm.leaderboard)
    assert {r.state for r in scene.disturbed.results} == {"done", "stopped"}


@pytest.mark.parametrize("pack", [IN_TRAINING, IN_CHECKPOINT, BEFORE_RECORD])
def test_pack_whose_process_was_killed_runs_again_as_attempt_two(scene: Scene, pack: str) -> None:
    assert [(a.number, a.state) for a in scene.attempts(pack)] == [(1, "fenced"), (2, "done")]


def test_pack_beside_killed_ones_runs_once(scene: Scene) -> None:
    assert [(a.number, a.state) for a in scene.attempts(UNTOUCHED)] == [(1, "done")]


def test_pack_killed_in_the_middle_of_its_checkpoint_leaves_none_that_counts(scene: Scene) -> None:
    assert not (scene.folder(IN_CHECKPOINT, 1) / checkpoint.META).exists()
    assert (scene.folder(IN_CHECKPOINT, 2) / checkpoint.META).is_file()
    used = {s.storage_uri for (_, epoch), s in scene.disturbed.scores.items() if epoch == 1}
    assert str(scene.folder(IN_CHECKPOINT, 2)) in used
    assert str(scene.folder(IN_CHECKPOINT, 1)) not in used


def test_pack_killed_between_its_files_and_its_record_is_as_if_it_had_not_been(scene: Scene) -> None:
    assert scene.recorded_at_the_kill == 0
    assert {s.attempt for s in scene.disturbed.scores.values() if s.pack_id == BEFORE_RECORD} == {2}


def test_trials_of_killed_packs_have_one_run_and_one_point_an_epoch(scene: Scene) -> None:
    client = MlflowClient(tracking_uri=scene.settings.tracking_uri)
    found = client.get_experiment_by_name("gated")
    assert found is not None
    runs = client.search_runs([found.experiment_id], "tags.`tiltyard.kind` = 'trial'")
    assert sorted(r.data.tags["tiltyard.cell"] for r in runs) == sorted(r.cell for r in scene.disturbed.results)
    epochs = {r.cell: r.epoch for r in scene.disturbed.results}
    for run in runs:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "accuracy")]
        assert steps == list(range(1, epochs[run.data.tags["tiltyard.cell"]] + 1))


def test_seconds_of_killed_packs_are_charged(scene: Scene) -> None:
    with Journal.open(scene.settings.journal_uri) as journal:
        spent = journal.spend(scene.disturbed.claim.key)
    assert spent.by_what["lost packs"] > 0
    assert spent.cpu_s == pytest.approx(spent.by_what["packs"] + spent.by_what["lost packs"])


def test_queue_whose_worker_is_killed_trains_again_only_what_ran_and_gives_up_a_member_that_kills_it_each_time(
    ray_session: None, tmp_path: Path
) -> None:
    log, killer, unlucky = tmp_path / "log", 0.2, 0.5
    own = Variant(
        name="own",
        model="train:users_training:tally",
        fixed={"log": str(log), "killer": killer, "unlucky": unlucky},
        space={"x": uniform(0.0, 1.0)},
    )
    settings = sweeps.settings_at(tmp_path / "home", sweeps.commit_small_datasets(tmp_path / "data"))
    points: dict[str, Any] = {"own": tuple({"x": x} for x in (0.1, killer, 0.3, 0.4, unlucky, 0.6))}
    wanted = sweeps.experiment(
        variants=(own,), datasets=(DatasetRef("rings"),), search=Search(trials=6, epochs=1, points=points)
    )
    outcome = sweeps.run_launch(settings, wanted)
    assert outcome.state == "finished"
    rows = {r.config["x"]: r for r in outcome.leaderboard.tables["rings"]}
    assert {x: r.state for x, r in rows.items()} == {x: "failed" if x == killer else "done" for x in rows}
    assert {x: r.validation for x, r in rows.items() if x != killer} == {x: x for x in (0.1, 0.3, 0.4, unlucky, 0.6)}
    assert str(rows[killer].reason).startswith("its worker process died twice while it trained")
    trained = Counter(float(line) for line in log.read_text().splitlines())
    assert trained == {0.1: 1, killer: 2, 0.3: 1, 0.4: 1, unlucky: 2, 0.6: 1}
    tried: dict[str, list[str]] = {}
    for attempt in sweeps.attempts(settings, outcome.claim.key):
        tried.setdefault(attempt.pack_id, []).append(attempt.state)
    assert sorted(tried.values()) == [["fenced", "done"], ["fenced", "fenced", "done"]]
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    tags = client.get_run(outcome.run_ids[rows[killer].cell]).data.tags
    assert (tags["tiltyard.state"], tags["tiltyard.reason"]) == ("failed", rows[killer].reason)


def test_sweep_whose_worker_node_is_lost_gives_the_undisturbed_leaderboard(scene: Scene, tmp_path: Path) -> None:
    arguments = [str(tmp_path / "home"), scene.settings.data_uri, str(scene.gate)]
    hidden = ("RAY_", "TILTYARD_", "MLFLOW_TRACKING")
    env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
    env |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with tempfile.TemporaryDirectory(prefix="ty-", dir="/tmp") as short:  # Ray's sockets have no room for a long path
        done = subprocess.run(
            [sys.executable, "-m", "node_loss", *arguments],
            env=env | {"RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["packs_on_the_lost_node"] == 1
    assert told["state"] == "finished"
    calm = {d: [asdict(s) for s in rows] for d, rows in sweeps.standings(scene.calm.leaderboard).items()}
    assert told["standings"] == calm
    tries = {number for pack, number, _ in told["attempts"] if pack.startswith("own@rings/r0")}
    assert tries == {1, 2}
