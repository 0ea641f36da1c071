"""What is to happen when a model no longer holds: rules on evidence, actions, and brakes. As typed Python and as JSON.

A `Policy` is a list of rules; each says *when* (a condition on the newest `Evidence`) and *then* (an action). `decide` is a
pure function from policy, evidence, what was done before and what a person has put on hold, to a list of `Step`: each either
to be done now or withheld, with the reason. Brakes against loops: a rule that acted is silent for its cool-down; retrains are
at most so many a week, whatever rule asks; an action that changes the model on traffic is done once per model version; evidence
that was acted on already is not acted on again.

This module decides and never acts: no store, no clock. ``replay`` runs the same function over evidence of the past.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Self

from tiltyard.errors import SpecError
from tiltyard.evaluation.scores import Score
from tiltyard.types import METRICS, Mode

SCHEMA_VERSION = 1
DAY_S, WEEK_S = 86_400.0, 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of a model at a moment.

    Args:
        model: Registered name.
        version: The version that serves.
        at: Seconds since 1970.
        on: ``DATASET@VERSION`` that it was evaluated on.
        metric: What it is chosen by.
        score: Its score there; None where no label is there yet.
        registered: Its score on the held-out rows of its own version; None where unknown.
        drift: Column to effect, of columns that have drifted.
        schema_changed: A needed column is gone or of another type.
        trained_at: When the version was made, seconds since 1970.
        latency_ms: Of a served request: the 95th percentile of the last day, where it was measured.
        cpu_hours: Spent on sweeps for this model in the last week, where it was metered.
        gpu_hours: The same of GPUs.
        candidate: A challenger's version that waits for a verdict.
        verdict: Of its gate: ``promote``, ``wait``, ``refuse``; empty where there is none.
    """

    model: str
    version: int
    at: float
    on: str = ""
    metric: str = "accuracy"
    score: Score | None = None
    registered: Score | None = None
    drift: Mapping[str, float] = field(default_factory=dict)
    schema_changed: bool = False
    trained_at: float | None = None
    latency_ms: float | None = None
    cpu_hours: float | None = None
    gpu_hours: float | None = None
    candidate: int | None = None
    verdict: str = ""

    @property
    def sign(self) -> float:
        """1 where a larger score is better."""
        return METRICS[self.metric].mode.sign


# -- conditions ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreBelow:
    """The score is surely worse than a bound: the better end of its interval is.

    Args:
        bound: In the metric's unit; for a loss, the score is above it.
    """

    kind: ClassVar[str] = "score_below"
    by_clock: ClassVar[bool] = False
    bound: float

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        best = _best(evidence)
        if evidence.score is None or best is None or evidence.sign * (best - self.bound) >= 0:
            return ""
        return f"{evidence.metric} {evidence.score} on {evidence.on} is surely worse than {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreDropped:
    """The score is surely worse than the one it was registered with: the two intervals lie apart.

    Args:
        by: How far apart they must lie.
    """

    kind: ClassVar[str] = "score_dropped"
    by_clock: ClassVar[bool] = False
    by: float = 0.0

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        best, before = _best(evidence), evidence.registered
        if best is None or before is None:
            return ""
        least = before.low if evidence.sign > 0 else before.high
        least = before.value if least is None else least
        if evidence.sign * (least - best) <= self.by:
            return ""
        return f"{evidence.metric} {evidence.score} on {evidence.on} is surely worse than {before} at its registration"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drifted:
    """Columns have drifted, with an effect.

    Args:
        columns: Those that matter; all where none is named.
        least_effect: Share of rows that must have moved.
        least_columns: How many must have.
    """

    kind: ClassVar[str] = "drifted"
    by_clock: ClassVar[bool] = False
    columns: tuple[str, ...] = ()
    least_effect: float = 0.05
    least_columns: int = 1

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        wanted = set(self.columns) or set(evidence.drift)
        found = {c: e for c, e in evidence.drift.items() if c in wanted and e >= self.least_effect}
        if len(found) < self.least_columns or not found:
            return ""
        told = ", ".join(f"{c} {e:.0%}" for c, e in sorted(found.items(), key=lambda i: -i[1])[:5])
        return f"{len(found)} columns have drifted on {evidence.on}: {told} of the rows moved"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaChanged:
    """A column that the model needs is gone, or has another type."""

    kind: ClassVar[str] = "schema_changed"
    by_clock: ClassVar[bool] = False

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        return f"{evidence.on} lacks a column that the model needs, or has it as another type" * evidence.schema_changed


@dataclass(frozen=True, slots=True, kw_only=True)
class Stale:
    """The version was made long ago.

    Args:
        days: How long.
    """

    kind: ClassVar[str] = "stale"
    by_clock: ClassVar[bool] = False
    days: float

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        if evidence.trained_at is None or evidence.at - evidence.trained_at < self.days * DAY_S:
            return ""
        return f"version {evidence.version} is {(evidence.at - evidence.trained_at) / DAY_S:.0f} days old"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """Requests take too long.

    Args:
        latency_ms: Above which they do.
    """

    kind: ClassVar[str] = "slow"
    by_clock: ClassVar[bool] = True
    """Measured anew at any time: its cool-down alone keeps it silent, not that it acted on the newest evaluation."""
    latency_ms: float

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        if evidence.latency_ms is None or evidence.latency_ms <= self.latency_ms:
            return ""
        return f"a request takes {evidence.latency_ms:.0f} ms, {self.latency_ms:.0f} ms are wanted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Costly:
    """More was spent in a week than was meant.

    Args:
        cpu_hours: A week; None for any number.
        gpu_hours: A week; None for any number.
    """

    kind: ClassVar[str] = "costly"
    by_clock: ClassVar[bool] = True
    """Measured anew at any time: its cool-down alone keeps it silent, not that it acted on the newest evaluation."""
    cpu_hours: float | None = None
    gpu_hours: float | None = None

    def __post_init__(self) -> None:
        if self.cpu_hours is None and self.gpu_hours is None:
            raise SpecError("A condition on cost names neither cpu_hours nor gpu_hours; wanted one of them, a week.")

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        found = [
            f"{used:.1f} {what}-hours were spent in a week, {meant:g} were meant"
            for what, used, meant in (
                ("CPU", evidence.cpu_hours, self.cpu_hours),
                ("GPU", evidence.gpu_hours, self.gpu_hours),
            )
            if used is not None and meant is not None and used > meant
        ]
        return "; ".join(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSays:
    """A candidate's gate has come to a verdict.

    Args:
        verdict: ``promote`` or ``refuse``.
    """

    kind: ClassVar[str] = "gate_says"
    by_clock: ClassVar[bool] = False
    verdict: str = "promote"

    def met(self, evidence: Evidence) -> str:
        """Why it is met; empty where it is not."""
        if evidence.candidate is None or evidence.verdict != self.verdict:
            return ""
        return f"the gate says {self.verdict} of version {evidence.candidate}"


Condition = ScoreBelow | ScoreDropped | Drifted | SchemaChanged | Stale | Slow | Costly | GateSays

# -- actions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Tells somebody.

    Args:
        to: Names of the receivers; all where none is named.
    """

    kind: ClassVar[str] = "alert"
    changes_traffic: ClassVar[bool] = False
    to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrain:
    """Runs a sweep whose winner becomes a candidate.

    Args:
        job: Path of the job file.
        cpu_hours: The most it may use.
    """

    kind: ClassVar[str] = "retrain"
    changes_traffic: ClassVar[bool] = False
    job: str
    cpu_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCandidate:
    """Lets the newest registered version gather evidence as ``@candidate``, unless one does already."""

    kind: ClassVar[str] = "open_candidate"
    changes_traffic: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Promote:
    """Makes the candidate champion. Only ever on a gate's verdict."""

    kind: ClassVar[str] = "promote"
    changes_traffic: ClassVar[bool] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RollBack:
    """Makes ``@previous`` champion again."""

    kind: ClassVar[str] = "roll_back"
    changes_traffic: ClassVar[bool] = True


Action = Alert | Retrain | OpenCandidate | Promote | RollBack

_CONDITIONS: dict[str, type[Any]] = {
    c.kind: c for c in (ScoreBelow, ScoreDropped, Drifted, SchemaChanged, Stale, Slow, Costly, GateSays)
}
_ACTIONS: dict[str, type[Any]] = {a.kind: a for a in (Alert, Retrain, OpenCandidate, Promote, RollBack)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Args:
        name: By which it is held or overridden.
        when: The condition.
        then: The action.
        cool_down_h: Hours for which it is silent after it acted.
    """

    name: str
    when: Condition
    then: Action
    cool_down_h: float = 24.0

    def __post_init__(self) -> None:
        if isinstance(self.then, Promote) and not (isinstance(self.when, GateSays) and self.when.verdict == "promote"):
            raise SpecError(
                f"Rule {self.name!r} would promote without a gate. Promote only when the gate says so: when=GateSays()."
            )
        if self.cool_down_h < 0:
            raise SpecError(f"Rule {self.name!r} has a cool-down of {self.cool_down_h} hours; wanted 0 or more.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Rules, and how often they may act.

    Args:
        name: Its name.
        rules: In order of importance: of two that would change traffic, the first does.
        most_retrains_a_week: Over all rules.
    """

    name: str
    rules: tuple[Rule, ...]
    most_retrains_a_week: int = 2

    def __post_init__(self) -> None:
        names = [r.name for r in self.rules]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise SpecError(f"Policy {self.name!r} has several rules {twice[0]!r}; give each a name of its own.")
        if self.most_retrains_a_week < 0:
            raise SpecError(
                f"Policy {self.name!r} allows {self.most_retrains_a_week} retrains a week; wanted 0 or more."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        rules = [
            {
                "name": r.name,
                "when": {"kind": r.when.kind, **asdict(r.when)},
                "then": {"kind": r.then.kind, **asdict(r.then)},
                "cool_down_h": r.cool_down_h,
            }
            for r in self.rules
        ]
        found: dict[str, Any] = json.loads(
            json.dumps(
                {
                    "schema_version": SCHEMA_VERSION,
                    "name": self.name,
                    "rules": rules,
                    "most_retrains_a_week": self.most_retrains_a_week,
                }
            )
        )
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave, or a person wrote.

        Raises:
            SpecError: If a kind or field is unknown or has an unusable value, or a newer Tiltyard wrote it.
        """
        values = dict(data)
        found = values.pop("schema_version", SCHEMA_VERSION)
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise SpecError(
                f"A policy was written with schema version {found!r}; this Tiltyard reads up to {SCHEMA_VERSION}. "
                "Install the Tiltyard that wrote it, or newer."
            )
        try:
            rules = tuple(
                Rule(
                    **{
                        **_known(Rule, r),
                        "when": _made(r["when"], _CONDITIONS, "condition"),
                        "then": _made(r["then"], _ACTIONS, "action"),
                    }
                )
                for r in values.pop("rules")
            )
            return cls(rules=rules, **_known(cls, values))
        except (KeyError, TypeError, AttributeError) as error:
            raise SpecError(
                f"A policy cannot be read: {error}. Wanted: name, and rules with name, when, then."
            ) from error


def _known(kind: type[Any], data: Mapping[str, Any]) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(kind)]
    if unknown := sorted(set(data) - set(names)):
        raise SpecError(f"A {kind.__name__} has no field {unknown[0]!r}; it has {', '.join(names) or 'none'}.")
    return {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}


def _made(data: Mapping[str, Any], kinds: Mapping[str, type[Any]], what: str) -> Any:
    values = dict(data)
    kind = values.pop("kind")
    if kind not in kinds:
        raise SpecError(f"There is no {what} {kind!r}; there are: {', '.join(kinds)}.")
    return kinds[kind](**_known(kinds[kind], values))


# -- deciding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Acted:
    """What was done before: which rule, when, on what."""

    at: float
    rule: str
    action: str
    version: int
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A person said: not now.

    Args:
        by: Who.
        reason: Why.
        rule: The rule that is held; empty for every action on the model but alerts.
        until: Seconds since 1970; None until it is resumed.
    """

    by: str
    reason: str
    rule: str = ""
    until: float | None = None

    def holds(self, rule: Rule, at: float) -> bool:
        """Whether it keeps a rule from acting now."""
        if self.until is not None and at >= self.until:
            return False
        return self.rule == rule.name if self.rule else not isinstance(rule.then, Alert)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rule whose condition is met: its action is to be done now, or is withheld, and why."""

    rule: str
    action: Action
    do: bool
    reasons: tuple[str, ...]


def decide(
    policy: Policy, evidence: Evidence, done: Sequence[Acted] = (), holds: Sequence[Hold] = ()
) -> tuple[Step, ...]:
    """The steps that the newest evidence asks for; nothing where no condition is met.

    Args:
        policy: The rules.
        evidence: The newest.
        done: What was done on this model before.
        holds: What persons have put on hold.
    """
    steps: list[Step] = []
    before = list(done)
    for rule in policy.rules:
        why = rule.when.met(evidence)
        if not why:
            continue
        against = _against(policy, rule, evidence, before, holds)
        steps.append(Step(rule=rule.name, action=rule.then, do=not against, reasons=(why, *against)))
        if not against:
            before.append(
                Acted(at=evidence.at, rule=rule.name, action=rule.then.kind, version=evidence.version, on=evidence.on)
            )
    return tuple(steps)


def _against(
    policy: Policy, rule: Rule, evidence: Evidence, before: Sequence[Acted], holds: Sequence[Hold]
) -> tuple[str, ...]:
    """What keeps a rule from acting."""
    found = [f"on hold by {h.by}: {h.reason or 'no reason given'}" for h in holds if h.holds(rule, evidence.at)]
    mine = [a for a in before if a.rule == rule.name]
    last = max((a.at for a in mine), default=None)
    if last is not None and abs(evidence.at - last) < rule.cool_down_h * 3600:
        # a clock that was set back is no reason to act again
        found.append(
            f"it acted {abs(evidence.at - last) / 3600:.1f} hours ago; its cool-down is {rule.cool_down_h:g} hours"
        )
    elif (
        not rule.when.by_clock
        and evidence.on
        and any(a.on == evidence.on and a.version == evidence.version for a in mine)
    ):
        found.append(f"it acted on this evidence ({evidence.on}) already")
    if isinstance(rule.then, Retrain):
        week = [a for a in before if a.action == "retrain" and abs(evidence.at - a.at) < WEEK_S]
        if len(week) >= policy.most_retrains_a_week:
            found.append(f"{len(week)} retrains in a week, {policy.most_retrains_a_week} are allowed")
    if rule.then.changes_traffic and any(
        a.action in {"promote", "roll_back"} and a.version == evidence.version for a in before
    ):
        found.append(f"version {evidence.version} was replaced already; the next evidence is of its successor")
    return tuple(found)


def replay(policy: Policy, history: Sequence[Evidence], holds: Sequence[Hold] = ()) -> Iterator[tuple[Evidence, Step]]:
    """What the policy would have done over evidence of the past, oldest first; its own actions count as done.

    What the actions would have changed is not known: the evidence stays that of the champions there were.
    """
    done: list[Acted] = []
    for evidence in sorted(history, key=lambda e: e.at):
        for step in decide(policy, evidence, done, holds):
            yield evidence, step
            if step.do:
                done.append(
                    Acted(
                        at=evidence.at,
                        rule=step.rule,
                        action=step.action.kind,
                        version=evidence.version,
                        on=evidence.on,
                    )
                )


def _best(evidence: Evidence) -> float | None:
    """The better end of the score's interval."""
    if evidence.score is None:
        return None
    end = evidence.score.high if METRICS[evidence.metric].mode is Mode.MAX else evidence.score.low
    return evidence.score.value if end is None else end
