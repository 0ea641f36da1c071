"""What joins a plan while its trials end: later generations, trials that a person asked for, replicates of finalists. Pure.

All three depend on what earlier trials came to or on what was asked, never on the order in which packs ended; so a resumed
sweep, and `tiltyard resume --plan`, grow the same groups from the record.

- A learning search's next generation comes when its last one has ended (`tiltyard.sweep.generations`).
- A **wave** is trials that were asked for while the sweep ran: the next ones of the same sequence of draws, as a group of
  their own (``mlp@digits/w1``). To a learning search they are further generations, after all that were to come.
- **Replicates** come last, when every trial of the search has ended and so the finalists are known: each of them again,
  ``Search.replicates`` times, as ``mlp@digits/s1/017`` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tiltyard.experiment import Experiment, Hyperband, Variant
from tiltyard.sweep.generations import Generations
from tiltyard.sweep.halving import FATES, Known, Machine
from tiltyard.sweep.leaderboard import Result, beside, finalists
from tiltyard.sweep.plan import (
    REPLICATE,
    WAVE,
    DatasetFacts,
    Group,
    Plan,
    Trial,
    cell_of,
    group_of,
    in_brackets,
    scheduler_of,
    seed_of,
)
from tiltyard.sweep.space import draw
from tiltyard.types import trains_itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """Further trials of one variant on one dataset, asked for while the sweep ran; ``number`` counts them from 1."""

    number: int
    variant: str
    dataset: str
    trials: int


class Growth:
    """A plan, and what has joined it so far.

    Args:
        experiment: What is planned.
        plan: As drawn at the start.
        facts: Of the datasets.
        code_digest: From `tiltyard.codedigest`.
        known: Scores of cells at epochs; read while it grows.
        learning: The generations of learning searches.
        check: Why a configuration cannot be trained, if so. Those of the plan were checked before the start; a later one
            that fails the check ends failed, with the reason.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        plan: Plan,
        facts: Mapping[str, DatasetFacts],
        code_digest: str,
        known: Mapping[tuple[str, int], Known],
        learning: Sequence[Generations] = (),
        check: Callable[[Trial], str | None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.refused: dict[str, str] = {}
        """Why trials that joined later cannot be trained, by cell; the machine reads it."""
        self._experiment, self._facts, self._code_digest = experiment, facts, code_digest
        self._known, self._check = known, check
        self._learning = {search.name: search for search in learning}
        self._variants = {v.name: v for v in experiment.variants}
        self._to_draw: list[Wave] = []
        self._waves = 0
        self._drawn: dict[str, int] = {}
        for trial in plan.trials:
            name = f"{trial.variant}@{trial.dataset}"
            self._drawn[name] = max(self._drawn.get(name, 0), trial.index + 1)

    def grow(self, machine: Machine, load: Callable[[Sequence[Group]], None]) -> list[Group]:
        """Adds to the machine all that can join now, as often as what is known lets more join.

        Args:
            machine: Who decides.
            load: Told of groups before the machine is, to look up what is known of their trials.
        """
        new: list[Group] = []
        while groups := self._next(machine):
            self.refused.update({t.cell: why for g in groups for t in g.trials if (why := self._check(t)) is not None})
            load(groups)
            for group in groups:
                machine.add(group)
            self.plan = self.plan.grown(groups)
            new += groups
        return new

    def why_not(self, variant: str, dataset: str, trials: int) -> str | None:
        """Why a wave cannot join, if so."""
        experiment = self._experiment
        if variant not in self._variants:
            return f"there is no variant {variant!r}; there are: {', '.join(self._variants)}"
        if dataset not in self._facts:
            return f"there is no dataset {dataset!r}; there are: {', '.join(self._facts)}"
        if experiment.search.replicates and not self.plan.replicates:
            return "the finalists are known and being trained again; ask for more trials in the job file"
        budget = experiment.budget.trials
        if budget is not None and self.plan.num_trials + trials > budget:
            return f"{self.plan.num_trials} trials are planned and budget.trials is {budget}"
        if not self._variants[variant].space:
            return f"variant {variant!r} searches nothing: more trials of it would be the same trial"
        if not experiment.search.learns and not self._draw(
            Wave(number=0, variant=variant, dataset=dataset, trials=trials)
        ):
            return f"every combination of the grid of {variant!r} on {dataset} is planned already"
        return None

    def add_wave(self, variant: str, dataset: str, trials: int) -> Wave:
        """Takes a wave in, which `why_not` has nothing against; it joins at the next `grow`."""
        self._waves += 1
        wave = Wave(number=self._waves, variant=variant, dataset=dataset, trials=trials)
        name = f"{variant}@{dataset}"
        if name in self._learning:
            self._learning[name].more(trials)
            later = {**self.plan.later, name: self.plan.later.get(name, 0) + trials}
            self.plan = replace(self.plan, later=later)
        else:
            self._to_draw.append(wave)
        return wave

    def _next(self, machine: Machine) -> list[Group]:
        groups = [g for search in self._learning.values() if (g := search.next(machine.state_of)) is not None]
        while self._to_draw:
            groups += self._draw(wave := self._to_draw.pop(0))
            name = f"{wave.variant}@{wave.dataset}"
            self._drawn[name] = max(
                [self._drawn[name], *(t.index + 1 for g in groups for t in g.trials if _of(g) == name)]
            )
        return groups or self._replicates(machine)

    def _draw(self, wave: Wave) -> list[Group]:
        """The next trials of the sequence of draws that are not planned yet."""
        experiment, variant = self._experiment, self._variants[wave.variant]
        search, first = experiment.search, self._drawn[f"{wave.variant}@{wave.dataset}"]
        points = search.points.get(variant.name, ())
        configs = draw(variant, algorithm=search.algorithm, n=first + wave.trials, seed=experiment.seed, points=points)[
            first:
        ]
        suffix = f"/{WAVE}{wave.number}"
        whole = group_of(
            experiment,
            variant,
            self._facts[wave.dataset],
            configs,
            code_digest=self._code_digest,
            first=first,
            suffix=suffix,
        )
        planned = {t.cell for t in self.plan.trials}
        whole = replace(whole, trials=tuple(t for t in whole.trials if t.cell not in planned))
        if not whole.trials:
            return []
        if isinstance(search.halving, Hyperband) and not trains_itself(variant.model):
            return list(in_brackets(search.halving, whole, prefix=suffix + "-"))
        return [whole]

    def _replicates(self, machine: Machine) -> list[Group]:
        """Each finalist again, once they are known; nothing where they are not, or stand in the plan."""
        if not self.plan.replicates or self.plan.later:
            return []
        if any(machine.state_of(t.cell).state not in FATES for g in self.plan.groups for t in g.trials):
            return []
        states = {t.cell: machine.state_of(t.cell) for t in self.plan.trials}
        search, objective = self._experiment.search, self._experiment.objective
        trials = {t.cell: t for t in self.plan.trials}
        results = []
        for trial in trials.values():
            state = states[trial.cell]
            known = self._known.get((trial.cell, state.epoch))
            also = beside(known.metrics if known is not None else {}, objective.also)
            results.append(result_of(trial, state.state, state.epoch, state.score, state.reason, also))
        groups = []
        for dataset in self._facts:
            of_dataset = [r for r in results if r.dataset == dataset]
            best = [trials[r.cell] for r in finalists(of_dataset, objective.direction, search.finalists)]
            for number in range(1, search.replicates + 1):
                for variant in self._variants.values():
                    of_variant = [t for t in best if t.variant == variant.name]
                    if of_variant:
                        groups.append(self._replicate(variant, of_variant, number))
        if not groups:
            self.plan = replace(self.plan, replicates=0)
        return groups

    def _replicate(self, variant: Variant, finalists: Sequence[Trial], number: int) -> Group:
        """The finalists of a variant on a dataset again: one order of rows for all, initial parameters of each its own."""
        experiment, first = self._experiment, finalists[0]
        name = f"{variant.name}@{first.dataset}/{REPLICATE}{number}"
        data_seed = seed_of(experiment.data_seed, "replicate", number)
        trials = []
        for trial in sorted(finalists, key=lambda t: t.index):
            seed = seed_of(trial.seed, "replicate", number)
            config = {k: v for k, v in trial.config.items() if k != "seed"}
            cell = cell_of(
                experiment,
                trial.model,
                config,
                self._facts[trial.dataset],
                code_digest=self._code_digest,
                seed=seed,
                data_seed=data_seed,
            )
            trials.append(replace(trial, cell=cell, group=name, config=config, seed=seed, data_seed=data_seed))
        return Group(
            name=name,
            variant=variant.name,
            model=variant.model,
            dataset=first.dataset,
            rungs=(experiment.search.max_epochs,),
            keep=1.0,
            trials=tuple(trials),
            scheduler="fifo" if scheduler_of(experiment, variant.model) else "",
        )


def result_of(
    trial: Trial, state: str, epoch: int, score: float | None, reason: str | None, also: tuple[float, ...]
) -> Result:
    """How a trial ended, as a line to rank."""
    return Result(
        cell=trial.cell,
        name=trial.name,
        variant=trial.variant,
        dataset=trial.dataset,
        index=trial.index,
        state=state,
        epoch=epoch,
        score=score if state != "failed" else None,
        reason=reason,
        config=dict(trial.config),
        beside=also,
    )


def _of(group: Group) -> str:
    return f"{group.variant}@{group.dataset}"
