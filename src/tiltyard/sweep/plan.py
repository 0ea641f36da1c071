"""From an experiment and the facts of its datasets to the trials of a launch. Pure.

A *cell* is the address of a trial: the digest of everything its result depends on. Groups are the trials of one variant
on one dataset; they are compared with each other rung by rung.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment, Halving, Variant, digest_of
from tiltyard.sweep.space import draw
from tiltyard.types import METRICS, Task

CELL_SCHEMA = 1
"""Part of every cell: raised when training comes to mean something else for the same configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What planning needs to know of a resolved dataset version."""

    name: str
    version: int
    content_digest: str
    task: Task
    split_rows: Mapping[str, int]
    input_shape: tuple[int, ...]
    num_outputs: int


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
        """For people: ``mlp@digits/017``."""
        return f"{self.group}/{self.index:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trials of one variant on one dataset, and the epochs at which they are compared."""

    name: str
    variant: str
    model: str
    dataset: str
    rungs: tuple[int, ...]
    keep: float
    trials: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every trial of a launch."""

    key: str
    groups: tuple[Group, ...]

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All of them, group by group."""
        return tuple(t for g in self.groups for t in g.trials)


def plan(experiment: Experiment, facts: Mapping[str, DatasetFacts], *, code_digest: str) -> Plan:
    """Draws every trial and gives it its cell.

    Raises:
        SpecError: If a metric, model or configuration does not fit a dataset; nothing was started.
    """
    for ref in experiment.datasets:
        _check_metrics(experiment, facts[ref.name])
    key = experiment.key({n: f.content_digest for n, f in facts.items()}, code_digest)
    shares = _shares(experiment)
    groups = tuple(
        _group(experiment, variant, facts[ref.name], shares[variant.name], code_digest)
        for ref in experiment.datasets
        for variant in experiment.variants
    )
    return Plan(key=key, groups=groups)


def _check_metrics(experiment: Experiment, facts: DatasetFacts) -> None:
    for name in experiment.objective.metrics:
        if facts.task not in METRICS[name].tasks:
            have = sorted(m.name for m in METRICS.values() if facts.task in m.tasks)
            raise SpecError(
                f"Dataset {facts.name}@{facts.version} is a {facts.task} task, which has no metric {name!r}. "
                f"It has: {', '.join(have)}."
            )


def _shares(experiment: Experiment) -> dict[str, int]:
    """Trials of each variant on each dataset: what it asked for, the rest shared out evenly."""
    asked = {v.name: v.trials for v in experiment.variants if v.trials is not None}
    total = experiment.search.trials
    if experiment.search.algorithm == "grid":
        return {v.name: v.trials or 1 << 30 for v in experiment.variants}
    open_ended = [v.name for v in experiment.variants if v.trials is None]
    if not open_ended:  # their numbers are weights: --trials then scales all of them
        return _apportion(asked, total)
    rest = max(len(open_ended), total - sum(asked.values()))
    return asked | {name: rest // len(open_ended) + (i < rest % len(open_ended)) for i, name in enumerate(open_ended)}


def _apportion(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """Largest remainders; each gets at least one."""
    whole = sum(weights.values())
    exact = {n: w * total / whole for n, w in weights.items()}
    shares = {n: max(1, int(e)) for n, e in exact.items()}
    for name in sorted(exact, key=lambda n: int(exact[n]) - exact[n]):
        if sum(shares.values()) >= total:
            break
        shares[name] += 1
    return shares


def _group(experiment: Experiment, variant: Variant, facts: DatasetFacts, n: int, code_digest: str) -> Group:
    search = experiment.search
    halving = search.halving
    configs = draw(
        variant,
        algorithm=search.algorithm,
        n=n,
        seed=experiment.seed,
        points=search.points.get(variant.name, ()),
    )
    if isinstance(halving, Halving):
        rungs, keep = halving.rungs, halving.keep
    else:
        rungs, keep = (search.max_epochs,), 1.0
    name = f"{variant.name}@{facts.name}"
    trials = tuple(_trial(experiment, variant, facts, name, i, c, code_digest) for i, c in enumerate(configs))
    return Group(
        name=name, variant=variant.name, model=variant.model, dataset=facts.name, rungs=rungs, keep=keep, trials=trials
    )


def _trial(
    experiment: Experiment,
    variant: Variant,
    facts: DatasetFacts,
    group: str,
    index: int,
    config: Mapping[str, Any],
    code_digest: str,
) -> Trial:
    seed = int(config.get("seed", _trial_seed(experiment.seed, group, index)))
    cell = digest_of(
        {
            "schema": CELL_SCHEMA,
            "model": variant.model,
            "config": {k: v for k, v in config.items() if k != "seed"},
            "dataset": facts.content_digest,
            "code": code_digest,
            "seed": seed,
            "data_seed": experiment.data_seed,
            "metrics": experiment.objective.metrics,
            "max_epochs": experiment.search.max_epochs,
            "sensitive": experiment.include_sensitive,
        }
    )
    return Trial(
        cell=cell,
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


def _trial_seed(seed: int, group: str, index: int) -> int:
    digest = hashlib.sha256(f"{seed}\x1f{group}\x1f{index}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
