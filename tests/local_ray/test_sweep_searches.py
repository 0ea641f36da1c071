"""HyperBand, TPE and budgets through the engine on a real Ray: what is asked for is what happens, and a resume agrees."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweeps

from tiltyard.errors import BudgetExceededError
from tiltyard.experiment import Budget, Experiment, Halving, Hyperband, Search
from tiltyard.journal import Journal
from tiltyard.run import run
from tiltyard.settings import Settings
from tiltyard.sweep.engine.driver import Tick
from tiltyard.sweep.engine.finals import look_at_test
from tiltyard.sweep.engine.outcome import Outcome, Silent
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray

TPE = Search(
    trials=10, algorithm="tpe", generation=4, halving=Halving(rungs=(1, 2), keep=1 / 2), finalists=2, replicates=3
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(ray_session: None, tmp_path: Path, data: str) -> Settings:
    return sweeps.settings_at(tmp_path, data)


@pytest.fixture
def journal(settings: Settings) -> Iterator[Journal]:
    settings.ensure_home()
    with Journal.open(settings.journal_uri) as opened:
        yield opened


def on_rings(**changes: Any) -> Experiment:
    fields = {"variants": (sweeps.MLP,), "datasets": (DatasetRef("rings"),), **changes}
    return sweeps.experiment(**fields)


class StopAfter(Silent):
    """Presses Ctrl-C once so many trials have ended."""

    def __init__(self, ended: int) -> None:
        self.ended = ended

    def tick(self, tick: Tick) -> None:
        if sum(n for state, n in tick.states.items() if state in {"done", "stopped"}) >= self.ended:
            os.kill(os.getpid(), signal.SIGINT)
            self.ended = 10**9


def test_sweep_with_hyperband_runs_every_bracket_and_compares_across_them(settings: Settings, journal: Journal) -> None:
    outcome = sweeps.run_launch(settings, on_rings(search=Search(trials=8, halving=Hyperband(max_epochs=4, eta=2))))
    assert outcome.state == "finished"
    rows = outcome.leaderboard.tables["rings"]
    assert {r.name.split("/")[1] for r in rows} == {"b0", "b1", "b2"}
    done = [r for r in rows if r.state == "done"]
    assert {r.epoch for r in done} == {4}
    assert rows[: len(done)] == tuple(done)
    assert len({r.name.split("/")[1] for r in done}) == 3
    rungs = Counter(d.subject for d in journal.decisions(kind="rung"))
    assert rungs == {"mlp@rings/b2": 3, "mlp@rings/b1": 2, "mlp@rings/b0": 1}


def test_sweep_with_tpe_and_replicates_interrupted_and_resumed_ends_as_the_undisturbed(
    settings: Settings, journal: Journal, tmp_path: Path, data: str
) -> None:
    wanted = on_rings(search=TPE)
    undisturbed = sweeps.run_launch(settings, wanted)
    assert undisturbed.plan.num_trials == len(undisturbed.plan.trials) == 16
    rows = journal.trials(undisturbed.claim.key)
    again = {"mlp@rings/s1": 2, "mlp@rings/s2": 2, "mlp@rings/s3": 2}
    assert Counter(r.group for r in rows) == {"mlp@rings": 4, "mlp@rings/g1": 4, "mlp@rings/g2": 2, **again}
    assert {r.state for r in rows} <= {"done", "stopped", "failed"}
    reused = sweeps.run_launch(settings, wanted)
    assert (reused.state, reused.leaderboard) == ("reused", undisturbed.leaderboard)
    assert {t.cell for t in reused.plan.trials} == {r.cell for r in rows}

    elsewhere = sweeps.settings_at(tmp_path / "elsewhere", data)
    assert sweeps.run_launch(elsewhere, wanted, StopAfter(5)).state == "stopped"
    with Journal.open(elsewhere.journal_uri) as record:
        assert len(record.trials(undisturbed.claim.key)) in {4, 8, 10, 16}
    resumed = sweeps.run_launch(elsewhere, wanted)
    assert resumed.leaderboard == undisturbed.leaderboard
    replicates_are_told(undisturbed, journal)


def replicates_are_told(outcome: Outcome, journal: Journal) -> None:
    """Each finalist was trained again three times, on orders of rows of their own, and looked at on the test split once."""
    table, rows = outcome.leaderboard.tables["rings"], journal.trials(outcome.claim.key)
    assert len(table) == 10
    assert outcome.leaderboard.test_looks == 1
    assert all(r.replicates is None for r in table[2:])
    for row in table[:2]:
        assert row.replicates is not None
        assert row.replicates.test is not None
        assert (row.replicates.num, row.replicates.failed, row.replicates.test.num) == (3, 0, 3)
    again = [r for r in rows if "/s" in r.group]
    assert len({r.data_seed for r in again} - {0}) == 3
    assert len({r.seed for r in again}) == 6
    packs = [a for a in journal.attempts(outcome.claim.key) if "/s" in a.pack_id]
    assert sorted(c for a in packs for c in a.cells) == sorted(r.cell for r in again)
    assert set(outcome.run_ids) == {r.cell for r in rows}


class OwnMeter(Silent):
    """Watches the packs' processes from outside: how long each is there from the sweep's first turn on."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._since = settings, 0.0
        self._seen: dict[int, tuple[float, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def tick(self, tick: Tick) -> None:
        if not self._since:
            self._since = time.time()
            self._thread.start()

    def held_s(self) -> float:
        """Seconds of all of them together, once the sweep is over."""
        self._over.set()
        self._thread.join()
        return sum(last - first for first, last in self._seen.values())

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            with Journal.open(self._settings.journal_uri) as journal:
                pids = {a.layout["pid"] for launch in journal.launches() for a in journal.attempts(launch.key)}
            for pid in pids:
                try:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        self._seen[pid] = (max(self._since, process.create_time()), time.time())
                except psutil.NoSuchProcess:
                    continue


def test_sweep_with_a_budget_of_cpu_hours_ends_what_runs_when_it_is_used_up_and_charges_what_was_held(
    settings: Settings, journal: Journal
) -> None:
    limit_s = 10.0
    endless, meter = Search(trials=4, epochs=10**6), OwnMeter(settings)
    outcome = sweeps.run_launch(settings, on_rings(search=endless, budget=Budget(cpu_hours=limit_s / 3600)), meter)
    held_s, charged_s = meter.held_s(), journal.spend(outcome.claim.key).cpu_s
    assert abs(held_s - charged_s) <= 0.05 * held_s, f"{charged_s:.2f} s were charged, {held_s:.2f} s were held"
    assert outcome.state == "stopped"
    assert outcome.reason is not None
    assert "The budget of this experiment" in outcome.reason
    spent = journal.spend(outcome.claim.key).cpu_s
    assert limit_s - 4 < spent < limit_s + 4, f"{spent:.1f} s: a reserve below, or more than a teardown above"
    assert Counter(r.state for r in outcome.results) == {"interrupted": 4}


def test_sweep_charged_to_a_team_settles_what_it_used(
    settings: Settings, journal: Journal, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = on_rings(budget=Budget(team="vision"), search=Search(trials=2, epochs=1))
    with pytest.raises(BudgetExceededError, match="tiltyard budget set vision"):
        sweeps.run_launch(settings, wanted)
    assert journal.launches() == []
    journal.budgets.set("vision", limit_cpu_s=600, limit_gpu_s=None)
    outcome = sweeps.run_launch(settings, wanted)
    assert outcome.state == "finished"
    now = journal.budgets.get("vision")
    assert now.reserved.cpu_s == 0
    assert now.spent.cpu_s == pytest.approx(journal.spend(outcome.claim.key).cpu_s)
    assert now.spent.cpu_s > 0
    journal.budgets.set("vision", limit_cpu_s=now.spent.cpu_s, limit_gpu_s=None)
    assert run(wanted.with_options(seed=1), settings=settings) == 3
    assert "team 'vision' has 0.0 CPU-s free" in " ".join(capsys.readouterr().out.split())
    newest = journal.launches()[0]
    assert newest.state == "stopped"
    assert {t.state for t in journal.trials(newest.key)} == {"interrupted"}


def test_sweep_terminated_after_its_look_at_the_test_split_is_stopped_and_the_next_start_records_a_second_look(
    settings: Settings, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = on_rings(search=Search(trials=2, epochs=1), seed=7)

    def looked_and_terminated(**given: Any) -> None:
        look_at_test(**given)
        raise SystemExit(15)  # as Ray's handler of SIGTERM does, where no driver listens any more

    with monkeypatch.context() as patched:
        patched.setattr("tiltyard.sweep.engine.launch.look_at_test", looked_and_terminated)
        with pytest.raises(SystemExit):
            sweeps.run_launch(settings, wanted)
    ended = journal.launches()[0]
    assert (ended.state, ended.summary) == ("stopped", {"reason": "stopped by SIGTERM"})
    outcome = sweeps.run_launch(settings, wanted)
    assert (outcome.state, outcome.leaderboard.test_looks) == ("finished", 2)
