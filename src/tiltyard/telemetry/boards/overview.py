"""One look: is it healthy, what does it do, what does it cost. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import CLUSTER, EXPERIMENT, MODEL, Board, panel
from tiltyard.telemetry.boards.shared import BEST, BUDGET, BURN, DONE, DRIFTED, HELD, LATENCY, SCORE, SLOW_BURN, TRIALS

NIGHT_AGE = panel(
    "Since the last night",
    "s",
    "Since each night's work last ended well. More than a day and a half: it was missed, hangs, or fails.",
    ("max by (night) (tiltyard_night_age_seconds)", "{{night}}"),
)

NIGHT_OUTCOME = panel(
    "What became of the night",
    "short",
    "1 at the outcome of each newest night. failed: tiltyard nightly history says why.",
    ("max by (night, outcome) (tiltyard_night_outcome) > 0", "{{night}}: {{outcome}}"),
)

BOARD = Board(
    uid="tiltyard-overview",
    title="Tiltyard: overview",
    meaning="Is it healthy, what does it do, what does it cost: one look.",
    variables=("cluster", "team", "experiment", "model"),
    rows=(
        (
            "Now",
            (
                panel(
                    "Sweeps",
                    "short",
                    "Experiments that sweep now.",
                    f"count(count by (experiment) (ray_tiltyard_sweep_elapsed_seconds{{{EXPERIMENT}}}))",
                    now=True,
                ),
                panel(
                    "Models served",
                    "short",
                    "Models with a version that answers.",
                    f"count(count by (model) (ray_tiltyard_serving_version{{{MODEL}}}))",
                    now=True,
                ),
                panel(
                    "Failed trials",
                    "short",
                    "Of the sweeps that run now.",
                    f'sum(ray_tiltyard_sweep_trials{{{EXPERIMENT},state="failed"}})',
                    now=True,
                ),
                panel("Nodes", "short", "Nodes of Ray.", f"count(ray_node_cpu_count{{{CLUSTER}}})", now=True),
                panel(
                    "Nights that failed",
                    "short",
                    "Whose newest try ended with an error.",
                    'sum(max by (night) (tiltyard_night_outcome{outcome="failed"}))',
                    now=True,
                ),
                panel(
                    "Champions below their bound",
                    "short",
                    "Surely worse on the newest version than on the test split that they were promoted on.",
                    'sum(tiltyard_model_below_bound{role="champion"})',
                    now=True,
                ),
                panel(
                    "Record",
                    "s",
                    "Since nights, data and evaluations were last read without a fault; minutes: the exporter's log says why.",
                    "max(tiltyard_record_age_seconds)",
                    now=True,
                ),
            ),
        ),
        ("Service levels", (BURN, SLOW_BURN, LATENCY)),
        ("Nights", (NIGHT_AGE, NIGHT_OUTCOME, DRIFTED, SCORE)),
        ("Sweeps", (TRIALS, DONE, BEST)),
        ("Cost", (HELD, BUDGET)),
    ),
)
