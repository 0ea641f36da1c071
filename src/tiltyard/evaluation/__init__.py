"""One model version scored on one dataset version: scores, slices, calibration, drift, and against its challengers."""

from tiltyard.evaluation.compare import Paired, PairFold, row_metric
from tiltyard.evaluation.drift import ColumnDrift, DriftFold, DriftReport
from tiltyard.evaluation.fairness import Fairness, fairness
from tiltyard.evaluation.scores import Score, Scored, ScoreFold
from tiltyard.evaluation.slices import Slice, SlicedFold

__all__ = [
    "ColumnDrift",
    "DriftFold",
    "DriftReport",
    "Fairness",
    "PairFold",
    "Paired",
    "Score",
    "ScoreFold",
    "Scored",
    "Slice",
    "SlicedFold",
    "fairness",
    "row_metric",
]
