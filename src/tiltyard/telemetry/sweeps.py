"""Exports how a sweep goes while its driver lives: a watcher between the sweep and whoever shows it to a person.

Ray exports nothing of Tune, and a gauge that is not set again fades after 20 s: a thread of the driver sets all of them
every few seconds, from the last tick and from the journal. It is the thread that says how long the driver's loop has not
turned, so a driver that hangs is seen. Where something goes wrong here the sweep goes on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from tiltyard.experiment import Experiment
from tiltyard.journal import AttemptRow, Journal, Spend
from tiltyard.money.prices import of_layout
from tiltyard.settings import Settings
from tiltyard.telemetry.instruments import gauge

EVERY_S = 5.0
"""Half of what Ray needs: it looks every 10 s."""
REASONS_EVERY_S = 60.0
_LOG = logging.getLogger(__name__)

Readings = list[tuple[str, dict[str, str], float]]
"""Name of an instrument, its labels, its value."""


class Tick(Protocol):
    """What a sweep tells at each turn of its driver's loop (`tiltyard.sweep.engine.driver.Tick`)."""

    @property
    def states(self) -> Mapping[str, int]:
        """Trials by state."""

    @property
    def best(self) -> Mapping[str, tuple[float, str]]:
        """By dataset, the best score so far and its trial."""

    @property
    def elapsed_s(self) -> float:
        """Since the sweep began."""

    @property
    def packs_running(self) -> int:
        """Packs that train."""

    @property
    def packs_waiting(self) -> int:
        """Packs that could train."""

    @property
    def work_done(self) -> float:
        """Share of the epochs, 0 to 1."""

    @property
    def paused(self) -> str | None:
        """Who paused it."""


def of_tick(tick: Tick, experiment: Experiment, lag_s: float, job: str = "") -> Readings:
    """What the last tick says. States that no trial is in any more are 0, not gone.

    Args:
        tick: The last.
        experiment: Which one.
        lag_s: Since then.
        job: The Ray job that it runs in, if any.
    """
    sweep = labels_of(experiment)
    states = dict.fromkeys(("planned", "waiting", "running", "done", "stopped", "failed", "interrupted"), 0)
    found: Readings = [
        ("tiltyard_sweep_trials", {**sweep, "state": state}, float(n))
        for state, n in (states | dict(tick.states)).items()
    ]
    found += [
        ("tiltyard_sweep_packs_running", sweep, float(tick.packs_running)),
        ("tiltyard_sweep_packs_waiting", sweep, float(tick.packs_waiting)),
        ("tiltyard_sweep_work_done_ratio", sweep, tick.work_done),
        ("tiltyard_sweep_elapsed_seconds", {**sweep, "ray_job": job}, tick.elapsed_s + lag_s),
        ("tiltyard_sweep_paused", sweep, 0.0 if tick.paused is None else 1.0),
        ("tiltyard_sweep_driver_lag_seconds", sweep, lag_s),
    ]
    metric = experiment.objective.metric
    return found + [
        ("tiltyard_sweep_best_score", {**sweep, "dataset": dataset, "metric": metric}, score)
        for dataset, (score, _) in tick.best.items()
    ]


def of_record(
    attempts: list[AttemptRow],
    spend: Spend,
    experiment: Experiment,
    *,
    now: float,
    ended_trials: int = 0,
    fence: int = 1,
    rungs: Sequence[str] = (),
    failures: Mapping[str, int] | None = None,
) -> Readings:
    """What the journal says of the key.

    Args:
        attempts: Every try at a pack of the key.
        spend: What was metered on it.
        experiment: Which one.
        now: Seconds since 1970.
        ended_trials: Trials of it that have ended, over all launches.
        fence: How often it was claimed.
        rungs: Outcomes of its rung decisions.
        failures: Failed trials by class of reason.
    """
    sweep = labels_of(experiment)
    states = dict.fromkeys(("running", "done", "failed", "fenced"), 0)
    for attempt in attempts:
        states[attempt.state] = states.get(attempt.state, 0) + 1
    lost_s = sum(a.metered_s or (a.ended or now) - a.started for a in attempts if a.state in {"failed", "fenced"})
    cpus, gpus = experiment.resources.cpus, experiment.resources.gpus
    went_on, stopped = decided(rungs)
    reasons = dict.fromkeys(REASONS, 0) | dict(failures or {})
    found: Readings = [("tiltyard_sweep_attempts", {**sweep, "state": s}, float(n)) for s, n in states.items()]
    found += [
        ("tiltyard_sweep_held_seconds", {**sweep, "resource": "cpu"}, spend.cpu_s),
        ("tiltyard_sweep_held_seconds", {**sweep, "resource": "gpu"}, spend.gpu_s),
        ("tiltyard_sweep_lost_seconds", {**sweep, "resource": "cpu"}, lost_s * cpus),
        ("tiltyard_sweep_lost_seconds", {**sweep, "resource": "gpu"}, lost_s * gpus),
        ("tiltyard_sweep_retries", sweep, float(sum(a.number > 1 for a in attempts))),
        ("tiltyard_sweep_restarts", sweep, float(fence - 1)),
        ("tiltyard_sweep_rungs", sweep, float(len(rungs))),
        ("tiltyard_sweep_rung_decisions", {**sweep, "outcome": "went_on"}, float(went_on)),
        ("tiltyard_sweep_rung_decisions", {**sweep, "outcome": "stopped"}, float(stopped)),
    ]
    found += [("tiltyard_sweep_failures", {**sweep, "reason": r}, float(n)) for r, n in reasons.items()]
    costs: dict[str, float] = {}
    for attempt in attempts:
        if (rate := of_layout(attempt.layout)) is not None:
            taken_s = attempt.metered_s or (attempt.ended or now) - attempt.started
            costs[rate.currency] = costs.get(rate.currency, 0.0) + taken_s * rate.hourly / 3600
    found += [("tiltyard_sweep_cost", {**sweep, "currency": c}, cost) for c, cost in costs.items()]
    if ended_trials:
        found += [
            ("tiltyard_sweep_trial_cost_seconds", {**sweep, "resource": r}, held_s / ended_trials)
            for r, held_s in (("cpu", spend.cpu_s), ("gpu", spend.gpu_s))
        ]
    return found


REASONS = ("diverged", "out_of_memory", "worker_died", "time", "data", "error")
_SIGNS = (
    ("diverged", r"diverged|not a finite number"),
    ("out_of_memory", r"out of memory|OutOfMemory"),
    ("worker_died", r"process died|worker died|WorkerCrashed|ActorDied|NodeDied"),
    ("time", r"took longer than|no new epoch for|timed? out"),
    ("data", r"DataError|DatasetNotFound|CheckFailed|dataset"),
)


def class_of(reason: str) -> str:
    """Which of a few classes a reason belongs to; ``error`` where none of the others.

    >>> class_of("diverged: accuracy is not a finite number")
    'diverged'
    """
    return next((name for name, sign in _SIGNS if re.search(sign, reason, re.IGNORECASE)), "error")


def decided(outcomes: Iterable[str]) -> tuple[int, int]:
    """Trials that went on and that were stopped, in outcomes of rung decisions.

    >>> decided(["3 go on, 6 stop", "1 go on, 2 stop"])
    (4, 8)
    """
    found = [re.fullmatch(r"(\d+) go on, (\d+) stop", text) for text in outcomes]
    return sum(int(f[1]) for f in found if f), sum(int(f[2]) for f in found if f)


def labels_of(experiment: Experiment) -> dict[str, str]:
    """What every series of a sweep bears."""
    return {"experiment": experiment.name, "team": experiment.budget.team or "none"}


class Watch(Protocol):
    """Whoever is told how a launch goes (`tiltyard.sweep.engine.outcome.Watch`)."""

    def planned(self, plan: Any, known: int) -> None:
        """The plan is made."""

    def step(self, what: str) -> None:
        """What is done before the first trial."""

    def tick(self, tick: Any) -> None:
        """How it goes."""


class Exporting:
    """Tells a watcher all that it is told, and exports it."""

    def __init__(
        self,
        settings: Settings,
        experiment: Experiment,
        watch: Watch,
        *,
        job: str = "",
        set_gauge: Callable[..., None] | None = None,
    ) -> None:
        self._settings, self._experiment, self._watch, self._job = settings, experiment, watch, job
        self._set = set_gauge or _Gauges()
        self._key = ""
        self._last: tuple[float, Any] | None = None
        self._failed, self._failures, self._failures_at = 0, Counter[str](), float("-inf")
        self._wake, self._ended = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="tiltyard-telemetry", daemon=True)

    def planned(self, plan: Any, known: int) -> None:
        """Passes it on; learns the key."""
        self._key = plan.key
        self._watch.planned(plan, known)

    def step(self, what: str) -> None:
        """Passes it on."""
        self._watch.step(what)

    def tick(self, tick: Any) -> None:
        """Passes it on; the first one starts the export, for by then Ray is there."""
        self._last = time.monotonic(), tick
        if not self._thread.is_alive() and not self._ended:
            self._thread.start()
        self._watch.tick(tick)

    def close(self) -> None:
        """Ends the export; the gauges fade."""
        self._ended = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=EVERY_S)

    def _run(self) -> None:
        told = False
        while not self._ended:
            try:
                with Journal.open(self._settings.journal_uri) as journal:
                    while not self._ended:
                        for name, labels, value in self._readings(journal):
                            self._set(name, labels, value)
                        self._wake.wait(EVERY_S)
            except Exception:  # whatever a store's driver or Ray raises: the sweep does not depend on it
                if not told:
                    _LOG.warning("How the sweep goes cannot be exported now; trying on", exc_info=True)
                told = True
                self._wake.wait(EVERY_S)

    def _readings(self, journal: Journal) -> Readings:
        assert self._last is not None
        at, tick = self._last
        states = tick.states
        launch = journal.launch(self._key)
        self._count_failures(journal, states.get("failed", 0))
        return of_tick(tick, self._experiment, time.monotonic() - at, self._job) + of_record(
            journal.attempts(self._key),
            journal.spend(self._key),
            self._experiment,
            now=time.time(),
            ended_trials=sum(states.get(s, 0) for s in ("done", "stopped", "failed")),
            fence=1 if launch is None else launch.fence,
            rungs=journal.outcomes("rung", once=f"rung/{self._key}/"),
            failures=self._failures,
        )

    def _count_failures(self, journal: Journal, failed: int) -> None:
        """Reads the reasons where more trials failed, and at most once in `REASONS_EVERY_S`: that reads every trial."""
        if failed == self._failed or time.monotonic() - self._failures_at < REASONS_EVERY_S:
            return
        found = (t for t in journal.trials(self._key) if t.state == "failed")
        self._failed, self._failures_at = failed, time.monotonic()
        self._failures = Counter(class_of(t.reason or "") for t in found)


class _Gauges:
    """Ray's gauges, each made when it is first set."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __call__(self, name: str, labels: dict[str, str], value: float) -> None:
        if name not in self._made:
            self._made[name] = gauge(name)
        self._made[name].set(value, labels)


@contextmanager
def exporting(settings: Settings, experiment: Experiment, watch: Watch, *, job: str = "") -> Iterator[Exporting]:
    """A watcher that exports while the block lasts; ``job`` is the Ray job that the sweep runs in, if any."""
    made = Exporting(settings, experiment, watch, job=job)
    try:
        yield made
    finally:
        made.close()
