"""Histograms that are told as gauges: what Prometheus would say of the same values, exactly, and again before it fades."""

from __future__ import annotations

import bisect
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.telemetry.buckets import RENEW_S, Histogram

BOUNDS = (0.001, 0.01, 0.5, 2.0)


class Gauges:
    """Keeps what was set last, and how often anything was."""

    def __init__(self) -> None:
        self.now: dict[tuple[str, ...], float] = {}
        self.times = 0

    def gauge(self, name: str, labels: tuple[str, ...]) -> Gauge:
        return Gauge(self, name, labels)


class Gauge:
    def __init__(self, all_of: Gauges, name: str, labels: tuple[str, ...]) -> None:
        self._all, self._name, self._labels = all_of, name, labels

    def set(self, value: float, tags: dict[str, str], /) -> None:
        assert tuple(sorted(tags)) == tuple(sorted(self._labels))
        self._all.now[(self._name, *(tags[name] for name in self._labels))] = value
        self._all.times += 1


def made(gauges: Gauges, *, now: list[float]) -> Histogram:
    return Histogram("h", BOUNDS, ("model",), gauges.gauge, clock=lambda: now[0])


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from((*BOUNDS, 0.0, 0.002, 1.0, 7.0)), st.integers(1, 5))))
def test_told_buckets_count_every_value_up_to_each_bound_whatever_the_order(seen: list[tuple[str, float, int]]) -> None:
    gauges = Gauges()
    histogram = made(gauges, now=[0.0])
    for model in "ab":
        histogram.of(model=model)
    for model, value, times in seen:
        histogram.of(model=model).observe(value, times)
    histogram.tell()
    for model in "ab":
        values = sorted(v for m, v, times in seen if m == model for _ in range(times))
        for bound in BOUNDS:
            assert gauges.now["h_bucket", model, str(bound)] == bisect.bisect_right(values, bound)
        assert gauges.now["h_bucket", model, "+Inf"] == gauges.now["h_count", model] == len(values)
        assert gauges.now["h_sum", model] == pytest.approx(math.fsum(values))


def test_series_without_a_value_is_told_at_zero_so_that_its_first_value_is_a_rise() -> None:
    gauges = Gauges()
    histogram = made(gauges, now=[0.0])
    histogram.of(model="a")
    histogram.tell()
    assert set(gauges.now.values()) == {0.0}
    assert len(gauges.now) == len(BOUNDS) + 3


def test_series_that_stands_still_is_told_again_only_before_it_fades() -> None:
    gauges, now = Gauges(), [100.0]
    histogram = made(gauges, now=now)
    histogram.of(model="a").observe(0.2)
    histogram.tell()
    once = gauges.times
    now[0] += 1
    histogram.tell()
    assert gauges.times == once
    histogram.of(model="a").observe(0.2)
    histogram.tell()
    assert gauges.times == 2 * once
    now[0] += RENEW_S
    histogram.tell()
    assert gauges.times == 3 * once
    assert RENEW_S < 20  # Ray lets a gauge fade that was not set for so long


def test_series_wants_each_declared_label() -> None:
    with pytest.raises(KeyError):
        made(Gauges(), now=[0.0]).of(role="champion")
