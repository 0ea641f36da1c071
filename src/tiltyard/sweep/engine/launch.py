"""One launch of an experiment, from its description to a leaderboard: claim, plan, share the data, sweep, test once.

What becomes of the winners is not decided here (`tiltyard.run`). A key that is finished is answered from the record and
starts nothing.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tiltyard.data.store import DatasetStore
from tiltyard.errors import AlreadyClaimedError, MachineError
from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Claim, Journal, Owner, TrialUpdate
from tiltyard.placement import asked, groups_of
from tiltyard.settings import Settings
from tiltyard.sweep.engine import ray_runtime
from tiltyard.sweep.engine.ahead import Planned, is_finished, planned
from tiltyard.sweep.engine.answer import Answer
from tiltyard.sweep.engine.control import Control, replay
from tiltyard.sweep.engine.curves import Curves
from tiltyard.sweep.engine.driver import ENDED, SweepDriver, Tick, run_packs
from tiltyard.sweep.engine.finals import Look, columns_of, look_at_test
from tiltyard.sweep.engine.interrupts import stop_on_signals
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.lease import keep_alive
from tiltyard.sweep.engine.memory import fitting
from tiltyard.sweep.engine.outcome import Outcome, Page, Silent, Watch
from tiltyard.sweep.engine.packing import pack_size_for, shape_of
from tiltyard.sweep.engine.prepare import LateCheck, Prepared, check_models
from tiltyard.sweep.engine.provisions import cut_of_first, personal_columns, post_of
from tiltyard.sweep.engine.rows import ended_outside, trial_record, trial_row
from tiltyard.sweep.engine.warm import Warm
from tiltyard.sweep.engine.worker import Post
from tiltyard.sweep.generations import Generations, generations
from tiltyard.sweep.growth import Growth
from tiltyard.sweep.halving import Machine, TrialState
from tiltyard.sweep.leaderboard import Leaderboard
from tiltyard.sweep.plan import DatasetFacts, Group, Plan, Trial
from tiltyard.telemetry import logs
from tiltyard.tracking import LaunchRecord, Tracker, drain_leftover
from tiltyard.tracking.writer import AWAY_S, RETURN_S

PARENT_EVERY_S = 5.0
"""How often a sweep looks whether MLflow's writer has the parent run."""


def launch(
    settings: Settings,
    experiment: Experiment,
    *,
    code_digest: str,
    watch: Watch | None = None,
    job: str = "",
    page: Page | None = None,
    begun: Planned | None = None,
) -> Outcome:
    """Runs an experiment, or answers from the record where its key is finished.

    Args:
        settings: Where everything lives.
        experiment: What to do.
        code_digest: From `tiltyard.codedigest`.
        watch: Told how it goes.
        job: The Ray job that this runs in, if any.
        page: Draws the report of a sweep that has finished.
        begun: What `tiltyard.sweep.engine.ahead` planned and started already.

    Raises:
        SpecError, DataError, ModelError: If the experiment cannot be run as it stands; nothing was started.
        AlreadyClaimedError: If another process works on the same key.
    """
    watch = watch or Silent()
    settings.ensure_home()
    store = DatasetStore(settings.data_uri)
    begun = begun or planned(settings, experiment, code_digest=code_digest)
    prepared, facts, the_plan = begun.prepared, begun.facts, begun.plan
    logs.personal(personal_columns(prepared))
    if not is_finished(settings, the_plan.key):
        if not begun.checked:
            check_models(the_plan.trials)
        ray_runtime.check_address()
        ray_runtime.check_nodes(experiment.resources, groups_of(os.environ))
    known: dict[tuple[str, int], CellScore] = {}
    growth = growth_of(experiment, the_plan, facts, code_digest=code_digest, known=known)
    with Journal.open(settings.journal_uri) as journal:
        if experiment.budget.team is not None:
            journal.budgets.get(experiment.budget.team)  # says so where there is none, before anything starts
        claim = journal.claim(
            the_plan.key, experiment=experiment.name, spec=experiment.to_json(), owner=Owner.here(job)
        )
        layout = Layout(Storage(settings.storage_uri), the_plan.key)
        if claim.outcome == "held":
            raise AlreadyClaimedError(_held(claim))
        try:
            work = _Launch(settings, experiment, growth, known, prepared, journal, claim, layout, watch)
            work.page, work.warm = page, begun.warm
            if claim.outcome == "finished":
                return work.from_record()
            with work.lease:
                return work.run(store)
        except (KeyboardInterrupt, SystemExit) as error:  # where no driver listens: before the sweep, and after it
            if claim.outcome != "finished":
                reason = "stopped by Ctrl-C" if isinstance(error, KeyboardInterrupt) else "stopped by SIGTERM"
                _interrupt(journal, claim, reason)
                journal.release(claim, state="stopped", summary={"reason": reason})
            raise
        except BaseException as error:
            if claim.outcome == "finished":  # reading the record again: it stays as it is
                raise
            journal.release(claim, state="failed", summary={"error": f"{type(error).__name__}: {error}"[:2000]})
            raise


def _interrupt(journal: Journal, claim: Claim, reason: str) -> None:
    """Records what has not ended as interrupted: nothing goes on."""
    rows = [r for r in journal.trials(claim.key) if r.state not in ENDED]
    journal.set_trial_states(
        claim, [TrialUpdate(cell=r.cell, state="interrupted", epoch=r.epoch, reason=reason) for r in rows]
    )


def growth_of(
    experiment: Experiment,
    the_plan: Plan,
    facts: Mapping[str, DatasetFacts],
    *,
    code_digest: str,
    known: Mapping[tuple[str, int], CellScore],
) -> Growth:
    """What may join a plan later, with Optuna behind it where the search learns."""
    learning: Sequence[Generations] = ()
    if experiment.search.learns:
        from tiltyard.sweep.engine.optuna_search import suggester_of

        suggester = suggester_of(experiment.objective.direction)
        learning = generations(experiment, the_plan, facts, code_digest=code_digest, suggester=suggester)
    return Growth(
        experiment=experiment,
        plan=the_plan,
        facts=facts,
        code_digest=code_digest,
        known=known,
        learning=learning,
        check=LateCheck(),
    )


def _held(claim: Claim) -> str:
    holder = claim.holder
    where = f"process {holder.pid} on {holder.host}" if holder else "another process"
    return (
        f"This very experiment (key {claim.key[:16]}) is running already: {where} holds it. Wanted: one at a time. "
        "Watch it (tiltyard runs), wait for it, or end it; the next start then goes on from what is finished."
    )


def _whole(_: Group, trials: Sequence[Trial]) -> int:
    return len(trials)


class _Launch:
    """The steps of `launch`, on what it found out."""

    def __init__(
        self,
        settings: Settings,
        experiment: Experiment,
        growth: Growth,
        known: dict[tuple[str, int], CellScore],
        prepared: Mapping[str, Prepared],
        journal: Journal,
        claim: Claim,
        layout: Layout,
        watch: Watch,
    ) -> None:
        self.settings, self.experiment, self.prepared = settings, experiment, prepared
        self.journal, self.claim, self.layout, self.watch = journal, claim, layout, watch
        self.lease = keep_alive(journal, claim)
        self.growth, self.known = growth, known
        self.started = time.time()
        self.answer = Answer(
            experiment=experiment,
            growth=growth,
            known=known,
            prepared=prepared,
            journal=journal,
            claim=claim,
            layout=layout,
            started=self.started,
        )
        self.curves = Curves(layout.storage)
        self.page: Page | None = None
        self.warm: Warm | None = None
        self.ended: dict[str, TrialState] = {}
        self._rungs: dict[str, tuple[int, ...]] = {}
        self._by_cell: dict[str, Trial] = {}
        self.withdrawn = replay(journal, claim.key, growth)
        self._load(self.plan.groups)
        self.growth.grow(self._machine(_whole), self._load)  # what joined in earlier launches joins again

    @property
    def plan(self) -> Plan:
        """The trials, those that have joined too."""
        return self.growth.plan

    def from_record(self) -> Outcome:
        """The answer of an earlier launch."""
        try:
            board = Leaderboard.from_json(self.layout.storage.read_json(self.layout.leaderboard))
        except MachineError:  # the journal is the record; the file is made from it, and may be lost
            board = self.answer.board(Look())
        self.watch.planned(self.plan, len(self.plan.trials))
        report = drain_leftover(self.settings, self.claim.key)
        if report is not None and report.parent_run_id is not None:
            self.journal.set_parent_run(self.claim, report.parent_run_id)
        runs = Tracker(self.settings, self.claim.key).run_ids()
        recorded = self.journal.launch(self.claim.key)
        reason = None if recorded is None else recorded.summary.get("reason")
        return self.answer.outcome("reused", reason, board, self.answer.results(), report, runs)

    def run(self, store: DatasetStore) -> Outcome:
        """Sweeps what is left, looks at the test split once, and writes the leaderboard."""
        machine = self._machine(_whole)
        self.watch.planned(self.plan, sum(machine.state_of(cell).state in ENDED for cell in self._by_cell))
        with Tracker(self.settings, self.claim.key).start() as tracker:
            tracker.open_launch(
                LaunchRecord(
                    experiment=self.experiment.name,
                    key=self.claim.key,
                    launch_id=self.claim.launch_id,
                    spec=self.experiment.to_json(),
                    tags={"tiltyard.trials": str(self.plan.num_trials), **self.experiment.tags},
                )
            )
            self._record_plan()
            with stop_on_signals() as request:
                driver = self._sweep(tracker, request)
            if driver.stop_reason is not None and not (driver.budget_ended and self.answer.is_there):
                return self._stopped(driver, tracker, by_person=request.reason is not None)
            return self._finish(driver, tracker, store)

    def _telling(self, tracker: Tracker) -> Callable[[Tick], None]:
        """What is told of each turn; records the parent run as soon as the writer has it, so that boards lead to it."""
        look_from = time.monotonic()

        def tell(tick: Tick) -> None:
            nonlocal look_from
            if time.monotonic() >= look_from:
                parent = tracker.parent_run_id(wait=False)
                look_from = math.inf if parent is not None else time.monotonic() + PARENT_EVERY_S
                if parent is not None:
                    self.journal.set_parent_run(self.claim, parent)
            self.watch.tick(tick)

        return tell

    def _machine(self, pack_size: Callable[[Group, Sequence[Trial]], int]) -> Machine:
        objective = self.experiment.objective
        return Machine(
            self.plan.groups,
            metric=objective.metric,
            mode=objective.direction,
            also=objective.also,
            pack_size=pack_size,
            shape=shape_of,
            known=self.known,
            refused=self.growth.refused,
            withdrawn=self.withdrawn,
            ended=self.ended,
        )

    def _load(self, groups: Sequence[Group]) -> None:
        """Takes groups down and looks up what is known of their trials."""
        rungs = {rung for group in groups for rung in group.rungs}
        self._rungs.update({group.name: group.rungs for group in groups})
        self._by_cell.update({t.cell: t for group in groups for t in group.trials})
        self.known.update(
            self.journal.cell_scores([t.cell for group in groups if not group.scheduler for t in group.trials], rungs)
        )
        if outside := [t.cell for group in groups if group.scheduler for t in group.trials]:
            self.known.update(self.journal.cell_scores(outside))
            self.ended.update(ended_outside(self.journal, self.claim.key, outside))

    def _grow_and_record(self, machine: Machine) -> list[Group]:
        new = self.growth.grow(machine, self._load)
        if new:
            self._record_trials([t for group in new for t in group.trials])
        return new

    def _record_plan(self) -> None:
        self._record_trials(self.plan.trials)
        self.layout.storage.write_json(self.layout.plan, {"schema_version": 1, "spec": self.experiment.to_json()})

    def _record_trials(self, trials: Sequence[Trial]) -> None:
        self.journal.add_trials(self.claim, [trial_row(self.claim.key, t) for t in trials])

    def _sweep(self, tracker: Tracker, request: Callable[[], str | None]) -> SweepDriver:
        resources = self.experiment.resources
        device = "cuda" if resources.gpus else "cpu"
        if not ray_runtime.is_up():
            self.watch.step("starting Ray" if not os.environ.get("RAY_ADDRESS") else "joining Ray")
            ray_runtime.ensure_ray()
        ray_runtime.check_nodes(resources, groups_of(os.environ))
        slots = ray_runtime.slots(resources, groups_of(os.environ))
        slots = min(slots, resources.max_concurrent or slots)
        first = cut_of_first(self.settings, self.experiment, self.journal, self.claim, slots=slots, device=device)
        fit = fitting(first.get("slot_bytes"), device, first.get("sizes"))
        size = pack_size_for(
            resources, slots=int(first["slots"]), groups=self.plan.side_by_side, device=device, fit=fit
        )
        machine = self._machine(size)
        self.control = Control(journal=self.journal, claim=self.claim, experiment=self.experiment, growth=self.growth)
        driver = SweepDriver(
            plan=self.plan,
            experiment=self.experiment,
            journal=self.journal,
            claim=self.claim,
            lease=self.lease,
            layout=self.layout,
            machine=machine,
            known=self.known,
            watch=self._telling(tracker),
            on_end=lambda cells: self._track(tracker, [self._by_cell[c] for c in cells], machine),
            stop_requested=request,
            grow=lambda: self._grow_and_record(machine),
            control=self.control,
        )
        self.machine = machine
        if not driver.done or machine.outside:
            warm = self.warm or Warm(min(slots, machine.waiting), asked(resources, groups_of(os.environ)))
            post = post_of(
                self.settings,
                self.experiment,
                self.claim,
                self.prepared,
                device=device,
                slots=slots,
                sizes=first.get("sizes"),
            )
            try:
                self._run(driver, post, slots, warm)
            finally:
                for shared in post.splits.values():
                    shared.close()
            driver.tick()
        return driver

    def _run(self, driver: SweepDriver, post: Post, slots: int, warm: Warm) -> None:
        """Packs, then what shares none, then what joins once both have ended, until nothing is left."""
        while not driver.stopping and (not driver.done or driver.machine.outside):
            if not driver.done:
                with warm.taken():
                    run_packs(driver, replace(post, since=time.time()), max_concurrent=slots)
                if not driver.done:  # Ray Tune gave up: what is left goes on another time
                    return
            for group in driver.machine.outside if not driver.stopping else ():
                from tiltyard.sweep.engine.stock import run_stock

                run_stock(driver, group, post, max_concurrent=slots)
                driver.take_in()

    def _track(self, tracker: Tracker, trials: Sequence[Trial], machine: Machine) -> None:
        """Hands trials that ended to the writer: whole, with their curves."""
        for trial in trials:
            epochs = sorted({*self._rungs[trial.group], machine.state_of(trial.cell).epoch})
            scores = [s for e in epochs if (s := self.known.get((trial.cell, e))) is not None]
            cpus = self.experiment.resources.cpus
            tracker.trial(trial_record(trial, machine.state_of(trial.cell), scores, self.curves, cpus=cpus))

    def _stopped(self, driver: SweepDriver, tracker: Tracker, *, by_person: bool) -> Outcome:
        reason = driver.stop_reason
        board = self.answer.board(Look())
        tracker.close_launch(status="KILLED", metrics={}, tags={"tiltyard.reason": reason or ""})
        report = tracker.close(return_s=AWAY_S if by_person else RETURN_S, say=self.watch.step)
        self.journal.release(self.claim, state="stopped", summary={"reason": reason})
        results = self.answer.results()
        return self.answer.outcome("stopped", reason, board, results, report, {}, by_person=by_person)

    def _finish(self, driver: SweepDriver, tracker: Tracker, store: DatasetStore) -> Outcome:
        results = self.answer.results()
        with_model = self.answer.with_model(results)
        look = look_at_test(
            journal=self.journal,
            layout=self.layout,
            experiment=self.experiment,
            finalists=self.answer.finalists(with_model),
            replicates=[r for r in with_model if r.replicate],
            trials={t.cell: t for t in self.plan.trials},
            known=self.known,
            prepared={
                n: (store.read(p.version, split="test"), p.preprocessor)
                for n, p in self.prepared.items()
                if p.version.split_rows.get("test", 0)
            },
            claim=self.claim,
            columns=columns_of(store, {n: p.version for n, p in self.prepared.items()}),
        )
        board = self.answer.board(look)
        self.lease.renew()  # a launch that lost its claim must not write over its successor's answer
        self.layout.storage.write_json(self.layout.leaderboard, board.to_json())
        best = {d: row for d in board.tables if (row := board.best(d)) is not None}
        tracker.close_launch(
            status="FINISHED",
            metrics={f"best_{self.experiment.objective.metric}_{d}": r.validation or math.nan for d, r in best.items()},
            tags={f"tiltyard.best.{d}": r.cell for d, r in best.items()}
            | ({} if driver.stop_reason is None else {"tiltyard.reason": driver.stop_reason}),
        )
        parent = tracker.parent_run_id()
        if parent is not None:
            self.journal.set_parent_run(self.claim, parent)
        if self.page is not None and (page := self.page(self.claim.key, board, driver.stop_reason)) is not None:
            tracker.artifact("report.html", page)  # drawn while the writer still writes trials
        report = tracker.close(say=self.watch.step)
        reason = driver.stop_reason
        self.control.refuse_rest()
        self.journal.release(
            self.claim,
            state="finished",
            summary={
                "reason": reason,
                "seconds": time.time() - self.started,
                "best": {d: r.cell for d, r in best.items()},
            },
        )
        return self.answer.outcome("finished", reason, board, results, report, tracker.run_ids())
