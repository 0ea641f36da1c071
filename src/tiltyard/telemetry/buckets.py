"""Histograms that a process keeps itself and tells as gauges of their buckets, in the names and labels that Prometheus knows.

Ray's own costs several microseconds at each observation, and its ``_sum`` is guessed from the buckets. Here an observation is
a search among the bounds and an addition; once a second or so the running totals are set as gauges
``NAME_bucket{le="..."}``, ``NAME_count`` and ``NAME_sum``, all exact. ``rate`` and ``histogram_quantile`` read them as any
histogram, for to Prometheus a sample is a sample. All buckets are there from a series' beginning, at zero: what is observed
first counts in a rate too. No Ray: `tiltyard.telemetry.instruments` gives the gauges.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

RENEW_S = 8.0
"""Totals that did not change are told again after so many seconds: a Ray gauge fades after 20."""


class Settable(Protocol):
    """A gauge."""

    def set(self, value: float, tags: dict[str, str], /) -> None:
        """Sets it for these labels."""


class Observations:
    """What was observed under one set of labels. Belongs to one thread.

    Args:
        bounds: Upper ends of the buckets, rising; a value on a bound is within.
        labels: The set.
    """

    __slots__ = ("_bounds", "_counts", "_sum", "_told", "_told_at", "labels")

    def __init__(self, bounds: Sequence[float], labels: Mapping[str, str]) -> None:
        self.labels = dict(labels)
        self._bounds, self._counts, self._sum = tuple(bounds), [0] * (len(bounds) + 1), 0.0
        self._told, self._told_at = -1, 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value, so many times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def news(self, now: float) -> tuple[list[int], float] | None:
        """Counts up to each bound, the last up to any, and the sum; None where they were told and still stand."""
        rising = list(accumulate(self._counts))
        if rising[-1] == self._told and now - self._told_at < RENEW_S:
            return None
        self._told, self._told_at = rising[-1], now
        return rising, self._sum


class Histogram:
    """A histogram of several label sets; whoever observes calls `tell` once a second or so.

    Args:
        name: As declared.
        bounds: Upper ends of the buckets, rising.
        labels: Names of the labels.
        gauge: Makes a gauge of a name and labels.
        clock: Seconds.
    """

    def __init__(
        self,
        name: str,
        bounds: Sequence[float],
        labels: tuple[str, ...],
        gauge: Callable[[str, tuple[str, ...]], Settable],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bounds, self._labels, self._clock = tuple(bounds), labels, clock
        self._ends = (*(str(float(b)) for b in bounds), "+Inf")
        self._bucket = gauge(f"{name}_bucket", (*labels, "le"))
        self._count, self._sum = gauge(f"{name}_count", labels), gauge(f"{name}_sum", labels)
        self._of: dict[tuple[str, ...], Observations] = {}

    def of(self, **labels: str) -> Observations:
        """Those of one set of labels, each of which has a value; to be kept by whoever observes often."""
        key = tuple(labels[name] for name in self._labels)
        found = self._of.get(key)
        if found is None:
            found = self._of[key] = Observations(self._bounds, labels)
        return found

    def tell(self) -> None:
        """Sets the gauges of what is new, and of what would fade."""
        now = self._clock()
        for observed in self._of.values():
            news = observed.news(now)
            if news is None:
                continue
            counts, total = news
            for end, count in zip(self._ends, counts, strict=True):
                self._bucket.set(count, {**observed.labels, "le": end})
            self._count.set(counts[-1], observed.labels)
            self._sum.set(total, observed.labels)
