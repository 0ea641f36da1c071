"""Runs one launch of an experiment: claims its key, asks the state machine, lets Ray Tune run the packs, keeps the record.

The driver owns no truth: what is done stands in the journal, so a second driver after a crash, or a second launch of the
same key, does what is left. Resume is the same code as the first start.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ray import tune

from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Claim, Journal, TrialUpdate
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.searcher import Heartbeat, PackSearcher, StopNow
from tiltyard.sweep.engine.worker import Post, train_pack
from tiltyard.sweep.halving import Machine, PackDone, PackLost, StartPack, TimeUp
from tiltyard.sweep.plan import Plan, Trial

MAX_PACK_FAILURES = 2
"""A pack whose process dies is run again this often; then its members are failed with the reason."""
RENEW_EVERY_S = 15.0


@dataclass(frozen=True, slots=True)
class Tick:
    """What a watcher of the sweep is told."""

    states: Mapping[str, int]
    best: Mapping[str, tuple[float, str]]
    elapsed_s: float
    packs_running: int


Watcher = Callable[[Tick], None]


@dataclass(slots=True)
class SweepDriver:
    """The conductor of a launch; see `tiltyard.sweep.engine.searcher.Conductor`."""

    plan: Plan
    experiment: Experiment
    journal: Journal
    claim: Claim
    layout: Layout
    machine: Machine
    known: dict[tuple[str, int], CellScore]
    watch: Watcher
    stop_requested: Callable[[], str | None]
    _trials: dict[str, Trial] = field(default_factory=dict)
    _packs: dict[str, StartPack] = field(default_factory=dict)
    _stopping: str | None = None
    _started: float = field(default_factory=time.monotonic)
    _renewed: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._trials = {t.cell: t for g in self.plan.groups for t in g.trials}

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left."""
        return self.machine.done

    @property
    def stopping(self) -> bool:
        """Running packs are to be ended now."""
        return self._stopping is not None

    @property
    def stop_reason(self) -> str | None:
        """Why the sweep was ended early, if it was."""
        return self._stopping

    def next_pack(self) -> str | None:
        """Asks the machine and writes the pack's assignment before Ray Tune hears of it."""
        start = self.machine.next()
        if start is None:
            return None
        self._packs[start.pack_id] = start
        assignment = self._assignment(start)
        self.layout.storage.write_json(self.layout.assignment(start.pack_id), assignment.to_dict())
        self._set_states([TrialUpdate(cell=c, state="running", epoch=start.from_epoch) for c in start.cells])
        return start.pack_id

    def pack_ended(self, pack_id: str, *, failed: bool) -> None:
        """Reads the pack's scores from the journal; what is not there did not happen."""
        start = self._packs.pop(pack_id)
        found = self.journal.cell_scores(start.cells, [start.to_epoch])
        missing = [c for c in start.cells if (c, start.to_epoch) not in found]
        if missing and self.stopping:
            self._set_states([TrialUpdate(cell=c, state="interrupted", reason=self._stopping) for c in missing])
            return
        if missing:
            reason = self._why_lost(pack_id) if failed else "the worker ended without recording scores"
            self._note(self.machine.report(PackLost(pack_id, reason, permanent=True)))
            return
        self.known.update(found)
        self._note(self.machine.report(PackDone(pack_id, {c: found[c, start.to_epoch] for c in start.cells})))

    def tick(self) -> None:
        """Renews the claim, obeys requests to stop, shows progress."""
        now = time.monotonic()
        if now - self._renewed > RENEW_EVERY_S:
            self._renewed = now
            self.journal.renew(self.claim)
        if self._stopping is None:
            self._stopping = self.stop_requested() or self._over_budget(now)
            if self._stopping is not None:
                self.machine.report(TimeUp(self._stopping))
        self.watch(self.snapshot())

    def snapshot(self) -> Tick:
        """Counts and the best so far."""
        return Tick(
            states=self.machine.counts(),
            best=self.machine.best(),
            elapsed_s=time.monotonic() - self._started,
            packs_running=len(self._packs),
        )

    def _over_budget(self, now: float) -> str | None:
        limit = self.experiment.budget.wall_s
        if limit is not None and now - self._started > limit:
            return f"the budget's wall time of {limit:g} s is used up"
        return None

    def _assignment(self, start: StartPack) -> Assignment:
        first = self._trials[start.cells[0]]
        return Assignment(
            pack_id=start.pack_id,
            group=start.group,
            rung=start.rung,
            from_epoch=start.from_epoch,
            to_epoch=start.to_epoch,
            total_epochs=self.experiment.search.max_epochs,
            model=first.model,
            task=first.task,
            input_shape=first.input_shape,
            num_outputs=first.num_outputs,
            metrics=self.experiment.objective.metrics,
            dataset=first.dataset,
            data_seed=first.data_seed,
            seats=tuple(self._seat(self._trials[cell], start.from_epoch) for cell in start.cells),
        )

    def _seat(self, trial: Trial, from_epoch: int) -> Seat:
        source = self.known[trial.cell, from_epoch].storage_uri if from_epoch else None
        return Seat(cell=trial.cell, seed=trial.seed, config=trial.config, source=source)

    def _why_lost(self, pack_id: str) -> str:
        failed = [a for a in self.journal.attempts(self.claim.key) if a.pack_id == pack_id and a.reason]
        return failed[-1].reason if failed else "the worker process died before it could say why"


def run_packs(driver: SweepDriver, post: Post, *, max_concurrent: int) -> None:
    """Lets Ray Tune run the driver's packs until the machine is done or the sweep is stopped."""
    resources = driver.experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(train_pack, post=post), {"CPU": resources.cpus, "GPU": resources.gpus}
    )
    _quiet()
    tune.Tuner(
        trainable,
        param_space={},
        tune_config=tune.TuneConfig(
            search_alg=PackSearcher(driver),
            num_samples=-1,
            max_concurrent_trials=max_concurrent,
            reuse_actors=True,  # 31 ms a trial where a fresh actor costs 198 (ray#11230)
        ),
        run_config=tune.RunConfig(
            name=driver.claim.key[:16],
            storage_path=driver.layout.storage.uri("tune"),
            verbose=0,
            callbacks=[Heartbeat(driver)],
            stop=StopNow(driver),
            failure_config=tune.FailureConfig(max_failures=MAX_PACK_FAILURES),
        ),
    ).fit()


def _quiet() -> None:
    """Ray Tune's own progress, loggers and result files off: the journal, the curves and our progress say it all."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
