"""One model version scored on one dataset version: scores, slices, calibration, drift, and against its challengers."""

from tiltyard.evaluation.drift import ColumnDrift, DriftFold, DriftReport

__all__ = ["ColumnDrift", "DriftFold", "DriftReport"]
