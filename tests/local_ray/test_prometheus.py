"""Every query of the boards and the rules, asked of a real Prometheus that scrapes the session's Ray while a sweep runs, and
the exporter of a record in which nights, dataset versions and evaluations of a registered champion stand.

Models are not served here (`serving/test_boards.py` has a real application): the meter that an application's front counts with
is driven from this process, so its series come through Ray's exporter as they would.
"""

from __future__ import annotations

import dataclasses
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import recorded_sweep
import sweeps
from prometheus_server import WAIT_S, Prometheus, scraping

from tiltyard.data.profile import ColumnProfile
from tiltyard.evaluation.folding import PREDICTED
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.experiment import Budget
from tiltyard.journal import Journal, Owner
from tiltyard.serving.comparison import BOUNDS_S, Comparison, Pair
from tiltyard.serving.meters import Meters
from tiltyard.serving.traffic import Split
from tiltyard.settings import Settings
from tiltyard.sweep.engine.outcome import Silent
from tiltyard.telemetry.alerts import ALERTS, RECORDED
from tiltyard.telemetry.boards import BOARDS
from tiltyard.telemetry.boards.shapes import OF_ONE
from tiltyard.telemetry.exporter import RecordReader
from tiltyard.telemetry.exporter import exporting as record_exporting
from tiltyard.telemetry.record import Known
from tiltyard.telemetry.sweeps import exporting

pytestmark = [pytest.mark.ray, pytest.mark.prometheus, pytest.mark.slow]
NOT_HERE = {
    "ray_serve_deployment_replica_healthy": "no application is served in this test; serving/test_boards.py has one",
    "ray_node_gpus_utilization": "no GPU",
    "ray_node_gram_used": "no GPU",
    "ray_tiltyard_sweep_cost": "no worker group with a price: this Ray is of no described cluster",
}
"""Series that this machine cannot have, and why."""


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the exporter of a record answers that has one of everything."""
    settings = sweeps.settings_at(
        tmp_path_factory.mktemp("record"), sweeps.commit_small_datasets(tmp_path_factory.mktemp("record-data"))
    )
    settings.ensure_home()
    recorded = recorded_sweep.record(settings.home, trials=12, datasets=["rings"])
    part = Scored(rows=40, labelled=40, scores={"accuracy": Score(value=0.7, low=0.6, high=0.8)})
    with Journal.open(settings.journal_uri) as journal:
        journal.budgets.set("vision", limit_cpu_s=36_000, limit_gpu_s=None)
        results = recorded_sweep.evaluate_champion(recorded, versions=2)
        full = dataclasses.replace(
            results[-1],
            dataset_version=3,
            slices={"site": {"east": part}},
            fairness=({"column": "sex", "ratio": {"value": 0.7, "low": 0.6, "high": 0.9}},),
            shapes={PREDICTED: ColumnProfile(type="string", count=10, categories={"inner": 7, "outer": 3})},
        )
        about = {"date": "2026-11-24", "night": {"dataset": "rings"}}
        for kind, subject, told in (
            ("evaluation", full.model, full.to_json()),
            ("night", "rings", {"outcome": "watched"}),
        ):
            claim = journal.works.claim(f"{kind}/1", kind=kind, subject=subject, about=about, owner=Owner.here())
            journal.works.finish(claim, told, cause="test")
    known = [Known(name=full.model, version=1, role="champion", created=0.0, trained_on=("rings", 1))]
    with pytest.MonkeyPatch.context() as patch:  # the registry is asked for real in tests/unit/telemetry/test_record.py
        patch.setattr(RecordReader, "_known", lambda _: known)
        settings_uri = dataclasses.replace(settings, tracking_uri="http://127.0.0.1:1")
        with record_exporting(settings_uri, every_s=1.0) as exporter:
            yield f"127.0.0.1:{exporter.port}"


@pytest.fixture(scope="module")
def prometheus(ray_session: None, record: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    import ray

    target = f"127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}"  # type: ignore[no-untyped-call]
    with scraping([target, record], tmp_path_factory.mktemp("prometheus")) as found:
        yield found


ERRORS = "tiltyard:serving_errors:ratio_rate5m"


def _count(meters: Meters) -> None:
    """What the front of an application counts in a moment: answers, a failure, a comparison, its gauges."""
    meters.request("m", 200, 0.004, 3)
    meters.request("m", 500, 0.004, 0)
    meters.batch("m", 6)
    meters.state(cast(Any, SimpleNamespace(served_as="m", model="m", version=2, problem=None, registry_age_s=1.0)), 1)
    meters.split("m", Split.parse("m@3:0.5", "shadow"))
    buckets = (0, 0, 0, 1, *([0] * (len(BOUNDS_S) - 3)))  # one of the buckets, and one beyond all
    meters.comparison(
        Comparison(
            pair=Pair(
                model="m",
                mode="shadow",
                champion_version=2,
                champion_digest="a",
                challenger_version=3,
                challenger_digest="b",
            ),
            requests=1,
            rows=4,
            agreed=3,
            values=8,
            difference_sum=0.4,
            champion_seconds=buckets,
            challenger_seconds=buckets,
        )
    )
    meters.flush()


def test_every_query_of_boards_and_rules_finds_data_in_prometheus_while_a_sweep_runs(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    import ray.data

    gate, settings = (
        tmp_path / "gate",
        sweeps.settings_at(tmp_path / "home", sweeps.commit_small_datasets(tmp_path / "data")),
    )
    gate.touch()
    with Journal.open(_ready(settings).journal_uri) as journal:
        journal.budgets.set("vision", limit_cpu_s=72_000, limit_gpu_s=None)
    wanted = sweeps.gated(gate, steps=5, budget=Budget(team="vision"))  # past the first rung, into the second
    meters, over = Meters(), threading.Event()

    def sweep() -> None:
        with exporting(settings, wanted, Silent(), job="job-7") as watch:
            sweeps.run_launch(settings, wanted, watch)

    def live() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own: a thread's first context sets fields that Ray calls deprecated
            ray.data.DataContext.get_current()
        while not over.wait(1.0):
            _count(meters)
            for _ in ray.data.range(2000, override_num_blocks=2).iter_batches(batch_size=500):
                time.sleep(0.02)

    missing = {q.expr: p.title for b in BOARDS for p in b.panels for q in p.queries} | dict.fromkeys(
        RECORDED, "recorded"
    )
    missing = {e: title for e, title in missing.items() if not any(name in e for name in NOT_HERE)}
    try:
        with sweeps.meanwhile(sweep), sweeps.meanwhile(live):
            try:
                missing = prometheus.unanswered(missing)
                deadline = time.monotonic() + WAIT_S
                trials = prometheus.ask('sum(ray_tiltyard_sweep_trials{experiment="gated",team="vision"})')
                limit = prometheus.ask('max(tiltyard_budget_seconds{team="vision",resource="cpu",kind="limit"})')
                job = prometheus.ask(OF_ONE["ray_job"][0].replace("$experiment", "gated"))
                with Journal.open(settings.journal_uri) as journal:
                    while (run := journal.launches("gated")[0].parent_run_id) is None and time.monotonic() < deadline:
                        time.sleep(0.2)  # MLflow's writer has made it, and the sweep goes on
                errors = prometheus.ask(ERRORS)
                while (
                    abs(float(errors[0]["value"][1]) - 0.5) > 0.05 and time.monotonic() < deadline
                ):  # a share of nothing yet
                    time.sleep(1.0)
                    errors = prometheus.ask(ERRORS)
            finally:
                over.set()
                gate.unlink()
    finally:
        over.set()
    assert not missing, f"no data within {WAIT_S} s: {missing}"
    assert float(trials[0]["value"][1]) == 4
    assert [j["metric"]["ray_job"] for j in job] == ["job-7"]
    assert run is not None
    assert float(limit[0]["value"][1]) == 36_000
    assert float(errors[0]["value"][1]) == pytest.approx(0.5, abs=0.05)
    rules = [r for g in prometheus.get("rules")["groups"] for r in g["rules"]]
    assert {r["name"] for r in rules} == {a.name for a in ALERTS} | set(RECORDED)
    assert {r["name"]: r["lastError"] for r in rules if r["health"] != "ok" and r.get("lastError")} == {}
    firing = {r["name"] for r in rules if r.get("state") == "firing"}
    assert firing <= {"TiltyardServeErrorsFast", "TiltyardDiskFilling", "TiltyardDrift"}, firing


def _ready(settings: Settings) -> Settings:
    settings.ensure_home()
    return settings
