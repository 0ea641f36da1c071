"""Ray metrics of served models, labelled by model; `tiltyard.telemetry.instruments` declares them.

What a request costs here is taken from its throughput, so it is a look-up and a few additions; once in `FLUSH_S` the sums are
handed to Ray. p50, p95 and p99 are ``histogram_quantile`` over the buckets, throughput is a counter's ``rate``. A Ray gauge
fades after 20 s, so whoever holds a `Meters` calls `Meters.flush` every second and sets its gauges again and again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tiltyard.serving.answers import Described
from tiltyard.serving.comparison import BOUNDS_S, Comparison
from tiltyard.serving.traffic import Split
from tiltyard.telemetry.buckets import Observations
from tiltyard.telemetry.instruments import counter, gauge, histogram

FLUSH_S = 1.0
_ENDS = (*BOUNDS_S, 2 * BOUNDS_S[-1])


@dataclass(slots=True)
class _Counted:
    """What was counted of one model since the last flush, and its observations."""

    seconds: Observations
    request_rows: Observations
    batch_rows: Observations
    statuses: dict[int, int] = field(default_factory=dict)
    rows: int = 0


class Meters:
    """What the front of an application counts. Belongs to one event loop."""

    def __init__(self) -> None:
        self._counted: dict[str, _Counted] = {}
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
        self._histograms = (
            self._seconds,
            self._request_rows,
            self._batch_rows,
            self._compared_seconds,
            self._apart,
        )

    def _of(self, model: str) -> _Counted:
        found = self._counted.get(model)
        if found is None:
            found = self._counted[model] = _Counted(
                seconds=self._seconds.of(model=model),
                request_rows=self._request_rows.of(model=model),
                batch_rows=self._batch_rows.of(model=model),
            )
        return found

    def request(self, model: str, status: int, seconds: float, rows: int) -> None:
        """An answered HTTP request."""
        of = self._of(model)
        of.statuses[status] = of.statuses.get(status, 0) + 1
        of.seconds.observe(seconds)
        if rows:
            of.rows += rows
            of.request_rows.observe(rows)

    def batch(self, model: str, rows: int) -> None:
        """A call to a model."""
        self._of(model).batch_rows.observe(rows)

    def flush(self) -> None:
        """Hands over what was summed."""
        for model, of in self._counted.items():
            for status, count in of.statuses.items():
                self._requests.inc(count, {"model": model, "status": str(status)})
            if of.rows:
                self._rows.inc(of.rows, {"model": model})
            of.statuses.clear()
            of.rows = 0
        for told in self._histograms:
            told.tell()

    def state(self, found: Described, waiting: int) -> None:
        """The gauges of a model."""
        self._of(found.served_as)  # its buckets are told from now on, at zero
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
            seconds = self._compared_seconds.of(**tags, role=role)
            for end, count in zip(_ENDS, buckets, strict=True):
                if count:
                    seconds.observe(end, count)
        if math.isfinite(found.mean_difference):  # NaN where nothing was compared
            self._apart.of(**tags).observe(found.mean_difference)
