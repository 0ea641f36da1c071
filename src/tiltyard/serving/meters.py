"""Ray metrics of served models, labelled by model.

p50, p95 and p99 are ``histogram_quantile`` over the buckets, throughput is a counter's ``rate``. A Ray gauge fades after
20 s, so whoever holds a `Meters` sets its gauges again and again; the ``_sum`` of a Ray histogram is a guess, so totals are
counters.
"""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

from tiltyard.serving.answers import Described
from tiltyard.serving.comparison import BOUNDS_S, Comparison
from tiltyard.serving.traffic import Split

_ROWS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 8192, 65_536]
_ENDS = (*BOUNDS_S, 2 * BOUNDS_S[-1])
_APART = [1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


class Meters:
    """What the front of an application counts."""

    def __init__(self) -> None:
        one, latencies = ("model",), list(BOUNDS_S)
        self._requests = Counter("tiltyard_serving_requests", "Answered HTTP requests.", ("model", "status"))
        self._rows = Counter("tiltyard_serving_rows", "Rows in answered HTTP requests.", one)
        self._seconds = Histogram(
            "tiltyard_serving_request_seconds", "From the request's head to its answer.", latencies, one
        )
        self._request_rows = Histogram("tiltyard_serving_request_rows", "Rows of a request.", _ROWS, one)
        self._batch_rows = Histogram(
            "tiltyard_serving_batch_rows", "Rows of one call to a model, small requests merged.", _ROWS, one
        )
        self._waiting = Gauge("tiltyard_serving_waiting_requests", "Requests that wait for the model.", one)
        self._version = Gauge("tiltyard_serving_version", "Registry version that serves.", one)
        self._stale = Gauge("tiltyard_serving_stale", "1 while a newer version could not be loaded.", one)
        self._share = Gauge(
            "tiltyard_serving_split_share", "Share of requests that a challenger meets.", ("model", "mode")
        )
        self._compared = Counter(
            "tiltyard_serving_compared_requests",
            "Requests of the share: compared, dropped, champion_error or challenger_error.",
            ("model", "mode", "outcome"),
        )
        self._compared_rows = Counter(
            "tiltyard_serving_compared_rows",
            "Rows that both answered, by whether they agree.",
            ("model", "mode", "agree"),
        )
        self._compared_seconds = Histogram(
            "tiltyard_serving_compared_seconds", "Latency of a compared request.", latencies, ("model", "mode", "role")
        )
        self._apart = Histogram(
            "tiltyard_serving_score_difference",
            "Mean absolute difference of a request's scores.",
            _APART,
            ("model", "mode"),
        )

    def request(self, model: str, status: int, seconds: float, rows: int) -> None:
        """An answered HTTP request."""
        self._requests.inc(1, {"model": model, "status": str(status)})
        self._seconds.observe(seconds, {"model": model})
        if rows:
            self._rows.inc(rows, {"model": model})
            self._request_rows.observe(rows, {"model": model})

    def batch(self, model: str, rows: int) -> None:
        """A call to a model."""
        self._batch_rows.observe(rows, {"model": model})

    def state(self, found: Described, waiting: int) -> None:
        """The gauges of a model."""
        tags = {"model": found.served_as}
        self._waiting.set(waiting, tags)
        self._version.set(found.version, tags)
        self._stale.set(1 if found.problem else 0, tags)

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
