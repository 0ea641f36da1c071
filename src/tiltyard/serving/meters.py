"""Ray metrics of served models, labelled by model; `tiltyard.telemetry.instruments` declares them.

p50, p95 and p99 are ``histogram_quantile`` over the buckets, throughput is a counter's ``rate``. A Ray gauge fades after
20 s, so whoever holds a `Meters` sets its gauges again and again; the ``_sum`` of a Ray histogram is a guess, so totals are
counters.
"""

from __future__ import annotations

import time
from collections import Counter

from tiltyard.serving.answers import Described
from tiltyard.serving.comparison import BOUNDS_S, Comparison
from tiltyard.serving.traffic import Split
from tiltyard.telemetry.instruments import counter, gauge, histogram

FLUSH_S = 1.0
_ENDS = (*BOUNDS_S, 2 * BOUNDS_S[-1])


class Meters:
    """What the front of an application counts."""

    def __init__(self) -> None:
        self._statuses: Counter[tuple[str, int]] = Counter()
        self._summed_rows: Counter[str] = Counter()
        self._flushed = time.monotonic()
        self._requests = counter("tiltyard_serving_requests")
        self._rows = counter("tiltyard_serving_rows")
        self._seconds = histogram("tiltyard_serving_request_seconds")
        self._request_rows = histogram("tiltyard_serving_request_rows")
        self._batch_rows = histogram("tiltyard_serving_batch_rows")
        self._waiting = gauge("tiltyard_serving_waiting_requests")
        self._version = gauge("tiltyard_serving_version")
        self._stale = gauge("tiltyard_serving_stale")
        self._registry_age = gauge("tiltyard_serving_registry_age_seconds")
        self._share = gauge("tiltyard_serving_split_share")
        self._compared = counter("tiltyard_serving_compared_requests")
        self._compared_rows = counter("tiltyard_serving_compared_rows")
        self._compared_seconds = histogram("tiltyard_serving_compared_seconds")
        self._apart = histogram("tiltyard_serving_score_difference")

    def request(self, model: str, status: int, seconds: float, rows: int) -> None:
        """An answered HTTP request; counts are summed here and handed to Ray once in `FLUSH_S`, which halves what one costs."""
        self._statuses[model, status] += 1
        tags = {"model": model}
        self._seconds.observe(seconds, tags)
        if rows:
            self._summed_rows[model] += rows
            self._request_rows.observe(rows, tags)
        if time.monotonic() - self._flushed > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Hands over what was summed."""
        self._flushed = time.monotonic()
        for (model, status), count in self._statuses.items():
            self._requests.inc(count, {"model": model, "status": str(status)})
        for model, rows in self._summed_rows.items():
            self._rows.inc(rows, {"model": model})
        self._statuses.clear()
        self._summed_rows.clear()

    def batch(self, model: str, rows: int) -> None:
        """A call to a model."""
        self._batch_rows.observe(rows, {"model": model})

    def state(self, found: Described, waiting: int) -> None:
        """The gauges of a model."""
        self.flush()
        tags = {"model": found.served_as}
        self._waiting.set(waiting, tags)
        self._version.set(found.version, {**tags, "registered": found.model})
        self._stale.set(1 if found.problem else 0, tags)
        self._registry_age.set(found.registry_age_s, tags)

    def split(self, model: str, split: Split) -> None:
        """The gauge of a split that holds."""
        self._share.set(split.share, {"model": model, "mode": split.mode})

    def comparison(self, found: Comparison) -> None:
        """One request of a share; its latencies fall into the buckets that the comparison has them in."""
        tags = {"model": found.pair.model, "mode": found.pair.mode}
        outcomes = {
            "compared": found.requests,
            "dropped": found.dropped,
            "champion_error": found.champion_errors,
            "challenger_error": found.challenger_errors,
        }
        for outcome, count in outcomes.items():
            if count:
                self._compared.inc(count, {**tags, "outcome": outcome})
        for agree, count in (("yes", found.agreed), ("no", found.rows - found.agreed)):
            if count:
                self._compared_rows.inc(count, {**tags, "agree": agree})
        for role, buckets in (("champion", found.champion_seconds), ("challenger", found.challenger_seconds)):
            for end, count in zip(_ENDS, buckets, strict=True):
                for _ in range(count):
                    self._compared_seconds.observe(end, {**tags, "role": role})
        if found.values:
            self._apart.observe(found.mean_difference, tags)
