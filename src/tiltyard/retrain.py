"""A sweep whose winner becomes candidate: on its dataset, within a budget, begun with what is known to be good.

*Warm-started*: the configurations tried first are the champion's own and the best ones of the newest earlier sweep of the
same experiment; the rest is drawn with another seed, so that no night draws what an earlier one drew. What a sweep begins
with is a decision in the journal: a night that was killed goes on with the same sweep, and the record tells what was warm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiltyard.distributions import Choice, Distribution
from tiltyard.errors import RegistryError, SpecError
from tiltyard.experiment import Champion, Experiment, Variant
from tiltyard.governance.policy import Retrain
from tiltyard.journal import Journal, TrialRow
from tiltyard.registry.address import CANDIDATE, CHAMPION
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings

WARM = "warm_start"
"""Kind of the decision that says what a sweep begins with."""
BEST = 3
"""Configurations of the earlier sweep that are tried again, of each variant; at most half of its trials are warm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmStart:
    """What a sweep begins with.

    Args:
        points: By variant, configurations that are tried first.
        seed: Of the sweep.
        reasons: Where the configurations come from.
    """

    points: Mapping[str, tuple[Mapping[str, Any], ...]]
    seed: int
    reasons: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many configurations are tried first."""
        return sum(len(p) for p in self.points.values())


def retrain(settings: Settings, action: Retrain, *, model: str, actor: str = "", once: str | None = None) -> WarmStart:
    """Runs a sweep within a budget, on the dataset of one model; its winner becomes candidate, and no champion is touched.

    Args:
        settings: Where things live.
        action: The job file, and the most it may use.
        model: The registered model that is to get a candidate.
        actor: Who asks for it, for the record.
        once: A name of the sweep: the same one again begins with the same configurations, and so is the same sweep.

    Raises:
        SpecError: If the job file describes no experiment, or one that does not make this model.
        TiltyardError: If it cannot be run.
    """
    from tiltyard.jobfile import load_experiment
    from tiltyard.run import run

    experiment = of_model(load_experiment(action.job), model, action.job)
    limit = experiment.budget.cpu_hours
    hours = action.cpu_hours if limit is None else min(limit, action.cpu_hours)
    if hours <= 0:
        raise SpecError(f"A retrain of {action.job} was given {action.cpu_hours} CPU-hours; wanted more than 0.")
    with Journal.open(settings.journal_uri) as journal:
        warm = decided(journal, ModelRegistry(settings), experiment, actor=actor or "retrain", once=once)
    budget = experiment.budget.model_copy(update={"cpu_hours": hours})
    candidate = warmed(experiment, warm).model_copy(
        update={"budget": budget, "champion": Champion(alias=CANDIDATE, serve=False)}
    )
    run(candidate, settings=settings, job_file=Path(action.job))
    return warm


def of_model(experiment: Experiment, model: str, job: str) -> Experiment:
    """The part of an experiment that makes a model: its dataset alone, so that no other costs budget or gets a candidate.

    Raises:
        SpecError: If it does not make this model.
    """
    makes = {f"{experiment.name}.{ref.name}": ref for ref in experiment.datasets}  # as `tiltyard.crown` registers it
    if model not in makes:
        raise SpecError(
            f"{job} makes {', '.join(makes)}; wanted {model}. Name the job that makes it, or the model that the job makes."
        )
    return experiment if len(makes) == 1 else experiment.with_options(datasets=[str(makes[model])])


def decided(
    journal: Journal, registry: ModelRegistry, experiment: Experiment, *, actor: str, once: str | None = None
) -> WarmStart:
    """What a sweep begins with, put on record; what was decided under a name before stands."""
    found = warm_start(journal, registry, experiment)
    decision = journal.decide(
        kind=WARM,
        subject=experiment.name,
        actor=actor,
        evidence={"points": {v: list(p) for v, p in found.points.items()}, "seed": found.seed},
        reasons=list(found.reasons),
        outcome=f"{found.count} earlier configurations are tried first",
        once=None if once is None else f"{WARM}/{once}",
    )
    points = {v: tuple(p) for v, p in decision.evidence["points"].items()}
    return WarmStart(points=points, seed=decision.evidence["seed"], reasons=decision.reasons)


def warm_start(journal: Journal, registry: ModelRegistry, experiment: Experiment) -> WarmStart:
    """The champions' configurations and the best of the newest earlier sweep, as far as today's spaces still hold them."""
    known: list[tuple[str, Mapping[str, Any], str]] = []  # variant, configuration, where it is from
    for ref in experiment.datasets:
        name = f"{experiment.name}.{ref.name}"  # as `tiltyard.crown` registers it
        try:
            champion = registry.get(name, alias=CHAMPION)
        except RegistryError:
            continue
        source = f"{name} version {champion.version} is @champion"
        known.append((champion.lineage.variant, champion.lineage.config, source))
    launches = [launch for launch in journal.launches(experiment.name) if launch.state != "running"]
    names = {ref.name for ref in experiment.datasets}
    ended = (
        (launch, [t for t in journal.trials(launch.key) if t.dataset in names and _counts(t)]) for launch in launches
    )
    newest = next(((launch, trials) for launch, trials in ended if trials), None)
    if newest is not None:
        launch, trials = newest
        source = f"the best of {len(trials)} trials of sweep {launch.key[:12]}"
        known += [(t.variant, t.config, source) for t in _best(experiment, trials)]
    share = max(1, experiment.search.trials // (2 * len(experiment.variants)))
    points: dict[str, tuple[Mapping[str, Any], ...]] = {}
    sources: list[str] = []
    for variant in experiment.variants:
        chosen: dict[str, tuple[Mapping[str, Any], str]] = {}
        for name, config, told in known:
            if name == variant.name and _fits(variant, config) and (point := _point(variant, config)):
                chosen.setdefault(_plain(point), (point, told))
        kept = list(chosen.values())[: min(1 + BEST, share)]
        if kept:
            points[variant.name] = tuple(p for p, _ in kept)
            sources += [told for _, told in kept]
    if not points:
        return WarmStart(points={}, seed=experiment.seed, reasons=("nothing earlier fits the search spaces",))
    seed = (experiment.seed + len(launches)) % 2**31
    return WarmStart(points=points, seed=seed, reasons=tuple(dict.fromkeys(sources)))


def warmed(experiment: Experiment, warm: WarmStart) -> Experiment:
    """The experiment that begins so; its own points, if it has any, come after."""
    if not warm.points:
        return experiment
    data = experiment.model_dump(mode="json", exclude_unset=True)
    given = data["search"].get("points", {})
    points = {name: [*warm.points.get(name, ()), *given.get(name, ())] for name in {**warm.points, **given}}
    data["search"] = {**data["search"], "points": {n: _each_once(p) for n, p in points.items()}}
    return Experiment(**{**data, "seed": warm.seed})


def _counts(trial: TrialRow) -> bool:
    return trial.score is not None and trial.state in {"done", "stopped"}


def _best(experiment: Experiment, trials: Sequence[TrialRow]) -> list[TrialRow]:
    """Of each variant, those that were trained the longest and, of them, the best."""
    sign = experiment.objective.direction.sign
    ranked = sorted(trials, key=lambda t: (-t.epoch, -sign * (t.score or 0.0), t.index))
    return [t for v in experiment.variants for t in [t for t in ranked if t.variant == v.name][:BEST]]


def _point(variant: Variant, config: Mapping[str, Any]) -> dict[str, Any]:
    """The searched values of a configuration."""
    return {n: config[n] for n in variant.space if n in config}


def _fits(variant: Variant, config: Mapping[str, Any]) -> bool:
    fixed = all(n not in config or _plain(config[n]) == _plain(v) for n, v in variant.fixed.items())
    return fixed and all(
        _holds(d, config[n]) if n in config else d.only_if is not None for n, d in variant.space.items()
    )


def _holds(space: Distribution, value: Any) -> bool:
    if isinstance(space, Choice):
        return _plain(value) in [_plain(v) for v in space.values]
    return isinstance(value, int | float) and space.low <= value <= space.high  # type: ignore[attr-defined]  # every other


def _each_once(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({_plain(p): p for p in points}.values())


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
