"""Latency and cost as evidence: from a real journal, and from a real Prometheus."""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tiltyard.governance.policy import Alert, Costly, Evidence, Policy, Rule, Slow, decide
from tiltyard.journal import Journal, Owner
from tiltyard.measured import compared_ms, latency_ms, prometheus_ms, spent
from tiltyard.registry.lineage import Lineage
from tiltyard.registry.version import ModelVersion
from tiltyard.serving.comparison import BOUNDS_S, DECISION, Comparison, Pair

LINEAGE = Lineage(
    cell="c", key="k", experiment="sweep", variant="v", dataset="d", dataset_version=1, dataset_digest="x",
    code_digest="y", seed=0, data_seed=0, epoch=1,
)  # fmt: skip
CHAMPION = ModelVersion(
    name="sweep.d",
    version=2,
    digest="d2",
    aliases=("champion",),
    tags=LINEAGE.to_tags(),
    run_id="",
    source="",
    created_ms=0,
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.open(f"sqlite:///{tmp_path / 'journal.db'}")


def answered(journal: Journal, version: int, seconds: float, requests: int) -> None:
    """A window of a shadow, as the front of an application appends it."""
    bucket = next(i for i, end in enumerate(BOUNDS_S) if seconds <= end)
    counts = tuple(requests if i == bucket else 0 for i in range(len(BOUNDS_S) + 1))
    pair = Pair(
        model="sweep.d", mode="shadow", champion_version=version, champion_digest=f"d{version}", challenger_version=3,
        challenger_digest="d3",
    )  # fmt: skip
    found = Comparison(pair=pair, requests=requests, champion_seconds=counts, challenger_seconds=counts)
    journal.decide(
        kind=DECISION, subject="sweep.d", actor="tiltyard.serving", evidence=found.to_evidence(), reasons=["shadow"],
        outcome="compared",
    )  # fmt: skip


def test_latency_of_the_champion_comes_from_the_windows_of_its_version_within_the_day(journal: Journal) -> None:
    now = time.time()
    assert latency_ms(journal, CHAMPION, now=now, environ={}) is None
    answered(journal, 1, 5.0, 1000)  # another champion's
    answered(journal, 2, 0.01, 10)
    assert compared_ms(journal, CHAMPION, since=0) is None  # too few to say
    answered(journal, 2, 0.01, 80)
    answered(journal, 2, 0.2, 10)
    found = latency_ms(journal, CHAMPION, now=now, environ={})
    assert found is not None
    assert 100 < found <= 200  # the slowest tenth is between 0.1 and 0.2 s
    assert compared_ms(journal, CHAMPION, since=now + 3600) is None
    slow = Policy(name="p", rules=(Rule(name="slow", when=Slow(latency_ms=100), then=Alert()),))
    evidence = Evidence(model="sweep.d", version=2, at=now, on="d@5", latency_ms=found)
    assert [s.do for s in decide(slow, evidence)] == [True]


def test_cost_of_a_model_is_what_meters_settled_for_its_experiment_within_the_week(journal: Journal) -> None:
    now = time.time()
    assert spent(journal, CHAMPION, now=now) is None
    for key, experiment in (("a" * 64, "sweep"), ("b" * 64, "sweep"), ("c" * 64, "other")):
        journal.claim(key, experiment=experiment, spec="{}", owner=Owner.here())
        journal.meter(key=key, what="packs", wall_s=1800, cpu_s=3600, gpu_s=900)
    found = spent(journal, CHAMPION, now=now)
    assert found is not None
    assert (found.cpu_s, found.gpu_s) == (7200, 1800)
    later = spent(journal, CHAMPION, now=now + 8 * 86_400)
    assert later is not None
    assert later.cpu_s == 0
    evidence = Evidence(model="sweep.d", version=2, at=now, cpu_hours=found.cpu_s / 3600, gpu_hours=found.gpu_s / 3600)
    assert Costly(cpu_hours=1.5).met(evidence) == "2.0 CPU-hours were spent in a week, 1.5 were meant"
    assert Costly(gpu_hours=0.4).met(evidence) == "0.5 GPU-hours were spent in a week, 0.4 were meant"
    assert not Costly(cpu_hours=2).met(evidence)


class _Exporter(http.server.BaseHTTPRequestHandler):
    """Requests between 10 and 20 ms; as many more with each scrape."""

    scrapes = 0

    def do_GET(self) -> None:
        type(self).scrapes += 1
        lines = ["# TYPE ray_tiltyard_serving_request_seconds histogram"]
        for end, share in (("0.01", 0), ("0.02", 100), ("+Inf", 100)):
            lines.append(
                f'ray_tiltyard_serving_request_seconds_bucket{{model="sweep.d",le="{end}"}} {share * self.scrapes}'
            )
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(("\n".join(lines) + "\n").encode())

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed (apt-get install prometheus)"
)
def test_latency_is_asked_of_a_prometheus_where_there_is_one(journal: Journal, tmp_path: Path) -> None:
    exporter = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Exporter)
    threading.Thread(target=exporter.serve_forever, daemon=True).start()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "prometheus.yaml"
    config.write_text(
        "global: {scrape_interval: 300ms, scrape_timeout: 300ms}\nscrape_configs:\n"
        f"- {{job_name: ray, static_configs: [{{targets: ['127.0.0.1:{exporter.server_address[1]}']}}]}}\n"
    )
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        ["prometheus", f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
         f"--storage.tsdb.path={tmp_path / 'data'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline, found = time.monotonic() + 60, None
        while found is None:
            assert time.monotonic() < deadline
            time.sleep(0.2)
            found = latency_ms(journal, CHAMPION, now=time.time(), environ={"RAY_PROMETHEUS_HOST": url})
        assert 19 < found <= 20
        assert prometheus_ms(url, "another") is None
    finally:
        process.terminate()
        process.wait(60)
        exporter.shutdown()
        exporter.server_close()
    assert prometheus_ms(url, "sweep.d") is None  # away
    assert latency_ms(journal, CHAMPION, now=time.time(), environ={"RAY_PROMETHEUS_HOST": "file:///etc/passwd"}) is None
