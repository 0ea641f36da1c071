"""Registered models: bundles, their lineage, and the aliases that name champions."""

from tiltyard.registry.address import ModelAddress
from tiltyard.registry.bundle import Bundle, BundleSpec, Predictions, check_bundle, read_bundle, write_bundle
from tiltyard.registry.lineage import Lineage
from tiltyard.registry.version import ModelVersion

__all__ = [
    "Bundle",
    "BundleSpec",
    "Lineage",
    "ModelAddress",
    "ModelVersion",
    "Predictions",
    "check_bundle",
    "read_bundle",
    "write_bundle",
]
