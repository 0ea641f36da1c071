"""Two launches held against each other: which is better on which dataset, by more than chance, and what differs. Pure.

Each side is known by its best trial's mean over replicates where it has them, else by that trial's score on the test rows;
both with a 95% interval. From these the difference and its interval follow as if the two were independent; on the same
rows they are not, and the true interval is mostly narrower: what is called apart here is apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.experiment import Experiment
from tiltyard.sweep.leaderboard import Leaderboard, Row
from tiltyard.types import METRICS


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two on one dataset."""

    trial: str
    version: int
    value: float
    low: float | None
    high: float | None
    on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The two on one dataset. ``better`` is how much better the second is, above 0 whatever the metric's direction."""

    dataset: str
    first: Side | None
    second: Side | None
    better: float | None
    low: float | None
    high: float | None
    verdict: str


def compare(
    first: Leaderboard, second: Leaderboard, versions: tuple[Mapping[str, int], Mapping[str, int]]
) -> list[Compared]:
    """Dataset by dataset, those of the first one first.

    Args:
        first: A leaderboard.
        second: The other.
        versions: Of the datasets of each.
    """
    names = dict.fromkeys([*first.tables, *second.tables])
    return [_on(name, first, second, versions) for name in names]


def _on(
    dataset: str, first: Leaderboard, second: Leaderboard, versions: tuple[Mapping[str, int], Mapping[str, int]]
) -> Compared:
    a, b = (_side(board, dataset, of) for board, of in zip((first, second), versions, strict=True))
    better = low = high = None
    if a is None or b is None:
        verdict = "only one of the two has a score here"
    elif first.metric != second.metric:
        verdict = f"not compared: one is ranked by {first.metric}, the other by {second.metric}"
    elif a.version != b.version:
        verdict = f"not compared: other rows (version {a.version} and {b.version})"
    elif a.on != b.on:
        verdict = f"not compared: one is known on {a.on}, the other on {b.on}"
    else:
        better = METRICS[first.metric].mode.sign * (b.value - a.value)
        half = _half(a, b)
        if half is None:
            verdict = "no interval: neither is known by more than one number"
        else:
            low, high = better - half, better + half
            verdict = (
                "cannot be told apart"
                if low <= 0 <= high
                else "the second is better"
                if better > 0
                else "the first is better"
            )
    return Compared(dataset=dataset, first=a, second=b, better=better, low=low, high=high, verdict=verdict)


def _half(a: Side, b: Side) -> float | None:
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return math.hypot((a.high - a.low) / 2, (b.high - b.low) / 2)


def _side(board: Leaderboard, dataset: str, versions: Mapping[str, int]) -> Side | None:
    best: Row | None = board.best(dataset) if dataset in board.tables else None
    if best is None or best.validation is None:
        return None
    version = versions.get(dataset, 0)
    again = best.replicates.test or best.replicates.validation if best.replicates is not None else None
    if again is not None and best.replicates is not None:
        on = f"{'test' if best.replicates.test is not None else 'validation'} rows, mean of other seeds"
        return Side(trial=best.name, version=version, value=again.mean, low=again.low, high=again.high, on=on)
    if best.test is not None:
        t = best.test
        return Side(trial=best.name, version=version, value=t.value, low=t.low, high=t.high, on="test rows")
    return Side(trial=best.name, version=version, value=best.validation, low=None, high=None, on="validation rows")


def differences(first: Experiment, second: Experiment) -> list[tuple[str, str, str]]:
    """What was set otherwise: where, in the first, in the second; ``-`` where it is not there.

    >>> from tiltyard.experiment import Objective, Search, Variant
    >>> from tiltyard.types import DatasetRef
    >>> a = Experiment(
    ...     name="a",
    ...     variants=[Variant(name="mlp", model="mlp")],
    ...     datasets=[DatasetRef("digits")],
    ...     objective=Objective(metric="accuracy"),
    ...     search=Search(trials=1, epochs=2),
    ... )
    >>> differences(a, a.with_options(seed=3))
    [('seed', '-', '3')]
    """
    a, b = (_flat(json.loads(e.to_json())) for e in (first, second))
    return [
        (name, a.get(name, "-"), b.get(name, "-")) for name in dict.fromkeys([*a, *b]) if a.get(name) != b.get(name)
    ]


def _flat(value: Any, at: str = "") -> dict[str, str]:
    """Leaves by path; variants go by their names, so that adding one does not move the others."""
    if isinstance(value, dict):
        return {k: v for name, of in value.items() for k, v in _flat(of, f"{at}.{name}" if at else str(name)).items()}
    if isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
        return {k: v for of in value for k, v in _flat(of, f"{at}.{of['name']}").items()}
    return {at: json.dumps(value)}
