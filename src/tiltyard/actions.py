"""What verdicts and policies set going: promote, roll back, open a candidate, retrain, tell. Above the engines.

Evidence is read from the journal's evaluations, and from `tiltyard.measured`; `tiltyard.governance` decides; here it is done.
Every action is first a decision in the journal, with actor, evidence digest and reasons, under a name that only one decision
may bear; then it is carried out. What a killed process decided and did not carry out is carried out by the next `apply`:
each action names the versions it turns from and to, so that doing it twice is doing it once.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tiltyard.errors import RegistryError
from tiltyard.evaluation.folding import Evaluated
from tiltyard.governance.approvals import Approval, lacks
from tiltyard.governance.gates import REFUSE, Gate, Look, Verdict, concerns, judge
from tiltyard.governance.policy import (
    Acted,
    Action,
    Alert,
    Evidence,
    Hold,
    Policy,
    Retrain,
    Step,
    decide,
)
from tiltyard.journal import Decision, Journal
from tiltyard.measured import latency_ms, spent
from tiltyard.registry.address import CANDIDATE, CHAMPION, PREVIOUS
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import ModelVersion
from tiltyard.settings import Settings, shown
from tiltyard.telemetry.notices import Notice
from tiltyard.telemetry.notify import KEEP_S, Delivery, notify, receivers
from tiltyard.types import METRICS

GATE, POLICY, HOLD, DONE, APPROVAL = "gate", "policy", "hold", "policy_done", "approval"
_SEVERITY = {"alert": "warning", "promote": "info", "roll_back": "critical"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A step, and what became of it."""

    step: Step
    told: str


# -- evidence -----------------------------------------------------------------------------------------------------------


def results(journal: Journal, model: str) -> list[tuple[float, Evaluated]]:
    """The newest revision of every evaluation of a model's versions, with when it was finished first; oldest first."""
    found = []
    for work in journal.works.find("evaluation", model):
        revisions = journal.works.results(work.key)
        if revisions:
            found.append((revisions[0].at, Evaluated.from_json(revisions[-1].result)))
    return sorted(found, key=lambda pair: pair[0])


def looks(gate: Gate, found: Sequence[tuple[float, Evaluated]], *, champion: str, challenger: str) -> list[Look]:
    """What was seen of a challenger beside a champion, both as ``NAME@VERSION``, oldest first."""
    theirs = {r.on: r for _, r in found if r.name == champion}
    seen = []
    for _, r in found:
        if r.name != challenger or r.against != champion or r.paired is None or r.on not in theirs:
            continue
        against = concerns(
            gate,
            metric=r.metric,
            sign=METRICS[r.metric].mode.sign,
            champion=theirs[r.on].slices,
            challenger=r.slices,
            fairness=r.fairness,
            problem=r.problem,
        )
        seen.append(Look(on=r.on, paired=r.paired, concerns=against))
    return seen


def evidence_of(found: Sequence[tuple[float, Evaluated]], version: ModelVersion) -> list[Evidence]:
    """One piece of evidence for each dataset version that a model version met after its own, oldest first."""
    name = f"{version.name}@{version.version}"
    own = f"{version.lineage.dataset}@{version.lineage.dataset_version}"
    mine = [(at, r) for at, r in found if r.name == name]
    baseline = next((r for _, r in mine if r.on == own), None)
    return [
        Evidence(
            model=version.name,
            version=version.version,
            at=at,
            on=r.on,
            metric=r.metric,
            score=r.scored.scores.get(r.metric),
            registered=baseline.scored.scores.get(r.metric) if baseline is not None else None,
            drift={c.column: c.effect for c in r.drift.columns if c.drifted} if r.drift is not None else {},
            schema_changed=bool(r.problem) or (r.drift is not None and r.drift.has_schema_change),
            trained_at=version.created_ms / 1000,
        )
        for at, r in mine
        if r.on != own
    ]


def candidate_of(registry: ModelRegistry, journal: Journal, model: str) -> ModelVersion | None:
    """The candidate that still gathers evidence: not refused, and not a champion, now or earlier.

    A champion that was turned away keeps its evidence of then; were it a candidate again, it would be promoted by it again.
    """
    try:
        found = registry.get(model, alias=CANDIDATE)
    except RegistryError:
        return None
    settled: set[Any] = set()
    for d in journal.decisions(subject=model):
        if d.kind == GATE and d.outcome == REFUSE:
            settled.add(d.evidence.get("version"))
        elif d.kind in {"champion", "promotion", "rollback"} and "@candidate" not in d.outcome:
            settled |= {d.evidence.get("version"), d.evidence.get("before_version")}
        elif d.kind == POLICY and d.evidence.get("action") in {"promote", "roll_back"}:
            settled |= {d.evidence.get("target"), d.evidence.get("version")}
    return None if CHAMPION in found.aliases or found.version in settled else found


def judged(
    gate: Gate, found: Sequence[tuple[float, Evaluated]], champion: ModelVersion, candidate: ModelVersion
) -> Verdict:
    """The gate's verdict on a candidate."""
    names = [f"{v.name}@{v.version}" for v in (champion, candidate)]
    return judge(gate, looks(gate, found, champion=names[0], challenger=names[1]))


# -- holds and history --------------------------------------------------------------------------------------------------


def hold(journal: Journal, model: str, *, by: str, reason: str, rule: str = "", until: float | None = None) -> Decision:
    """Keeps a policy's rule, or all of its actions on a model but alerts, from acting."""
    return journal.decide(
        kind=HOLD,
        subject=model,
        actor=by,
        evidence={"rule": rule, "until": until},
        reasons=[reason or "by hand, no reason given"],
        outcome="held",
    )


def resume(journal: Journal, model: str, *, by: str, reason: str, rule: str = "") -> Decision:
    """Ends a hold."""
    return journal.decide(
        kind=HOLD,
        subject=model,
        actor=by,
        evidence={"rule": rule},
        reasons=[reason or "by hand, no reason given"],
        outcome="resumed",
    )


def holds_on(journal: Journal, model: str) -> list[Hold]:
    """Holds that nobody has ended."""
    standing: dict[str, Hold] = {}
    for d in journal.decisions(kind=HOLD, subject=model):
        rule = d.evidence.get("rule", "")
        standing.pop(rule, None)
        if d.outcome == "held":
            standing[rule] = Hold(by=d.actor, reason=d.reasons[0], rule=rule, until=d.evidence.get("until"))
    return list(standing.values())


def approve(journal: Journal, version: ModelVersion, *, by: str, reason: str, withdraw: bool = False) -> Decision:
    """Puts a person's approval of a version on record, or takes it back."""
    return journal.decide(
        kind=APPROVAL,
        subject=version.name,
        actor=by,
        evidence={"version": version.version, "digest": version.digest},
        reasons=[reason or "by hand, no reason given"],
        outcome="withdrawn" if withdraw else "approved",
    )


def approvals_of(journal: Journal, model: str) -> list[Approval]:
    """Every approval of a model's versions, in order."""
    return [
        Approval(by=d.actor, digest=d.evidence["digest"], withdrawn=d.outcome == "withdrawn")
        for d in journal.decisions(kind=APPROVAL, subject=model)
    ]


def acted(journal: Journal, model: str) -> list[Acted]:
    """What policies did on a model."""
    return [
        Acted(
            at=d.at,
            rule=d.evidence["rule"],
            action=d.evidence["action"],
            version=d.evidence["version"],
            on=d.evidence["on"],
        )
        for d in journal.decisions(kind=POLICY, subject=model)
    ]


# -- acting -------------------------------------------------------------------------------------------------------------

Tell = Callable[[str], None]
Train = Callable[[Retrain], object]


def apply(
    settings: Settings,
    policy: Policy,
    model: str,
    *,
    gate: Gate | None = None,
    now: float,
    actor: str = "",
    tell: Tell = lambda _: None,
    train: Train | None = None,
) -> list[Applied]:
    """Decides on the newest evidence of a model's champion, and does what was decided.

    Args:
        settings: Where things live.
        policy: The rules.
        model: Registered name.
        gate: What a candidate must show.
        now: Seconds since 1970.
        actor: Who decides; the policy's name where empty.
        tell: Where alerts go.
        train: Runs a retraining; without one, rules that ask for it are withheld.

    Raises:
        RegistryError: If the model has no champion.
    """
    gate, actor = gate or Gate(), actor or f"policy {policy.name}"
    registry = ModelRegistry(settings)
    with Journal.open(settings.journal_uri) as journal:
        for decision in _unfinished(journal, model):
            _carry_out(registry, journal, decision)
        champion = registry.get(model, alias=CHAMPION)
        found = results(journal, model)
        pieces = evidence_of(found, champion)
        newest = pieces[-1] if pieces else Evidence(model=model, version=champion.version, at=now)
        evidence = _at(journal, newest, now, champion)
        candidate = candidate_of(registry, journal, model)
        if candidate is not None:
            verdict = judged(gate, found, champion, candidate)
            _record_verdict(journal, model, champion, candidate, verdict, actor)
            evidence = _with_candidate(evidence, candidate, verdict)
        steps = decide(policy, evidence, acted(journal, model), holds_on(journal, model))
        found_steps = [
            _do(registry, journal, policy, step, evidence, champion, candidate, gate, actor, tell, train)
            for step in steps
        ]
        announce(settings, journal, model)
        return found_steps


def links_of(settings: Settings) -> dict[str, str]:
    """Where a person who is told of something looks next."""
    return {"MLflow": shown(settings.tracking_uri)} if settings.tracking_uri.startswith("http") else {}


def announce(settings: Settings, journal: Journal, model: str) -> list[Delivery]:
    """Tells receivers of what policies did on a model, each thing once; what could not be delivered is tried again here.

    Alerts go to the receivers that their rule names, changes of the champion to all. Without receivers nothing is told.
    """
    known = receivers(settings)
    if not known:
        return []
    told: list[Delivery] = []
    since = time.time() - KEEP_S
    links = links_of(settings)
    for d in journal.decisions(kind=POLICY, subject=model):
        if d.at < since or d.evidence["action"] not in _SEVERITY:
            continue
        lines = tuple((_SEVERITY[d.evidence["action"]], reason) for reason in d.reasons)
        notice = Notice(title=f"{model}: {d.evidence['rule']}: {d.outcome}", lines=lines, links=links, at=d.at)
        told += notify(journal, known, notice, to=d.evidence.get("to") or (), once=d.digest)
    return told


def _at(journal: Journal, evidence: Evidence, now: float, champion: ModelVersion) -> Evidence:
    """The newest evaluation's evidence with what is measured elsewhere: age, latency, cost."""
    cost = spent(journal, champion, now=now)
    return replace(
        evidence,
        at=now,
        trained_at=champion.created_ms / 1000,
        latency_ms=latency_ms(journal, champion, now=now),
        cpu_hours=None if cost is None else cost.cpu_s / 3600,
        gpu_hours=None if cost is None else cost.gpu_s / 3600,
    )


def _with_candidate(evidence: Evidence, candidate: ModelVersion, verdict: Verdict) -> Evidence:
    return replace(evidence, candidate=candidate.version, verdict=verdict.outcome)


def _record_verdict(
    journal: Journal, model: str, champion: ModelVersion, candidate: ModelVersion, verdict: Verdict, actor: str
) -> None:
    """Once for the same evidence."""
    journal.decide(
        kind=GATE,
        subject=model,
        actor=actor,
        evidence={
            "version": candidate.version,
            "digest": candidate.digest,
            "champion": champion.version,
            "champion_digest": champion.digest,
            "looks": verdict.looks,
            "rows": verdict.rows,
            "difference": verdict.difference,
            "p": verdict.p,
            "level": verdict.level,
            "evidence": verdict.evidence,
        },
        reasons=list(verdict.reasons),
        outcome=verdict.outcome,
        once=f"gate/{model}/{candidate.version}/{champion.version}/{verdict.evidence}",
    )


def _do(
    registry: ModelRegistry,
    journal: Journal,
    policy: Policy,
    step: Step,
    evidence: Evidence,
    champion: ModelVersion,
    candidate: ModelVersion | None,
    gate: Gate,
    actor: str,
    tell: Tell,
    train: Train | None,
) -> Applied:
    if not step.do:
        return Applied(step=step, told=f"withheld: {'; '.join(step.reasons[1:])}")
    kind = step.action.kind
    target, why_not = _target(registry, step.action, champion, candidate, train)
    if kind == "promote" and candidate is not None and gate.approvals:
        why_not = why_not or lacks(
            approvals_of(journal, evidence.model),
            needed=gate.approvals,
            digest=candidate.digest,
            author=candidate.author,
        )
    if why_not:
        return Applied(step=step, told=f"withheld: {why_not}")
    facts: dict[str, Any] = {
        "policy": policy.name,
        "rule": step.rule,
        "action": kind,
        "version": champion.version,
        "on": evidence.on,
        "target": target,
        "evidence": _digest(evidence, policy),
        "to": list(step.action.to) if isinstance(step.action, Alert) else [],
        "nonce": uuid.uuid4().hex,
    }
    day = int(evidence.at // 86_400)
    by_clock = any(r.name == step.rule and r.when.by_clock for r in policy.rules)
    decision = journal.decide(
        kind=POLICY,
        subject=evidence.model,
        actor=actor,
        evidence=facts,
        reasons=list(step.reasons),
        outcome=_outcome(step.action, evidence.model, target),
        once=f"policy/{policy.name}/{step.rule}/{evidence.model}/{champion.version}/{day if by_clock else evidence.on or day}",
    )
    if decision.evidence["nonce"] != facts["nonce"]:
        return Applied(step=step, told="withheld: another process did it at the same moment")
    if isinstance(step.action, Retrain):
        assert train is not None
        train(step.action)
        _finish(journal, decision)
    elif kind == "alert":
        tell(f"{evidence.model} version {champion.version}: {step.reasons[0]} (rule {step.rule})")
        _finish(journal, decision)
    else:
        _carry_out(registry, journal, decision)
    return Applied(step=step, told=decision.outcome)


def _target(
    registry: ModelRegistry,
    action: Action,
    champion: ModelVersion,
    candidate: ModelVersion | None,
    train: Train | None,
) -> tuple[int | None, str]:
    """The version an action turns to, or why it cannot be done."""
    if action.kind == "promote":
        return (candidate.version, "") if candidate is not None else (None, "there is no candidate")
    if action.kind == "roll_back":
        try:
            return registry.get(champion.name, alias=PREVIOUS).version, ""
        except RegistryError:
            return None, "there is no @previous to go back to"
    if action.kind in {"open_candidate", "retrain"} and candidate is not None:
        return None, f"version {candidate.version} is a candidate and keeps gathering evidence"
    if action.kind == "open_candidate":
        newer = [v for v in registry.versions(champion.name) if v.version > champion.version]
        return (newer[0].version, "") if newer else (None, "no version is newer than the champion")
    if isinstance(action, Retrain) and train is None:
        return None, "nothing here can train; apply the policy where a sweep can run"
    return None, ""


def _outcome(action: Action, model: str, target: int | None) -> str:
    return {
        "promote": f"version {target} is @champion",
        "roll_back": f"version {target} is @champion again",
        "open_candidate": f"version {target} is @candidate",
        "retrain": f"a sweep is run for {model}",
        "alert": "told",
    }[action.kind]


def _carry_out(registry: ModelRegistry, journal: Journal, decision: Decision) -> None:
    """Turns an alias as a decision says, unless somebody turned it meanwhile; then notes that it is done."""
    model, facts = decision.subject, decision.evidence
    target = facts["target"]
    if facts["action"] == "open_candidate":
        registry.set_alias(model, CANDIDATE, target)
    elif facts["action"] in {"promote", "roll_back"}:
        registry.fetch(registry.get(model, version=target))  # whole and as registered, before anything loads it
        if registry.get(model, alias=CHAMPION).version == facts["version"]:
            registry.promote(model, target)
    _finish(journal, decision)


def _finish(journal: Journal, decision: Decision) -> None:
    journal.decide(
        kind=DONE,
        subject=decision.subject,
        actor=decision.actor,
        evidence={"decision": decision.number, "digest": decision.digest},
        reasons=[decision.outcome],
        outcome="done",
        once=f"done/{decision.digest}",
    )


def _unfinished(journal: Journal, model: str) -> list[Decision]:
    """Decisions to turn an alias that a process did not live to carry out."""
    done = {d.evidence["decision"] for d in journal.decisions(kind=DONE, subject=model)}
    turning = {"promote", "roll_back", "open_candidate"}
    found = journal.decisions(kind=POLICY, subject=model)
    return [d for d in found if d.number not in done and d.evidence["action"] in turning]


def _digest(evidence: Evidence, policy: Policy) -> str:
    """Of what was decided on."""
    facts: Mapping[str, Any] = {"evidence": asdict(evidence), "policy": policy.to_json()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
