"""Panels that stand on more than one board. Pure."""

from __future__ import annotations

from tiltyard.telemetry.alerts import AVAILABILITY, P99_S, SLOW_SHARE, error_ratio, slow_ratio
from tiltyard.telemetry.boards.shapes import EXPERIMENT, MODEL, RECORDED, panel, quantile

TRIALS = panel(
    "Trials by state",
    "short",
    "How many trials wait, run, are done, were stopped or failed. Failed ones that rise: tiltyard leaderboard --all says why.",
    (f"sum by (state) (ray_tiltyard_sweep_trials{{{EXPERIMENT}}})", "{{state}}"),
    stacked=True,
)

DONE = panel(
    "Work done",
    "percentunit",
    "Share of the epochs that is done.",
    (f"max by (experiment) (ray_tiltyard_sweep_work_done_ratio{{{EXPERIMENT}}})", "{{experiment}}"),
)

BEST = panel(
    "Best score so far",
    "none",
    "Of each dataset, on its validation rows.",
    (f"max by (experiment, dataset, metric) (ray_tiltyard_sweep_best_score{{{EXPERIMENT}}})", "{{dataset}} {{metric}}"),
)

HELD = panel(
    "Held devices",
    "s",
    "CPU- and GPU-seconds that experiments were charged, waiting in them, and seconds of attempts that were lost.",
    (f"sum by (experiment, resource) (ray_tiltyard_sweep_held_seconds{{{EXPERIMENT}}})", "{{experiment}} {{resource}}"),
    (
        f"sum by (experiment, resource) (ray_tiltyard_sweep_lost_seconds{{{EXPERIMENT}}})",
        "{{experiment}} {{resource}} lost",
    ),
)

LATENCY = panel(
    "Latency",
    "s",
    "From a request's head to its answer, at the front.",
    (quantile(0.5, "request_seconds", "model", MODEL), "{{model}} p50"),
    (quantile(0.95, "request_seconds", "model", MODEL), "{{model}} p95"),
    (quantile(0.99, "request_seconds", "model", MODEL), "{{model}} p99"),
)

BURN = panel(
    "Error budget burn rate",
    "none",
    f"How many times faster than allowed errors come, at {AVAILABILITY:.1%} of requests answered: 1 just keeps it; above 14.4 "
    "over an hour a month's budget is gone in two days.",
    *(
        (f"({error_ratio(window, MODEL)}) / {1 - AVAILABILITY:.4g}", f"{{{{model}}}} {window}")
        for window in ("5m", "1h", "6h")
    ),
)

SLOW_BURN = panel(
    "Latency budget burn rate",
    "none",
    f"How many times faster than allowed requests take longer than {P99_S} s, at {SLOW_SHARE:.0%} of them: 1 just keeps it.",
    *((f"({slow_ratio(window, MODEL)}) / {SLOW_SHARE}", f"{{{{model}}}} {window}") for window in ("5m", "1h")),
)

DRIFTED = panel(
    "Columns that drifted",
    "short",
    "Of the newest evaluated version, against the training split; predictions count as columns.",
    (
        f"max by (model, role, version, dataset) (tiltyard_drifted_columns{{{RECORDED}}})",
        "{{model}} {{role}} {{version}} on {{dataset}}",
    ),
)

SCORE = panel(
    "Score with its interval",
    "none",
    "On the newest evaluated version: value, low and high of 95%. Champion and candidate whose intervals overlap may be equal.",
    (
        f"max by (model, role, version, dataset, metric, bound) (tiltyard_model_score{{{RECORDED}}})",
        "{{model}} {{role}} {{version}} {{metric}} {{bound}}",
    ),
)

VERSION = panel(
    "Version that serves",
    "none",
    "The registry's number.",
    (
        f"max by (model, registered) (ray_tiltyard_serving_version{{{MODEL}}})",
        "{{model}}",
    ),
)

REGISTRY_AGE = panel(
    "Since the registry was heard",
    "s",
    "Minutes: the registry is away; the version that was known last is served, and a promotion or a rollback reaches nobody.",
    (f"max by (model) (ray_tiltyard_serving_registry_age_seconds{{{MODEL}}})", "{{model}}"),
)

BUDGET = panel(
    "Budgets of teams",
    "s",
    "Limit, reserved and spent, whether or not something runs: from the record.",
    ('max by (team, resource, kind) (tiltyard_budget_seconds{team=~"$team"})', "{{team}} {{resource}} {{kind}}"),
)
