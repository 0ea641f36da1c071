"""A champion and its challenger on the same requests: how often they agree, how far apart they are, who is slower or fails.

Comparisons of one pair add up in any order, so that each window may be recorded by itself and read back as one. Nothing here
keeps a row. Pure.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tiltyard.registry.bundle import labels, probabilities
from tiltyard.serving.answers import Answer

DECISION = "comparison"
"""Kind of the journal's decisions that hold one."""
COMPARED_ROWS = 4096
"""Rows of one request that are compared, at most: what it costs is bounded."""
CLOSE = 0.01
"""Predicted numbers agree where they differ by at most this share of the larger one."""
BOUNDS_S = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Upper ends of the buckets of latencies, in seconds; the last bucket is beyond."""
_NONE = (0,) * (len(BOUNDS_S) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Who is compared: ``mode`` is ``shadow`` or ``canary``; versions of the registry, digests of the bundles."""

    model: str
    mode: str
    champion_version: int
    champion_digest: str
    challenger_version: int
    challenger_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was seen of a pair.

    Args:
        pair: Who.
        requests: That both answered.
        rows: Of them, that were compared (`COMPARED_ROWS` a request at most).
        agreed: Rows where both predict the same class, the same labels, or numbers within `CLOSE`.
        values: Probabilities, or predicted numbers, whose differences are counted.
        difference_sum: Sum of their absolute differences.
        difference_max: Largest of them.
        champion_errors: Requests of the share that the champion did not answer.
        challenger_errors: That the challenger did not.
        dropped: Requests of the share that were not compared, because too many waited for it.
        champion_seconds: Requests by latency, in the buckets of `BOUNDS_S`.
        challenger_seconds: The same.
    """

    pair: Pair
    requests: int = 0
    rows: int = 0
    agreed: int = 0
    values: int = 0
    difference_sum: float = 0.0
    difference_max: float = 0.0
    champion_errors: int = 0
    challenger_errors: int = 0
    dropped: int = 0
    champion_seconds: tuple[int, ...] = _NONE
    challenger_seconds: tuple[int, ...] = _NONE

    @property
    def agreement(self) -> float:
        """Share of the compared rows; NaN where there are none."""
        return self.agreed / self.rows if self.rows else math.nan

    @property
    def mean_difference(self) -> float:
        """NaN where nothing was compared."""
        return self.difference_sum / self.values if self.values else math.nan

    def __add__(self, other: Comparison) -> Comparison:
        """Both together.

        Raises:
            ValueError: If they are of two pairs.
        """
        if self.pair != other.pair:
            raise ValueError(f"comparisons of {self.pair} and {other.pair} do not add up")
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        return Comparison(
            pair=self.pair,
            difference_max=max(self.difference_max, other.difference_max),
            champion_seconds=_added(self.champion_seconds, other.champion_seconds),
            challenger_seconds=_added(self.challenger_seconds, other.challenger_seconds),
            **sums,
        )

    def to_evidence(self) -> dict[str, Any]:
        """As the journal keeps it: counts and sums, which a reader can add up again."""
        return {**asdict(self), "bounds_s": list(BOUNDS_S)}

    @classmethod
    def from_evidence(cls, told: Mapping[str, Any]) -> Comparison:
        """Reads what `to_evidence` gave."""
        fields = {name: told[name] for name in (*_SUMMED, "difference_max")}
        return cls(
            pair=Pair(**told["pair"]),
            champion_seconds=tuple(told["champion_seconds"]),
            challenger_seconds=tuple(told["challenger_seconds"]),
            **fields,
        )


_SUMMED = (
    "requests",
    "rows",
    "agreed",
    "values",
    "difference_sum",
    "champion_errors",
    "challenger_errors",
    "dropped",
)


def compared(
    champion: Answer, challenger: Answer, *, mode: str, champion_s: float, challenger_s: float, model: str
) -> Comparison:
    """One request that both answered, and how long each took in seconds."""
    one, other = champion.rows(0, COMPARED_ROWS), challenger.rows(0, COMPARED_ROWS)
    pair = Pair(
        model=model,
        mode=mode,
        champion_version=champion.version,
        champion_digest=champion.digest,
        challenger_version=challenger.version,
        challenger_digest=challenger.digest,
    )
    found = Comparison(
        pair=pair, requests=1, champion_seconds=bucketed(champion_s), challenger_seconds=bucketed(challenger_s)
    )
    if one.task is not other.task or len(one.outputs) != len(other.outputs):
        return found  # they predict different things: seen, and nothing of it agrees
    agree = _agree(one, other)
    apart = _apart(one, other)
    return replace(
        found,
        rows=len(agree),
        agreed=int(agree.sum()),
        values=apart.size,
        difference_sum=float(apart.sum()),
        difference_max=float(apart.max(initial=0.0)),
    )


def together(found: Iterable[Comparison]) -> list[Comparison]:
    """One a pair, in the order in which the pairs first appear."""
    sums: dict[Pair, Comparison] = {}
    for one in found:
        sums[one.pair] = sums[one.pair] + one if one.pair in sums else one
    return list(sums.values())


def bucketed(seconds: float) -> tuple[int, ...]:
    """One request in the bucket of its latency."""
    at = bisect_left(BOUNDS_S, seconds)
    return (*_NONE[:at], 1, *_NONE[at + 1 :])


def quantile_s(buckets: tuple[int, ...], q: float) -> float:
    """A quantile of latencies in seconds, straight lines inside the buckets; NaN where there are none."""
    wanted, seen = q * sum(buckets), 0
    if not wanted:
        return math.nan
    for i, count in enumerate(buckets[:-1]):
        if count and seen + count >= wanted:
            low = BOUNDS_S[i - 1] if i else 0.0
            return low + (BOUNDS_S[i] - low) * (wanted - seen) / count
        seen += count
    return BOUNDS_S[-1]


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _agree(one: Answer, other: Answer) -> Any:
    if not one.task.is_classification:
        a, b = np.asarray(one.outputs, np.float64), np.asarray(other.outputs, np.float64)
        if a.shape != b.shape:
            return np.zeros(len(a), bool)
        with np.errstate(invalid="ignore"):
            return (np.abs(a - b) <= CLOSE * np.maximum(np.abs(a), np.abs(b))).all(axis=1)
    mine, theirs = (labels(x.task, x.outputs, x.classes) for x in (one, other))
    finite = np.isfinite(one.outputs).all(axis=1) & np.isfinite(other.outputs).all(axis=1)
    return np.fromiter((a == b for a, b in zip(mine, theirs, strict=True)), bool, len(mine)) & finite


def _apart(one: Answer, other: Answer) -> Any:
    """Absolute differences of what both say about the same classes or targets; what is not finite is left out."""
    if set(one.classes) != set(other.classes):
        return np.zeros(0)
    order = [other.classes.index(c) for c in one.classes]
    mine, theirs = (x.outputs if (p := probabilities(x.task, x.outputs)) is None else p for x in (one, other))
    if mine.shape != theirs.shape:
        return np.zeros(0)
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(mine, np.float64) - np.asarray(theirs, np.float64)[:, order])
    return apart[np.isfinite(apart)]
