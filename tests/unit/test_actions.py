"""What policies do to a real registry: once, recorded, resumed where a process died, and not while a person says no."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiltyard import actions
from tiltyard.evaluation.compare import Paired
from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.governance.gates import Gate
from tiltyard.governance.policy import (
    Alert,
    GateSays,
    OpenCandidate,
    Policy,
    Promote,
    Retrain,
    RollBack,
    Rule,
    ScoreBelow,
    ScoreDropped,
    Stale,
)
from tiltyard.journal import Journal, Owner
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle

pytestmark = pytest.mark.slow  # a real MLflow
MODEL = "s.small"
GATE = Gate(least_rows=100, least_looks=1)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    home = tmp_path_factory.mktemp("actions")
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    registry = ModelRegistry(settings)
    for seed in range(3):
        registry.register(MODEL, small_bundle(home / f"small{seed}", seed=seed).folder, author="eve@here")
    return settings


@pytest.fixture
def stage(settings: Settings, tmp_path: Path) -> Iterator[tuple[Settings, ModelRegistry, Journal]]:
    """Version 2 is champion, 1 the one before, no candidate; an empty journal."""
    registry = ModelRegistry(settings)
    registry.promote(MODEL, 1)
    registry.promote(MODEL, 2)
    registry.set_alias(MODEL, "candidate", 2)  # the champion itself: nobody gathers evidence
    fresh = replace(settings, journal_uri=f"sqlite:///{tmp_path / 'journal.db'}")
    with Journal.open(fresh.journal_uri) as journal:
        yield fresh, registry, journal


def record(journal: Journal, version: int, on: int, score: float, **more: Any) -> None:
    labelled = Scored(
        rows=500, labelled=500, scores={"accuracy": Score(value=score, low=score - 0.01, high=score + 0.01)}
    )
    found = Evaluated(
        model=MODEL,
        model_version=version,
        dataset="small",
        dataset_version=on,
        metric="accuracy",
        rows="test",
        **{"scored": labelled, **more},
    )
    key = f"{version}-{on}"
    claim = journal.works.claim(key, kind="evaluation", subject=MODEL, about={}, owner=Owner.here())
    journal.works.finish(claim, found.to_json(), cause="evaluated")


def champion(registry: ModelRegistry) -> int:
    return registry.get(MODEL, alias="champion").version


FELL = Policy(name="p", rules=(Rule(name="fell", when=ScoreDropped(), then=RollBack()),))
LOW = Rule(name="low", when=ScoreBelow(bound=0.9), then=RollBack())
CHALLENGED = Policy(
    name="p",
    rules=(
        Rule(name="gate", when=GateSays(), then=Promote()),
        Rule(name="open", when=Stale(days=0), then=OpenCandidate(), cool_down_h=0),
    ),
)


def run(settings: Settings, policy: Policy, **more: Any) -> dict[str, str]:
    applied = actions.apply(settings, policy, MODEL, gate=GATE, now=time.time(), **more)
    return {a.step.rule: a.told for a in applied}


def test_champion_that_fell_is_rolled_back_once_and_on_the_record(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, registry, journal = stage
    record(journal, 2, 1, 0.95)
    record(journal, 2, 2, 0.94)
    assert run(settings, FELL) == {}
    record(journal, 2, 3, 0.80)
    assert run(settings, FELL) == {"fell": "version 1 is @champion again"}
    assert champion(registry) == 1
    assert registry.get(MODEL, alias="previous").version == 2
    assert run(settings, FELL) == {}  # the champion is another one now, of which nothing is known
    decision = journal.decisions(kind="policy", subject=MODEL)[0]
    assert "surely worse than 0.9500" in decision.reasons[0]
    assert len(decision.evidence["evidence"]) == 64
    assert journal.verify_decisions() == 2


def test_candidate_is_opened_gathers_evidence_and_is_promoted_by_its_gate(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, registry, journal = stage
    assert run(settings, CHALLENGED) == {"open": "version 3 is @candidate"}
    record(journal, 2, 4, 0.8)
    little = Paired(metric="accuracy", rows=500, total=6.0, squares=60.0, won=33, lost=27)
    record(journal, 3, 4, 0.82, against=f"{MODEL}@2", paired=little)
    told = run(settings, CHALLENGED)
    assert "keeps gathering evidence" in told["open"]
    assert "gate" not in told
    record(journal, 2, 5, 0.8)
    much = Paired(metric="accuracy", rows=500, total=60.0, squares=90.0, won=75, lost=15)
    record(journal, 3, 5, 0.92, against=f"{MODEL}@2", paired=much)
    assert run(settings, CHALLENGED)["gate"] == "version 3 is @champion"
    assert champion(registry) == 3
    verdicts = [d.outcome for d in journal.decisions(kind="gate", subject=MODEL)]
    assert verdicts == ["wait", "promote"]
    registry.rollback(MODEL)  # by hand; the evidence of then still says promote
    assert champion(registry) == 2
    assert actions.candidate_of(registry, journal, MODEL) is None
    assert "gate" not in run(settings, CHALLENGED)
    assert champion(registry) == 2


def test_candidate_whose_labels_never_come_waits_and_no_rule_on_scores_is_met(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, registry, journal = stage
    registry.set_alias(MODEL, "candidate", 3)
    record(journal, 2, 1, 0.95)
    for on in range(4, 10):
        for version, against in ((2, ""), (3, f"{MODEL}@2")):
            record(journal, version, on, 0.0, scored=Scored(rows=500, labelled=0), against=against)
    policy = replace(CHALLENGED, rules=(*CHALLENGED.rules, *FELL.rules, LOW))
    told = run(settings, policy)
    assert set(told) == {"open"}
    assert "version 3 is a candidate and keeps gathering evidence" in told["open"]
    assert [d.outcome for d in journal.decisions(kind="gate", subject=MODEL)] == ["wait"]
    assert champion(registry) == 2


def test_gate_that_asks_for_approvals_waits_for_persons_who_approved_this_very_bundle(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, registry, journal = stage
    registry.set_alias(MODEL, "candidate", 3)
    record(journal, 2, 4, 0.8)
    much = Paired(metric="accuracy", rows=500, total=60.0, squares=90.0, won=75, lost=15)
    record(journal, 3, 4, 0.92, against=f"{MODEL}@2", paired=much)
    strict = replace(GATE, approvals=2)

    def told() -> str:
        steps = actions.apply(settings, CHALLENGED, MODEL, gate=strict, now=time.time())
        return {a.step.rule: a.told for a in steps}["gate"]

    assert "approved by nobody; 2 approvals are wanted" in told()
    third, other = registry.get(MODEL, version=3), registry.get(MODEL, version=1)
    assert third.author == "eve@here"
    actions.approve(journal, third, by="eve@here", reason="it is mine")
    assert "approved by nobody; 2 approvals are wanted, none by its author" in told()
    actions.approve(journal, third, by="ann", reason="looked at the slices")
    actions.approve(journal, third, by="ann", reason="twice is once")
    actions.approve(journal, other, by="cat", reason="another bundle")
    actions.approve(journal, third, by="bob", reason="")
    actions.approve(journal, third, by="bob", reason="no, wait", withdraw=True)
    assert "approved by ann; 2 approvals are wanted" in told()
    actions.approve(journal, third, by="bob", reason="yes")
    assert told() == "version 3 is @champion"
    assert champion(registry) == 3


def test_action_that_a_killed_process_decided_is_carried_out_by_the_next(
    stage: tuple[Settings, ModelRegistry, Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, registry, journal = stage
    record(journal, 2, 1, 0.95)
    record(journal, 2, 3, 0.80)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(actions, "_carry_out", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings, FELL)
    assert champion(registry) == 2
    assert run(settings, FELL) == {}
    assert champion(registry) == 1
    run(settings, FELL)
    assert champion(registry) == 1


def test_hold_of_a_person_stops_it_and_resuming_lets_it_go_on(stage: tuple[Settings, ModelRegistry, Journal]) -> None:
    settings, registry, journal = stage
    record(journal, 2, 1, 0.95)
    record(journal, 2, 3, 0.80)
    actions.hold(journal, MODEL, by="ann", reason="the labels are wrong")
    assert "on hold by ann: the labels are wrong" in run(settings, FELL)["fell"]
    assert champion(registry) == 2
    actions.resume(journal, MODEL, by="ann", reason="mended")
    assert actions.holds_on(journal, MODEL) == []
    assert run(settings, FELL)["fell"] == "version 1 is @champion again"


def test_alert_is_told_once_and_retrain_runs_only_where_it_can(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, _, journal = stage
    record(journal, 2, 3, 0.80)
    policy = Policy(
        name="p",
        rules=(
            Rule(name="tell", when=ScoreBelow(bound=0.9), then=Alert(), cool_down_h=0),
            Rule(name="train", when=ScoreBelow(bound=0.9), then=Retrain(job="jobs/first_sweep.py", cpu_hours=1)),
        ),
    )
    heard: list[str] = []
    trained: list[Retrain] = []
    first = run(settings, policy, tell=heard.append)
    assert "nothing here can train" in first["train"]
    second = run(settings, policy, tell=heard.append, train=trained.append)
    assert "acted on this evidence" in second["tell"]
    assert second["train"] == f"a sweep is run for {MODEL}"
    run(settings, policy, tell=heard.append, train=trained.append)
    assert len(heard) == len(trained) == 1
    assert "accuracy 0.8000" in heard[0]


def test_what_was_done_is_told_to_receivers_and_kept_while_they_are_dead(
    stage: tuple[Settings, ModelRegistry, Journal],
) -> None:
    settings, registry, journal = stage
    path = settings.home / "receivers.json"
    path.write_text('{"team": {"kind": "webhook", "url": "http://127.0.0.1:9/", "allow_private": true}}')
    try:
        record(journal, 2, 1, 0.95)
        record(journal, 2, 3, 0.80)
        assert run(settings, FELL) == {"fell": "version 1 is @champion again"}
    finally:
        path.unlink()
    assert champion(registry) == 1
    (waiting,) = journal.works.find("notice")
    assert (waiting.subject, waiting.state) == ("team", "failed")
    assert waiting.about["notice"]["lines"][0][0] == "critical"


def test_promoting_a_candidate_alias_leaves_previous_alone(stage: tuple[Settings, ModelRegistry, Journal]) -> None:
    _, registry, _ = stage
    registry.promote(MODEL, 3, alias="candidate")
    registry.promote(MODEL, 1, alias="candidate")
    assert registry.get(MODEL, alias="previous").version == 1
    assert champion(registry) == 2
