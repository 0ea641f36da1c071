"""Trials that cannot share a pack, one Tune trial each, under a stock scheduler of Ray Tune: ASHA, PBT, or none.

Of training of a user's own (``train:...``, where ``Search.scheduler`` says so) and of any Ray Tune trainable
(``tune:package.module:name``, a function or a class). A trainable gets its hyperparameters as ``config``, with ``seed``,
``data_seed`` and ``tiltyard_trial`` beside them; one that takes ``data`` (its second parameter, of a class's ``setup``) gets
the splits (`tiltyard.sweep.engine.own_child.Data`). It reports the experiment's metrics; Ray Tune counts its reports as
epochs.

Stock schedulers judge each report against those that came before it, so what they stop depends on the order of events: a
leaderboard with such trials names them so. A resume goes on with what had not ended from its last checkpoint, where there is
one (`tiltyard.sweep.engine.stock_checkpoints`), with a scheduler that remembers nothing. Journal, curves, MLflow and
leaderboard are the same as those of packs.
"""

from __future__ import annotations

import inspect
import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.result import AUTO_RESULT_KEYS
from ray.tune.search import BasicVariantGenerator

from tiltyard.experiment import SILENT_S
from tiltyard.journal import Attempt, CellScore
from tiltyard.models import builder
from tiltyard.money.prices import noted
from tiltyard.placement import asked, groups_of
from tiltyard.sweep.engine.driver import SweepDriver
from tiltyard.sweep.engine.execute import CURVES
from tiltyard.sweep.engine.own import number, too_long, wrong_report
from tiltyard.sweep.engine.searcher import Led, Unheard
from tiltyard.sweep.engine.stock_checkpoints import KEPT, UNSAVED, Saved, give, note, pack_id_of, saved_of
from tiltyard.sweep.engine.stock_schedulers import scheduler_of
from tiltyard.sweep.engine.stock_trainables import TRIAL, param_space, trainable_of
from tiltyard.sweep.engine.tuners import last_error, set_up
from tiltyard.sweep.engine.worker import Post
from tiltyard.sweep.halving import StartPack, TrialState
from tiltyard.sweep.plan import Group, Trial
from tiltyard.types import OWN_TRAINING, TUNE_TRAINABLE

_RAYS_OWN = frozenset({*AUTO_RESULT_KEYS, "trial_id", "experiment_id", "experiment_tag", "done", "should_checkpoint"})
"""What Ray Tune adds to a report."""
START_S = 60.0
"""A trial's process has so long to start, beside the time that the trial has; more than any start took on two busy cores."""


def run_stock(driver: SweepDriver, group: Group, post: Post, *, max_concurrent: int) -> None:
    """Runs the trials of a group that have not ended, until all have or the sweep is stopped."""
    trials = {t.cell: t for t in group.trials if driver.machine.state_of(t.cell).state == "planned"}
    while driver.paused and not driver.stopping:
        driver.tick()
        time.sleep(0.2)
    if not trials or driver.stopping:
        return
    experiment, resources = driver.experiment, driver.experiment.resources
    conductor = _Conductor(driver, group, trials)
    set_up()
    tuner = tune.Tuner(
        tune.with_resources(trainable_of(group, experiment, post), asked(resources, groups_of(os.environ))),
        param_space=param_space(list(trials.values())),
        tune_config=tune.TuneConfig(
            search_alg=_Unpaused(conductor, max_concurrent),
            scheduler=scheduler_of(conductor, experiment, group),
            num_samples=1,
            reuse_actors=False,  # whatever a user's trainable leaves behind ends with its process
        ),
        run_config=tune.RunConfig(
            name=f"{driver.claim.key[:16]}-{group.name.replace('/', '-').replace('@', '-')}-{int(time.time())}",
            storage_path=driver.layout.storage.uri("tune"),
            verbose=0,
            callbacks=[_Told(conductor), Unheard()],
            stop=_Stop(conductor),
            checkpoint_config=_checkpoints(group),
        ),
    )
    with warnings.catch_warnings():  # Ray Tune would rather have actors reused than a user's trainable start anew
        warnings.filterwarnings("ignore", message="Consider boosting PBT performance")
        tuner.fit()
    conductor.close()


class _Conductor:
    """Records what Ray Tune tells of the group's trials, and says which of them are to be ended."""

    def __init__(self, driver: SweepDriver, group: Group, trials: Mapping[str, Trial]) -> None:
        self.driver, self.group, self.trials = driver, group, trials
        self.max_epochs = group.rungs[-1]
        self.controller: Any = None
        self.running: dict[str, tuple[Attempt, float]] = {}
        self._points: dict[str, list[dict[str, Any]]] = {}
        self._wrong: dict[str, str] = {}
        self._by_scheduler: set[str] = set()
        self._ended: set[str] = set()
        self._tune_trials: dict[str, Any] = {}
        self._cells: dict[str, str] = {}
        self._goes_on_from: dict[str, int] = {}
        self._made: dict[str, float] = {}
        self._heard: dict[str, float] = {}

    def add(self, tune_trial: Any) -> None:
        """Ray Tune has made a trial of one of ours; what an earlier launch saved of it is given to it."""
        cell = self.cell_of(tune_trial)
        if self.group.scheduler in UNSAVED:
            return
        saved = saved_of(self.driver.layout, self.trials[cell])
        if saved is not None:
            give(self.driver.layout, tune_trial, saved)
            self._points[cell], self._goes_on_from[cell] = list(saved.points), saved.epoch

    def checkpoint(self, tune_trial: Any, path: str) -> None:
        """A trial has saved a checkpoint, with the last report that it made."""
        cell = self.cell_of(tune_trial)
        points = _last_of_each_epoch(self._points.get(cell, []))
        if points and self.group.scheduler not in UNSAVED:
            epoch = int(points[-1]["epoch"])
            note(self.driver.layout, self.trials[cell], Saved(epoch=epoch, path=path, points=points))

    def cell_of(self, tune_trial: Any) -> str:
        """The cell of Ray Tune's trial, as it was when it was added: PBT copies the whole configuration of another."""
        return self._cells.setdefault(tune_trial.trial_id, str(tune_trial.config[TRIAL]))

    def of(self, trial_id: str) -> Any:
        """Ray Tune's trial with an id."""
        if trial_id not in self._tune_trials:
            self._tune_trials = {t.trial_id: t for t in self.controller.get_trials()}
        return self._tune_trials[trial_id]

    def start(self, tune_trial: Any) -> None:
        """A trial begins, or goes on after PBT paused it."""
        cell = self.cell_of(tune_trial)
        if cell in self.running or cell in self._ended:
            return
        pack_id = self._pack_id(cell)
        if not self.driver.may_start(
            StartPack(
                pack_id=pack_id,
                group=self.group.name,
                rung=0,
                from_epoch=0,
                to_epoch=self.max_epochs,
                cells=(cell,),
            )
        ):
            return
        attempt = self.driver.journal.start_attempt(
            self.driver.claim,
            pack_id,
            rung=0,
            cells=[cell],
            device_kind="tune",
            layout={
                "scheduler": self.group.scheduler,
                "goes_on_from": self._goes_on_from.get(cell, 0),
                **noted(os.environ, self.driver.experiment.resources),
            },
        )
        now = time.time()
        self.running[cell], self._heard[cell] = (attempt, now), now
        self._tell(cell, TrialState(state="running"))

    def report(self, tune_trial: Any, result: Mapping[str, Any]) -> bool:
        """Takes a report in; True where the trial is to end with it."""
        cell, epoch = self.cell_of(tune_trial), result.get("training_iteration", 0)
        metrics = self.driver.experiment.objective.metrics
        told = {name: result[name] for name in (*metrics, "train_loss") if name in result}
        if result.get("done") and not told:  # Ray Tune's own word at the end of a function
            return False
        others = {} if told else {k: v for k, v in result.items() if k not in _RAYS_OWN and not k.startswith("__")}
        wrong = wrong_report(epoch, told or others, metrics)
        if wrong is not None:
            self._wrong.setdefault(cell, wrong)
            return True
        point = {"cell": cell, "epoch": epoch, "train_loss": number(told.get("train_loss"))}
        self._heard[cell] = time.time()
        self._points.setdefault(cell, []).append(point | {m: float(told[m]) for m in metrics})
        return epoch >= self.max_epochs or self.driver.machine.is_withdrawn(cell)

    def scheduler_said_stop(self, tune_trial: Any) -> None:
        """The stock scheduler has stopped this trial."""
        self._by_scheduler.add(self.cell_of(tune_trial))

    def is_wrong(self, tune_trial: Any) -> bool:
        """Its last report was none."""
        return self.cell_of(tune_trial) in self._wrong

    def turn(self, tune_trials: list[Any]) -> None:
        """At each turn of Ray Tune's loop: obeys, and ends trials that hear nothing."""
        self.driver.tick()
        limit = self.driver.experiment.budget.trial_s
        for tune_trial in tune_trials:
            cell = self.cell_of(tune_trial)
            if cell not in self.running:
                if cell not in self._ended:
                    self._look_at_start(tune_trial, limit)
                continue
            now = time.time()
            why = too_long(limit, took_s=now - self.running[cell][1], quiet_s=now - self._heard[cell])
            if why is not None:
                self._wrong.setdefault(cell, why)
            elif not self.driver.machine.is_withdrawn(cell):
                continue
            self.controller.stop_trial(tune_trial)

    def _look_at_start(self, tune_trial: Any, limit: float | None) -> None:
        """Ends a trial that a person stopped before it began, and one that never comes to its begin."""
        cell = self.cell_of(tune_trial)
        if self.driver.machine.is_withdrawn(cell):
            self.controller.stop_trial(tune_trial)
        elif self._since_made_s(tune_trial) > (most := (SILENT_S if limit is None else limit) + START_S):
            self.start(tune_trial)
            more = "" if limit is None else f": {START_S:g} s for that and budget.trial_s"
            self._wrong.setdefault(cell, f"it had not begun {most:g} s after its process was started{more}")
            self.controller.stop_trial(tune_trial)

    def _since_made_s(self, tune_trial: Any) -> float:
        """Seconds since the cluster had room for the trial's process; Ray 2.60 tells this to nobody."""
        actor = self.controller._trial_to_actor.get(tune_trial)
        if actor is None or not self.controller._actor_manager.is_actor_started(actor):
            return 0.0
        return time.time() - self._made.setdefault(self.cell_of(tune_trial), time.time())

    def end(self, tune_trial: Any, error: str | None = None) -> None:
        """A trial has ended: its curve to storage, then its completion to the journal, then how it stands."""
        cell = self.cell_of(tune_trial)
        if cell in self._ended or cell not in self.running:
            return
        attempt, since = self.running.pop(cell)
        held_s = time.time() - since
        points = _last_of_each_epoch(self._points.get(cell, []))
        reason = self._wrong.get(cell) or error
        if self.driver.stopping and reason is None and cell not in self._by_scheduler and not self._whole(points):
            self._leave(cell, attempt, held_s)
            return
        self._ended.add(cell)
        metric = self.driver.experiment.objective.metric
        if reason is None and not points:
            reason = f"it ended without a report; tune.report({{{metric!r}: ...}}) is wanted"
        epoch = int(points[-1]["epoch"]) if points else 0
        uri = self.driver.layout.attempt(attempt.pack_id, attempt.number)
        with self.driver.layout.storage.writing(uri) as folder:
            columns = {name: [p[name] for p in points] for name in points[0]} if points else {"cell": [], "epoch": []}
            pq.write_table(pa.table(columns), folder / CURVES)
        names = self.driver.experiment.objective.metrics
        score = CellScore(
            cell=cell,
            epoch=epoch,
            metrics={m: points[-1][m] for m in names} if points and reason is None else {},
            storage_uri=uri,
            pack_id=attempt.pack_id,
            attempt=attempt.number,
            seconds=held_s,
            failed=reason,
        )
        self._meter(held_s)
        self.driver.journal.finish_attempt(attempt, scores=[score], metered_s=held_s, storage_uri=uri)
        self.driver.pack_settled(attempt.pack_id, {(cell, epoch): score})
        self._tell(cell, self._state(cell, epoch, points, reason, tune_trial))

    def why_raised(self, tune_trial: Any) -> str:
        """What a trial's process raised; of training in a process of its own, what we raised for it."""
        told = last_error(tune_trial)
        return told.removeprefix("RuntimeError: ") if self.group.model.startswith(OWN_TRAINING) else told

    def close(self) -> None:
        """Ray Tune has ended; what it says nothing of goes on another time, or failed."""
        for cell, (attempt, since) in list(self.running.items()):
            self._leave(cell, attempt, time.time() - since)
        for cell in self.trials:
            if self.driver.machine.state_of(cell).state in {"planned", "running"} and not self.driver.stopping:
                self._tell(cell, TrialState(state="failed", reason="Ray Tune never ran it"))

    def _leave(self, cell: str, attempt: Attempt, held_s: float) -> None:
        self.running.pop(cell, None)
        self._meter(held_s)
        reason = self.driver.stop_reason or "its process ended with Ray Tune"
        self.driver.journal.fail_attempt(attempt, reason, held_s)
        self.driver.pack_settled(attempt.pack_id, {})
        if not self.driver.machine.is_withdrawn(cell):
            self._tell(cell, TrialState(state="interrupted" if self.driver.stopping else "failed", reason=reason))

    def _whole(self, points: list[dict[str, Any]]) -> bool:
        return bool(points) and int(points[-1]["epoch"]) >= self.max_epochs

    def _state(
        self, cell: str, epoch: int, points: list[dict[str, Any]], reason: str | None, tune_trial: Any
    ) -> TrialState:
        if reason is not None:
            return TrialState(state="failed", epoch=epoch, reason=reason)
        value = float(points[-1][self.driver.experiment.objective.metric])
        name = self.group.scheduler
        if cell in self._by_scheduler and epoch < self.max_epochs:
            why = f"stopped by {name} at epoch {epoch}, which depends on the order of events"
            return TrialState(state="stopped", epoch=epoch, score=value, reason=why)
        trial = self.trials[cell]
        now = {k: v for k, v in tune_trial.config.items() if k in trial.config}
        changed = {k: v for k, v in now.items() if repr(v) != repr(trial.config[k])}
        told = ", ".join(f"{k} to {v:.4g}" if isinstance(v, float) else f"{k} to {v}" for k, v in changed.items())
        why = f"{name} changed {told}"
        return TrialState(state="done", epoch=epoch, score=value, reason=why if changed else None)

    def _tell(self, cell: str, state: TrialState) -> None:
        self.driver.outside_told(cell, state)

    def _meter(self, held_s: float) -> None:
        resources = self.driver.experiment.resources
        self.driver.journal.meter(
            key=self.driver.claim.key,
            what="tune trials",
            wall_s=held_s,
            cpu_s=held_s * resources.cpus,
            gpu_s=held_s * resources.gpus,
        )

    def _pack_id(self, cell: str) -> str:
        return pack_id_of(self.trials[cell])


class _Told(Led, Callback):
    """What Ray Tune tells."""

    def __init__(self, conductor: _Conductor) -> None:
        self._conductor: Any = conductor

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's actor is up."""
        del iteration, trials, info
        self._conductor.start(trial)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial came to its end, or was ended."""
        del iteration, trials, info
        self._conductor.end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial raised, or its process died."""
        del iteration, trials, info
        self._conductor.start(trial)  # one whose set-up raises was never said to have started
        self._conductor.end(trial, error=self._conductor.why_raised(trial))

    def on_checkpoint(self, iteration: int, trials: list[Any], trial: Any, checkpoint: Any, **info: Any) -> None:
        """A trial's checkpoint is in storage."""
        del iteration, trials, info
        self._conductor.checkpoint(trial, str(checkpoint.path))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """After every turn of the loop."""
        del iteration, info
        self._conductor.turn(trials)


class _Stop(Led, Stopper):
    """Takes every report in before the scheduler sees it; one that is none ends its trial."""

    def __init__(self, conductor: _Conductor) -> None:
        self._conductor: Any = conductor

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True where this trial is to end."""
        return bool(self._conductor.report(self._conductor.of(trial_id), result))

    def stop_all(self) -> bool:
        """True once the whole sweep is to stop."""
        return bool(self._conductor.driver.stopping)


class _Unpaused(Led, BasicVariantGenerator):
    """Hands out the trials one by one, and none while the sweep is paused."""

    def __init__(self, conductor: _Conductor, max_concurrent: int) -> None:
        super().__init__(max_concurrent=max_concurrent)
        self._conductor: Any = conductor

    def next_trial(self) -> Any:
        """The next trial; None for "not now"."""
        driver = self._conductor.driver
        if driver.paused and not self._conductor.running:
            driver.tick()  # with nothing running Ray Tune only asks, and its loop does not turn
        if driver.stopping:
            self.set_finished()  # type: ignore[no-untyped-call]
        return None if driver.paused else super().next_trial()  # type: ignore[no-untyped-call]

    def get_state(self) -> dict[str, Any]:
        """Without the live conductor."""
        state: dict[str, Any] = super().get_state()  # type: ignore[no-untyped-call]
        return {name: value for name, value in state.items() if name != "_conductor"}


def _checkpoints(group: Group) -> tune.CheckpointConfig:
    """Of a class that can save itself, a checkpoint after each report; a function says itself when there is one.

    Of a class that cannot, none: Ray Tune would ask for one at its end, and its trial would fail.
    """
    if group.scheduler in UNSAVED:  # PBT saves what it copies
        return tune.CheckpointConfig(checkpoint_at_end=False)
    found = builder(group.model.removeprefix(TUNE_TRAINABLE)) if group.model.startswith(TUNE_TRAINABLE) else None
    saves = inspect.isclass(found) and getattr(found, "save_checkpoint", None) is not tune.Trainable.save_checkpoint
    return tune.CheckpointConfig(num_to_keep=KEPT, checkpoint_frequency=1 if saves else 0, checkpoint_at_end=saves)


def _last_of_each_epoch(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """PBT goes back to a checkpoint and reports epochs again: the last word stands."""
    found = {int(p["epoch"]): p for p in points}
    last = int(points[-1]["epoch"]) if points else 0
    return [found[e] for e in sorted(found) if e <= last]
