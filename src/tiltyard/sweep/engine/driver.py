"""Runs one launch of an experiment: claims its key, asks the state machine, lets Ray Tune run the packs, keeps the record.

The driver owns no truth: what is done stands in the journal, so a second driver after a crash, or a second launch of the
same key, does what is left. Resume is the same code as the first start.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray import tune

from tiltyard.experiment import Experiment
from tiltyard.journal import Attempt, CellScore, Claim, Journal, TrialUpdate
from tiltyard.placement import asked, groups_of
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.control import Control
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.lease import Lease
from tiltyard.sweep.engine.packing import is_queued
from tiltyard.sweep.engine.purse import Purse
from tiltyard.sweep.engine.saving import ask_packs, save_s
from tiltyard.sweep.engine.searcher import Heartbeat, PackSearcher, StopNow, Unheard
from tiltyard.sweep.engine.tuners import set_up
from tiltyard.sweep.engine.worker import Post, train_pack
from tiltyard.sweep.halving import (
    Machine,
    MembersDone,
    PackCut,
    PackDone,
    PackLost,
    PackStopped,
    StartPack,
    TimeUp,
    TrialState,
)
from tiltyard.sweep.plan import Group, Plan, Trial

MAX_PACK_FAILURES = 2
"""A pack whose process dies is run again this often; then its members are failed with the reason."""
LOOK_EVERY_S = 1.0
"""The journal is asked this often which members of running queues have ended."""
WATCH_EVERY = 10
"""Showing how it goes takes at most one part in so many of the driver's time: of ten thousand trials it takes some 20 ms, and
Ray Tune's loop turns as often as packs report."""
ENDED = frozenset({"done", "stopped", "failed", "interrupted"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """What a watcher of the sweep is told: trials by state, and the best so far of each dataset."""

    states: Mapping[str, int]
    best: Mapping[str, tuple[float, str]]
    elapsed_s: float
    packs_running: int
    work_done: float
    """Share of the packs' epochs that is done, 0 to 1: what a time left is worked out from."""
    paused: str | None = None
    """Who paused it, while nothing new starts."""
    packs_waiting: int = 0
    """Packs that could train, and wait for their turn."""


Watcher = Callable[[Tick], None]
OnEnd = Callable[[Sequence[str]], None]
"""Told the cells of trials that ended for good: done, stopped or failed."""


class SweepDriver:
    """The conductor of a launch; see `tiltyard.sweep.engine.searcher.Conductor`.

    Args:
        plan: The trials.
        experiment: What it was planned from.
        journal: The record.
        claim: The right to write to it.
        lease: Keeps the claim alive.
        layout: Where files go.
        machine: Who decides.
        known: What is known of cells, by cell and epoch; grows as packs end.
        watch: Told how it goes, at each turn of the loop.
        on_end: Told which trials ended.
        stop_requested: Why to stop, or None.
        grow: Adds to the machine what can join the plan now; the new groups.
        control: Takes up what people ask.
    """

    def __init__(
        self,
        *,
        plan: Plan,
        experiment: Experiment,
        journal: Journal,
        claim: Claim,
        lease: Lease,
        layout: Layout,
        machine: Machine,
        known: dict[tuple[str, int], CellScore],
        watch: Watcher,
        on_end: OnEnd,
        stop_requested: Callable[[], str | None],
        grow: Callable[[], Sequence[Group]],
        control: Control,
    ) -> None:
        self.experiment, self.layout, self.claim = experiment, layout, claim
        self.journal, self._lease, self.machine, self._known = journal, lease, machine, known
        self._watch, self._on_end, self._stop_requested, self._grow = watch, on_end, stop_requested, grow
        self._control = control
        self._purse = Purse(experiment=experiment, journal=journal, claim=claim)
        self._trials = {t.cell: t for t in plan.trials}
        self._packs: dict[str, StartPack] = {}
        self._told: dict[str, str] = {}
        self._stopping: str | None = None
        self._save_until = 0.0
        self.budget_ended = False
        """It was the experiment's own budget that ended the sweep early."""
        self._started = time.monotonic()
        self._looked = self._watch_from = self._started
        self._planned = plan.num_trials
        self._journal_decisions()
        self._sync()
        if control.look(machine, at_once=True):  # asked while nobody worked on it
            self.take_in()

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left."""
        return self.machine.done

    @property
    def stopping(self) -> bool:
        """The sweep ends: nothing new starts."""
        return self._stopping is not None

    @property
    def saving(self) -> bool:
        """Running packs still have time to save what they have; after it they are ended."""
        return time.monotonic() < self._save_until and any(
            not is_queued(self._trials[start.cells[0]].model) for start in self._packs.values()
        )

    @property
    def stop_reason(self) -> str | None:
        """Why the sweep was ended early, if it was."""
        return self._stopping

    @property
    def paused(self) -> bool:
        """Nothing new is to start."""
        return self._control.paused is not None

    def may_start(self, start: StartPack) -> bool:
        """The budgets let something start that is no pack of the machine; else the sweep is stopped."""
        if self._purse.may_start(start):
            return True
        if not self.stopping:
            self._stop(self._purse.refused or "", by_budget=not self._purse.by_team)
        return False

    def pack_settled(self, pack_id: str, scores: Mapping[tuple[str, int], CellScore]) -> None:
        """What `may_start` let start has ended, with these scores."""
        self._known.update(scores)
        self._purse.ended(pack_id)

    def outside_told(self, cell: str, state: TrialState) -> None:
        """A trial that runs outside of packs now stands so."""
        self.machine.tell_outside(cell, state)
        self._sync([cell])

    def next_pack(self) -> str | None:
        """Asks the machine and writes the pack's assignment before Ray Tune hears of it."""
        if not self._packs:
            self.tick()  # with nothing running Ray Tune only asks, and its loop does not turn
        if self.stopping or self._control.paused is not None:
            return None
        start = self.machine.next(self._purse.may_start)
        if start is None:
            if self._purse.closed() and not self._packs and not self.machine.done:
                self._stop(self._purse.refused or "", by_budget=not self._purse.by_team)
            return None
        self._packs[start.pack_id] = start
        assignment = self._assignment(start)
        self.layout.storage.write_json(self.layout.assignment(start.pack_id), assignment.to_dict())
        self._sync(start.cells)
        return start.pack_id

    def pack_ended(self, pack_id: str, *, failed: bool) -> None:
        """Reads the pack's scores from the journal; what is not there did not happen."""
        start = self._packs.pop(pack_id)
        found = self.journal.cell_scores(start.cells, [start.to_epoch])
        complete = all((c, start.to_epoch) in found or self.machine.is_withdrawn(c) for c in start.cells)
        self._known.update(found)
        scores = {cell: score for (cell, _), score in found.items()}
        if complete:
            self.machine.report(PackDone(pack_id, scores))
        else:
            self.machine.report(MembersDone(pack_id, scores))  # what a queue had done before it was ended is done
            if self.stopping:
                self.machine.report(PackStopped(pack_id, self._stopping or ""))
            elif found and is_queued(self._trials[start.cells[0]].model):
                self.machine.report(PackCut(pack_id))  # each try gets past the member at which two tries died
            else:
                self.machine.report(PackLost(pack_id, self._why_lost(pack_id, failed=failed)))
        if not complete or is_queued(self._trials[start.cells[0]].model):  # it may be ended after its last member
            self._meter_last_attempt(pack_id)
        self._purse.ended(pack_id)
        self.take_in()

    def pack_ran_out(self, pack_id: str, why: str) -> None:
        """Ray ended an attempt for its node's memory: the next one steps half as many members together."""
        tried = self.journal.attempts(self.claim.key, pack_id)
        if tried and tried[-1].state == "running":
            held_s = self._meter_last_attempt(pack_id)
            attempt = Attempt(key=self.claim.key, pack_id=pack_id, number=tried[-1].number, fence=self.claim.fence)
            self.journal.fail_attempt(attempt, why, metered_s=held_s)

    def take_in(self) -> None:
        """What can join the plan joins; what was decided and how trials stand is recorded."""
        if not self.stopping:
            self._trials.update({t.cell: t for group in self._grow() for t in group.trials})
        self._journal_decisions()
        self._sync()

    def close(self) -> None:
        """Ray Tune has ended. It says nothing of packs that it ended with the whole sweep: the journal is asked."""
        for pack_id in list(self._packs):
            self.pack_ended(pack_id, failed=False)

    def tick(self) -> None:
        """Goes no further once the claim is lost; obeys requests to stop, shows progress.

        Raises:
            FencedError: If somebody took the key over.
        """
        self._lease.check()
        now = time.monotonic()
        if self._stopping is None:
            if (asked := self._stop_requested()) is not None:
                self._stop(asked)
                self._save_until = now + save_s(asked)
                ask_packs(self.journal, self.claim, self.experiment.name, asked)
            elif (reason := self._over_budget(now)) is not None:
                self._stop(reason, by_budget=True)
            elif (reason := self._purse.tick()) is not None:
                self._stop(reason, by_budget=not self._purse.by_team)
            elif self._control.look(self.machine):
                self.take_in()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            self._take_members()
        if not self._packs or time.monotonic() >= self._watch_from:
            begun = time.monotonic()
            self._watch(self.snapshot())
            self._watch_from = begun + WATCH_EVERY * (time.monotonic() - begun)

    def _take_members(self) -> None:
        """Members of running queues that have ended are ranked, shown and tracked at once."""
        changed = False
        for start in self._packs.values():
            if not is_queued(self._trials[start.cells[0]].model):
                continue
            left = [cell for cell in start.cells if (cell, start.to_epoch) not in self._known]
            found = self.journal.cell_scores(left, [start.to_epoch])
            if found:
                changed = True
                self._known.update(found)
                self.machine.report(MembersDone(start.pack_id, {cell: score for (cell, _), score in found.items()}))
        if changed:
            self.take_in()

    def _stop(self, reason: str, *, by_budget: bool = False) -> None:
        self._stopping, self.budget_ended = reason, by_budget
        self.machine.report(TimeUp(reason))
        self._sync()

    def snapshot(self) -> Tick:
        """Counts, and the best so far of each dataset."""
        states: dict[str, int] = {}
        best: dict[str, tuple[float, str]] = {}
        done_epochs = 0
        sign = self.experiment.objective.direction.sign
        for cell, trial in self._trials.items():
            state = self.machine.state_of(cell)
            states[state.state] = states.get(state.state, 0) + 1
            over = state.state in ENDED
            done_epochs += self.experiment.search.max_epochs if over else state.epoch
            if state.score is None or state.state == "failed":
                continue
            if trial.dataset not in best or sign * state.score > sign * best[trial.dataset][0]:
                best[trial.dataset] = (state.score, trial.name)
        return Tick(
            states=states,
            best=best,
            elapsed_s=time.monotonic() - self._started,
            packs_running=len(self._packs),
            work_done=done_epochs / (max(1, self._planned, len(self._trials)) * self.experiment.search.max_epochs),
            paused=self._control.paused,
            packs_waiting=self.machine.waiting,
        )

    def _over_budget(self, now: float) -> str | None:
        limit = self.experiment.budget.wall_s
        if limit is not None and now - self._started > limit:
            return f"the budget's wall time of {limit:g} s is used up"
        return None

    def _meter_last_attempt(self, pack_id: str) -> float:
        """Charges an attempt whose process was ended or died before it could charge itself; the seconds it held."""
        tried = self.journal.attempts(self.claim.key, pack_id)
        if not tried or tried[-1].state != "running":
            return 0.0
        since = float(tried[-1].layout.get("unpaid_since", tried[-1].started))
        held_s, resources = time.time() - since, self.experiment.resources
        cpu_s, gpu_s = held_s * resources.cpus, held_s * resources.gpus
        self.journal.meter(key=self.claim.key, what="ended packs", wall_s=held_s, cpu_s=cpu_s, gpu_s=gpu_s)
        return held_s

    def _sync(self, cells: Sequence[str] | None = None) -> None:
        """Writes states that changed to the journal, and tells of trials that ended."""
        updates, ended = [], []
        for cell in self._trials if cells is None else cells:
            state = self.machine.state_of(cell)
            told = f"{state.state}/{state.epoch}"
            if self._told.get(cell) == told:
                continue
            self._told[cell] = told
            updates.append(
                TrialUpdate(
                    cell=cell,
                    state="running" if state.state == "waiting" else state.state,
                    epoch=state.epoch,
                    score=state.score,
                    reason=state.reason,
                )
            )
            if state.state in ENDED:
                ended.append(cell)
        self.journal.set_trial_states(self.claim, updates)
        if ended:
            self._on_end(ended)

    def _journal_decisions(self) -> None:
        for decision in self.machine.drain_decisions():
            self.journal.decide(
                kind="rung",
                subject=decision.group,
                actor="halving",
                evidence={"epoch": decision.epoch, "scores": dict(decision.scores), "kept": list(decision.kept)},
                reasons=[decision.reason],
                outcome=f"{len(decision.kept)} go on, {len(decision.stopped)} stop",
                once=f"rung/{self.claim.key}/{decision.group}/{decision.rung}",
                claim=self.claim,
            )

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
            given=time.time(),
        )

    def _seat(self, trial: Trial, from_epoch: int) -> Seat:
        source = self._known[trial.cell, from_epoch].storage_uri if from_epoch else None
        return Seat(cell=trial.cell, seed=trial.seed, config=trial.config, source=source)

    def _why_lost(self, pack_id: str, *, failed: bool) -> str:
        said = [a for a in self.journal.attempts(self.claim.key, pack_id) if a.reason]
        if said:
            return str(said[-1].reason)
        return "the worker process died before it could say why" if failed else "the worker ended without a score"


def run_packs(driver: SweepDriver, post: Post, *, max_concurrent: int) -> None:
    """Lets Ray Tune run the driver's packs until the machine is done or the sweep is stopped."""
    resources = driver.experiment.resources
    trainable = tune.with_resources(
        tune.with_parameters(train_pack, post=post), asked(resources, groups_of(os.environ))
    )
    set_up()
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
            callbacks=[Heartbeat(driver), Unheard()],
            stop=StopNow(driver),
            failure_config=tune.FailureConfig(max_failures=MAX_PACK_FAILURES),
        ),
    ).fit()
    driver.close()
