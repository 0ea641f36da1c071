"""What is read, who waits for it, and how it moved since training. Pure."""

from __future__ import annotations

from tiltyard.telemetry.boards.shapes import CLUSTER, RATE, RECORDED, Board, panel
from tiltyard.telemetry.boards.shared import DRIFTED

BOARD = Board(
    uid="tiltyard-data",
    title="Tiltyard: data",
    meaning="What Ray Data streams, and who waits for it. Its gauges are there while a dataset is read.",
    variables=("cluster", "model"),
    rows=(
        (
            "Stream",
            (
                panel(
                    "Rows read",
                    "rowsps",
                    "By dataset of Ray Data.",
                    (f"sum by (dataset) (rate(ray_data_output_rows{{{CLUSTER}}}[{RATE}]))", "{{dataset}}"),
                ),
                panel(
                    "Bytes read",
                    "Bps",
                    "By dataset of Ray Data.",
                    (f"sum by (dataset) (rate(ray_data_output_bytes{{{CLUSTER}}}[{RATE}]))", "{{dataset}}"),
                ),
                panel(
                    "Spilled by datasets",
                    "bytes",
                    "More than nothing: the object store is too small for what streams at once.",
                    (f"sum by (dataset) (ray_data_spilled_bytes{{{CLUSTER}}})", "{{dataset}}"),
                ),
            ),
        ),
        (
            "Waiting",
            (
                panel(
                    "Time that training waited",
                    "percentunit",
                    "Of the time in iterators: blocked over blocked and working.",
                    (
                        f"sum(rate(ray_data_iter_total_blocked_seconds{{{CLUSTER}}}[{RATE}])) / "
                        f"clamp_min(sum(rate(ray_data_iter_total_blocked_seconds{{{CLUSTER}}}[{RATE}])) "
                        f"+ sum(rate(ray_data_iter_user_seconds{{{CLUSTER}}}[{RATE}])), 1e-9)",
                        "waited",
                    ),
                ),
                panel(
                    "Time that trials waited for data",
                    "percentunit",
                    "Of the seconds of packs, by dataset: near 0 where training is what takes the time.",
                    (
                        f"sum by (dataset) (rate(ray_tiltyard_training_data_wait_seconds_total{{{CLUSTER}}}[{RATE}])) / "
                        f"clamp_min(sum by (dataset) (rate(ray_tiltyard_training_seconds_total{{{CLUSTER}}}[{RATE}])), 1e-9)",
                        "{{dataset}}",
                    ),
                ),
                panel(
                    "Rows trained on",
                    "rowsps",
                    "Rows that training steps took, once for all trials of a pack.",
                    (f"sum by (dataset) (rate(ray_tiltyard_training_rows_total{{{CLUSTER}}}[{RATE}]))", "{{dataset}}"),
                ),
                panel(
                    "Bytes trained on",
                    "Bps",
                    "Those rows as the model takes them, labels in them, once for all trials of a pack.",
                    (f"sum by (dataset) (rate(ray_tiltyard_training_bytes_total{{{CLUSTER}}}[{RATE}]))", "{{dataset}}"),
                ),
            ),
        ),
        (
            "Versions",
            (
                panel(
                    "Since the newest version",
                    "s",
                    "Freshness of each dataset.",
                    ("max by (dataset) (tiltyard_dataset_age_seconds)", "{{dataset}}"),
                ),
                panel(
                    "Since the newest version that a night looks at",
                    "s",
                    "More than two days: whoever commits it does not, or is refused.",
                    ("max by (night, dataset) (tiltyard_night_data_age_seconds)", "{{night}} {{dataset}}"),
                ),
                panel(
                    "Versions committed and refused",
                    "short",
                    "Refused ones broke a declared check.",
                    ("max by (dataset) (tiltyard_dataset_versions_committed)", "{{dataset}} committed"),
                    ("max by (dataset) (tiltyard_dataset_versions_refused)", "{{dataset}} refused"),
                    ("max by (dataset) (tiltyard_dataset_version)", "{{dataset}} newest"),
                ),
                panel(
                    "Size of the newest version",
                    "bytes",
                    "Of its files.",
                    ("max by (dataset) (tiltyard_dataset_bytes)", "{{dataset}}"),
                ),
                panel(
                    "Rows of the newest version",
                    "short",
                    "By split.",
                    ("sum by (dataset, split) (tiltyard_dataset_rows)", "{{dataset}} {{split}}"),
                ),
            ),
        ),
        (
            "Inputs and answers against training",
            (
                DRIFTED,
                panel(
                    "Rows that moved",
                    "percentunit",
                    "Share of rows in another cell than in training, of the columns that moved most; (prediction) and "
                    "(confidence) are the answers.",
                    (
                        f"max by (model, role, version, column) (tiltyard_column_moved_ratio{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{column}}",
                    ),
                ),
                panel(
                    "Missing values",
                    "percentunit",
                    "Share of a column in training and now.",
                    (
                        f"max by (model, role, version, column, since) (tiltyard_column_missing_ratio{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{column}} {{since}}",
                    ),
                ),
                panel(
                    "Means of numbers",
                    "none",
                    "Of a column in training and now.",
                    (
                        f"max by (model, role, version, column, since) (tiltyard_column_mean{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{column}} {{since}}",
                    ),
                ),
                panel(
                    "Answers by class",
                    "percentunit",
                    "Share of the answers on the newest evaluated version.",
                    (
                        f"max by (model, role, version, class) (tiltyard_predicted_ratio{{{RECORDED}}})",
                        "{{model}} {{role}} {{version}} {{class}}",
                    ),
                ),
            ),
        ),
    ),
)
