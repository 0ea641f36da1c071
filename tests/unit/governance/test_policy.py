"""Rules on evidence: what is asked for, what is withheld and why, and that nothing acts in a loop."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.evaluation.scores import Score
from tiltyard.governance.policy import (
    DAY_S,
    Acted,
    Alert,
    Condition,
    Costly,
    Drifted,
    Evidence,
    GateSays,
    Hold,
    OpenCandidate,
    Policy,
    Promote,
    Retrain,
    RollBack,
    Rule,
    SchemaChanged,
    ScoreBelow,
    ScoreDropped,
    Slow,
    Stale,
    decide,
    replay,
)

NOW = 1_790_000_000.0
GOOD = Evidence(
    model="m",
    version=3,
    at=NOW,
    on="digits@4",
    score=Score(value=0.93, low=0.92, high=0.94),
    registered=Score(value=0.94, low=0.93, high=0.95),
    trained_at=NOW - 5 * DAY_S,
)
BAD = replace(GOOD, score=Score(value=0.85, low=0.84, high=0.86))
RETRAIN = Retrain(job="jobs/first_sweep.py", cpu_hours=1.0)
POLICY = Policy(
    name="digits",
    rules=(
        Rule(name="gate", when=GateSays(), then=Promote(), cool_down_h=0),
        Rule(name="fell", when=ScoreDropped(by=0.05), then=RollBack()),
        Rule(name="lower", when=ScoreDropped(), then=RETRAIN, cool_down_h=48),
        Rule(name="drift", when=Drifted(least_effect=0.1), then=RETRAIN, cool_down_h=1),
        Rule(name="old", when=Stale(days=30), then=OpenCandidate()),
        Rule(name="tell", when=SchemaChanged(), then=Alert(to=("team",)), cool_down_h=0),
    ),
)


def did(policy: Policy, evidence: Evidence, *done: Acted, holds: tuple[Hold, ...] = ()) -> dict[str, bool]:
    return {s.rule: s.do for s in decide(policy, evidence, done, holds)}


def test_good_evidence_asks_for_nothing() -> None:
    assert decide(POLICY, GOOD) == ()


@pytest.mark.parametrize(
    ("condition", "met", "unmet"),
    [
        (ScoreBelow(bound=0.9), BAD, GOOD),
        (ScoreDropped(), BAD, GOOD),
        (ScoreDropped(by=0.05), BAD, replace(BAD, score=Score(value=0.89, low=0.88, high=0.9))),
        (Drifted(columns=("a",)), replace(GOOD, drift={"a": 0.2}), replace(GOOD, drift={"b": 0.9, "a": 0.01})),
        (Drifted(least_columns=2), replace(GOOD, drift={"a": 0.2, "b": 0.1}), replace(GOOD, drift={"a": 0.2})),
        (SchemaChanged(), replace(GOOD, schema_changed=True), GOOD),
        (Stale(days=4), GOOD, replace(GOOD, trained_at=NOW - 3 * DAY_S)),
        (Slow(latency_ms=20), replace(GOOD, latency_ms=30.0), GOOD),
        (Costly(cpu_hours=2), replace(GOOD, cpu_hours=3.0), replace(GOOD, cpu_hours=2.0)),
        (GateSays(), replace(GOOD, candidate=4, verdict="promote"), replace(GOOD, candidate=4, verdict="wait")),
    ],
)
def test_condition_is_met_with_a_reason_or_not_at_all(condition: Condition, met: Evidence, unmet: Evidence) -> None:
    assert condition.met(met)
    assert condition.met(unmet) == ""


def test_losses_are_worse_where_they_are_larger() -> None:
    loss = replace(GOOD, metric="log_loss", score=Score(value=0.5, low=0.45, high=0.55))
    assert ScoreBelow(bound=0.4).met(loss)
    assert not ScoreBelow(bound=0.46).met(loss)
    assert ScoreDropped().met(replace(loss, registered=Score(value=0.4, low=0.38, high=0.42)))
    assert not ScoreDropped().met(replace(loss, registered=Score(value=0.48, low=0.44, high=0.52)))


def test_rule_that_acted_is_silent_for_its_cool_down_and_on_the_same_evidence() -> None:
    acted = Acted(at=NOW - 3600, rule="lower", action="retrain", version=3, on="digits@3")
    assert did(POLICY, BAD, acted)["lower"] is False
    assert did(POLICY, BAD, replace(acted, at=NOW - 49 * 3600))["lower"] is True
    assert did(POLICY, BAD, replace(acted, at=NOW - 49 * 3600, on="digits@4"))["lower"] is False
    step = next(s for s in decide(POLICY, BAD, [acted]) if s.rule == "lower")
    assert "cool-down" in step.reasons[1]


def test_clock_that_was_set_back_is_no_reason_to_act_again() -> None:
    acted = Acted(at=NOW + 3600, rule="lower", action="retrain", version=3, on="digits@9")
    assert did(POLICY, BAD, acted)["lower"] is False


def test_retrains_of_all_rules_together_stay_within_the_week() -> None:
    both = replace(BAD, drift={"a": 0.3})
    assert did(POLICY, both) == {"fell": True, "lower": True, "drift": True}
    one = Acted(at=NOW - 2 * DAY_S, rule="other", action="retrain", version=2, on="digits@2")
    assert did(POLICY, both, one) == {"fell": True, "lower": True, "drift": False}
    assert did(POLICY, both, one, replace(one, rule="more")) == {"fell": True, "lower": False, "drift": False}
    assert did(POLICY, both, replace(one, at=NOW - 8 * DAY_S))["drift"] is True


def test_traffic_is_changed_once_for_a_version_by_the_more_important_rule() -> None:
    both = replace(BAD, candidate=4, verdict="promote")
    assert did(POLICY, both) == {"gate": True, "fell": False, "lower": True}
    promoted = Acted(at=NOW - DAY_S, rule="gate", action="promote", version=3, on="digits@3")
    assert did(POLICY, both, promoted)["gate"] is False
    assert did(POLICY, replace(both, version=4), promoted)["gate"] is True


def test_hold_by_a_person_stops_all_but_alerts_or_one_rule_until_it_ends() -> None:
    evidence = replace(BAD, schema_changed=True)
    held = Hold(by="ann", reason="holidays")
    assert did(POLICY, evidence, holds=(held,)) == {"fell": False, "lower": False, "tell": True}
    step = next(s for s in decide(POLICY, evidence, holds=[held]) if s.rule == "fell")
    assert "on hold by ann: holidays" in step.reasons
    assert did(POLICY, evidence, holds=(replace(held, rule="fell"),))["lower"] is True
    assert did(POLICY, evidence, holds=(replace(held, until=NOW - 1),))["fell"] is True


def test_policy_as_json_comes_back_equal_and_wrong_ones_are_told() -> None:
    assert Policy.from_json(json.loads(json.dumps(POLICY.to_json()))) == POLICY
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "p", "rules": [{"name": "r", "when": {"kind": "moon"}, "then": {"kind": "alert"}}]}, "no condition"),
        (
            {"name": "p", "rules": [{"name": "r", "when": {"kind": "stale", "dayz": 1}, "then": {"kind": "alert"}}]},
            "dayz",
        ),
        (
            {"name": "p", "rules": [{"name": "r", "when": {"kind": "stale", "days": 1}, "then": {"kind": "promote"}}]},
            "gate",
        ),
        ({"name": "p"}, "cannot be read"),
        ({"name": "p", "rules": [], "schema_version": 9}, "newer"),
    ]
    for data, message in wrong:
        with pytest.raises(SpecError, match=message):
            Policy.from_json(data)
    with pytest.raises(SpecError, match="several rules"):
        replace(POLICY, rules=(POLICY.rules[0], POLICY.rules[0]))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(0, 60), st.floats(0.5, 1.0), st.sampled_from(["", "promote", "wait"]), st.integers(1, 4)),
        max_size=40,
    )
)
def test_replay_of_any_history_never_breaks_a_brake(history: list[tuple[float, float, str, int]]) -> None:
    evidence = [
        replace(
            GOOD,
            at=NOW + day * DAY_S,
            on=f"digits@{i}",
            version=version,
            score=Score(value=score, low=score - 0.01, high=score + 0.01),
            drift={"a": 1 - score},
            candidate=9,
            verdict=verdict,
        )
        for i, (day, score, verdict, version) in enumerate(history)
    ]
    steps = [(e, s) for e, s in replay(POLICY, evidence) if s.do]
    retrains = sorted(e.at for e, s in steps if s.action.kind == "retrain")
    assert all(b - a >= 7 * DAY_S for a, b in zip(retrains, retrains[2:], strict=False))
    for rule in POLICY.rules:
        times = sorted(e.at for e, s in steps if s.rule == rule.name)
        assert all(b - a >= rule.cool_down_h * 3600 for a, b in itertools.pairwise(times))
    turned = [e.version for e, s in steps if s.action.kind in {"promote", "roll_back"}]
    assert len(turned) == len(set(turned))
