"""Every query of the serving board, and every rule over served models, asked of a Prometheus that scrapes a real application."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from prometheus_server import scraping

from tiltyard.telemetry.alerts import ALERTS, RECORDED
from tiltyard.telemetry.boards import BOARDS
from tiltyard.testing.served import Served, Stage, json_rows

pytestmark = [pytest.mark.ray, pytest.mark.prometheus, pytest.mark.slow]


def test_every_query_of_the_serving_board_and_its_rules_finds_a_real_application(
    stage: Stage, served: Served, tmp_path: Path
) -> None:
    import ray

    body, over = json_rows(stage.small[0].rows.slice(0, 3)), threading.Event()

    def callers() -> None:
        while not over.wait(0.2):
            served.ask("/models/s.small/predict", body)

    board = next(b for b in BOARDS if b.uid == "tiltyard-serving")
    wanted = {q.expr: p.title for p in board.panels for q in p.queries}
    wanted |= {name: "recorded" for name in RECORDED if ":serving_" in name}
    healthy = next(a.expr for a in ALERTS if a.name == "TiltyardReplicaUnhealthy").removesuffix(" == 0")
    wanted[healthy] = "TiltyardReplicaUnhealthy"
    target = f"127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}"  # type: ignore[no-untyped-call]
    with scraping([target], tmp_path) as prometheus:
        calling = threading.Thread(target=callers)
        calling.start()
        try:
            missing = prometheus.unanswered(wanted)
            replicas = prometheus.ask(healthy)
        finally:
            over.set()
            calling.join()
    assert not missing, f"no data: {missing}"
    ours = [s for s in replicas if s["metric"]["application"] == "champions"]  # another test's may just have ended
    assert {float(s["value"][1]) for s in ours} == {1.0}
    assert "s.small@champion" in {s["metric"]["deployment"] for s in ours}
