"""What the packs of a launch may still use: of the experiment's own budget, and of its team's.

Asked before a pack starts (`may_start`), at each turn of the driver's loop (`tick`) and when a pack ends (`ended`). How
long a pack takes is not known, so a part is reserved before it starts and more while it runs; a pack for which nothing
more can be reserved ends the sweep. The arithmetic is `tiltyard.money`'s; a team's is done in the journal, where other
sweeps see it. Without a budget nothing is asked and nothing written.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from tiltyard.errors import BudgetExceededError
from tiltyard.experiment import Experiment
from tiltyard.journal import Claim, Hold, Journal
from tiltyard.money import Budget, Seconds, reserve, settle
from tiltyard.sweep.halving import StartPack

FIRST_S = 30.0
"""Reserved for a pack of which nothing is known, and for each time it runs on."""
SAFETY = 1.5
"""A pack is expected to take this much longer than the last one of its kind."""
MARGIN_S = 2.0
"""Before what was reserved is used up, more is asked for."""
ENDING_S = 4.0
"""Kept of what was reserved, for a pack's end is paid for too: on two busy cores it took 3.6 s until its process was gone. At
most a fifth of what was reserved, for a start takes seconds too."""
ASK_AGAIN_S = 1.0
"""A team that refused is asked again after this long: other sweeps may have settled meanwhile."""
_LESS = (10.0, 3.0, 1.0)
"""Asked for where that much is not left: what is left is used, but for less than the last of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Running:
    start: StartPack
    since: float
    seconds: float
    hold: Hold | None


class Purse:
    """The budgets of one launch.

    Args:
        experiment: Whose budget and resources.
        journal: Where spend is metered and the team's budget is kept.
        claim: Whose key is charged.
        clock: Seconds that only rise.
    """

    def __init__(
        self, *, experiment: Experiment, journal: Journal, claim: Claim, clock: Callable[[], float] = time.monotonic
    ) -> None:
        limits, resources = experiment.budget, experiment.resources
        self._journal, self._claim, self._clock = journal, claim, clock
        self._team = limits.team
        self._rate = Seconds(cpu_s=resources.cpus, gpu_s=resources.gpus)
        self._is_open = limits.cpu_hours is None and limits.gpu_hours is None and limits.team is None
        self._own = Budget(
            owner="this experiment",
            limit_cpu_s=None if limits.cpu_hours is None else limits.cpu_hours * 3600,
            limit_gpu_s=None if limits.gpu_hours is None else limits.gpu_hours * 3600,
            spent=Seconds() if self._is_open else self._metered(),
        )
        self._running: dict[str, _Running] = {}
        self._pace: dict[str, tuple[float, int]] = {}
        """By variant and dataset: seconds an epoch of the last pack, and its members."""
        self._refused_until = 0.0
        self.refused: str | None = None
        """Why the last pack that was asked for could not start; None once something changed."""
        self.by_team = False
        """The last that refused was the team's budget, which may be raised or given back to; not the experiment's own."""

    def may_start(self, start: StartPack) -> bool:
        """Reserves for a pack and says True, or reserves nothing and says False (`refused` says why)."""
        if self._is_open:
            return True
        now = self._clock()
        if now < self._refused_until:
            return False
        expected = self._expected_s(start)
        asks = [FIRST_S if expected is None else expected]
        if expected is None and not self._running:  # nothing is known and nothing to wait for: with what there is
            asks += _LESS
        for seconds in asks:
            try:
                self._reserve(start, seconds, now)
            except BudgetExceededError as error:
                self.refused = _clause(error)
                continue
            self.refused = None
            return True
        self._refused_until = now + ASK_AGAIN_S
        return False

    def closed(self) -> bool:
        """Nothing can start, and nothing that runs, here or in another sweep of the team, may give something back."""
        if self.refused is None or self._running:
            return False
        return self._team is None or not self._journal.budgets.get(self._team).reserved.any

    def tick(self) -> str | None:
        """Reserves more for what runs on; why the sweep must end, where a pack has used all that was reserved for it."""
        now = self._clock()
        for pack_id, pack in self._running.items():
            used = now - pack.since
            if used < pack.seconds - max(MARGIN_S, min(ENDING_S, pack.seconds / 5)):
                continue
            for seconds in (FIRST_S, *_LESS):
                try:
                    self._running[pack_id] = self._extend(pack, seconds)
                    break
                except BudgetExceededError as error:
                    refused = _clause(error)
            else:
                if used >= pack.seconds - min(ENDING_S, pack.seconds / 5):
                    return refused
        return None

    def ended(self, pack_id: str) -> None:
        """Books what the meter says since the last time, and gives back what was reserved."""
        pack = self._running.pop(pack_id, None)
        if pack is None:
            return
        held_s = self._clock() - pack.since
        epochs = pack.start.to_epoch - pack.start.from_epoch
        self._pace[_kind(pack.start)] = (held_s / epochs, len(pack.start.cells))
        used = self._metered() - self._own.spent
        self._own = settle(self._own, self._rate * pack.seconds, used)
        if pack.hold is not None:
            self._journal.budgets.settle(pack.hold, used)
        self._refused_until, self.refused = 0.0, None

    def _expected_s(self, start: StartPack) -> float | None:
        known = self._pace.get(_kind(start))
        if known is None:
            return None
        seconds_an_epoch, members = known
        return 1.0 + SAFETY * seconds_an_epoch * (start.to_epoch - start.from_epoch) * max(
            1, len(start.cells) / members
        )

    def _reserve(self, start: StartPack, seconds: float, now: float) -> None:
        ask = self._rate * seconds
        self.by_team = False
        after = reserve(self._own, ask)
        hold = None
        self.by_team = self._team is not None
        if self._team is not None:
            hold = self._journal.budgets.hold(self._team, claim=self._claim, pack_id=start.pack_id, ask=ask)
        self._own = after
        self._running[start.pack_id] = _Running(start=start, since=now, seconds=seconds, hold=hold)

    def _extend(self, pack: _Running, seconds: float) -> _Running:
        ask = self._rate * seconds
        self.by_team = False
        after = reserve(self._own, ask)
        self.by_team = pack.hold is not None
        hold = None if pack.hold is None else self._journal.budgets.extend(pack.hold, ask)
        self._own = after
        return replace(pack, seconds=pack.seconds + seconds, hold=hold)

    def _metered(self) -> Seconds:
        spent = self._journal.spend(self._claim.key)
        return Seconds(cpu_s=spent.cpu_s, gpu_s=spent.gpu_s)


def _clause(error: BudgetExceededError) -> str:
    """As a reason: whoever tells it ends the sentence."""
    return str(error).removesuffix(".")


def _kind(start: StartPack) -> str:
    """Variant and dataset: ``mlp@digits`` of ``mlp@digits/b2``."""
    return start.group.partition("/")[0]
