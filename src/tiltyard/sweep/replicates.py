"""What replicates say of a finalist: its mean over seeds and data seeds, and whether another is better by more than luck. Pure.

A replicate trains a finalist's configuration again, from other initial parameters and in another order of rows. The run by
which the finalist was picked is left out of its mean: being the best of many, it was lucky too, and `Replicates.luck`
says by how much. Replicate ``r`` has the same order of rows for every finalist of a dataset, so two finalists are compared
pair by pair.

The interval is Student's t of the mean; the comparison a paired t test (Student 1908), corrected for several finalists
by Holm (`tiltyard.sweep.comparison.ties`). Source for reporting over seeds and data order together: Bouthillier et al.
2021, "Accounting for variance in machine learning benchmarks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tiltyard.sweep.comparison import ties
from tiltyard.types import Mode

LEAST = 2
"""Fewer have no spread, so no interval."""
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A mean and its 95% interval; without an interval where fewer than `LEAST` values are there."""

    mean: float
    low: float | None
    high: float | None
    num: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The best finalist's score minus this one's over the replicates that both have, so that above 0 is worse than it.

    ``p`` is two-sided and not corrected; None with fewer than `LEAST` pairs.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicates:
    """What the replicates of one finalist came to.

    Args:
        num: How many ended, failed ones too.
        failed: How many of them failed.
        validation: The ranking metric on the validation split.
        test: Likewise on the test split, where the finalists were looked at.
        luck: How much better the picked run's validation score was than the mean of its replicates.
        behind_best: Against the dataset's best; None of the best itself.
    """

    num: int
    failed: int
    validation: Spread | None
    test: Spread | None
    luck: float | None
    behind_best: Difference | None = None


def spread(values: Sequence[float]) -> Spread | None:
    """Mean and 95% interval of it (Student's t); None of no values.

    >>> s = spread([0.9, 0.92, 0.94])
    >>> round(s.mean, 3), round(s.low, 3), round(s.high, 3)
    (0.92, 0.87, 0.97)
    """
    if not values:
        return None
    n, mean = len(values), math.fsum(values) / len(values)
    if n < LEAST:
        return Spread(mean=mean, low=None, high=None, num=n)
    half = _half_width(values)
    return Spread(mean=mean, low=mean - half, high=mean + half, num=n)


def difference(best: Mapping[int, float], other: Mapping[int, float], mode: Mode) -> Difference | None:
    """How far one finalist is behind another, over the replicates that both have; None where they share none.

    Args:
        best: Scores of the better one by number of the replicate.
        other: Of the other.
        mode: Which way is better.
    """
    from scipy.stats import t as student

    shared = sorted(set(best) & set(other))
    values = [mode.sign * (best[r] - other[r]) for r in shared]
    found = spread(values)
    if found is None:
        return None
    p = None
    if found.num >= LEAST:
        error = _standard_error(values)
        if error > _ROUNDING * max(1.0, *map(abs, values)):
            p = float(2 * student.sf(abs(found.mean) / error, found.num - 1))
        else:  # they differ by the same each time: by nothing, or surely
            p = 1.0 if abs(found.mean) <= _ROUNDING else 0.0
    return Difference(mean=found.mean, low=found.low, high=found.high, p=p, pairs=found.num)


def not_apart(differences: Mapping[str, Difference | None]) -> frozenset[str]:
    """Finalists that the replicates cannot tell apart from the best, at 5% over all of them (Holm).

    One with too few pairs cannot be told apart.
    """
    p = {cell: 1.0 if d is None or d.p is None else d.p for cell, d in differences.items()}
    return ties(p)


def _standard_error(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def _half_width(values: Sequence[float]) -> float:
    from scipy.stats import t as student

    return float(student.ppf(0.975, len(values) - 1)) * _standard_error(values)
