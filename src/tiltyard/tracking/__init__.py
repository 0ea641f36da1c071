"""The one writer of MLflow runs."""

from tiltyard.tracking.records import LaunchRecord, TrialRecord, thin
from tiltyard.tracking.writer import Tracker, TrackerReport, drain_leftover

__all__ = ["LaunchRecord", "Tracker", "TrackerReport", "TrialRecord", "drain_leftover", "thin"]
