"""What a person reads about an evaluation."""

from __future__ import annotations

import io

from rich.console import Console

from tiltyard.evaluation.compare import Paired
from tiltyard.evaluation.drift import ColumnDrift, DriftReport
from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.report.evaluations import overview, show

SCORED = Scored(
    rows=1_234,
    labelled=1_200,
    unknown_labels=3,
    scores={"accuracy": Score(value=0.9, low=0.88, high=0.92)},
    calibration_error=0.02,
)
RESULT = Evaluated(
    model="m",
    model_version=2,
    dataset="digits",
    dataset_version=4,
    metric="accuracy",
    rows="test",
    scored=SCORED,
    slices={"region": {"north": SCORED, "south": SCORED}},
    drift=DriftReport(
        rows=1_234,
        alpha=0.05,
        least_effect=0.01,
        missing_columns=("gone",),
        columns=(
            ColumnDrift(
                column="age", kind="number", rows=1_234, moved=0.1, drifted=True, mean_before=1.0, mean_now=2.0
            ),
            ColumnDrift(column="sex", kind="category", rows=1_234, most_moved=("f", 0.5, 0.5)),
        ),
    ),
    against="m@1",
    paired=Paired(metric="accuracy", rows=1_200, total=24.0, squares=60.0, won=42, lost=18, p=0.003),
)


def text(what: object) -> str:
    console = Console(file=io.StringIO(), width=200, no_color=True)
    if isinstance(what, Evaluated):
        show(console, what)
    else:
        console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_overview_of_results_shows_score_interval_drift_and_comparison() -> None:
    told = text(overview([(RESULT, "new")]))
    assert "accuracy 0.9000 [0.8800, 0.9200]" in told
    assert "age" in told
    assert "better by +0.0200" in told
    assert "than m@1" in told


def test_one_result_shows_slices_drift_with_its_effect_and_what_is_gone() -> None:
    told = text(RESULT)
    for wanted in (
        "north",
        "gone is gone",
        "mean 1 before, 2 now",
        "0.100",
        "p = 0.003",
        "calibration error",
        "at most 0.05",
    ):
        assert wanted in told, wanted
    assert "3 rows have a label that the model has no output for" in told
