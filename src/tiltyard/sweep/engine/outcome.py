"""What a launch tells while it goes, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tiltyard.journal import CellScore, Claim
from tiltyard.sweep.engine.driver import Tick
from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.engine.prepare import Prepared
from tiltyard.sweep.leaderboard import Leaderboard, Result
from tiltyard.sweep.plan import Plan
from tiltyard.tracking import TrackerReport

Page = Callable[[str, Leaderboard, str | None], bytes | None]
"""Draws and keeps the report of a key that is about to be finished, from its leaderboard and why it ended early; None where
it could not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a launch came to.

    ``state``: ``finished``, ``stopped`` (the next launch goes on), or ``reused`` (the record answered). ``by_person``: it
    was stopped by Ctrl-C or SIGTERM. A sweep that its own budget ends is finished where a trial of each dataset has
    trained to the end (``reason`` says so): those are ranked, tested and crowned. Else, or where a team's budget ends it,
    it is stopped, and nobody looks at the test split.
    """

    state: str
    reason: str | None
    by_person: bool
    plan: Plan
    claim: Claim
    leaderboard: Leaderboard
    results: Sequence[Result]
    prepared: Mapping[str, Prepared]
    scores: Mapping[tuple[str, int], CellScore]
    layout: Layout
    seconds: float
    parent_run_id: str | None
    run_ids: Mapping[str, str]
    tracker: TrackerReport | None


class Watch(Protocol):
    """What a launch tells while it goes."""

    def planned(self, plan: Plan, known: int) -> None:
        """The plan is made; ``known`` trials have results in the record already."""

    def step(self, what: str) -> None:
        """What is being done before the first trial starts."""

    def tick(self, tick: Tick) -> None:
        """How it goes."""


class Silent:
    """A watcher that says nothing."""

    def planned(self, plan: Plan, known: int) -> None:
        """Says nothing."""

    def step(self, what: str) -> None:
        """Says nothing."""

    def tick(self, tick: Tick) -> None:
        """Says nothing."""
