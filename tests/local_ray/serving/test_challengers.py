"""A challenger beside a champion, on a real Ray Serve."""

from __future__ import annotations

import json

import pytest

from tiltyard.journal import Journal
from tiltyard.registry import read_bundle
from tiltyard.serving.comparison import DECISION, Comparison, together
from tiltyard.serving.traffic import DECISION as TRAFFIC
from tiltyard.serving.traffic import OFF, Split
from tiltyard.testing.served import Served, Stage, json_rows, wait

pytestmark = pytest.mark.ray


def test_challenger_in_shadow_then_canary_then_off_answers_what_it_should_and_is_compared(
    stage: Stage, served: Served
) -> None:
    url = "/models/s.small"
    body = json_rows(stage.small[0].rows.slice(1, 5))

    def decide(split: Split | None) -> None:
        with Journal.open(stage.settings.journal_uri) as journal:
            journal.decide(
                kind=TRAFFIC,
                subject="s.small",
                actor="test",
                evidence=split.to_evidence() if split else {},
                reasons=["test"],
                outcome=split.mode if split else OFF,
            )

    def split_told() -> str:
        return str(json.loads(served.ask(url)[1])["split"])

    def ask(number: int) -> int:
        status, answer, _ = served.ask(f"{url}/predict", body, **{"x-request-id": f"id{number}"})
        assert status == 200
        return int(json.loads(answer)["version"])

    def recorded(mode: str) -> Comparison | None:
        with Journal.open(stage.settings.journal_uri) as journal:
            found = together(
                Comparison.from_evidence(d.evidence) for d in journal.decisions(kind=DECISION, subject="s.small")
            )
        return next((c for c in found if c.pair.mode == mode), None)

    stage.registry.set_alias("s.small", "candidate", 2)
    shadow = Split.parse("s.small@candidate:50%", "shadow")
    decide(shadow)
    wait(lambda: split_told() == "shadow of 0.5 to s.small@candidate", 90)
    assert {ask(i) for i in range(30)} == {1}
    taken = sum(shadow.takes(f"id{i}") for i in range(30))
    wait(lambda: (c := recorded("shadow")) is not None and c.requests + c.dropped == taken, 60)
    found = recorded("shadow")
    assert found is not None
    assert 5 < taken < 25
    assert (found.champion_errors, found.challenger_errors) == (0, 0)
    assert (found.pair.champion_digest, found.pair.challenger_digest) == (stage.small[0].digest, stage.small[1].digest)
    answers = [read_bundle(b.folder).predict_table(stage.small[0].rows.slice(1, 5)).labels for b in stage.small[:2]]
    same = sum(a == b for a, b in zip(*answers, strict=True))
    assert (found.rows, found.agreed) == (5 * found.requests, same * found.requests)

    canary = Split.parse("s.small@candidate:0.5", "canary")
    decide(canary)
    wait(lambda: split_told() == "canary of 0.5 to s.small@candidate", 60)
    assert [ask(i) for i in range(30)] == [2 if canary.takes(f"id{i}") else 1 for i in range(30)]
    wait(lambda: (c := recorded("canary")) is not None and c.requests + c.dropped == taken, 60)

    decide(None)
    wait(lambda: split_told() == "")
    assert {ask(i) for i in range(30)} == {1}
