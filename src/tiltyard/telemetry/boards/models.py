"""Versions with roles: scores, drift, champion against challenger. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import MODEL, RATE, RECORDED, Board, panel, quantile
from tiltyard.telemetry.boards.shared import DRIFTED, REGISTRY_AGE, SCORE, VERSION

BOARD = Board(
    uid="tiltyard-models",
    title="Tiltyard: models",
    meaning="Which versions answer, and how a challenger does beside its champion on live requests.",
    variables=("cluster", "model"),
    rows=(
        (
            "Versions",
            (
                VERSION,
                REGISTRY_AGE,
                panel(
                    "Older than its alias",
                    "bool_yes_no",
                    "A newer version could not be loaded; the replica's log says why.",
                    (f"max by (model) (ray_tiltyard_serving_stale{{{MODEL}}})", "{{model}}"),
                ),
            ),
        ),
        (
            "Scores on the newest version",
            (
                SCORE,
                panel(
                    "Score by slice",
                    "none",
                    "Of the metric that models are chosen by, with its interval; a slice far below the rest is a weakness.",
                    (
                        f"max by (model, role, version, metric, column, slice, bound) (tiltyard_model_slice_score{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{column}}={{slice}} {{bound}}",
                    ),
                ),
                panel(
                    "Calibration error",
                    "percentunit",
                    "Mean distance of confidence and the share that was right.",
                    (
                        f"max by (model, role, version, dataset) (tiltyard_model_calibration_error{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}}",
                    ),
                ),
                panel(
                    "Fairness ratio",
                    "percentunit",
                    "Smallest selection rate of a group over the largest, of declared sensitive columns; look below 0.8.",
                    (
                        f"max by (model, role, version, column, bound) (tiltyard_model_fairness_ratio{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{column}} {{bound}}",
                    ),
                ),
                panel(
                    "Since training",
                    "s",
                    "Age of each version that has a role.",
                    (
                        f"max by (model, role, version) (tiltyard_model_age_seconds{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}}",
                    ),
                ),
                panel(
                    "Below its bound",
                    "bool_yes_no",
                    "The whole interval is worse than that of the test split it was promoted on.",
                    (
                        f"max by (model, role, version, dataset) (tiltyard_model_below_bound{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} on {{dataset}}",
                    ),
                    now=True,
                ),
                DRIFTED,
            ),
        ),
        (
            "Champion and challenger",
            (
                panel(
                    "Share of requests",
                    "percentunit",
                    "That a challenger meets, in shadow or as canary.",
                    (f"max by (model, mode) (ray_tiltyard_serving_split_share{{{MODEL}}})", "{{model}} {{mode}}"),
                ),
                panel(
                    "Compared requests",
                    "reqps",
                    "By outcome; challenger_error: it failed where the champion did not.",
                    (
                        "sum by (model, outcome) "
                        f"(rate(ray_tiltyard_serving_compared_requests_total{{{MODEL}}}[{RATE}]))",
                        "{{model}} {{outcome}}",
                    ),
                ),
                panel(
                    "Rows on which both agree",
                    "percentunit",
                    "Share of the rows that both answered.",
                    (
                        f'sum by (model) (rate(ray_tiltyard_serving_compared_rows_total{{{MODEL},agree="yes"}}[{RATE}])) '
                        f"/ (sum by (model) (rate(ray_tiltyard_serving_compared_rows_total{{{MODEL}}}[{RATE}])) > 0)",
                        "{{model}}",
                    ),
                ),
                panel(
                    "Latency of each",
                    "s",
                    "p99 on the same requests.",
                    (quantile(0.99, "compared_seconds", "model, role", MODEL), "{{model}} {{role}}"),
                ),
                panel(
                    "Difference of scores",
                    "none",
                    "Mean absolute difference of a request's scores, median and p99.",
                    (quantile(0.5, "score_difference", "model", MODEL), "{{model}} p50"),
                    (quantile(0.99, "score_difference", "model", MODEL), "{{model}} p99"),
                ),
            ),
        ),
    ),
)
