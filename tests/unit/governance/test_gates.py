"""Verdicts from evidence: reasons, refusals, expiry, and that looking often is paid for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.evaluation.compare import Paired
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.governance.gates import PROMOTE, REFUSE, WAIT, Gate, Look, concerns, judge


def look(n: int, won: int, lost: int, rows: int = 2_000, metric: str = "accuracy") -> Look:
    paired = Paired(metric=metric, rows=rows, total=float(won - lost), squares=float(won + lost), won=won, lost=lost)
    return Look(on=f"digits@{n}", paired=paired)


def test_no_evidence_or_little_evidence_waits_and_says_what_is_wanted() -> None:
    assert judge(Gate(), []).outcome == WAIT
    few = judge(Gate(), [look(1, 90, 10, rows=200)])
    assert few.outcome == WAIT
    assert any("200 rows were compared, 1000 are wanted" in r for r in few.reasons)
    assert any("1 versions were compared on, 2 are wanted" in r for r in few.reasons)


def test_a_clearly_better_challenger_is_promoted_with_the_numbers_in_the_reason() -> None:
    verdict = judge(Gate(), [look(1, 180, 100), look(2, 170, 95)])
    assert verdict.outcome == PROMOTE
    assert verdict.p <= verdict.level == pytest.approx(0.05 / 365)
    assert "+0.03875 on 4000 rows of 2 versions" in verdict.reasons[0]
    assert verdict.interval[0] > 0
    assert len(verdict.evidence) == 64


def test_the_same_version_seen_twice_is_one_look() -> None:
    once, twice = judge(Gate(), [look(1, 160, 100)]), judge(Gate(), [look(1, 160, 100)] * 3)
    assert (twice.looks, twice.rows, twice.p, twice.evidence) == (once.looks, once.rows, once.p, once.evidence)


def test_a_worse_challenger_is_refused_and_one_that_never_decides_expires() -> None:
    assert judge(Gate(), [look(1, 90, 160)]).outcome == REFUSE
    nights = [look(n, 100, 100) for n in range(30)]
    assert judge(Gate(), nights[:29]).outcome == WAIT
    expired = judge(Gate(), nights)
    assert expired.outcome == REFUSE
    assert "expired after 30 looks" in expired.reasons[0]


def test_challengers_of_one_night_share_its_part_of_alpha() -> None:
    looks = [look(1, 150, 100), look(2, 150, 100)]
    alone, shared = judge(Gate(), looks), judge(Gate(), looks, challengers=1000)
    assert (alone.outcome, shared.outcome) == (PROMOTE, WAIT)
    assert shared.level == pytest.approx(alone.level / 1000)


def test_least_gain_holds_back_what_is_significant_and_small() -> None:
    looks = [look(n, 1_300, 1_000, rows=100_000) for n in range(2)]
    assert judge(Gate(), looks).outcome == PROMOTE
    assert judge(Gate(least_gain=0.01), looks).outcome == WAIT


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), min_size=1, max_size=12))
def test_verdict_on_any_evidence_does_not_depend_on_the_order_of_the_nights(nights: list[tuple[int, int]]) -> None:
    looks = [look(n, won, lost) for n, (won, lost) in enumerate(nights)]
    one, other = judge(Gate(), looks), judge(Gate(), looks[::-1])
    assert (one.outcome, one.p, one.rows) == (other.outcome, other.p, other.rows)


def test_equal_challengers_over_simulated_years_are_seldom_promoted_and_better_ones_soon() -> None:
    rng, promoted = np.random.default_rng(5), 0
    for _ in range(12):  # the benchmark has 200; this finds a gate that forgets to pay for its looks
        nights: list[Look] = []
        for n in range(60):
            won = int(rng.binomial(200, 0.5))
            nights.append(look(n, won, 200 - won))
            verdict = judge(replace(Gate(), expires_looks=60), nights)
            promoted += verdict.outcome == PROMOTE
    assert promoted == 0
    better: list[Look] = []
    for n in range(10):
        won = int(rng.binomial(200, 0.6))  # two points on 2,000 rows
        better.append(look(n, won, 200 - won))
    assert judge(Gate(), better).outcome == PROMOTE


def scored(low: float, high: float) -> Scored:
    return Scored(rows=100, labelled=100, scores={"accuracy": Score(value=(low + high) / 2, low=low, high=high)})


def test_concerns_name_a_slice_that_is_surely_worse_and_an_unfair_column() -> None:
    champion = {"region": {"north": scored(0.9, 0.95), "south": scored(0.8, 0.9)}}
    challenger = {"region": {"north": scored(0.6, 0.7), "south": scored(0.75, 0.85)}}
    unfair = [
        {"column": "sex", "verdict": "flagged", "lowest": "b", "highest": "a", "ratio": {"value": 0.5}},
    ]
    found = concerns(
        Gate(), metric="accuracy", sign=1.0, champion=champion, challenger=challenger, fairness=unfair, problem=""
    )
    assert len(found) == 2
    assert "region=north" in found[0]
    assert "b is selected at 0.50 of the rate of a" in found[1]
    lenient = Gate(most_slice_loss=0.5, fair=False)
    assert concerns(lenient, metric="accuracy", sign=1.0, champion=champion, challenger=challenger) == ()
    losses = concerns(Gate(), metric="accuracy", sign=-1.0, champion=challenger, challenger=champion)
    assert "region=north" in losses[0]
    refused = judge(Gate(), [look(1, 300, 10), replace(look(2, 300, 10), concerns=found)])
    assert refused.outcome == REFUSE


def test_gate_with_unusable_values_or_unknown_fields_says_so() -> None:
    with pytest.raises(SpecError, match="wanted alpha"):
        Gate(alpha=0.0)
    with pytest.raises(SpecError, match="no field 'alhpa'"):
        Gate.from_json({"alhpa": 0.1})
    assert Gate.from_json({"least_rows": 5}).least_rows == 5
