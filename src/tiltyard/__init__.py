"""Tiltyard: sweeps, served champions and gates on Ray.

The public names, loaded when first used: ``import tiltyard.training`` needs torch, numpy and safetensors alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiltyard.distributions import choice, loguniform, randint, uniform
    from tiltyard.errors import TiltyardError
    from tiltyard.experiment import (
        Budget,
        Champion,
        Experiment,
        Halving,
        Hyperband,
        Objective,
        Resources,
        Search,
        Variant,
    )
    from tiltyard.run import main, run
    from tiltyard.settings import Settings
    from tiltyard.types import DatasetRef, Mode, Task

__version__ = "0.1.0"

_HOMES = {
    "tiltyard.distributions": ("choice", "loguniform", "randint", "uniform"),
    "tiltyard.errors": ("TiltyardError",),
    "tiltyard.experiment": (
        "Budget",
        "Champion",
        "Experiment",
        "Halving",
        "Hyperband",
        "Objective",
        "Resources",
        "Search",
        "Variant",
    ),
    "tiltyard.run": ("main", "run"),
    "tiltyard.settings": ("Settings",),
    "tiltyard.types": ("DatasetRef", "Mode", "Task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "Champion",
    "DatasetRef",
    "Experiment",
    "Halving",
    "Hyperband",
    "Mode",
    "Objective",
    "Resources",
    "Search",
    "Settings",
    "Task",
    "TiltyardError",
    "Variant",
    "choice",
    "loguniform",
    "main",
    "randint",
    "run",
    "uniform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'tiltyard' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
