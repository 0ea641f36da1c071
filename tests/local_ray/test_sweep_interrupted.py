"""A job that is stopped with Ctrl-C, started again, killed, and started again: it ends as if nothing had happened.

The job is a file of a user's own, with a model of the user's own beside it, and starts its own Ray each time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweeps
import users_models
from mlflow import MlflowClient
from typer.testing import CliRunner

from tiltyard.cli import app
from tiltyard.data.store import DatasetStore
from tiltyard.experiment import Experiment
from tiltyard.jobfile import load_experiment
from tiltyard.journal import Journal, Launch, TrialRow
from tiltyard.registry.bundle import read_bundle
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.report.record import board_of
from tiltyard.settings import Settings
from tiltyard.sweep.engine.outcome import Outcome
from tiltyard.sweep.leaderboard import Leaderboard

pytestmark = pytest.mark.ray

JOB = """
from tiltyard import (
    Champion, DatasetRef, Experiment, Halving, Objective, Resources, Search, Variant, loguniform, main,
)


def experiment():
    return Experiment(
        name="stopped-and-gone-on",
        variants=(
            Variant(name="quick", model="logistic", fixed={{"batch_size": 32}}, space={{"lr": loguniform(1e-3, 1e-1)}}),
            Variant(
                name="own",
                model="my_models:Gated",
                fixed={{"gate": {gate!r}, "steps": 2, "batch_size": 32}},
                space={{"lr": loguniform(1e-3, 1e-1)}},
            ),
        ),
        datasets=(DatasetRef("rings"),),
        objective=Objective(metric="accuracy", also=("log_loss",)),
        search=Search(trials=6, halving=Halving(rungs=(1, 3), keep=0.5), finalists=6),
        resources=Resources(max_concurrent=2),
        champion=Champion(serve=False),
    )


if __name__ == "__main__":
    main(__file__)
"""


class Job:
    """The file, its gate, and its home."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.gate = folder, folder / "gate"
        self.file = folder / "job.py"
        self.file.write_text(JOB.format(gate=str(self.gate)))
        shutil.copy(users_models.__file__, folder / "my_models.py")
        self.data = sweeps.commit_small_datasets(folder / "data")
        self.settings = sweeps.settings_at(folder / "home", self.data)
        self.output = folder / "output"

    @property
    def experiment(self) -> Experiment:
        return load_experiment(self.file)

    @property
    def environment(self) -> dict[str, str]:
        hidden = ("RAY_", "TILTYARD_", "MLFLOW_TRACKING")
        env = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        return env | {
            "TILTYARD_HOME": str(self.settings.home),
            "TILTYARD_DATA_URI": self.data,
            "HOME": str(self.folder),
            "TUNE_FORCE_TRIAL_CLEANUP_S": "3",  # a pack that waits at a gate does not obey: it is given 10 s else
        }

    def plan(self, wanted: str) -> dict[str, list[tuple[str, int, int]]]:
        """What ``tiltyard resume WANTED --plan`` says, by variant: what, from which epoch, to which."""
        where = {name: self.environment[name] for name in ("TILTYARD_HOME", "TILTYARD_DATA_URI")}
        before = [*sys.path]
        sys.path.insert(0, str(self.folder))
        try:
            with chdir(self.folder):  # as a shell there
                done = CliRunner().invoke(
                    app, ["resume", wanted, "--plan", "--json"], env=where, catch_exceptions=False
                )
        finally:
            sys.path[:] = before
            sys.modules.pop("my_models", None)
        assert done.exit_code == 0, done.output
        found: dict[str, list[tuple[str, int, int]]] = {}
        for s in json.loads(done.stdout)["steps"]:
            found.setdefault(s["trial"].split("@")[0], []).append((s["action"], s["from_epoch"], s["to_epoch"]))
        return {variant: sorted(steps) for variant, steps in found.items()}

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """``python job.py``, or another command, in a process group of its own, as a terminal starts it."""
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, *(command or ("job.py",))],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def record(self) -> tuple[Launch, list[TrialRow]]:
        with Journal.open(self.settings.journal_uri) as journal:
            launch = journal.launches()[0]
            return launch, journal.trials(launch.key)

    def board(self) -> Leaderboard:
        with Journal.open(self.settings.journal_uri) as journal:
            return board_of(self.settings, journal, journal.launches()[0])

    def wait_in_the_middle(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """Until the quick variant is done and the other waits at the gate; the job's processes then."""

        def in_the_middle() -> bool:
            assert process.poll() is None, self.output.read_text()
            if not sweeps.marks(self.gate) or not Path(self.settings.journal_uri.removeprefix("sqlite:///")).exists():
                return False
            return all(t.state in {"done", "stopped"} for t in self.record()[1] if t.variant == "quick")

        sweeps.until(in_the_middle, what="the quick variant's end")
        return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Where a driver is killed, these two try to tell the head, which is gone, for 60 s (fixed in Ray), and then end too."""


def lingering(processes: list[psutil.Process], *, but: tuple[str, ...] = (), within_s: float = 30.0) -> list[str]:
    """Which of the processes are still there after a while."""

    def alive() -> list[str]:
        names = []
        for process in processes:
            try:
                if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                    names.append(process.name())
            except psutil.NoSuchProcess:
                continue
        return [name for name in names if name not in but]

    deadline = time.monotonic() + within_s
    while (left := alive()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Ctrl-C in the middle, kill -9 in the middle, and a run to the end; what was seen at each point."""
    job = Job(tmp_path_factory.mktemp("job"))
    told: dict[str, Any] = {"job": job}
    started: list[subprocess.Popen[bytes]] = []
    try:
        job.gate.touch()
        started.append(job.start())
        processes = job.wait_in_the_middle(started[-1])
        begun = time.monotonic()
        os.killpg(started[-1].pid, signal.SIGINT)
        code = started[-1].wait(timeout=60)
        told["ctrl-c"] = {"code": code, "took": time.monotonic() - begun, "output": job.output.read_text()}
        told["ctrl-c"] |= {"record": job.record(), "processes": processes}
        told["ctrl-c"] |= {"plan": job.plan("stopped-and-gone-on")}

        started.append(job.start())
        sweeps.until(lambda: started[-1].poll() is not None or job.record()[0].state == "running")
        processes = job.wait_in_the_middle(started[-1])
        started[-1].kill()
        started[-1].wait(timeout=10)
        told["kill"] = {"record": job.record(), "processes": processes}

        job.gate.unlink()
        started.append(job.start("-m", "tiltyard.cli", "resume", "job.py"))
        told["end"] = {"code": started[-1].wait(timeout=120), "output": job.output.read_text(), "record": job.record()}
        told["end"] |= {"plan": job.plan("job.py")}
        yield told
    finally:
        job.gate.unlink(missing_ok=True)
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def calm(ray_session: None, story: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same job, undisturbed."""
    job: Job = story["job"]
    settings = sweeps.settings_at(tmp_path_factory.mktemp("calm"), job.data)
    before = [*sys.path]
    try:
        return sweeps.run_launch(settings, job.experiment)
    finally:
        sys.path[:] = before
        sys.modules.pop("my_models", None)


def test_job_stopped_by_ctrl_c_exits_130_and_says_what_is_kept(story: dict[str, Any]) -> None:
    seen = story["ctrl-c"]
    assert seen["code"] == 130, seen["output"]
    assert "Traceback" not in seen["output"]
    assert "Ctrl-C" in seen["output"]
    assert seen["took"] < 40


def test_job_stopped_by_ctrl_c_keeps_what_was_finished_and_marks_what_ran(story: dict[str, Any]) -> None:
    launch, trials = story["ctrl-c"]["record"]
    assert launch.state == "stopped"
    quick, own = ([t for t in trials if t.variant == name] for name in ("quick", "own"))
    assert sorted(t.state for t in quick) == ["done", "done", "stopped"]
    assert {(t.state, t.epoch, t.reason) for t in own} == {("interrupted", 0, "stopped by Ctrl-C")}


@pytest.mark.parametrize("end", ["ctrl-c", "kill"])
def test_job_that_was_ended_leaves_no_process_behind(story: dict[str, Any], end: str) -> None:
    assert lingering(story[end]["processes"], but=RAYS_AGENTS if end == "kill" else ()) == []


def test_resume_plan_after_ctrl_c_skips_what_is_done_and_runs_the_rest(story: dict[str, Any]) -> None:
    plan = story["ctrl-c"]["plan"]
    assert plan["quick"] == [("skip", 1, 1), ("skip", 3, 3), ("skip", 3, 3)]
    assert plan["own"] == [("run", 0, 1)] * 3


def test_resume_plan_of_a_finished_sweep_has_nothing_left(story: dict[str, Any]) -> None:
    assert {action for steps in story["end"]["plan"].values() for action, _, _ in steps} == {"skip"}


def test_job_resumed_after_it_was_killed_goes_on_and_runs_nothing_twice(story: dict[str, Any]) -> None:
    assert story["kill"]["record"][0].state == "running"  # the record of a dead process: nobody could change it
    assert story["end"]["code"] == 0, story["end"]["output"]
    launch, trials = story["end"]["record"]
    assert launch.state == "finished"
    assert launch.fence == 3
    assert {t.state for t in trials} == {"done", "stopped"}
    job: Job = story["job"]
    quick = [a for a in sweeps.attempts(job.settings, launch.key) if a.pack_id.startswith("quick")]
    assert {(a.number, a.state) for a in quick} == {(1, "done")}
    own = {a.number: a.state for a in sweeps.attempts(job.settings, launch.key) if a.pack_id == "own@rings/r0/0"}
    assert own == {1: "fenced", 2: "fenced", 3: "done"}


def test_job_stopped_and_killed_ends_with_the_undisturbed_leaderboard(story: dict[str, Any], calm: Outcome) -> None:
    assert sweeps.standings(story["job"].board()) == sweeps.standings(calm.leaderboard)


def test_mlflow_after_a_stop_a_kill_and_an_end_has_each_trial_once(story: dict[str, Any]) -> None:
    settings: Settings = story["job"].settings
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    found = client.get_experiment_by_name("stopped-and-gone-on")
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    parents = [r for r in runs if r.data.tags.get("tiltyard.kind") == "launch"]
    children = [r for r in runs if r.data.tags.get("tiltyard.kind") == "trial"]
    assert [p.info.status for p in parents] == ["FINISHED"]
    launch, trials = story["end"]["record"]
    assert launch.parent_run_id == parents[0].info.run_id
    assert sorted(c.data.tags["tiltyard.cell"] for c in children) == sorted(t.cell for t in trials)
    epochs = {t.cell: t.epoch for t in trials}
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["tiltyard.state"] in {"done", "stopped"}
        steps = [m.step for m in client.get_metric_history(child.info.run_id, "accuracy")]
        assert steps == list(range(1, epochs[child.data.tags["tiltyard.cell"]] + 1))


def test_users_own_model_is_swept_registered_and_loaded(story: dict[str, Any]) -> None:
    job: Job = story["job"]
    best = job.board().best("rings")
    assert best is not None
    assert {r.variant for r in job.board().tables["rings"] if r.state == "done"} == {"quick", "own"}
    registry = ModelRegistry(job.settings)
    champion = registry.get("stopped-and-gone-on.rings", alias="champion")
    bundle = read_bundle(registry.fetch(champion), expect_digest=champion.digest)
    assert bundle.spec.lineage.cell == best.cell
    store = DatasetStore(job.data)
    table = store.read("rings@1", split="test")
    answers = bundle.predict_table(table)
    right = sum(a == y for a, y in zip(answers.labels, table["y"].to_pylist(), strict=True))
    assert best.test is not None
    assert right / len(table) == best.test.value
