"""Models that answer requests. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import CLUSTER, MODEL, RATE, Board, panel, quantile
from tiltyard.telemetry.boards.shared import BURN, LATENCY, REGISTRY_AGE, SLOW_BURN, VERSION

REQUESTS = panel(
    "Requests",
    "reqps",
    "Answered requests by status. 5xx are ours, 4xx the callers'.",
    (f"sum by (status) (rate(ray_tiltyard_serving_requests_total{{{MODEL}}}[{RATE}]))", "{{status}}"),
    stacked=True,
)

BOARD = Board(
    uid="tiltyard-serving",
    title="Tiltyard: serving",
    meaning="Models that answer requests: how many, how fast, how well merged, how healthy.",
    variables=("cluster", "model"),
    rows=(
        ("Service levels", (BURN, SLOW_BURN, LATENCY)),
        (
            "Traffic",
            (
                REQUESTS,
                panel(
                    "Rows",
                    "rowsps",
                    "Rows that were answered.",
                    (f"sum by (model) (rate(ray_tiltyard_serving_rows_total{{{MODEL}}}[{RATE}]))", "{{model}}"),
                ),
                panel(
                    "Rows of a call",
                    "short",
                    "How many rows a model meets at once, small requests merged, and how many a request has.",
                    (quantile(0.5, "batch_rows", "model", MODEL), "{{model}} call p50"),
                    (quantile(0.5, "request_rows", "model", MODEL), "{{model}} request p50"),
                ),
                panel(
                    "Requests that wait",
                    "short",
                    "More than a second's worth: add replicas, or a larger batch.",
                    (f"sum by (model) (ray_tiltyard_serving_waiting_requests{{{MODEL}}})", "{{model}}"),
                ),
            ),
        ),
        (
            "Versions and replicas",
            (
                VERSION,
                REGISTRY_AGE,
                panel(
                    "Healthy replicas",
                    "short",
                    "By deployment, as Ray Serve checks them.",
                    (
                        f"sum by (application, deployment) (ray_serve_deployment_replica_healthy{{{CLUSTER}}})",
                        "{{application}} {{deployment}}",
                    ),
                ),
            ),
        ),
    ),
)
