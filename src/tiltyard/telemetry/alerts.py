"""What is alarming: Prometheus rules as plain data, each with how grave it is, what it means and what to do. Pure.

`rules_file` is the file that Prometheus reads; ``dashboards/rules_test.yaml`` drives every alert to fire and to stay silent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

AVAILABILITY = 0.999
"""Share of requests that are to be answered without a fault of ours."""
P99_S = 0.5
"""What 99% of requests are to be answered within."""
SLOW_SHARE = 0.01
"""Share of requests that may take longer."""
MISSED_H, STALE_H = 36, 48
"""A night ends once a day; so many hours without one, or without a new version of its data, are too many."""
_FAST, _SLOW = 14.4, 6.0
"""Burn rates that page and that warn: 2% of a month's errors in an hour, 5% in six (Google's SRE workbook, chapter 5)."""


def error_ratio(window: str, where: str = "") -> str:
    """PromQL: by model, the share of requests with a fault of ours over a window; 0 where there was none, or no request."""
    every = f"ray_tiltyard_serving_requests_total{{{where}}}"
    failed = f'ray_tiltyard_serving_requests_total{{{where}{"," if where else ""}status=~"5.."}}'
    of_all = f"sum by (model) (rate({every}[{window}]))"
    return f"(sum by (model) (rate({failed}[{window}])) or 0 * {of_all}) / clamp_min({of_all}, 1e-9)"


def slow_ratio(window: str, where: str = "") -> str:
    """PromQL: by model, the share of requests that took longer than `P99_S` over a window; 0 where there was none."""
    name = "ray_tiltyard_serving_request_seconds"
    within = f'sum by (model) (rate({name}_bucket{{{where}{"," if where else ""}le="{P99_S}"}}[{window}]))'
    of_all = f"sum by (model) (rate({name}_count{{{where}}}[{window}]))"
    return f"({of_all} - {within}) / clamp_min({of_all}, 1e-9)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One alert.

    Args:
        name: In CamelCase, as Prometheus' own.
        expr: True while it is alarming.
        lasting: For how long before it fires.
        severity: ``critical`` wakes somebody, ``warning`` waits for the morning.
        summary: What is the matter, in one line, with the labels of the series.
        meaning: What it means.
        action: What to do.
    """

    name: str
    expr: str
    lasting: str
    severity: str
    summary: str
    meaning: str
    action: str


_BUDGET_USED = (
    'sum by (team, resource) (max by (team, resource, kind) (tiltyard_budget_seconds{kind=~"reserved|spent"})) '
    '/ max by (team, resource) (tiltyard_budget_seconds{kind="limit"})'
)


def _burns(rate: float, short: str, long: str, what: str = "errors", allowed: float = 1 - AVAILABILITY) -> str:
    limit, series = f"{rate * allowed:.6g}", f"tiltyard:serving_{what}:ratio_rate"
    return f"({series}{long} > {limit}) and ({series}{short} > {limit})"


RECORDED = (
    {f"tiltyard:serving_errors:ratio_rate{window}": error_ratio(window) for window in ("5m", "30m", "1h", "6h")}
    | {f"tiltyard:serving_slow:ratio_rate{window}": slow_ratio(window) for window in ("5m", "1h")}
    | {
        "tiltyard:serving_request_seconds:p99_5m": "histogram_quantile(0.99, sum by (le, model) "
        "(rate(ray_tiltyard_serving_request_seconds_bucket[5m])))",
        "tiltyard:budget_used:ratio": _BUDGET_USED,
    }
)
"""Series that are worked out once for several alerts and panels."""

ALERTS = (
    Alert(
        name="TiltyardSweepStalled",
        expr="max by (experiment) (ray_tiltyard_sweep_driver_lag_seconds) > 300",
        lasting="1m",
        severity="critical",
        summary="The driver of {{ $labels.experiment }} has not turned its loop for {{ $value | humanizeDuration }}",
        meaning="The driver's process lives but hangs: on the journal, on Ray's head, or on storage. Nothing new starts.",
        action="Look at its log (tiltyard logs JOB), then end it and go on: tiltyard cancel JOB; tiltyard resume EXPERIMENT.",
    ),
    Alert(
        name="TiltyardSweepNoProgress",
        expr="(max by (experiment) (delta(ray_tiltyard_sweep_work_done_ratio[30m])) == 0) "
        "and on (experiment) (max by (experiment) (ray_tiltyard_sweep_paused) == 0) "
        "and on (experiment) (max by (experiment) (ray_tiltyard_sweep_elapsed_seconds) > 1800)",
        lasting="10m",
        severity="warning",
        summary="{{ $labels.experiment }} has finished no epoch for half an hour",
        meaning="Packs wait for devices or a budget, or one rung takes longer than half an hour.",
        action="Look at the sweep's board: packs that train, the budget (tiltyard budget show), the cluster's free CPUs and GPUs.",
    ),
    Alert(
        name="TiltyardTrialsFailing",
        expr='sum by (experiment) (ray_tiltyard_sweep_trials{state="failed"}) '
        "/ sum by (experiment) (ray_tiltyard_sweep_trials) > 0.2",
        lasting="2m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the trials of {{ $labels.experiment }} failed",
        meaning="A variant or a part of its space does not work on this data.",
        action="Read the reasons: tiltyard leaderboard EXPERIMENT --all; stop it with tiltyard pause EXPERIMENT.",
    ),
    Alert(
        name="TiltyardPacksFailing",
        expr='sum by (experiment) (ray_tiltyard_sweep_attempts{state=~"failed|fenced"}) '
        "/ sum by (experiment) (ray_tiltyard_sweep_attempts) > 0.25",
        lasting="5m",
        severity="warning",
        summary="{{ $value | humanizePercentage }} of the attempts of {{ $labels.experiment }} were lost",
        meaning="Workers die or run out of memory: what they had trained since the last rung is trained again.",
        action="Read the reasons with tiltyard trial show NAME; look at the nodes' memory, and at spot nodes being taken away.",
    ),
    Alert(
        name="TiltyardBudgetNearlySpent",
        expr="tiltyard:budget_used:ratio > 0.8",
        lasting="1m",
        severity="warning",
        summary="Team {{ $labels.team }} has used {{ $value | humanizePercentage }} of its {{ $labels.resource }} budget",
        meaning="Reserved and spent seconds are past four fifths of the limit.",
        action="Decide now: raise it (tiltyard budget set TEAM ...) or let the running sweeps end within it.",
    ),
    Alert(
        name="TiltyardBudgetSpent",
        expr="tiltyard:budget_used:ratio >= 1",
        lasting="1m",
        severity="critical",
        summary="Team {{ $labels.team }} has used up its {{ $labels.resource }} budget",
        meaning="No further pack of this team starts; its sweeps end with what they have.",
        action="Raise it with tiltyard budget set TEAM, then tiltyard resume EXPERIMENT.",
    ),
    Alert(
        name="TiltyardServeErrorsFast",
        expr=_burns(_FAST, "5m", "1h"),
        lasting="2m",
        severity="critical",
        summary="{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests",
        meaning=f"At this rate a month's errors (of {AVAILABILITY:.1%}) are gone within two days.",
        action="Look at the serving board and the replicas' logs; go back: tiltyard models rollback MODEL.",
    ),
    Alert(
        name="TiltyardServeErrorsSlow",
        expr=_burns(_SLOW, "30m", "6h"),
        lasting="15m",
        severity="warning",
        summary="{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests over six hours",
        meaning=f"At this rate a month's errors (of {AVAILABILITY:.1%}) are gone within five days.",
        action="Look at the serving board: which status, since which version.",
    ),
    Alert(
        name="TiltyardServeSlow",
        expr=f"tiltyard:serving_request_seconds:p99_5m > {P99_S}",
        lasting="10m",
        severity="warning",
        summary="p99 of {{ $labels.model }} is {{ $value | humanizeDuration }}",
        meaning=f"One of a hundred requests takes longer than {P99_S} s.",
        action="Look at requests that wait and at rows of a call; add replicas.",
    ),
    Alert(
        name="TiltyardServeSlowBurn",
        expr=_burns(_FAST, "5m", "1h", "slow", SLOW_SHARE),
        lasting="2m",
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the requests to {{ $labels.model }} are slow",
        meaning=f"At this rate a month's slow requests ({SLOW_SHARE:.0%} above {P99_S} s) are gone within two days.",
        action="Look at requests that wait; add replicas; go back if a new version is slower: tiltyard models rollback MODEL.",
    ),
    Alert(
        name="TiltyardNightMissed",
        expr=f"max by (night) (tiltyard_night_age_seconds) > {MISSED_H * 3600}",
        lasting="10m",
        severity="critical",
        summary="The night {{ $labels.night }} has not ended well for {{ $value | humanizeDuration }}",
        meaning="It was not started, hangs, or failed each time: nothing is evaluated, retrained or promoted.",
        action="Look at tiltyard nightly history and at the CronJob; run it now: tiltyard nightly run-now FILE.",
    ),
    Alert(
        name="TiltyardNightFailed",
        expr='max by (night) (tiltyard_night_outcome{outcome="failed"}) == 1',
        lasting="5m",
        severity="warning",
        summary="The last night {{ $labels.night }} failed",
        meaning="A step of it raised an error; the steps before it are kept.",
        action="Read the reason (tiltyard nightly history), mend it, and run it again: it goes on behind its last step.",
    ),
    Alert(
        name="TiltyardDataStale",
        expr=f"max by (night, dataset) (tiltyard_night_data_age_seconds) > {STALE_H * 3600}",
        lasting="10m",
        severity="warning",
        summary="{{ $labels.dataset }} has had no new version for {{ $value | humanizeDuration }}",
        meaning="The night {{ $labels.night }} looks at it and finds nothing new: whoever commits it does not, or is refused.",
        action="Look at its history and at refused commits (tiltyard data history NAME), and at the job that commits it.",
    ),
    Alert(
        name="TiltyardDrift",
        expr='max by (model, dataset) (tiltyard_drifted_columns{role="champion"}) > 0',
        lasting="5m",
        severity="warning",
        summary="{{ $value }} columns of {{ $labels.dataset }} drifted from what {{ $labels.model }} was trained on",
        meaning="The newest version does not look like the training split; predictions count as columns.",
        action="See which columns (tiltyard evaluate show MODEL@VERSION DATASET@VERSION); retrain on the newest version.",
    ),
    Alert(
        name="TiltyardChampionBelowBound",
        expr='max by (model, dataset) (tiltyard_model_below_bound{role="champion"}) == 1',
        lasting="5m",
        severity="critical",
        summary="{{ $labels.model }} is surely worse on {{ $labels.dataset }} than when it was promoted",
        meaning="The whole interval of its score is worse than that on the test split of its own version.",
        action="Look at its slices and at drift on the models board; retrain, or go back: tiltyard models rollback MODEL.",
    ),
    Alert(
        name="TiltyardRecordUnread",
        expr="max(tiltyard_record_age_seconds) > 300",
        lasting="5m",
        severity="warning",
        summary="The record has not been read whole for {{ $value | humanizeDuration }}",
        meaning="Journal, registry or data store do not answer the exporter: nights, drift and scores are not seen.",
        action="Read the exporter's log; look at the database and the object store: tiltyard doctor.",
    ),
    Alert(
        name="TiltyardRecordGone",
        expr="absent(tiltyard_record_age_seconds)",
        lasting="15m",
        severity="critical",
        summary="Nobody tells of nights, data versions, budgets and scores",
        meaning="The exporter of the record does not run or is not scraped: none of the alerts on those can fire.",
        action="Start it (tiltyard up; on a cluster look at its pod), and look at Prometheus' targets.",
    ),
    Alert(
        name="TiltyardModelStale",
        expr="max by (model) (ray_tiltyard_serving_stale) == 1",
        lasting="15m",
        severity="warning",
        summary="{{ $labels.model }} serves an older version than its alias names",
        meaning="The newer version could not be fetched or loaded, or its digest is not the one on record.",
        action="Read the replica's log; look at the version: tiltyard models show MODEL.",
    ),
    Alert(
        name="TiltyardRegistryAway",
        expr="max by (model) (ray_tiltyard_serving_registry_age_seconds) > 300",
        lasting="5m",
        severity="warning",
        summary="{{ $labels.model }} has not heard of the registry for {{ $value | humanizeDuration }}",
        meaning="It answers with the version that it knew last; a promotion or a rollback does not reach it.",
        action="Look at MLflow and its database: tiltyard doctor; the replica's log says what the registry answered.",
    ),
    Alert(
        name="TiltyardReplicaUnhealthy",
        expr="min by (application, deployment) (ray_serve_deployment_replica_healthy) == 0",
        lasting="5m",
        severity="critical",
        summary="A replica of {{ $labels.application }} {{ $labels.deployment }} fails its health checks",
        meaning="Ray Serve could not bring it back within five minutes.",
        action="Look at the replica's log in Ray's dashboard: out of memory, or a model that cannot be loaded.",
    ),
    Alert(
        name="TiltyardObjectStoreSpills",
        expr='sum by (instance) (ray_object_store_memory{Location="SPILLED"}) > 0',
        lasting="10m",
        severity="warning",
        summary="{{ $labels.instance }} keeps {{ $value | humanize1024 }}B of objects on disk",
        meaning="The object store is full: what is read again comes from disk.",
        action="Lower resources.memory_share or max_concurrent of the experiment, or give nodes more memory.",
    ),
    Alert(
        name="TiltyardDiskFilling",
        expr="min by (instance) (ray_node_disk_free / (ray_node_disk_free + ray_node_disk_usage)) < 0.1",
        lasting="10m",
        severity="critical",
        summary="{{ $labels.instance }} has {{ $value | humanizePercentage }} of its disk left",
        meaning="At 5% Ray starts nothing more on the node, and checkpoints cannot be written.",
        action="Remove old Ray sessions and spilled objects; collect old dataset versions: tiltyard data gc.",
    ),
    Alert(
        name="TiltyardGpuIdleWhileHeld",
        expr="(avg by (instance) (avg_over_time(ray_node_gpus_utilization[30m])) < 5) "
        'and on () (sum(ray_resources{Name="GPU",State="USED"}) > 0)',
        lasting="30m",
        severity="warning",
        summary="GPUs of {{ $labels.instance }} are used {{ $value | humanize }}% while they are held",
        meaning="Somebody pays for GPUs that do next to nothing: training waits for data, or packs are too small.",
        action="Look at the data board (time that training waited) and at resources.pack; lower gpus of the experiment.",
    ),
)


def rules_file() -> dict[str, Any]:
    """Recording and alerting rules, as Prometheus reads them."""
    recorded = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    alerts = [
        {
            "alert": a.name,
            "expr": a.expr,
            "for": a.lasting,
            "labels": {"severity": a.severity},
            "annotations": {"summary": a.summary, "meaning": a.meaning, "action": a.action},
        }
        for a in ALERTS
    ]
    return {
        "groups": [
            {"name": "tiltyard-recorded", "interval": "30s", "rules": recorded},
            {"name": "tiltyard-alerts", "interval": "30s", "rules": alerts},
        ]
    }


def scrape_file(
    *,
    ray: str = "/tmp/ray/prom_metrics_service_discovery.json",  # noqa: S108 - where Ray puts it
    record: str = "127.0.0.1:9105",
    rules: str = "rules.yaml",
) -> dict[str, Any]:
    """What a Prometheus beside a Ray head on this machine reads.

    Args:
        ray: File in which Ray says where its ports are; it renews it.
        record: Where `tiltyard.telemetry.exporter` answers.
        rules: File of the rules.
    """
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "10s"},
        "rule_files": [rules],
        "scrape_configs": [
            # Ray's file is a link into the session's folder: Prometheus is told of the link's change, not of the file's
            {"job_name": "ray", "file_sd_configs": [{"files": [ray], "refresh_interval": "10s"}]},
            {"job_name": "tiltyard-record", "static_configs": [{"targets": [record]}]},
        ],
    }
