"""Is a finalist's score on the test rows other than the best one's by more than chance? Pure.

Two models are compared on the same rows. Which test fits follows from the metric (`comparison_of`):

- a share of rows that are right (accuracy): the exact McNemar test, a two-sided binomial test on the rows where one of
  the two is right and the other is not (McNemar 1947, Psychometrika 12);
- a mean of losses of rows (log loss, Brier, absolute and squared error): the sign-flip permutation test of the rows'
  differences (Fisher 1935), over all signs where few rows differ, else over seeded random ones;
- anything else (ROC AUC, F1, ...): a paired bootstrap of the metric itself (Efron & Tibshirani 1993).

Several finalists are compared with the best at once: Holm's correction (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ALPHA = 0.05
EXACT_ROWS = 13
"""Rows that differ up to which every combination of signs is looked at."""
SIGN_DRAWS = 10_000
SIGN_BLOCKS = 2048
"""More rows than this are flipped in blocks: any group of flips is a valid test, and this many lose no power to speak of."""
MOST_BOOTSTRAPS = 1000
LEAST_BOOTSTRAPS = 200
"""So that a p-value can be small enough for Holm's correction over ten finalists."""
BOOTSTRAP_CELLS = 4_000_000
"""Resamples x rows of a bootstrap, between these two numbers of resamples."""
_ROUNDING = 1e-12


class Comparison(StrEnum):
    """How two finalists are compared on the same rows; the value is what a person is told."""

    MCNEMAR = "exact McNemar test"
    SIGN_FLIP = "sign-flip permutation test"
    BOOTSTRAP = "paired bootstrap"


_OF_METRIC = {
    "accuracy": Comparison.MCNEMAR,
    "subset_accuracy": Comparison.MCNEMAR,
    "log_loss": Comparison.SIGN_FLIP,
    "brier": Comparison.SIGN_FLIP,
    "mae": Comparison.SIGN_FLIP,
    "mse": Comparison.SIGN_FLIP,
}


def comparison_of(metric: str) -> Comparison:
    """The test that fits a metric of `tiltyard.types.METRICS`."""
    return _OF_METRIC.get(metric, Comparison.BOOTSTRAP)


def mcnemar(a: Array, b: Array) -> float:
    """Two-sided exact p-value that two models are right equally often; ``a`` and ``b`` are 1 where right, ``(rows,)``.

    >>> mcnemar(np.array([1.0, 1, 1, 1, 1]), np.array([0.0, 0, 0, 0, 1]))
    0.125
    """
    from scipy.stats import binomtest

    only_a, only_b = int(((a > 0.5) & (b < 0.5)).sum()), int(((a < 0.5) & (b > 0.5)).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flip(differences: Array, *, seed: int = 0) -> float:
    """Two-sided p-value that differences of rows ``(rows,)`` have mean 0.

    Not finite where a model's outputs are not: such a model is apart (p = 0).
    """
    if not np.isfinite(differences).all():
        return 0.0
    values = differences[differences != 0]
    if len(values) == 0:
        return 1.0
    if len(values) <= EXACT_ROWS:
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1)
        sums = np.abs(signs @ values)
        return float((sums >= abs(values.sum()) * (1 - _ROUNDING)).mean())
    if len(values) > SIGN_BLOCKS:
        values = np.bincount(np.arange(len(values)) % SIGN_BLOCKS, weights=values)
    rng = np.random.default_rng(seed)
    least, at_least = abs(values.sum()) * (1 - _ROUNDING), 1  # the signs as they are count as one draw
    for start in range(0, SIGN_DRAWS, 1000):
        signs = rng.integers(0, 2, size=(min(1000, SIGN_DRAWS - start), len(values))) * 2.0 - 1.0
        at_least += int((np.abs(signs @ values) >= least).sum())
    return at_least / (SIGN_DRAWS + 1)


def bootstraps(rows: int) -> int:
    """How many resamples of that many rows are drawn."""
    return int(np.clip(BOOTSTRAP_CELLS // max(1, rows), LEAST_BOOTSTRAPS, MOST_BOOTSTRAPS))


def bootstrap(
    metric: Callable[[npt.NDArray[np.int64]], Array], rows: int, *, differing: Sequence[int] = (), seed: int = 0
) -> Array:
    """Two-sided p-values that the first model's metric equals that of each other one.

    The largest of three: how often a resample's difference is as far from the one found as that is from 0; Student's t of
    the difference over its spread; and the least p-value that exchanging the two models' answers on the rows where they
    differ can give. Each alone calls models apart on the strength of a handful of rows.

    Args:
        metric: Of chosen rows (with repeats), of all models at once: row numbers to ``(models,)``. NaN where it is not
            defined on them; such a resample does not count.
        rows: How many there are.
        differing: For each other model, on how many rows its answer differs from the first one's; all where not said.
        seed: Of the resamples.

    Returns:
        ``(models - 1,)``.
    """
    from scipy.stats import t as student

    found = metric(np.arange(rows))
    rng = np.random.default_rng(seed)
    drawn = np.stack([metric(rng.integers(0, rows, rows)) for _ in range(bootstraps(rows))])
    difference, differences = found[:1] - found[1:], drawn[:, :1] - drawn[:, 1:]
    p = []
    for d, several, differ in zip(difference, differences.T, differing or [rows] * len(difference), strict=True):
        usable = several[np.isfinite(several)]
        if not math.isfinite(d):
            p.append(0.0)
            continue
        if d == 0 or len(usable) < 2 or not usable.std() > 0:
            p.append(1.0)
            continue
        centred = (1 + (np.abs(usable - d) >= abs(d) * (1 - _ROUNDING)).sum()) / (1 + len(usable))
        spread = float(usable.std(ddof=1))
        p.append(float(max(centred, 2 * student.sf(abs(d) / spread, max(1, rows - 1)), 2.0 ** (1 - max(1, differ)))))
    return np.array(p, dtype=np.float64)


def ties(p: Mapping[str, float], *, alpha: float = ALPHA) -> frozenset[str]:
    """Those that cannot be told apart from the best, of p-values against it, with Holm's correction.

    >>> sorted(ties({"a": 0.01, "b": 0.03, "c": 0.4}))
    ['b', 'c']
    """
    apart: set[str] = set()
    for i, cell in enumerate(sorted(p, key=lambda c: p[c])):
        if p[cell] > alpha / (len(p) - i):
            break
        apart.add(cell)
    return frozenset(set(p) - apart)
