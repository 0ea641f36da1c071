"""Tiltyard: sweeps, served champions and gates on Ray.

The public names, loaded when first used: ``import tiltyard.training`` needs torch, numpy and safetensors alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiltyard.distributions import choice, loguniform, randint, uniform
    from tiltyard.errors import TiltyardError
    from tiltyard.evaluate import evaluate_main, run_evaluation
    from tiltyard.evaluation.slices import Slice
    from tiltyard.evaluation.spec import Evaluation
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
    from tiltyard.nightly import Night, night_main, start_night
    from tiltyard.run import main, run
    from tiltyard.settings import Settings
    from tiltyard.types import DatasetRef, Mode, Task

__version__ = "0.1.0"

_HOMES = {
    "tiltyard.distributions": ("choice", "loguniform", "randint", "uniform"),
    "tiltyard.errors": ("TiltyardError",),
    "tiltyard.evaluate": ("evaluate_main", "run_evaluation"),
    "tiltyard.evaluation.slices": ("Slice",),
    "tiltyard.evaluation.spec": ("Evaluation",),
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
    "tiltyard.nightly": ("Night", "night_main", "start_night"),
    "tiltyard.run": ("main", "run"),
    "tiltyard.settings": ("Settings",),
    "tiltyard.types": ("DatasetRef", "Mode", "Task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Budget",
    "Champion",
    "DatasetRef",
    "Evaluation",
    "Experiment",
    "Halving",
    "Hyperband",
    "Mode",
    "Night",
    "Objective",
    "Resources",
    "Search",
    "Settings",
    "Slice",
    "Task",
    "TiltyardError",
    "Variant",
    "choice",
    "evaluate_main",
    "loguniform",
    "main",
    "night_main",
    "randint",
    "run",
    "run_evaluation",
    "start_night",
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
