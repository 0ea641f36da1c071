"""Which hyperparameters mattered: how much of a trial's standing each of them explains alone. Pure.

Trials of one variant are compared where all of them were: at the first epoch at which they were scored. A trial's standing
is the share of its group's trials that it beats there, so that groups on other datasets may be put together and one score
that ran away weighs no more than any other. Of a parameter the trials are put in classes (its values, or quantiles where
it is a number with many), and the share of the variance of the standing that lies between classes is its importance:
epsilon squared (Kelley 1935), which is 0 on average where the parameter does nothing. What two parameters do together
only is in neither.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_CLASSES = 8
LEAST_IN_CLASS = 4
LEAST_TRIALS = 8
"""With fewer trials nothing is said of importance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Of one parameter: the share of the variance of the standing that it explains alone, between 0 and 1."""

    parameter: str
    share: float


def standings(scores: Sequence[float | None], sign: float) -> list[float]:
    """The share of the other trials that each one beats; ties count half, those without a score are the worst.

    Args:
        scores: Of the trials of a group, at the same epoch; None of one that failed.
        sign: 1 where larger is better, else -1.

    >>> standings([0.9, 0.5, 0.7, None], 1.0)
    [1.0, 0.3333333333333333, 0.6666666666666666, 0.0]
    """
    values = np.array([-math.inf if s is None or not math.isfinite(s) else sign * s for s in scores])
    if len(values) < 2:
        return [0.5] * len(values)
    ordered = np.sort(values)
    below, upto = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    return [float(v) for v in (below + (upto - below - 1) / 2) / (len(values) - 1)]


def importances(configs: Sequence[dict[str, Any]], standing: Sequence[float]) -> list[Importance]:
    """The parameters that vary, the most important first; nothing of fewer than `LEAST_TRIALS` trials.

    Args:
        configs: One a trial. A parameter may be missing where it was not drawn.
        standing: Of the same trials, from `standings`.
    """
    if len(configs) < LEAST_TRIALS:
        return []
    y = np.asarray(standing, dtype=np.float64)
    names = sorted({name for config in configs for name in config})
    found = []
    for name in names:
        values = [config.get(name) for config in configs]
        if len({_hashable(v) for v in values}) > 1:
            found.append(Importance(parameter=name, share=_epsilon_squared(_classes(values), y)))
    return sorted(found, key=lambda i: (-i.share, i.parameter))


def is_number(value: Any) -> bool:
    """A number, and not a yes or no."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else value


def _classes(values: Sequence[Any]) -> npt.NDArray[np.int64]:
    """A class for each trial: its value, or the quantile that it lies in."""
    distinct = Counter(map(_hashable, values))
    numbers = [float(v) for v in values if is_number(v)]
    if len(numbers) < len(values) or len(distinct) <= MOST_CLASSES:
        order = {value: i for i, value in enumerate(distinct)}
        return np.array([order[_hashable(v)] for v in values])
    num = int(np.clip(len(values) // LEAST_IN_CLASS, 2, MOST_CLASSES))
    inner = np.quantile(numbers, np.linspace(0, 1, num + 1)[1:-1])
    return np.searchsorted(inner, np.asarray(numbers), side="right").astype(np.int64)


def _epsilon_squared(classes: npt.NDArray[np.int64], y: npt.NDArray[np.float64]) -> float:
    labels, inverse = np.unique(classes, return_inverse=True)
    n, k = len(y), len(labels)
    total = float(((y - y.mean()) ** 2).sum())
    if n <= k or total <= 0:
        return 0.0
    means = np.bincount(inverse, weights=y) / np.bincount(inverse)
    within = float(((y - means[inverse]) ** 2).sum())
    return float(np.clip(1 - (within / (n - k)) / (total / (n - 1)), 0, 1))
