"""Are groups of people treated alike? From the confusion matrix of each group. Pure.

The *selection rate* is the share of a group that is predicted to be in the positive class. Its smallest over its largest is
the ratio that 29 CFR 1607.4(D) holds against four fifths: a rule of thumb, no safe harbour, so it comes with counts and an
interval (Katz 1978, on the log scale), and a ratio that is not surely on one side of 0.8 is called unsure.
*Equalised odds* asks the same of the true and the false positive rate (Hardt 2016): the largest difference of either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tiltyard.evaluation.scores import Score, Z, wilson

FOUR_FIFTHS = 0.8
LEAST_GROUP = 30
"""Rows a group needs to be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group: rows, and the shares with their intervals."""

    name: str
    rows: int
    selected: Score
    true_positives: Score
    false_positives: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Fairness:
    """Groups of one column compared.

    Args:
        column: The sensitive column.
        groups: Those with enough rows.
        too_few: Groups with fewer than `LEAST_GROUP` rows, and how many they have.
        ratio: Smallest selection rate over largest, with its interval; None with fewer than two groups.
        lowest: The group with the smallest selection rate.
        highest: That with the largest.
        odds_difference: Largest difference of true, or of false, positive rates.
        verdict: ``alike`` (the whole interval is at 0.8 or above), ``flagged`` (all of it below), ``unsure``, or ``too few``.
    """

    column: str
    groups: tuple[Group, ...]
    too_few: Mapping[str, int]
    ratio: Score | None
    lowest: str
    highest: str
    odds_difference: float | None
    verdict: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def fairness(column: str, confusions: Mapping[str, Sequence[Sequence[int]]], *, positive: int = 1) -> Fairness:
    """Compares groups.

    Args:
        column: The sensitive column.
        confusions: Group to rows by (actual, predicted) class.
        positive: Which class is the good outcome.
    """
    groups, too_few, counts = [], {}, {}
    for name, confusion in confusions.items():
        c = np.asarray(confusion, dtype=np.int64)
        rows = int(c.sum())
        if rows < LEAST_GROUP:
            too_few[name] = rows
            continue
        selected, actual, hit = int(c[:, positive].sum()), int(c[positive].sum()), int(c[positive, positive])
        counts[name] = selected, rows
        groups.append(
            Group(
                name=name,
                rows=rows,
                selected=wilson(selected, rows),
                true_positives=wilson(hit, actual),
                false_positives=wilson(selected - hit, rows - actual),
            )
        )
    if len(groups) < 2:
        return Fairness(
            column=column,
            groups=tuple(groups),
            too_few=too_few,
            ratio=None,
            lowest="",
            highest="",
            odds_difference=None,
            verdict="too few",
        )
    ranked = sorted(groups, key=lambda g: g.selected.value)
    low, high = ranked[0].name, ranked[-1].name
    ratio = _ratio(*counts[low], *counts[high])
    return Fairness(
        column=column,
        groups=tuple(groups),
        too_few=too_few,
        ratio=ratio,
        lowest=low,
        highest=high,
        odds_difference=_odds(groups),
        verdict=_verdict(ratio),
    )


def _ratio(a: int, n: int, b: int, m: int) -> Score:
    """``(a / n) / (b / m)``; half a row is added where none was selected, for the interval alone."""
    if not b:
        return Score(value=1.0, low=0.0, high=None)  # nobody was selected anywhere
    value = (a / n) / (b / m)
    x, y = a or 0.5, b
    spread = Z * math.sqrt(max(0.0, 1 / x - 1 / n + 1 / y - 1 / m))
    middle = (x / n) / (y / m)
    return Score(value=value, low=min(value, middle * math.exp(-spread)), high=middle * math.exp(spread))


def _odds(groups: Sequence[Group]) -> float | None:
    spreads = []
    for shares in ([g.true_positives.value for g in groups], [g.false_positives.value for g in groups]):
        known = [s for s in shares if math.isfinite(s)]
        if len(known) > 1:
            spreads.append(max(known) - min(known))
    return max(spreads, default=None)


def _verdict(ratio: Score) -> str:
    if ratio.low is not None and ratio.low >= FOUR_FIFTHS:
        return "alike"
    return "flagged" if ratio.high is not None and ratio.high < FOUR_FIFTHS else "unsure"
