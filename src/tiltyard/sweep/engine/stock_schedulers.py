"""Ray Tune's own schedulers, for trials that share no pack (`tiltyard.sweep.engine.stock`): ASHA, PBT, or none.

Each is guarded: it is never shown what is no report, and what it stops is noted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining

from tiltyard.distributions import Choice
from tiltyard.experiment import Experiment, Halving, Hyperband, Variant
from tiltyard.sweep.engine.searcher import Led
from tiltyard.sweep.engine.stock_trainables import TRIAL
from tiltyard.sweep.plan import Group
from tiltyard.sweep.space import value_at
from tiltyard.types import Mode


class _Guarded(Led):
    """A stock scheduler that is never shown what is no report, and whose stops are noted."""

    _conductor: Any

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Notes the controller, for ending trials that hear nothing, and whose trial it is."""
        self._conductor.controller = tune_controller
        self._conductor.add(trial)
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The scheduler's word."""
        said: str = super().on_trial_result(tune_controller, trial, result)  # type: ignore[misc]
        if said == FIFOScheduler.STOP:
            self._conductor.scheduler_said_stop(trial)
        return said

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Told only where there is something to tell."""
        if result and not self._conductor.is_wrong(trial):
            super().on_trial_complete(tune_controller, trial, result)  # type: ignore[misc]


class _Asha(_Guarded, ASHAScheduler):
    """ASHA, guarded."""


class _Pbt(_Guarded, PopulationBasedTraining):
    """PBT, guarded; a trial that takes over another's configuration stays the trial that it is."""

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        config, *changes = super()._get_new_config(trial, trial_to_clone)
        return config | {TRIAL: trial.config[TRIAL]}, *changes


class _Fifo(_Guarded, FIFOScheduler):
    """No scheduler, guarded."""


def scheduler_of(conductor: Any, experiment: Experiment, group: Group) -> Any:
    """The scheduler that the group asks for, led by the conductor that takes its reports in."""
    metric, mode = experiment.objective.metric, "max" if experiment.objective.direction is Mode.MAX else "min"
    halving = experiment.search.halving
    grace = halving.rungs[0] if isinstance(halving, Halving) else 1
    eta = halving.eta if isinstance(halving, Hyperband) else max(2, round(1 / halving.keep)) if halving else 3
    made: Any
    if group.scheduler == "asha":
        made = _Asha(
            metric=metric,
            mode=mode,
            max_t=group.rungs[-1],
            grace_period=min(grace, group.rungs[-1]),
            reduction_factor=eta,
            stop_last_trials=False,
        )
    elif group.scheduler == "pbt":
        variant = next(v for v in experiment.variants if v.name == group.variant)
        made = _Pbt(
            time_attr="training_iteration",
            metric=metric,
            mode=mode,
            perturbation_interval=grace,
            hyperparam_mutations=_mutations(variant),
        )
    else:
        made = _Fifo()  # type: ignore[no-untyped-call]
    made._conductor = conductor
    return made


def _mutations(variant: Variant) -> dict[str, Any]:
    """How PBT draws a parameter anew: as the space does."""
    found: dict[str, Any] = {}
    for name, dist in variant.space.items():
        if dist.only_if:  # where it is left out there is nothing to change
            continue
        if isinstance(dist, Choice):
            found[name] = list(dist.values)
        else:
            found[name] = _Draw(dist)
    return found


class _Draw:
    """A distribution as a function without arguments, as PBT wants it."""

    def __init__(self, dist: Any) -> None:
        self._dist = dist

    def __call__(self) -> Any:
        return value_at(self._dist, float(np.random.random()))
