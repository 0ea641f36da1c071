"""One experiment, while it sweeps and after. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import EXPERIMENT, Board, panel
from tiltyard.telemetry.boards.shared import BEST, DONE, HELD, TRIALS

LAG = panel(
    "Driver lag",
    "s",
    "Since the driver's loop last turned. It turns many times a second; seconds are a journal or a Ray head that is slow, "
    "minutes a driver that hangs.",
    (f"max by (experiment) (ray_tiltyard_sweep_driver_lag_seconds{{{EXPERIMENT}}})", "{{experiment}}"),
)

ATTEMPTS = panel(
    "Attempts at packs",
    "short",
    "How tries at packs ended. Failed and fenced ones are lost work.",
    (f"sum by (state) (ray_tiltyard_sweep_attempts{{{EXPERIMENT}}})", "{{state}}"),
    stacked=True,
)

BOARD = Board(
    uid="tiltyard-sweep",
    title="Tiltyard: sweep",
    meaning="One experiment: how far, how well, what failed, what it holds.",
    variables=("cluster", "team", "experiment", "run", "ray_job"),
    one=("experiment",),
    rows=(
        (
            "How far",
            (
                TRIALS,
                DONE,
                panel(
                    "Packs that train and that wait",
                    "short",
                    "With packs waiting and none training nothing fits: look at the cluster and the budget.",
                    (f"sum by (experiment) (ray_tiltyard_sweep_packs_running{{{EXPERIMENT}}})", "{{experiment}} train"),
                    (f"sum by (experiment) (ray_tiltyard_sweep_packs_waiting{{{EXPERIMENT}}})", "{{experiment}} wait"),
                ),
                panel(
                    "Paused",
                    "bool_yes_no",
                    "A person has paused it; go on: tiltyard continue EXPERIMENT.",
                    (f"max by (experiment) (ray_tiltyard_sweep_paused{{{EXPERIMENT}}})", "{{experiment}}"),
                    now=True,
                ),
            ),
        ),
        ("How well", (BEST,)),
        (
            "Rungs",
            (
                panel(
                    "What rungs decided",
                    "short",
                    "Trials that went on and that were stopped, each once a rung.",
                    (f"sum by (outcome) (ray_tiltyard_sweep_rung_decisions{{{EXPERIMENT}}})", "{{outcome}}"),
                ),
                panel(
                    "Rungs decided",
                    "short",
                    "Over all groups.",
                    (f"sum by (experiment) (ray_tiltyard_sweep_rungs{{{EXPERIMENT}}})", "{{experiment}}"),
                ),
            ),
        ),
        (
            "What went wrong",
            (
                ATTEMPTS,
                LAG,
                panel(
                    "Failures by reason",
                    "short",
                    "Trials that failed: diverged is a part of the space that does not work; worker_died and out_of_memory are "
                    "the cluster.",
                    (f"sum by (reason) (ray_tiltyard_sweep_failures{{{EXPERIMENT}}})", "{{reason}}"),
                    stacked=True,
                ),
                panel(
                    "Retries and restarts",
                    "short",
                    "Packs that were tried again, and how often the sweep was resumed or taken over.",
                    (f"sum by (experiment) (ray_tiltyard_sweep_retries{{{EXPERIMENT}}})", "{{experiment}} retries"),
                    (f"sum by (experiment) (ray_tiltyard_sweep_restarts{{{EXPERIMENT}}})", "{{experiment}} restarts"),
                ),
            ),
        ),
        (
            "All launches",
            (
                panel(
                    "Keys by state",
                    "short",
                    "Of each experiment, running or not: from the record.",
                    (
                        'sum by (experiment, state) (tiltyard_launches{experiment=~"$experiment"}) > 0',
                        "{{experiment}} {{state}}",
                    ),
                ),
                panel(
                    "Newest launch",
                    "s",
                    "Since it started; its name is that of its parent run in MLflow, where a click leads.",
                    (
                        'max by (experiment, run) (tiltyard_launch_age_seconds{experiment=~"$experiment"})',
                        "{{experiment}} {{run}}",
                    ),
                    now=True,
                ),
            ),
        ),
        (
            "What it holds",
            (
                HELD,
                panel(
                    "Time",
                    "s",
                    "Since this launch began to sweep.",
                    (
                        f"max by (experiment, ray_job) (ray_tiltyard_sweep_elapsed_seconds{{{EXPERIMENT}}})",
                        "{{experiment}} {{ray_job}}",
                    ),
                ),
            ),
        ),
    ),
)
