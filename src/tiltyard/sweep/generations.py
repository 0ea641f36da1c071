"""A learning search, a generation at a time. Pure: who suggests is passed in.

A generation is a pack's worth of trials of one variant on one dataset, and a group of its own: its members are compared
with each other rung by rung. When the last of them has ended, all are told to the suggester, losers as what they are, and
the next generation is asked for. What is suggested depends on the seed and on what earlier generations came to, on nothing
else: not on the order in which packs ended, nor on which launch ran them. So a resumed search suggests the same trials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tiltyard.experiment import Experiment, Variant
from tiltyard.sweep.halving import FATES, TrialState
from tiltyard.sweep.plan import DatasetFacts, Group, Plan, group_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """What became of one trial. ``state``: ``done``, ``stopped`` (a loser at ``epoch``) or ``failed`` (no score)."""

    index: int
    config: Mapping[str, Any]
    state: str
    epoch: int
    score: float | None


class Suggester(Protocol):
    """Who suggests configurations (`tiltyard.sweep.engine.optuna_search` is one)."""

    def ask(self, indices: Sequence[int], *, seed: int) -> Sequence[Mapping[str, Any]]:
        """A configuration for each index; those asked for together know of each other as pending."""

    def tell(self, fates: Sequence[Fate]) -> None:
        """What became of trials, asked for or not (the first generation is drawn, not asked for)."""


class Generations:
    """The generations of one variant on one dataset.

    Args:
        experiment: What they belong to.
        variant: Whose space.
        facts: Of the dataset.
        code_digest: From `tiltyard.codedigest`.
        first: The first generation, from the plan.
        later: How many trials are to come after it.
        suggester: Who suggests them.
    """

    def __init__(
        self,
        *,
        experiment: Experiment,
        variant: Variant,
        facts: DatasetFacts,
        code_digest: str,
        first: Group,
        later: int,
        suggester: Suggester,
    ) -> None:
        self._experiment, self._variant, self._facts = experiment, variant, facts
        self._code_digest, self._suggester = code_digest, suggester
        self._open, self._number, self._next_index = first, 0, len(first.trials)
        self.name = f"{variant.name}@{facts.name}"
        self.later = later
        """Trials that are not drawn yet, but for those of `more`."""
        self._more: list[int] = []

    def next(self, state_of: Callable[[str], TrialState]) -> Group | None:
        """The next generation, once every member of the last one has ended for good; else None, and None at the end."""
        if not self.later and self._more:
            self.later = self._more.pop(0)
        if not self.later:
            return None
        states = [(t, state_of(t.cell)) for t in self._open.trials]
        if any(s.state not in FATES for _, s in states):
            return None
        self._suggester.tell(
            [Fate(index=t.index, config=t.config, state=s.state, epoch=s.epoch, score=s.score) for t, s in states]
        )
        count = min(self.later, self._experiment.search.generation)
        indices = range(self._next_index, self._next_index + count)
        self._number += 1
        configs = self._suggester.ask(indices, seed=self._seed())
        self._open = group_of(
            self._experiment,
            self._variant,
            self._facts,
            [{**self._variant.fixed, **c} for c in configs],
            code_digest=self._code_digest,
            first=self._next_index,
            suffix=f"/g{self._number}",
        )
        self._next_index += count
        self.later -= count
        return self._open

    def more(self, trials: int) -> None:
        """So many further trials, in generations of their own: which ones come before does not depend on when this is said."""
        self._more.append(trials)

    def _seed(self) -> int:
        words = (self._experiment.seed, self._variant.name, self._facts.name, self._number)
        return int.from_bytes(hashlib.sha256("\x1f".join(map(str, words)).encode()).digest()[:4], "big")


def generations(
    experiment: Experiment,
    plan: Plan,
    facts: Mapping[str, DatasetFacts],
    *,
    code_digest: str,
    suggester: Callable[[Variant], Suggester],
) -> tuple[Generations, ...]:
    """One for each variant on each dataset; none unless the search learns."""
    if not experiment.search.learns:
        return ()
    variants = {v.name: v for v in experiment.variants}
    return tuple(
        Generations(
            experiment=experiment,
            variant=variants[first.variant],
            facts=facts[first.dataset],
            code_digest=code_digest,
            first=first,
            later=plan.later.get(first.name, 0),
            suggester=suggester(variants[first.variant]),
        )
        for first in plan.groups
    )
