"""What one night does, as a state machine over the journal: fresh data, evaluation, policy, and a sweep if one is due.

::

    claim -> fresh version? -> what its checks said -> evaluate champion and candidate on it, scores and drift -> policy and
    gate -> no candidate? warm-started sweep within the budget, its winner becomes candidate -> evaluate it on the same test
    rows -> gate -> record

A night has a *logical date*. It does its work once, however often and however concurrently it is started: the night is a work
of the journal, and each step's outcome is a decision that only one may bear the name of. A night that was killed is taken over
and goes on with the steps that have no outcome. "Nothing changed, nothing done" is a result as any other. Nights that were
missed are never replayed one after another: the next that runs records them as skipped, and of those that a scheduler starts
late only yesterday's is run, where `Night.missed` says so.

Started by cron, a systemd timer or a Kubernetes CronJob: each runs ``tiltyard nightly run-now FILE`` once a day.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tiltyard import actions
from tiltyard.errors import SpecError, TiltyardError
from tiltyard.evaluation.spec import Evaluation
from tiltyard.governance.gates import Gate
from tiltyard.governance.policy import Alert, GateSays, Policy, Promote, Retrain, Rule
from tiltyard.journal import Journal, Owner, WorkClaim
from tiltyard.settings import Settings, shows_tracebacks
from tiltyard.telemetry import logs
from tiltyard.telemetry.notices import Notice
from tiltyard.telemetry.notify import notify, receivers
from tiltyard.telemetry.traces import span
from tiltyard.types import DatasetRef, check_name

if TYPE_CHECKING:
    from tiltyard.evaluation.pairs import Done
    from tiltyard.retrain import WarmStart

KIND = "night"
SCHEMA_VERSION = 1
LEASE_S = 300.0
MISSED = ("skip", "latest")
_NONE = "there is no candidate"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What is done every night for one model.

    Args:
        name: Its name.
        model: The registered model.
        dataset: Whose newest version is looked at.
        job: Path of the job file whose winner becomes candidate; empty where nothing is trained. Of several datasets only the
            model's is swept.
        cpu_hours: The most that a night's sweep may use.
        metric: What models are chosen by; None for the metric that the champion was registered with.
        rows: As in `Evaluation`; ``test`` rows are the ones that neither model has trained on.
        policy: What else is to happen on the evidence.
        gate: What a candidate must show.
        missed: What becomes of a night that is started after its date: ``skip``, or ``latest``: yesterday's is run, unless a
            later one was done, and older ones are skipped.
    """

    name: str
    model: str
    dataset: str
    job: str = ""
    cpu_hours: float = 1.0
    metric: str | None = None
    rows: str = "test"
    policy: Policy | None = None
    gate: Gate = dataclasses.field(default_factory=Gate)
    missed: str = "latest"

    def __post_init__(self) -> None:
        check_name(self.name, "Night")
        check_name(self.dataset, "Dataset")
        if self.cpu_hours <= 0:
            raise SpecError(f"Night {self.name!r} was given {self.cpu_hours} CPU-hours; wanted more than 0.")
        if self.missed not in MISSED:
            raise SpecError(f"Night {self.name!r} has missed={self.missed!r}; wanted {' or '.join(MISSED)}.")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        policy = self.policy.to_json() if self.policy is not None else None
        return {"schema_version": SCHEMA_VERSION, **values, "policy": policy, "gate": dataclasses.asdict(self.gate)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave, or a person wrote.

        Raises:
            SpecError: If a field is unknown or has an unusable value, or a newer Tiltyard wrote it.
        """
        values = dict(data)
        found = values.pop("schema_version", SCHEMA_VERSION)
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise SpecError(f"A night was written with schema version {found!r}; this Tiltyard reads {SCHEMA_VERSION}.")
        if unknown := sorted(set(values) - {f.name for f in dataclasses.fields(cls)}):
            raise SpecError(f"A night has no field {unknown[0]!r}.")
        if values.get("policy") is not None:
            values["policy"] = Policy.from_json(values["policy"])
        values["gate"] = Gate.from_json(values.get("gate", {}))
        try:
            return cls(**values)
        except TypeError as error:
            raise SpecError(f"A night cannot be read: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What a night sets going.

    Args:
        evaluate: Evaluates what has not been evaluated; the default is Ray.
        train: Runs a sweep whose winner becomes candidate of a model, under a name that makes it the same sweep when it is
            begun again; says what it began with.
        newest: Number of a dataset's newest version.
        checks: What the checks of a version said when it was committed, in a sentence.
    """

    evaluate: Callable[[Settings, Evaluation], list[Done]]
    train: Callable[[Settings, Retrain, str, str], WarmStart | None]
    newest: Callable[[Settings, str], int]
    checks: Callable[[Settings, str, int], str] = lambda *_: "checks: none were asked about"

    @classmethod
    def real(cls) -> Self:
        """Ray, and the store of datasets."""

        def evaluate(settings: Settings, spec: Evaluation) -> list[Done]:
            from tiltyard.evaluation.runner import evaluate as run

            return run(settings, spec)

        def train(settings: Settings, action: Retrain, model: str, name: str) -> WarmStart:
            from tiltyard.retrain import retrain

            return retrain(settings, action, model=model, actor=name.partition("/")[0], once=name)

        def newest(settings: Settings, dataset: str) -> int:
            from tiltyard.data.store import DatasetStore

            return DatasetStore(settings.data_uri).resolve(dataset).version

        def checks(settings: Settings, dataset: str, version: int) -> str:
            from tiltyard.data.store import DatasetStore

            found = DatasetStore(settings.data_uri).resolve(DatasetRef(dataset, version))
            told = "; ".join(found.warnings) or "none warned"
            return f"checks: {len(found.spec.checks)} were run when {found.ref} was committed, {told}"

        return cls(evaluate=evaluate, train=train, newest=newest, checks=checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class NightResult:
    """What became of a night.

    Args:
        name: Of the night.
        date: Its logical date.
        outcome: ``promoted``, ``refused``, ``waiting`` (a candidate gathers evidence), ``watched`` (no candidate),
            ``nothing changed``, ``held``, ``running`` (another process works on it), ``late`` (a later night was done),
            ``skipped`` (it was missed).
        steps: What was done, in sentences.
        version: The dataset version it looked at.
        ran: Whether this call did the work; False where it was answered from the record.
    """

    name: str
    date: str
    outcome: str
    steps: tuple[str, ...] = ()
    version: int | None = None
    ran: bool = False


def night_key(name: str, date: str) -> str:
    """The key of a night's work."""
    return hashlib.sha256(f"night\0{name}\0{date}".encode()).hexdigest()


def logical_date(now: float) -> str:
    """The date, in UTC, that a night started now has.

    >>> logical_date(1_790_000_000)
    '2026-09-21'
    """
    return dt.datetime.fromtimestamp(now, dt.UTC).date().isoformat()


def run_night(
    settings: Settings,
    night: Night,
    *,
    date: str,
    engines: Engines | None = None,
    say: Say = lambda _: None,
    today: str | None = None,
) -> NightResult:
    """Does the work of one logical date, once; whoever comes later is answered from the record.

    Args:
        settings: Where things live.
        night: What is done.
        date: The logical date, ``YYYY-MM-DD``.
        engines: What it sets going; Ray where None.
        say: Told what is done, line by line.
        today: The date that it is still somewhere; where given, a night that is started after its date may have been missed.

    Raises:
        RegistryError: If the model has no champion.
        TiltyardError: If a step failed; the night is given back, and the next start goes on with it.
    """
    dt.date.fromisoformat(date)
    with Journal.open(settings.journal_uri) as journal:
        if holds := actions.holds_on(journal, _subject(night)):
            return NightResult(
                name=night.name, date=date, outcome="held", steps=(f"on hold by {holds[0].by}: {holds[0].reason}",)
            )
        done = {w.about["date"]: w for w in journal.works.find(KIND, night.name) if w.state == "finished"}
        if date not in done and done and date < max(done):
            told = f"the night of {max(done)} was done already; {date} is not replayed"
            return NightResult(name=night.name, date=date, outcome="late", steps=(told,))
        if today is not None and date not in done and (told := _skipped(night, date, today)):
            return _recorded_skip(journal, night, date, told)
        claim = journal.works.claim(
            night_key(night.name, date),
            kind=KIND,
            subject=night.name,
            about={"date": date, "night": night.to_json()},
            owner=Owner.here(),
            lease_s=LEASE_S,
        )
        if not claim.is_ours:
            return _answered(journal, night, date, claim)
        try:
            result = _work(settings, journal, night, date, claim, engines or Engines.real(), say, done)
        except BaseException as error:
            journal.works.fail(claim, f"{type(error).__name__}: {error}")
            if isinstance(error, Exception):
                _tell(settings, journal, night, date, f"failed: {error}", (("critical", str(error)),), claim.fence)
            raise
        journal.works.finish(claim, dataclasses.asdict(result), cause="night")
        if result.outcome != "nothing changed":
            _tell(settings, journal, night, date, result.outcome, tuple(("info", s) for s in result.steps))
        return result


def _tell(
    settings: Settings,
    journal: Journal,
    night: Night,
    date: str,
    outcome: str,
    lines: tuple[tuple[str, str], ...],
    fence: int = 0,
) -> None:
    """Tells every receiver how a night went; one that is dead costs seconds, and is told by the next night."""
    known = receivers(settings)
    if known:
        title = f"night {night.name} {date}: {outcome}"[:200]
        notice = Notice(title=title, lines=lines, links=actions.links_of(settings), at=time.time())
        notify(journal, known, notice, once=f"night/{night.name}/{date}/{fence}")


def start_night(
    night: Night, *, date: str | None = None, settings: Settings | None = None, say: Say = print
) -> NightResult:
    """Runs a night of this process's home, today's in UTC unless a date is given, and tells how it went.

    Raises:
        TiltyardError: As `run_night`.
    """
    from tiltyard.ray_token import use_own_token

    settings = settings or Settings.from_env()
    settings.ensure_home()
    use_own_token(settings)
    logs.setup(level=logging.WARNING)
    with logs.bound(night=night.name), span("night", night=night.name):
        now = time.time()
    still = logical_date(now - 12 * 3600)  # a date is over once it is over everywhere: schedules have time zones
    result = run_night(settings, night, date=date or logical_date(now), say=say, today=still)
    if not result.ran:
        for told in result.steps:
            say(told)
    say(f"{result.name} {result.date}: {result.outcome}" + ("" if result.ran else " (nothing was done now)"))
    return result


def night_main(path: str, argv: Sequence[str] | None = None) -> None:
    """What a job file calls at its end; exits."""
    import argparse

    from tiltyard.report.progress import showing

    parser = argparse.ArgumentParser(prog=f"python {Path(path).name}", description="Run this night, once a date.")
    parser.add_argument("--date", help="logical date, YYYY-MM-DD; without it today's, in UTC")
    options = parser.parse_args(argv)
    try:
        with showing():
            start_night(load_night(path), date=options.date)
        code = 0
    except TiltyardError as error:
        if shows_tracebacks():
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def load_night(file: str | Path) -> Night:
    """The night of a file: JSON, or Python with one function ``night()``.

    Raises:
        SpecError: If it cannot be read.
    """
    from tiltyard.jobfile import load_module

    path = Path(file)
    if path.suffix == ".py":
        build = getattr(load_module(path), "night", None)
        made = build() if callable(build) else None
        if not isinstance(made, Night):
            raise SpecError(
                f"{file} has no function night() that returns a Night. Wanted: `def night() -> Night`, as in jobs/nightly.py."
            )
        return made
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"The night {file} cannot be read: {error}. Wanted: a JSON file.") from error
    return Night.from_json(data)


def history(journal: Journal, name: str | None = None) -> list[NightResult]:
    """Nights that have ended, or are being done, oldest first."""
    found = []
    for work in journal.works.find(KIND, name):
        results = journal.works.results(work.key)
        if results:
            values = dict(results[-1].result)
            found.append(NightResult(**{**values, "steps": tuple(values["steps"]), "ran": False}))
        else:
            outcome = "running" if work.state == "running" else f"failed: {work.reason}"
            found.append(NightResult(name=work.subject, date=work.about["date"], outcome=outcome))
    return sorted(found, key=lambda n: (n.name, n.date))


def _subject(night: Night) -> str:
    """What a hold of a night is found by."""
    return f"night/{night.name}"


def _answered(journal: Journal, night: Night, date: str, claim: WorkClaim) -> NightResult:
    if claim.outcome == "finished":
        return next(n for n in history(journal, night.name) if n.date == date)
    holder = claim.holder
    who = f"process {holder.pid} on {holder.host}" if holder is not None else "another process"
    return NightResult(name=night.name, date=date, outcome="running", steps=(f"{who} works on it",))


def _work(
    settings: Settings,
    journal: Journal,
    night: Night,
    date: str,
    claim: WorkClaim,
    engines: Engines,
    say: Say,
    done: Mapping[str, Any],
) -> NightResult:
    steps: list[str] = []

    def note(text: str) -> None:
        steps.append(text)
        say(text)

    def step(name: str, do: Callable[[], str]) -> str:
        """Does a step that has no outcome yet; a night that was killed goes on behind its last one."""
        journal.works.renew(claim)
        once = f"night/{night.name}/{date}/{name}"
        before = [d for d in journal.decisions(kind=KIND, subject=_subject(night)) if d.once == once]
        if before:
            note(before[0].outcome)
            return before[0].outcome
        outcome = do()
        journal.works.renew(claim)  # nobody took it over while it was done
        decision = journal.decide(
            kind=KIND,
            subject=_subject(night),
            actor=f"night {night.name}",
            evidence={"date": date, "step": name, "fence": claim.fence},
            reasons=[outcome],
            outcome=outcome,
            once=once,
        )
        note(decision.outcome)
        return decision.outcome

    _note_missed(date, done, note)
    version = engines.newest(settings, night.dataset)
    last = _last_version(journal, done)
    if last is not None and version <= last:
        note(f"{night.dataset} is still at version {version}: nothing changed, nothing done")
        return NightResult(
            name=night.name, date=date, outcome="nothing changed", steps=tuple(steps), version=version, ran=True
        )

    def begin() -> str:
        found = _candidate(settings, journal, night)
        return (
            f"{night.dataset} is at version {version}; {_NONE if found is None else f'version {found} is @candidate'}"
        )

    began = step("begin", begin)
    step("checks", lambda: engines.checks(settings, night.dataset, version))
    step("evaluate", lambda: _evaluated(settings, journal, night, engines))
    step("policy", lambda: _policed(settings, night))
    if night.job and _NONE in began:
        step("sweep", lambda: _trained(settings, journal, night, date, engines))
        if _candidate(settings, journal, night) is not None:
            step("compare", lambda: _evaluated(settings, journal, night, engines))
            step("gate", lambda: _policed(settings, night))
    return NightResult(
        name=night.name,
        date=date,
        outcome=_outcome(settings, journal, night, steps),
        steps=tuple(steps),
        version=version,
        ran=True,
    )


def _skipped(night: Night, date: str, today: str) -> str:
    """Why a night that was missed is not run; empty where it is not missed, or is the one that is still run."""
    days = (dt.date.fromisoformat(today) - dt.date.fromisoformat(date)).days
    if days <= 0 or (days == 1 and night.missed == "latest"):
        return ""
    kept = "yesterday's alone is still run" if night.missed == "latest" else "none that was missed is run"
    return f"the night of {date} was missed, today is {today}: it is skipped ({kept}; Night.missed is {night.missed!r})"


def _recorded_skip(journal: Journal, night: Night, date: str, told: str) -> NightResult:
    journal.decide(
        kind=KIND,
        subject=_subject(night),
        actor=f"night {night.name}",
        evidence={"date": date, "step": "skipped", "missed": night.missed},
        reasons=[told],
        outcome="skipped",
        once=f"night/{night.name}/{date}/skipped",
    )
    return NightResult(name=night.name, date=date, outcome="skipped", steps=(told,))


def _note_missed(date: str, done: Mapping[str, Any], note: Say) -> None:
    if not done:
        return
    missed = (dt.date.fromisoformat(date) - dt.date.fromisoformat(max(done))).days - 1
    if missed > 0:
        note(f"{missed} nights since {max(done)} were missed; they are skipped")


def _last_version(journal: Journal, done: Mapping[str, Any]) -> int | None:
    """The newest dataset version that a finished night looked at."""
    newest = journal.works.newest(w.key for w in done.values())
    return max((r.result["version"] for r in newest.values() if r.result["version"] is not None), default=None)


def _candidate(settings: Settings, journal: Journal, night: Night) -> int | None:
    from tiltyard.registry.mlflow_registry import ModelRegistry

    found = actions.candidate_of(ModelRegistry(settings), journal, night.model)
    return None if found is None else found.version


def _trained(settings: Settings, journal: Journal, night: Night, date: str, engines: Engines) -> str:
    action = Retrain(job=night.job, cpu_hours=night.cpu_hours)
    warm = engines.train(settings, action, night.model, f"night {night.name}/{date}")
    made = _candidate(settings, journal, night)
    begun = ""
    if warm is not None and warm.count:
        begun = f", begun with {warm.count} earlier configurations ({'; '.join(warm.reasons)})"
    return f"a sweep was run{begun}: " + (f"version {made} is @candidate" if made else "it brought no new candidate")


def _evaluated(settings: Settings, journal: Journal, night: Night, engines: Engines) -> str:
    candidate = _candidate(settings, journal, night)
    models = (night.model, *((f"{night.model}@{candidate}",) if candidate is not None else ()))
    spec = Evaluation(dataset=night.dataset, models=models, rows=night.rows, metric=night.metric, versions="latest")
    found = engines.evaluate(settings, spec)
    told = [
        f"{d.pair.address} on {d.pair.version.ref}: "
        + (d.reason or (d.result.problem or _score(d) if d.result is not None else d.outcome))
        for d in found
    ]
    return "evaluated: " + "; ".join(told)


def _score(done: Done) -> str:
    assert done.result is not None
    score = done.result.scored.scores.get(done.result.metric)
    drifted = done.result.drift.drifted if done.result.drift is not None else ()
    drift = f", drift in {', '.join(drifted[:5])}" if drifted else ""
    return (f"{done.result.metric} {score}" if score is not None else "no label yet") + drift


def _policed(settings: Settings, night: Night) -> str:
    """Applies the policy with the promotion by gate that every night has."""
    gate = Rule(name="gate", when=GateSays(), then=Promote(), cool_down_h=0)
    refused = Rule(name="refused", when=GateSays(verdict="refuse"), then=Alert(), cool_down_h=0)
    given = night.policy or Policy(name=f"night-{night.name}", rules=())
    names = {r.name for r in given.rules}
    policy = dataclasses.replace(given, rules=(*(r for r in (gate, refused) if r.name not in names), *given.rules))
    told: list[str] = []
    applied = actions.apply(
        settings, policy, night.model, gate=night.gate, now=time.time(), actor=f"night {night.name}", tell=told.append
    )
    parts = [f"{a.step.rule}: {a.told} ({a.step.reasons[0]})" for a in applied]
    return "policy: " + ("; ".join([*parts, *told]) if parts else "nothing to do")


def _outcome(settings: Settings, journal: Journal, night: Night, steps: list[str]) -> str:
    text = " ".join(s for s in steps if s.startswith("policy:"))
    if "gate: version" in text:
        return "promoted"
    if "refused: told" in text:
        return "refused"
    return "waiting" if _candidate(settings, journal, night) is not None else "watched"
