"""Is a challenger better than the champion on the very same rows? Pure.

A `PairFold` takes a metric's value of each row of both and keeps sums of the differences; a `Paired` is what they say, and
those of several nights add up. Differences are signed so that **positive means that the challenger is better**.

One night is tested as a sweep's finalists are (`tiltyard.sweep.comparison`): exact McNemar for shares of rows that are
right, sign flips for losses. Evidence of several nights is tested by what adds up: McNemar again, or the normal test of the
mean difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.evaluation.scores import ROW_METRICS, Z
from tiltyard.sweep.comparison import SIGN_BLOCKS, Comparison, comparison_of, sign_flip
from tiltyard.types import METRICS

F64 = npt.NDArray[np.float64]
_SAME = {"rmse": "mse", "r2": "mse"}
"""For one target these rank models as the mean squared error does."""


def row_metric(objective: str) -> str:
    """The metric that two models are compared by, row by row, where ``objective`` is what they are chosen by.

    >>> row_metric("accuracy"), row_metric("rmse"), row_metric("roc_auc")
    ('accuracy', 'mse', 'log_loss')
    """
    return objective if objective in ROW_METRICS else _SAME.get(objective, "log_loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What two models' differences on the same rows add up to.

    Args:
        metric: The metric of a row.
        rows: On which both answered and a label is there.
        total: Sum of the differences, positive where the challenger is better.
        squares: Sum of their squares.
        won: Rows where the challenger is better.
        lost: Rows where the champion is.
        p: Two-sided p-value of one night's test; None where several were added up.
    """

    metric: str
    rows: int
    total: float
    squares: float
    won: int
    lost: int
    p: float | None = None

    def __add__(self, other: Paired) -> Paired:
        if self.metric != other.metric:
            raise ValueError(f"evidence by {self.metric} and by {other.metric} does not add up")
        return Paired(
            metric=self.metric,
            rows=self.rows + other.rows,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            won=self.won + other.won,
            lost=self.lost + other.lost,
        )

    @property
    def difference(self) -> float:
        """Mean over rows, positive where the challenger is better."""
        return self.total / self.rows if self.rows else 0.0

    @property
    def error(self) -> float:
        """Standard error of the difference."""
        if self.rows < 2:
            return math.inf
        return math.sqrt(max(0.0, self.squares / self.rows - self.difference**2) / (self.rows - 1))

    @property
    def interval(self) -> tuple[float, float]:
        """Of 95%, for one look."""
        return self.difference - Z * self.error, self.difference + Z * self.error

    @property
    def test(self) -> Comparison:
        """The test that fits the metric."""
        return comparison_of(self.metric)

    def p_better(self) -> float:
        """One-sided p-value that the challenger is no better than the champion."""
        return self._one_sided(self.won, self.lost, self.total)

    def p_worse(self) -> float:
        """One-sided p-value that the challenger is no worse."""
        return self._one_sided(self.lost, self.won, -self.total)

    def _one_sided(self, wins: int, losses: int, total: float) -> float:
        from scipy.stats import binom, norm

        if self.test is Comparison.MCNEMAR:
            return float(binom.sf(wins - 1, wins + losses, 0.5)) if wins + losses else 1.0
        if not self.rows or not self.squares > 0 or not math.isfinite(self.squares):
            return 1.0
        # about zero, as under the hypothesis that neither is better
        return float(norm.sf(total / math.sqrt(self.squares)))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Paired:
        """What ``to_json`` gave."""
        return cls(**data)


class PairFold:
    """Differences of two models' rows, added up.

    Args:
        metric: One of `tiltyard.evaluation.scores.ROW_METRICS`.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self._sign = METRICS[metric].mode.sign
        self.rows = self.won = self.lost = 0
        self.total = self.squares = 0.0
        self._blocks = np.zeros(SIGN_BLOCKS)

    def add(self, champion: F64, challenger: F64) -> None:
        """Values of the same rows, ``(rows,)`` each; NaN counts for neither and makes the comparison void."""
        d = self._sign * (challenger - champion)
        places = np.arange(self.rows, self.rows + len(d)) % SIGN_BLOCKS
        self._blocks += np.bincount(places, d, minlength=SIGN_BLOCKS)
        self.rows += len(d)
        self.won += int(np.count_nonzero(d > 0))
        self.lost += int(np.count_nonzero(d < 0))
        self.total += float(d.sum())
        self.squares += float(np.einsum("i,i", d, d))

    def merge(self, other: PairFold) -> None:
        """Adds the rows of another fold of the same two models."""
        self.rows += other.rows
        self.won += other.won
        self.lost += other.lost
        self.total += other.total
        self.squares += other.squares
        self._blocks = self._blocks + other._blocks

    def done(self, *, tested: bool = True) -> Paired:
        """What the rows say, tested as one night unless told otherwise."""
        found = Paired(
            metric=self.metric,
            rows=self.rows,
            total=self.total,
            squares=self.squares,
            won=self.won,
            lost=self.lost,
        )
        if not tested:
            return found
        if found.test is Comparison.MCNEMAR:
            p = min(1.0, 2 * min(found.p_better(), found.p_worse()))
        elif self.rows <= 50_000:
            p = sign_flip(self._blocks)
        else:
            p = min(1.0, 2 * min(found.p_better(), found.p_worse()))
        return Paired(**{**asdict(found), "p": p})
