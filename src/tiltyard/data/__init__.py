"""Versioned datasets: what they are (pure values); the store and the streams are imported by their own names."""

from tiltyard.data.versions import (
    SPLITS,
    Card,
    Check,
    Commit,
    DatasetRef,
    DatasetSpec,
    DatasetVersion,
    SplitSpec,
)

__all__ = [
    "SPLITS",
    "Card",
    "Check",
    "Commit",
    "DatasetRef",
    "DatasetSpec",
    "DatasetVersion",
    "SplitSpec",
]
