"""HyperBand's brackets: how many trials begin at which rung. Pure.

A bracket is a halving of its own: the boldest begins many trials at few epochs and stops most of them early, the most
careful trains few trials to the end and stops none. Which of the two is right for a problem need not be known.

Source: Li et al. 2018, "Hyperband: a novel bandit-based approach to hyperparameter optimization", JMLR 18, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tiltyard.experiment import Hyperband


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """One halving: ``number`` counts the comparisons in it; 0 stops nobody."""

    number: int
    trials: int
    rungs: tuple[int, ...]
    keep: float


def published(hyperband: Hyperband) -> tuple[Bracket, ...]:
    """The brackets of one round as the paper has them, boldest first.

    >>> [(b.trials, b.rungs) for b in published(Hyperband(max_epochs=9, eta=3))]
    [(9, (1, 3, 9)), (5, (3, 9)), (3, (9,))]
    """
    eta, most = hyperband.eta, hyperband.max_epochs
    highest = 0
    while eta ** (highest + 1) <= most:
        highest += 1
    return tuple(
        Bracket(
            number=s,
            trials=-(-(highest + 1) * eta**s // (s + 1)),
            rungs=tuple(dict.fromkeys(max(1, round(most / eta ** (s - i))) for i in range(s + 1))),
            keep=1 / eta if s else 1.0,
        )
        for s in range(highest, -1, -1)
    )


def brackets(hyperband: Hyperband, trials: int) -> tuple[Bracket, ...]:
    """The paper's brackets with a given number of trials shared out in its proportions, boldest first.

    More trials than one round has are further rounds, run as one: a rung that compares more trials only decides better.
    With fewer, a bracket that would get none is left out.
    """
    whole = published(hyperband)
    return tuple(
        Bracket(number=b.number, trials=n, rungs=b.rungs, keep=b.keep)
        for b, n in zip(whole, _in_proportion([b.trials for b in whole], trials), strict=True)
        if n
    )


def _in_proportion(weights: Sequence[int], total: int) -> list[int]:
    """Largest remainders (Hamilton's method); ties go to the first."""
    exact = [w * total / sum(weights) for w in weights]
    shares = [math.floor(e) for e in exact]
    for i in sorted(range(len(weights)), key=lambda i: shares[i] - exact[i])[: total - sum(shares)]:
        shares[i] += 1
    return shares
