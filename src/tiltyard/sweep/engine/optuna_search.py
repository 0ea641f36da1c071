"""Optuna's TPE behind `tiltyard.sweep.generations`: asked for a generation, told every member's fate.

The suggestions of one generation know of each other as pending (``constant_liar``: Optuna counts them among the bad ones,
so that the next suggestion keeps away). A trial that halving stopped is told as pruned, with its score at the epoch where
it stopped: told as complete it would stand beside scores of longer training. A failed one is told as failed.

Source: Bergstra et al. 2011, "Algorithms for hyper-parameter optimization"; Watanabe 2023, arXiv:2304.11127.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from tiltyard.distributions import Choice, Distribution, IntUniform, LogUniform, Uniform
from tiltyard.errors import SpecError
from tiltyard.experiment import Variant
from tiltyard.sweep.generations import Fate
from tiltyard.types import Mode

_STATES = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


class OptunaTpe:
    """TPE over the space of one variant. Optuna keeps the history in memory; it is made anew from what is told.

    Args:
        variant: Whose space.
        mode: Which direction of the score is better.
    """

    def __init__(self, variant: Variant, mode: Mode) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {name: variant.space[name] for name in _in_order(variant)}
        self._fixed = dict(variant.fixed)
        self._study = optuna.create_study(direction="maximize" if mode is Mode.MAX else "minimize")
        self._asked: dict[int, optuna.Trial] = {}

    @property
    def history(self) -> list[optuna.trial.FrozenTrial]:
        """Every trial as Optuna has it, in the order in which it heard of them."""
        return self._study.get_trials(deepcopy=True)

    def ask(self, indices: Sequence[int], *, seed: int) -> list[dict[str, Any]]:
        """Suggestions for the trials with these indices; the same for the same seed and history."""
        # the first generation was drawn at random: no start-up of Optuna's own beyond it
        self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=1, constant_liar=True)
        configs = []
        for index in indices:
            self._asked[index] = trial = self._study.ask()
            config: dict[str, Any] = {}
            for name, dist in self._space.items():
                known = {**self._fixed, **config}
                if all(known.get(other) in wanted for other, wanted in (dist.only_if or {}).items()):
                    config[name] = _suggest(trial, name, dist)
            configs.append(config)
        return configs

    def tell(self, fates: Sequence[Fate]) -> None:
        """What became of trials, in the order of their indices."""
        for fate in sorted(fates, key=lambda f: f.index):
            state = _STATES[fate.state]
            trial = self._asked.pop(fate.index, None)
            if trial is None:
                self._study.add_trial(self._drawn(fate, state))
                continue
            if fate.score is not None:
                trial.report(fate.score, step=fate.epoch)
            self._study.tell(trial, fate.score if state is TrialState.COMPLETE else None, state=state)

    def _drawn(self, fate: Fate, state: TrialState) -> optuna.trial.FrozenTrial:
        """A trial that was not asked for: a point, or of the first generation. What is outside the space is left out."""
        params, distributions = {}, {}
        for name, dist in self._space.items():
            if name in fate.config:
                value = _inside(dist, fate.config[name])
                if value is not None:
                    params[name], distributions[name] = value, _distribution(dist)
        return optuna.trial.create_trial(
            state=state,
            params=params,
            distributions=distributions,
            value=fate.score if state is TrialState.COMPLETE else None,
            intermediate_values={} if fate.score is None else {fate.epoch: fate.score},
        )


def _in_order(variant: Variant) -> list[str]:
    """The parameters of a space, each after those that its conditions name."""
    order: list[str] = []
    waiting = list(variant.space)
    while waiting:
        ready = [n for n in waiting if not set(variant.space[n].only_if or {}) & set(waiting)]
        if not ready:
            raise SpecError(
                f"In the space of variant {variant.name!r} the conditions of {waiting} hang on each other in a circle; "
                "one of them must come first."
            )
        order += ready
        waiting = [n for n in waiting if n not in ready]
    return order


def _distribution(dist: Distribution) -> BaseDistribution:
    if isinstance(dist, Uniform):
        return FloatDistribution(dist.low, dist.high)
    if isinstance(dist, LogUniform):
        return FloatDistribution(dist.low, dist.high, log=True)
    if isinstance(dist, IntUniform):
        return IntDistribution(dist.low, dist.high, log=dist.log)
    assert isinstance(dist, Choice)
    return CategoricalDistribution(range(len(dist.values)))  # places, for Optuna takes no tuples as values


def _suggest(trial: optuna.Trial, name: str, dist: Distribution) -> Any:
    if isinstance(dist, Uniform | LogUniform):
        return trial.suggest_float(name, dist.low, dist.high, log=isinstance(dist, LogUniform))
    if isinstance(dist, IntUniform):
        return trial.suggest_int(name, dist.low, dist.high, log=dist.log)
    assert isinstance(dist, Choice)
    return dist.values[trial.suggest_categorical(name, range(len(dist.values)))]


def _inside(dist: Distribution, value: Any) -> Any:
    """A value as Optuna has it, or None where it is not in the range or among the choices."""
    if isinstance(dist, Choice):
        return next((i for i, v in enumerate(dist.values) if repr(v) == repr(value)), None)
    assert isinstance(dist, Uniform | LogUniform | IntUniform)
    is_number = isinstance(value, int if isinstance(dist, IntUniform) else int | float) and not isinstance(value, bool)
    return value if is_number and dist.low <= value <= dist.high else None


def suggester_of(mode: Mode) -> Callable[[Variant], OptunaTpe]:
    """Makes the suggester of a variant, for `tiltyard.sweep.generations.generations`."""
    return lambda variant: OptunaTpe(variant, mode)
