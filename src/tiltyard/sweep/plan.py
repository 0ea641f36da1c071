"""From an experiment and the facts of its datasets to the trials of a launch. Pure.

A *cell* is the address of a trial: the digest of everything its result depends on. A group is the trials of one variant on
one dataset (with HyperBand, of one bracket of them); they are compared with each other rung by rung.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment, Halving, Hyperband, Search, Variant, digest_of
from tiltyard.sweep.brackets import brackets
from tiltyard.sweep.space import draw
from tiltyard.types import METRICS, OWN_TRAINING, TUNE_TRAINABLE, Task, trains_itself

CELL_SCHEMA = 1
"""Part of every cell: raised when training comes to mean something else for the same configuration."""
GENERATION, WAVE, REPLICATE = "g", "w", "s"
"""What follows ``variant@dataset/`` in the name of a group that joined later (`tiltyard.sweep.growth`)."""
_ENDLESS = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What planning needs to know of a resolved dataset version."""

    name: str
    version: int
    content_digest: str
    features: tuple[str, ...]
    """The columns that models see: the same rows with another choice of features are other work."""
    task: Task
    split_rows: Mapping[str, int]
    input_shape: tuple[int, ...]
    num_outputs: int

    @property
    def input_digest(self) -> str:
        """Of what a trial learns from: the rows, and which of their columns."""
        return digest_of({"content": self.content_digest, "features": self.features})


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One configuration of one variant on one dataset version, with its seeds."""

    cell: str
    index: int
    group: str
    variant: str
    model: str
    config: Mapping[str, Any]
    dataset: str
    dataset_version: int
    dataset_digest: str
    task: Task
    input_shape: tuple[int, ...]
    num_outputs: int
    seed: int
    data_seed: int

    @property
    def name(self) -> str:
        """For people: ``mlp@digits/017``, ``mlp@digits/b2/017`` in a bracket, ``mlp@digits/s1/017`` of a replicate."""
        return f"{self.group}/{self.index:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Trials of one variant on one dataset that are compared with each other, and the epochs at which they are.

    ``name`` is ``variant@dataset``, or ``variant@dataset/b2`` for a bracket; an index is that of one trial in all of them.
    """

    name: str
    variant: str
    model: str
    dataset: str
    rungs: tuple[int, ...]
    keep: float
    trials: tuple[Trial, ...]
    scheduler: str = ""
    """``asha``, ``pbt`` or ``fifo``: each trial is a Tune trial of its own under Ray Tune's scheduler, and shares no pack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every trial of a launch; of a learning search, those that are drawn so far."""

    key: str
    groups: tuple[Group, ...]
    later: Mapping[str, int] = field(default_factory=dict)
    """Trials that are not drawn yet, by ``variant@dataset``."""
    replicates: int = 0
    """Replicates of finalists that are not planned yet, at most: who they are is known when the search has ended."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All of them, group by group."""
        return tuple(t for g in self.groups for t in g.trials)

    def grown(self, groups: Sequence[Group]) -> Plan:
        """The plan with further generations drawn."""
        later, replicates = dict(self.later), self.replicates
        for group in groups:
            if replicate_number(group.name):
                replicates = 0  # they come all at once
            elif group.name.partition("/")[2].startswith(GENERATION):
                later[f"{group.variant}@{group.dataset}"] -= len(group.trials)
        return replace(
            self,
            groups=(*self.groups, *groups),
            later={n: left for n, left in later.items() if left},
            replicates=replicates,
        )

    @property
    def side_by_side(self) -> int:
        """Groups that may have work at the same time, of those that were there from the start."""
        return sum(g.name.partition("/")[2][:1] not in {GENERATION, WAVE, REPLICATE} for g in self.groups)

    @property
    def num_trials(self) -> int:
        """Trials of the launch, those that are not drawn yet too."""
        return len(self.trials) + sum(self.later.values()) + self.replicates


def replicate_number(group: str) -> int:
    """Which replicate the trials of a group are, from its name; 0 where they are trials of the search.

    >>> replicate_number("mlp@digits/s2"), replicate_number("mlp@digits/b2"), replicate_number("mlp@digits")
    (2, 0, 0)
    """
    kind = group.partition("/")[2]
    return int(kind[1:]) if kind.startswith(REPLICATE) else 0


def plan(experiment: Experiment, facts: Mapping[str, DatasetFacts], *, code_digest: str) -> Plan:
    """Draws every trial and gives it its cell; of a learning search, the first generation.

    Raises:
        SpecError: If a metric, model or configuration does not fit a dataset; nothing was started.
    """
    _check_honoured(experiment)
    for ref in experiment.datasets:
        _check_dataset(experiment, facts[ref.name])
    key = experiment.key({n: f.input_digest for n, f in facts.items()}, code_digest)
    groups: list[Group] = []
    later: dict[str, int] = {}
    for place, ref in enumerate(experiment.datasets):
        for variant, n in zip(experiment.variants, _shares(experiment, place).values(), strict=True):
            points = len(experiment.search.points.get(variant.name, ()))
            drawn = min(n, max(points, experiment.search.generation)) if experiment.search.learns else n
            groups += _groups(experiment, variant, facts[ref.name], drawn, code_digest)
            if n > drawn:
                later[f"{variant.name}@{ref.name}"] = n - drawn
    _check_apart(groups)
    made = Plan(key=key, groups=tuple(groups), later=later)
    return replace(made, replicates=_num_replicates(experiment, made))


def _num_replicates(experiment: Experiment, made: Plan) -> int:
    """How many replicates there will be, at most."""
    search = experiment.search
    trials = dict.fromkeys((ref.name for ref in experiment.datasets), 0)
    for group in made.groups:
        trials[group.dataset] += len(group.trials)
    for name, n in made.later.items():
        trials[name.partition("@")[2]] += n
    return sum(min(search.finalists, n) * search.replicates for n in trials.values())


def _check_honoured(experiment: Experiment) -> None:
    """Refuses what can be written down but is not done: a field that nothing obeys would be a lie."""
    search = experiment.search
    own = [v.name for v in experiment.variants if trains_itself(v.model)]
    if search.scheduler and not own:
        raise SpecError(
            f"search.scheduler is {search.scheduler!r}, which is for variants that train themselves (train:..., tune:...); "
            "there is none. Leave it out: halving stops the trials that share packs."
        )
    if search.scheduler == "pbt":
        without = [v.name for v in experiment.variants if v.model.startswith(OWN_TRAINING)]
        if without or search.learns:
            what = (
                f"variant {without[0]!r} reports scores alone"
                if without
                else "algorithm='tpe' chooses configurations too"
            )
            raise SpecError(
                f"scheduler='pbt' copies checkpoints and changes configurations, but {what}. Wanted: Ray Tune trainables "
                "(tune:...) that save checkpoints, and a search that draws everything at once; or scheduler='asha'."
            )
    if own and experiment.champion is not None:
        raise SpecError(
            f"Variant {own[0]!r} is training of your own, which leaves no model that could be registered, yet champion is "
            "set. Wanted: champion=None, or a torch.nn.Module by its import path, which Tiltyard trains and registers."
        )
    if search.learns:
        seeded = sorted(v.name for v in experiment.variants if "seed" in {*v.fixed, *v.space})
        if isinstance(search.halving, Hyperband):
            raise SpecError(
                "Hyperband and algorithm='tpe' do not go together: brackets share trials out before any is known, TPE "
                "chooses them from what is known. Use Halving(...), or algorithm='random'."
            )
        if seeded:
            raise SpecError(
                f"Variants {seeded} set a seed; with algorithm='tpe' the same configuration may be suggested twice and would "
                "be the same trial. Leave the seed out: the experiment's decides."
            )
    elif "generation" in search.model_fields_set:
        raise SpecError(f"search.generation is for algorithm='tpe'; found {search.algorithm!r}. Leave it out.")


def _check_apart(groups: Sequence[Group]) -> None:
    """No trial stands in two groups: the result of one would be taken for that of the other."""
    seen: dict[str, Trial] = {}
    for trial in (t for g in groups for t in g.trials):
        other = seen.setdefault(trial.cell, trial)
        if other is not trial:
            raise SpecError(
                f"Variants {other.variant!r} and {trial.variant!r} share a trial on {trial.dataset}: same model, same "
                f"configuration, same seed {trial.seed}. Drop one of the two, or leave out the fixed seed."
            )


def _check_dataset(experiment: Experiment, facts: DatasetFacts) -> None:
    for split in ("train", "validation"):
        if not facts.split_rows.get(split, 0):
            raise SpecError(
                f"Dataset {facts.name}@{facts.version} has no rows in its {split} split (rows: {dict(facts.split_rows)}). "
                "Training needs both; commit a version with other split fractions."
            )
    for name in experiment.objective.metrics:
        if facts.task not in METRICS[name].tasks:
            have = sorted(m.name for m in METRICS.values() if facts.task in m.tasks)
            raise SpecError(
                f"Dataset {facts.name}@{facts.version} is a {facts.task} task, which has no metric {name!r}. "
                f"It has: {', '.join(have)}."
            )


def _shares(experiment: Experiment, place: int) -> dict[str, int]:
    """Trials of each variant on the dataset at a place, in the order of the variants.

    A variant gets what it asks for, the others share the rest evenly; where every variant asks, their numbers are
    weights, so that ``--trials`` scales all of them. Each gets at least one, and none more than it can have: a grid's
    combinations, or one trial (one a point) where nothing is searched. A grid without a number of trials is tried whole.
    A budget of trials is shared out over the datasets and caps all that; replicates of finalists are set aside from it
    first.

    Raises:
        SpecError: If a budget of trials is too small for one of each variant on each dataset.
    """
    search, budget = experiment.search, experiment.budget.trials
    datasets, variants = len(experiment.datasets), len(experiment.variants)
    aside = datasets * search.finalists * search.replicates
    if budget is not None:
        if budget - aside < datasets * variants:
            replicates = f" and {aside} replicates of finalists" if aside else ""
            raise SpecError(
                f"budget.trials is {budget}, but there are {variants} variants on {datasets} datasets: at least "
                f"{datasets * variants} trials{replicates}. Raise it, or take some away."
            )
        budget -= aside
    cap = _ENDLESS if budget is None else budget // datasets + (place < budget % datasets)
    most = {v.name: _most(v, search) for v in experiment.variants}
    asked = {v.name: v.trials for v in experiment.variants if v.trials is not None}
    total = search.trials
    if search.algorithm == "grid" and "trials" not in search.model_fields_set:
        asked = {name: min(n, asked.get(name, n)) for name, n in most.items()}
        total = sum(asked.values())
    total = min(total, cap)
    rest = [name for name in most if name not in asked]
    if not rest:
        found = _apportion(asked, most, total)
    else:
        found = asked if sum(asked.values()) + len(rest) <= total else _apportion(asked, most, total - len(rest))
        found = {name: min(n, most[name]) for name, n in found.items()}
        found |= _apportion(dict.fromkeys(rest, 1), most, total - sum(found.values()))
    return {name: found[name] for name in most}


def _most(variant: Variant, search: Search) -> int:
    """The most trials that a variant can have on a dataset without training one twice."""
    points = len(search.points.get(variant.name, ()))
    if search.algorithm == "grid":
        return len(draw(variant, algorithm="grid", n=_ENDLESS, seed=0, points=search.points.get(variant.name, ())))
    return _ENDLESS if variant.space else max(1, points)


def _apportion(weights: Mapping[str, int], most: Mapping[str, int], total: int) -> dict[str, int]:
    """Shares a total out by weights: each at least one, none above its most, the rest to whoever is furthest below."""
    whole = sum(weights.values())
    shares = dict.fromkeys(weights, 1)
    for _ in range(total - len(shares)):
        open_ended = [name for name, n in shares.items() if n < most[name]]
        if not open_ended:
            break
        shares[max(open_ended, key=lambda name: weights[name] * total / whole - shares[name])] += 1
    return shares


def _groups(
    experiment: Experiment, variant: Variant, facts: DatasetFacts, n: int, code_digest: str
) -> tuple[Group, ...]:
    """The trials of a variant on a dataset: one group, or one for each of HyperBand's brackets."""
    search, halving = experiment.search, experiment.search.halving
    configs = draw(
        variant,
        algorithm="random" if search.learns else search.algorithm,
        n=n,
        seed=experiment.seed,
        points=search.points.get(variant.name, ()),
    )
    whole = group_of(experiment, variant, facts, configs, code_digest=code_digest)
    if not isinstance(halving, Hyperband) or trains_itself(variant.model):
        return (whole,)
    return in_brackets(halving, whole)


def in_brackets(hyperband: Hyperband, whole: Group, *, prefix: str = "/") -> tuple[Group, ...]:
    """A group's trials shared out to HyperBand's brackets, each a group ``variant@dataset<prefix>b2``."""
    found, start = [], 0
    for bracket in brackets(hyperband, len(whole.trials)):
        name = f"{whole.variant}@{whole.dataset}{prefix}b{bracket.number}"
        members = tuple(replace(t, group=name) for t in whole.trials[start : start + bracket.trials])
        found.append(replace(whole, name=name, rungs=bracket.rungs, keep=bracket.keep, trials=members))
        start += bracket.trials
    return tuple(found)


def group_of(
    experiment: Experiment,
    variant: Variant,
    facts: DatasetFacts,
    configs: Sequence[Mapping[str, Any]],
    *,
    code_digest: str,
    first: int = 0,
    suffix: str = "",
) -> Group:
    """A group of trials with these configurations.

    Args:
        experiment: What they belong to.
        variant: Of which variant they are.
        facts: Of the dataset.
        configs: One a trial.
        code_digest: From `tiltyard.codedigest`.
        first: Index of the first one among the trials of the variant on the dataset.
        suffix: Put behind ``variant@dataset`` where a variant has several groups on a dataset.
    """
    name = f"{variant.name}@{facts.name}"
    halving = None if trains_itself(variant.model) else experiment.search.halving
    distinct: dict[str, Trial] = {}
    for index, config in enumerate(configs, start=first):  # where the seed is fixed or searched, a draw may come twice
        trial = _trial(experiment, variant, facts, name, index, config, code_digest)
        distinct.setdefault(trial.cell, replace(trial, group=name + suffix))
    return Group(
        name=name + suffix,
        variant=variant.name,
        model=variant.model,
        dataset=facts.name,
        rungs=halving.rungs if isinstance(halving, Halving) else (experiment.search.max_epochs,),
        keep=halving.keep if isinstance(halving, Halving) else 1.0,
        trials=tuple(distinct.values()),
        scheduler=scheduler_of(experiment, variant.model),
    )


def scheduler_of(experiment: Experiment, model: str) -> str:
    """Which of Ray Tune's schedulers the trials of a model run under; none where they share packs or a queue."""
    if model.startswith(TUNE_TRAINABLE):
        return experiment.search.scheduler or "fifo"
    return experiment.search.scheduler or "" if model.startswith(OWN_TRAINING) else ""


def order_dependent(experiment: Experiment) -> tuple[str, ...]:
    """Variants of which some trials end otherwise when events come in another order."""
    return tuple(v.name for v in experiment.variants if scheduler_of(experiment, v.model) in {"asha", "pbt"})


def _trial(
    experiment: Experiment,
    variant: Variant,
    facts: DatasetFacts,
    group: str,
    index: int,
    config: Mapping[str, Any],
    code_digest: str,
) -> Trial:
    seed = config.get("seed", seed_of(experiment.seed, group, index))
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**31:
        raise SpecError(
            f"Variant {variant.name!r} sets seed to {seed!r}; a whole number from 0 to 2**31 - 1 is wanted."
        )
    return Trial(
        cell=cell_of(
            experiment,
            variant.model,
            config,
            facts,
            code_digest=code_digest,
            seed=seed,
            data_seed=experiment.data_seed,
        ),
        index=index,
        group=group,
        variant=variant.name,
        model=variant.model,
        config=dict(config),
        dataset=facts.name,
        dataset_version=facts.version,
        dataset_digest=facts.content_digest,
        task=facts.task,
        input_shape=facts.input_shape,
        num_outputs=facts.num_outputs,
        seed=seed,
        data_seed=experiment.data_seed,
    )


def cell_of(
    experiment: Experiment,
    model: str,
    config: Mapping[str, Any],
    facts: DatasetFacts,
    *,
    code_digest: str,
    seed: int,
    data_seed: int,
) -> str:
    """The digest of all that a trial's result depends on: 64 hexadecimal characters."""
    limit = experiment.budget.trial_s if trains_itself(model) else None
    of_others: dict[str, Any] = {} if limit is None else {"trial_s": limit}
    if scheduler_of(experiment, model) == "pbt":  # it depends on its neighbours
        of_others["population"] = json.loads(experiment.to_json())
    return digest_of(
        of_others
        | {
            "schema": CELL_SCHEMA,
            "model": model,
            "config": {k: v for k, v in config.items() if k != "seed"},
            "dataset": facts.input_digest,
            "code": code_digest,
            "seed": seed,
            "data_seed": data_seed,
            "metrics": experiment.objective.metrics,
            "max_epochs": experiment.search.max_epochs,
            "sensitive": experiment.include_sensitive,
        }
    )


def seed_of(*words: object) -> int:
    """A seed, 0 to 2**31 - 1, that is a function of some words."""
    digest = hashlib.sha256("\x1f".join(map(str, words)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
