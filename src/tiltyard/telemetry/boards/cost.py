"""What experiments hold and what teams have left. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import EXPERIMENT, Board, panel
from tiltyard.telemetry.boards.shared import BUDGET, HELD

BOARD = Board(
    uid="tiltyard-cost",
    title="Tiltyard: cost",
    meaning="What experiments hold and teams have left.",
    variables=("cluster", "team", "experiment"),
    rows=(
        (
            "Budgets",
            (
                BUDGET,
                panel(
                    "Budget used",
                    "percentunit",
                    "Reserved and spent over the limit, by team.",
                    (
                        'sum by (team, resource) (max by (team, resource, kind) (tiltyard_budget_seconds{team=~"$team",'
                        'kind=~"reserved|spent"})) / max by (team, resource) '
                        '(tiltyard_budget_seconds{team=~"$team",kind="limit"})',
                        "{{team}} {{resource}}",
                    ),
                ),
            ),
        ),
        (
            "Experiments",
            (
                HELD,
                panel(
                    "Lost share",
                    "percentunit",
                    "Device-seconds of lost attempts over those held: what was wasted.",
                    (
                        f"sum by (experiment, resource) (ray_tiltyard_sweep_lost_seconds{{{EXPERIMENT}}}) / "
                        f"sum by (experiment, resource) (ray_tiltyard_sweep_held_seconds{{{EXPERIMENT}}} > 0)",
                        "{{experiment}} {{resource}}",
                    ),
                ),
                panel(
                    "Money",
                    "none",
                    "What attempts cost at the prices of the worker groups that they ran on, a pack's share of a worker; empty "
                    "where the cluster's description gives none.",
                    (
                        f"sum by (experiment, currency) (ray_tiltyard_sweep_cost{{{EXPERIMENT}}})",
                        "{{experiment}} {{currency}}",
                    ),
                ),
                panel(
                    "Cost of a trial",
                    "s",
                    "Device-seconds that were metered for each trial that has ended.",
                    (
                        f"max by (experiment, resource) (ray_tiltyard_sweep_trial_cost_seconds{{{EXPERIMENT}}})",
                        "{{experiment}} {{resource}}",
                    ),
                ),
            ),
        ),
    ),
)
