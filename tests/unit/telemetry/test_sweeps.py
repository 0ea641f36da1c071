"""What is exported of a sweep: from ticks and a real journal, with a recorder in place of Ray's gauges."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recorded_sweep

from tiltyard.experiment import Budget, Experiment
from tiltyard.journal import Claim, Journal, Owner, TrialUpdate
from tiltyard.telemetry import sweeps
from tiltyard.telemetry.instruments import DECLARED
from tiltyard.telemetry.sweeps import Exporting, Readings, of_record, of_tick


@dataclass
class Tick:
    states: dict[str, int] = field(default_factory=lambda: {"running": 3, "done": 2})
    best: dict[str, tuple[float, str]] = field(default_factory=lambda: {"rings": (0.9, "mlp@rings/000")})
    elapsed_s: float = 12.0
    packs_running: int = 1
    work_done: float = 0.4
    paused: str | None = None
    packs_waiting: int = 4


class Silent:
    def __init__(self) -> None:
        self.ticks = 0

    def planned(self, plan: Any, known: int) -> None: ...

    def step(self, what: str) -> None: ...

    def tick(self, tick: Any) -> None:
        self.ticks += 1


def experiment(**changes: Any) -> Experiment:
    return recorded_sweep.experiment("exported", 12, ["rings"]).model_copy(update=changes)


def only(readings: Readings, name: str) -> dict[str, float]:
    return {
        ",".join(v for k, v in labels.items() if k not in {"experiment", "team"}): value
        for n, labels, value in readings
        if n == name
    }


def test_readings_of_a_tick_and_a_journal_bear_exactly_the_declared_labels(tmp_path: Path) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=24)
    wanted = experiment(budget=Budget(team="vision"))
    with Journal.open(recorded.settings.journal_uri) as journal:
        rate = {"rate": {"group": "cpu", "hourly": 0.5, "currency": "EUR"}}
        attempts = [dataclasses.replace(a, layout=rate) for a in journal.attempts(recorded.key)]
        record = of_record(
            attempts,
            journal.spend(recorded.key),
            wanted,
            now=time.time(),
            ended_trials=5,
            fence=3,
            rungs=["3 go on, 6 stop", "1 go on, 2 stop"],
            failures={"out_of_memory": 1},
        )
        spent = journal.spend(recorded.key)
    readings = of_tick(Tick(), wanted, 2.0, "job-7") + record
    for name, labels, _ in readings:
        assert set(labels) == set(DECLARED[name].labels), name
    states = only(readings, "tiltyard_sweep_trials")
    assert (states["running"], states["done"], states["failed"]) == (3, 2, 0)
    assert only(readings, "tiltyard_sweep_driver_lag_seconds") == {"": 2.0}
    assert (only(readings, "tiltyard_sweep_packs_running"), only(readings, "tiltyard_sweep_packs_waiting")) == (
        {"": 1.0},
        {"": 4.0},
    )
    assert [la["ray_job"] for name, la, _ in readings if name == "tiltyard_sweep_elapsed_seconds"] == ["job-7"]
    assert only(readings, "tiltyard_sweep_held_seconds") == {"cpu": spent.cpu_s, "gpu": 0.0}
    assert only(readings, "tiltyard_sweep_lost_seconds") == {"cpu": pytest.approx(3.0), "gpu": 0.0}
    assert only(readings, "tiltyard_sweep_retries") == {"": 2.0}
    assert only(readings, "tiltyard_sweep_restarts") == {"": 2.0}
    assert only(readings, "tiltyard_sweep_trial_cost_seconds") == {"cpu": spent.cpu_s / 5, "gpu": 0.0}
    assert only(readings, "tiltyard_sweep_rung_decisions") == {"went_on": 4, "stopped": 8}
    assert only(readings, "tiltyard_sweep_failures")["out_of_memory"] == 1
    assert only(readings, "tiltyard_sweep_attempts")["failed"] == 2
    assert only(readings, "tiltyard_sweep_cost") == {
        "EUR": pytest.approx(sum(a.metered_s for a in attempts) * 0.5 / 3600)
    }


def test_exporting_reads_reasons_restarts_and_rungs_from_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"], finished=False)
    monkeypatch.setattr(sweeps, "EVERY_S", 0.02)
    with Journal.open(recorded.settings.journal_uri) as journal:
        claim = journal.claim(
            recorded.key, experiment="exported", spec="", owner=Owner(host="elsewhere", pid=1, started=0)
        )
        if claim.outcome == "held":  # by this very process, as the recording left it
            claim = Claim(key=recorded.key, launch_id=claim.launch_id, fence=claim.fence, outcome="new")
        first, second = (t.cell for t in journal.trials(recorded.key)[:2])
        journal.set_trial_states(
            claim,
            [
                TrialUpdate(cell=first, state="failed", reason="diverged: accuracy is not a finite number"),
                TrialUpdate(cell=second, state="failed", reason="out of memory: 2 GiB"),
            ],
        )
        journal.decide(
            kind="rung",
            subject="mlp@rings",
            actor="halving",
            evidence={},
            reasons=["best third"],
            outcome="2 go on, 4 stop",
            once=f"rung/{recorded.key}/mlp@rings/0",
        )
    found: dict[tuple[str, str], float] = {}
    seen = threading.Event()

    def note(name: str, labels: dict[str, str], value: float) -> None:
        found[name, labels.get("reason", labels.get("outcome", ""))] = value
        if name == "tiltyard_sweep_failures" and labels["reason"] == "error":
            seen.set()

    made = Exporting(recorded.settings, experiment(), Silent(), set_gauge=note)
    made.planned(SimpleNamespace(key=recorded.key), 0)
    made.tick(Tick(states={"failed": 2, "done": 4}))
    assert seen.wait(60)
    made.close()
    assert found["tiltyard_sweep_failures", "diverged"] == found["tiltyard_sweep_failures", "out_of_memory"] == 1
    assert found["tiltyard_sweep_failures", "error"] == 0
    assert found["tiltyard_sweep_rung_decisions", "stopped"] == 4
    assert found["tiltyard_sweep_rungs", ""] == 1
    assert found["tiltyard_sweep_retries", ""] == 1


def test_exporting_passes_ticks_on_and_says_how_long_the_loop_has_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"])
    monkeypatch.setattr(sweeps, "EVERY_S", 0.02)
    lags: list[float] = []
    seen, small_again = threading.Event(), threading.Event()

    def note(name: str, labels: dict[str, str], value: float) -> None:
        if name == "tiltyard_sweep_driver_lag_seconds":
            lags.append(value)
            if value > 0.5:
                seen.set()
            elif seen.is_set():
                small_again.set()

    watch = Silent()
    made = Exporting(recorded.settings, experiment(), watch, set_gauge=note)
    made.planned(SimpleNamespace(key=recorded.key), 0)
    made.tick(Tick())
    assert seen.wait(60)
    ticks = 1
    while not small_again.wait(0.05):
        made.tick(Tick())
        ticks += 1
    made.close()
    assert watch.ticks == ticks
    assert lags[0] < 60


def test_exporting_whose_store_fails_warns_once_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"])
    monkeypatch.setattr(sweeps, "EVERY_S", 0.02)
    calls, again = [], threading.Event()

    def broken(name: str, labels: dict[str, str], value: float) -> None:
        calls.append(name)
        if len(calls) > 5:
            again.set()
        raise RuntimeError("Ray is not there")

    made = Exporting(recorded.settings, experiment(), Silent(), set_gauge=broken)
    made.planned(SimpleNamespace(key=recorded.key), 0)
    made.tick(Tick())
    assert again.wait(60)
    made.close()
    assert caplog.text.count("cannot be exported now") == 1


def test_exporting_that_never_ticked_closes_at_once(tmp_path: Path) -> None:
    settings = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"]).settings
    with sweeps.exporting(settings, experiment(), Silent()) as made:
        made.step("starting Ray")
    made.tick(Tick())  # after the end nothing starts
    assert not any(t.name == "tiltyard-telemetry" for t in threading.enumerate())
