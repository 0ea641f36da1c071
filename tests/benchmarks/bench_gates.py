"""A gate in simulation: how often noise is promoted in a year, and how soon a truly better challenger is.

Every night a challenger and the champion answer the same 2,000 rows. Challengers meet the champion one after another: one that
is refused or expires is followed by the next. A row is right with 85%, and of the rows on which one errs the other errs with
60% (what two models trained on the same data do), or with no more than chance.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from harness import Benchmark, Figure

from tiltyard.evaluation.compare import Paired
from tiltyard.governance.gates import PROMOTE, REFUSE, Gate, Look, judge

ROWS, NIGHTS, YEARS, SERIES = 2_000, 365, 200, 200
BASE, GAIN = 0.85, 0.02
SEED = int(os.environ.get("TILTYARD_BENCH_SEED", "31337"))
"""The gate was chosen on seed 20261125; what is measured is another draw."""
COMMON = (0.6, 0.15)
"""Chance that the challenger errs where the champion does: alike, and independent."""


def night(rng: np.random.Generator, gain: float, common: float) -> Paired:
    """One night: rows where one alone is right are what counts."""
    champion_wrong = 1 - BASE
    both = champion_wrong * min(common, 1.0)
    lost = champion_wrong - gain - both  # the challenger alone errs
    won = champion_wrong - both  # the champion alone errs
    n_won, n_lost, _ = rng.multinomial(ROWS, [won, lost, 1 - won - lost])
    return Paired(
        metric="accuracy",
        rows=ROWS,
        total=float(n_won - n_lost),
        squares=float(n_won + n_lost),
        won=int(n_won),
        lost=int(n_lost),
    )


def year_replaced(rng: np.random.Generator, gate: Gate, common: float) -> bool:
    """Whether a champion is replaced in a year by challengers that are its equal."""
    looks: list[Look] = []
    for n in range(NIGHTS):
        looks.append(Look(on=f"d@{n}", paired=night(rng, 0.0, common)))
        verdict = judge(gate, looks)
        if verdict.outcome == PROMOTE:
            return True
        if verdict.outcome == REFUSE:
            looks = []
    return False


def nights_to_promotion(rng: np.random.Generator, gate: Gate, common: float) -> int:
    """Night on which a challenger that is truly better is promoted; 99 where it is refused or it takes longer than 10."""
    looks: list[Look] = []
    for n in range(10):
        looks.append(Look(on=f"d@{n}", paired=night(rng, GAIN, common)))
        verdict = judge(gate, looks)
        if verdict.outcome == PROMOTE:
            return n + 1
        if verdict.outcome == REFUSE:
            return 99
    return 99


def gates() -> Iterable[Figure]:
    """Shares of simulated years, and of simulated challengers."""
    gate = Gate()
    for common, word in zip(COMMON, ("alike", "independent"), strict=True):
        rng = np.random.default_rng(SEED)
        replaced = sum(year_replaced(rng, gate, common) for _ in range(YEARS)) / YEARS
        took = [nights_to_promotion(rng, gate, common) for _ in range(SERIES)]
        within = sum(n <= 10 for n in took) / SERIES
        yield Figure(
            f"gate_equal_replaced_{word}",
            replaced,
            f"of {YEARS} years",
            "promised below",
            0.05,
            0.05 / replaced if replaced else None,
            f"an equal challenger on each of 365 nights; seed {SEED}",
        )
        yield Figure(
            f"gate_better_promoted_{word}",
            within,
            f"of {SERIES}",
            "promised at least",
            0.90,
            within / 0.90,
            f"2 points better on 2,000 rows a night, within 10 nights; half of them by night {int(np.median(took))}; seed {SEED}",
        )


def benchmarks() -> list[Benchmark]:
    """What this file measures."""
    return [gates]
