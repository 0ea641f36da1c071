"""How long a served model's requests take and what a model costs, as the record has it: evidence for a policy.

- **Latency** is the 95th percentile of the last day. Where a Prometheus scrapes the cluster (`RAY_PROMETHEUS_HOST`, the
  variable that Ray's dashboard goes by; ``tiltyard up`` sets it), it is that of all requests that came by HTTP, to whichever
  version served them. Where there is none, it is that of the requests that a challenger met too, which the fronts append to
  the journal by version. Where there are none of those either, it is not known, and no rule on it is met.
- **Cost** is what the meters of the sweeps of the model's experiment have settled in the journal within the last week: CPU-
  and GPU-hours that packs held, waiting and failures in them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import urllib.parse
import urllib.request
from collections.abc import Mapping

from tiltyard.journal import Journal, Spend
from tiltyard.registry.version import ModelVersion
from tiltyard.serving.comparison import DECISION, Comparison, quantile_s, together

DAY_S, WEEK_S = 86_400.0, 7 * 86_400.0
QUANTILE = 0.95
LEAST_REQUESTS = 20
"""Requests without which a 95th percentile says nothing."""
TIMEOUT_S = 5.0


def latency_ms(
    journal: Journal, version: ModelVersion, *, now: float, environ: Mapping[str, str] = os.environ
) -> float | None:
    """The 95th percentile of a champion's requests in the last day; None where it was not measured."""
    url = environ.get("RAY_PROMETHEUS_HOST", "")
    asked = prometheus_ms(url, version.name) if url else None
    return compared_ms(journal, version, since=now - DAY_S) if asked is None else asked


def compared_ms(journal: Journal, version: ModelVersion, *, since: float) -> float | None:
    """The same of the requests that a challenger met too, from the journal."""
    told = journal.decisions(kind=DECISION, subject=version.name)
    found = [Comparison.from_evidence(d.evidence) for d in told if d.at >= since]
    buckets = [c.champion_seconds for c in together(found) if c.pair.champion_version == version.version]
    sums = tuple(map(sum, zip(*buckets, strict=True)))
    return 1000 * quantile_s(sums, QUANTILE) if sum(sums) >= LEAST_REQUESTS else None


def prometheus_ms(url: str, model: str) -> float | None:
    """The same of all requests, from a Prometheus; None where it is away or has none of them."""
    of = f'{{model="{model}"}}[1d]'
    requests = f"ray_tiltyard_serving_request_seconds_bucket{of}"
    query = f"histogram_quantile({QUANTILE}, sum by (le) (increase({requests})))"
    found = _asked(url, query)
    return None if found is None or math.isnan(found) else 1000 * found


def _asked(url: str, query: str) -> float | None:
    """One number of a Prometheus."""
    if urllib.parse.urlsplit(url).scheme not in {"http", "https"}:
        return None
    address = f"{url.rstrip('/')}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with (
        contextlib.suppress(OSError, ValueError, KeyError, IndexError, TypeError),
        urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer,  # noqa: S310 - the scheme was looked at
    ):
        return float(json.loads(answer.read(1 << 20))["data"]["result"][0]["value"][1])
    return None


def spent(journal: Journal, version: ModelVersion, *, now: float) -> Spend | None:
    """What the sweeps of the model's experiment have settled in the last week; None where no sweep is recorded."""
    launches = journal.launches(version.lineage.experiment) if version.lineage.experiment else []
    parts = [journal.spend(launch.key, since=now - WEEK_S) for launch in launches]
    if not parts:
        return None
    return Spend(
        wall_s=sum(p.wall_s for p in parts),
        cpu_s=sum(p.cpu_s for p in parts),
        gpu_s=sum(p.gpu_s for p in parts),
        by_what={},
    )
