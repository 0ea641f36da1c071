"""What becomes of a Tune trial that hears nothing, of one that a person stops, and of those that a stop leaves behind.

Ray Tune's controller and trials are fakes that know what is asked of them here and nothing of actors or processes: the real
ones are held by ``tests/local_ray/test_sweep_stock.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiltyard import Budget, DatasetRef, Experiment, Objective, Search, Variant, uniform
from tiltyard.experiment import SILENT_S
from tiltyard.journal import CellScore, Journal, Owner
from tiltyard.sweep.engine import stock
from tiltyard.sweep.engine.control import Control
from tiltyard.sweep.engine.driver import SweepDriver
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.lease import keep_alive
from tiltyard.sweep.engine.rows import trial_row
from tiltyard.sweep.engine.stock_trainables import TRIAL
from tiltyard.sweep.growth import Growth
from tiltyard.sweep.halving import Machine
from tiltyard.sweep.plan import DatasetFacts, plan
from tiltyard.types import Mode, Task

FACTS = {
    "digits": DatasetFacts(
        name="digits",
        version=1,
        content_digest="d",
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20},
        input_shape=(4,),
        num_outputs=3,
    )
}
EXPERIMENT = Experiment(
    name="demo",
    variants=(Variant(name="own", model="tune:users_trainables:curve", space={"height": uniform(0, 1)}),),
    datasets=(DatasetRef("digits"),),
    objective=Objective(metric="accuracy"),
    search=Search(trials=3, epochs=4, scheduler="asha"),
    budget=Budget(trial_s=50),
)


class Made:
    """Says of every trial that its process was made."""

    def get(self, tune_trial: Any) -> str:
        return "its actor"

    def is_actor_started(self, actor: str) -> bool:
        return True


class Sweep:
    """A driver with its conductor, and three Tune trials of which so many run and the others have been made."""

    def __init__(self, journal: Journal, folder: Path, begun: int = 3, experiment: Experiment = EXPERIMENT) -> None:
        first = plan(experiment, FACTS, code_digest="c")
        self.claim = journal.claim(first.key, experiment="demo", spec="{}", owner=Owner.here())
        journal.add_trials(self.claim, [trial_row(first.key, t) for t in first.trials])
        self.machine = Machine(
            first.groups,
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda group, trials: 2,
            shape=lambda trial: "",
            known={},
        )
        growth = Growth(experiment=experiment, plan=first, facts=FACTS, code_digest="c", known={})
        self.stop: str | None = None
        self.driver = SweepDriver(
            plan=first,
            experiment=experiment,
            journal=journal,
            claim=self.claim,
            lease=keep_alive(journal, self.claim),
            layout=Layout(Storage(str(folder)), first.key),
            machine=self.machine,
            known={},
            watch=lambda tick: None,
            on_end=lambda cells: None,
            stop_requested=lambda: self.stop,
            grow=tuple,
            control=Control(journal=journal, claim=self.claim, experiment=experiment, growth=growth),
        )
        (group,) = first.groups
        self.cells = [t.cell for t in group.trials]
        self.conductor = stock._Conductor(self.driver, group, {t.cell: t for t in group.trials})
        self.tune_trials = [
            SimpleNamespace(trial_id=str(i), config={**t.config, TRIAL: t.cell}) for i, t in enumerate(group.trials)
        ]
        self.conductor.controller = SimpleNamespace(
            get_trials=lambda: self.tune_trials,
            stop_trial=self.conductor.end,
            _trial_to_actor=Made(),
            _actor_manager=Made(),
        )
        for trial in self.tune_trials[:begun]:
            self.conductor.start(trial)

    def report(self, index: int, epoch: int, accuracy: Any) -> bool:
        result = {"training_iteration": epoch, "accuracy": accuracy}
        return self.conductor.report(self.conductor.of(str(index)), result)

    def states(self) -> list[tuple[str, int, str | None]]:
        found = [self.machine.state_of(c) for c in self.cells]
        return [(s.state, s.epoch, s.reason) for s in found]


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as opened:
        yield opened


def test_trial_that_says_nothing_any_more_is_ended_after_its_time(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(journal, tmp_path)
    sweep.report(0, 1, 0.5)
    late = time.time() + 51
    monkeypatch.setattr(stock, "time", SimpleNamespace(time=lambda: late))
    sweep.conductor.turn(sweep.tune_trials)
    assert sweep.states() == [
        ("failed", 1, "it took longer than budget.trial_s allows (50 s)"),
        ("failed", 0, "it took longer than budget.trial_s allows (50 s)"),
        ("failed", 0, "it took longer than budget.trial_s allows (50 s)"),
    ]
    assert {a.state for a in journal.attempts(sweep.claim.key)} == {"done"}


def test_trial_that_never_comes_to_its_begin_is_ended_after_its_time_and_that_of_a_start(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(journal, tmp_path, begun=0)
    now = [1000.0]
    monkeypatch.setattr(stock, "time", SimpleNamespace(time=lambda: now[0]))
    for after in (0, 50, 60):
        now[0] += after
        sweep.conductor.turn(sweep.tune_trials[:1])
    assert {s for s, _, _ in sweep.states()} == {"planned"}
    now[0] += 1
    sweep.conductor.turn(sweep.tune_trials[:1])
    why = "it had not begun 110 s after its process was started: 60 s for that and budget.trial_s"
    assert sweep.states()[0] == ("failed", 0, why)


def test_trial_without_a_limit_is_ended_once_it_says_nothing_for_hours(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = EXPERIMENT.model_copy(update={"budget": Budget()})
    sweep = Sweep(journal, tmp_path, begun=2, experiment=unlimited)
    now = [time.time()]
    monkeypatch.setattr(stock, "time", SimpleNamespace(time=lambda: now[0]))
    sweep.conductor.turn(sweep.tune_trials)  # the third has a process, and begins never
    now[0] += SILENT_S - 1
    sweep.report(0, 1, 0.5)
    sweep.conductor.turn(sweep.tune_trials)
    assert {s for s, _, _ in sweep.states()} == {"running", "planned"}
    now[0] += stock.START_S + 2
    sweep.conductor.turn(sweep.tune_trials)
    assert sweep.states() == [
        ("running", 0, None),
        ("failed", 0, "it reported no new epoch for 14400 s; where an epoch takes longer, set budget.trial_s"),
        ("failed", 0, "it had not begun 14460 s after its process was started"),
    ]


def test_queue_that_is_ended_after_its_last_member_was_recorded_pays_for_what_it_held(
    journal: Journal, tmp_path: Path
) -> None:
    own = Variant(name="own", model="train:users_training:nearest", space={"scale": uniform(0, 1)})
    sweep = Sweep(
        journal,
        tmp_path,
        begun=0,
        experiment=EXPERIMENT.model_copy(update={"variants": (own,), "search": Search(trials=2, epochs=1)}),
    )
    pack_id = sweep.driver.next_pack()
    assert pack_id is not None
    held = {"unpaid_since": time.time() - 30}
    attempt = journal.start_attempt(sweep.claim, pack_id, rung=0, cells=sweep.cells, device_kind="cpu", layout=held)
    scores = [
        CellScore(
            cell=cell,
            epoch=1,
            metrics={"accuracy": 0.5},
            storage_uri="",
            pack_id=pack_id,
            attempt=1,
            seconds=15,
            failed=None,
        )
        for cell in sweep.cells
    ]
    journal.record_scores(attempt, scores)
    sweep.driver.pack_ended(pack_id, failed=False)
    assert {s for s, _, _ in sweep.states()} == {"done"}
    assert journal.spend(sweep.claim.key).cpu_s == pytest.approx(30, abs=5)


def test_trial_that_reports_no_metric_of_the_experiment_is_told_what_it_reported(
    journal: Journal, tmp_path: Path
) -> None:
    sweep = Sweep(journal, tmp_path)
    rays_own = {"training_iteration": 1, "time_total_s": 2.0, "pid": 7, "trial_id": "0", "config": {}}
    assert sweep.conductor.report(sweep.tune_trials[0], {**rays_own, "loss": 0.1})
    sweep.conductor.end(sweep.tune_trials[0])
    assert sweep.states()[0] == ("failed", 0, "report() was not told accuracy; it was told loss")


def test_trial_that_raised_bears_the_last_line_that_ray_tune_wrote_of_it(journal: Journal, tmp_path: Path) -> None:
    sweep = Sweep(journal, tmp_path)
    (tmp_path / "error.txt").write_bytes(b"Traceback\n  File\nValueError: no \xff thing\n\n")
    sweep.tune_trials[0].error_file = str(tmp_path / "error.txt")
    sweep.tune_trials[1].error_file = None
    for trial in sweep.tune_trials[:2]:
        sweep.conductor.end(trial, error=sweep.conductor.why_raised(trial))
    reasons = [reason for _, _, reason in sweep.states()[:2]]
    assert reasons == [r"ValueError: no \xff thing", "its process died before it could say why"]


def test_trial_that_a_person_stops_is_ended_at_the_next_turn_with_what_it_has_reached(
    journal: Journal, tmp_path: Path
) -> None:
    sweep = Sweep(journal, tmp_path)
    sweep.report(0, 1, 0.5)
    sweep.report(0, 2, 0.75)
    detail = {"cell": sweep.cells[0]}
    journal.requests.ask(sweep.claim.key, "stop", subject="own@digits/000", detail=detail, actor="ada", reason="slow")
    sweep.driver._control._looked = -math.inf
    sweep.conductor.turn(sweep.tune_trials)
    assert sweep.states()[0] == ("stopped", 2, "stopped by ada: slow")
    assert sweep.machine.state_of(sweep.cells[0]).score == 0.75
    assert [s for s, _, _ in sweep.states()[1:]] == ["running", "running"]


def test_report_that_is_none_ends_its_trial_with_the_reason_and_the_whole_length_ends_it_well(
    journal: Journal, tmp_path: Path
) -> None:
    sweep = Sweep(journal, tmp_path)
    assert sweep.report(0, 1, math.nan)
    assert sweep.report(1, 1, "high")
    assert [sweep.report(2, epoch, epoch / 5) for epoch in (1, 2, 3, 4)] == [False, False, False, True]
    for trial in sweep.tune_trials:
        sweep.conductor.end(trial)
    assert sweep.states() == [
        ("failed", 0, "diverged: accuracy is not a finite number at epoch 1"),
        ("failed", 0, "report() was told accuracy='high'; a number is wanted"),
        ("done", 4, None),
    ]
    assert journal.spend(sweep.claim.key).by_what["tune trials"] >= 0


def test_trial_that_pbt_gave_the_configuration_of_another_stays_itself_and_says_what_changed(
    journal: Journal, tmp_path: Path
) -> None:
    sweep = Sweep(journal, tmp_path)
    for index in (0, 1):
        assert not sweep.report(index, 1, 0.5)
    sweep.tune_trials[0].config = {**sweep.tune_trials[1].config, "height": 0.125}
    for trial in sweep.tune_trials[:2]:
        sweep.conductor.start(trial)
    for index in (0, 1):
        assert sweep.report(index, 4, 0.5 + index / 4)
        sweep.conductor.end(sweep.tune_trials[index])
    assert sweep.states()[:2] == [("done", 4, "asha changed height to 0.125"), ("done", 4, None)]
    assert [sweep.machine.state_of(c).score for c in sweep.cells[:2]] == [0.5, 0.75]


def test_trials_that_a_stop_of_the_sweep_leaves_behind_go_on_another_time(journal: Journal, tmp_path: Path) -> None:
    sweep = Sweep(journal, tmp_path)
    sweep.report(0, 1, 0.5)
    sweep.conductor.scheduler_said_stop(sweep.tune_trials[0])
    sweep.conductor.end(sweep.tune_trials[0])
    sweep.stop = "stopped by Ctrl-C"
    sweep.conductor.turn(sweep.tune_trials)
    sweep.conductor.end(sweep.tune_trials[1])
    sweep.conductor.close()
    assert [(s, e) for s, e, _ in sweep.states()] == [("stopped", 1), ("interrupted", 0), ("interrupted", 0)]
    assert "which depends on the order of events" in str(sweep.states()[0][2])
    rows = {t.cell: t for t in journal.trials(sweep.claim.key)}
    assert [rows[c].state for c in sweep.cells] == ["stopped", "interrupted", "interrupted"]


def test_curve_of_a_trial_that_went_back_to_a_checkpoint_has_each_epoch_once_and_the_last_word() -> None:
    points = [{"epoch": e, "accuracy": a} for e, a in ((1, 0.1), (2, 0.2), (3, 0.3), (2, 0.7), (3, 0.8))]
    assert [p["accuracy"] for p in stock._last_of_each_epoch(points)] == [0.1, 0.7, 0.8]
    assert stock._last_of_each_epoch([]) == []
