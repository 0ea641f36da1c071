"""Which pack runs next, and which trials stop: synchronous successive halving as a state machine. Pure.

Events in (a pack's scores, a loss, time is up), instructions out (start this pack). A rung of a group closes when each of
its live trials has a score or has failed; the best ``ceil(keep * live)`` go on, at least one. Nothing depends on the order
of events: packs are composed when a rung opens, from the trials in their order; equal scores are told apart by the scores
beside them, then by the trial's index.

Resume and reuse are the same thing: a member whose score at a rung's epoch is *known* is left out of its pack.

Source: Jamieson & Talwalkar 2016; the synchronous form, so that survivors stand at equal epochs and can be packed anew.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tiltyard.errors import JournalError
from tiltyard.sweep.leaderboard import beside
from tiltyard.sweep.plan import Group, Trial
from tiltyard.types import Mode

FATES = frozenset({"done", "stopped", "failed"})
"""States that a trial never leaves."""


class Known(Protocol):
    """What is known of a cell at an epoch (`tiltyard.journal.CellScore` is one)."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Its scores."""

    @property
    def failed(self) -> str | None:
        """Why it has none, if so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPack:
    """An instruction: train these cells together from the end of one epoch to the end of another."""

    pack_id: str
    group: str
    rung: int
    from_epoch: int
    to_epoch: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PackDone:
    """Every member has a score or a failure."""

    pack_id: str
    scores: Mapping[str, Known]


@dataclass(frozen=True, slots=True)
class MembersDone:
    """These members of a queue have a score or a failure; others of it still train. Said twice, it comes to the same."""

    pack_id: str
    scores: Mapping[str, Known]


@dataclass(frozen=True, slots=True)
class PackLost:
    """The pack's process died as often as is allowed; its members have failed."""

    pack_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PackCut:
    """The process of a queue died as often as is allowed, but the queue got on: what is left of it is a queue of its own."""

    pack_id: str


@dataclass(frozen=True, slots=True)
class PackStopped:
    """The pack was ended because the sweep was: nothing more starts, and its members go on from here another time."""

    pack_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class TimeUp:
    """Nothing more is to start."""

    reason: str


Event = PackDone | MembersDone | PackLost | PackCut | PackStopped | TimeUp


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialState:
    """Where a trial stands. States: planned, running, waiting, stopped, done, failed, interrupted."""

    state: str
    epoch: int = 0
    score: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Withdrawal:
    """A person stopped a trial: it takes part in rungs up to ``after_epoch`` (0: in none) and in no later one."""

    after_epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A closed rung: who goes on, who stops, and by which scores."""

    group: str
    rung: int
    epoch: int
    kept: tuple[str, ...]
    stopped: tuple[str, ...]
    scores: Mapping[str, float]
    reason: str


@dataclass(slots=True)
class _Rung:
    """The open rung of a group."""

    group: Group
    index: int
    live: list[Trial]
    scores: dict[str, float] = field(default_factory=dict)
    beside: dict[str, tuple[float, ...]] = field(default_factory=dict)
    outstanding: set[str] = field(default_factory=set)
    closed: bool = False
    """Decided already: only members that a person stopped still train."""


class Machine:
    """The state of a whole sweep.

    Args:
        groups: From the plan.
        metric: The ranking metric.
        mode: Its direction.
        also: Scores that tell trials of equal rank apart, before their place in the plan does.
        pack_size: Members of a pack, given a group and the trials of one shape that are live.
        shape: What must be equal inside a pack; trials of other shapes get packs of their own.
        known: Scores of cells at epochs that need no run.
        refused: Why trials cannot be trained, by cell: they fail at once. Read when a group is added.
        withdrawn: Trials that a person stopped, by cell; `withdraw` adds to it.
        ended: How trials stand that an earlier launch ran outside of packs.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        metric: str,
        mode: Mode,
        also: Sequence[str] = (),
        pack_size: Callable[[Group, Sequence[Trial]], int],
        shape: Callable[[Trial], str],
        known: Mapping[tuple[str, int], Known],
        refused: Mapping[str, str] | None = None,
        withdrawn: dict[str, Withdrawal] | None = None,
        ended: Mapping[str, TrialState] | None = None,
    ) -> None:
        self._metric, self._mode, self._also = metric, mode, tuple(also)
        self._refused = {} if refused is None else refused
        self._withdrawn = {} if withdrawn is None else withdrawn
        self._ended = {} if ended is None else ended
        self._outside: list[Group] = []
        self._pack_size, self._shape, self._known = pack_size, shape, known
        self._states: dict[str, TrialState] = {}
        self._group_of: dict[str, str] = {}
        self._rungs: dict[str, _Rung] = {}
        self._ready: dict[str, deque[StartPack]] = {}
        self._turn: deque[str] = deque()
        self._running: dict[str, StartPack] = {}
        self._halted: str | None = None
        self._decisions: list[Decision] = []
        for group in groups:
            self.add(group)

    def add(self, group: Group) -> None:
        """Takes in a group that was not there from the start: the next generation of a learning search."""
        for trial in group.trials:
            self._group_of[trial.cell] = group.name
            why = self._refused.get(trial.cell)
            self._states[trial.cell] = (
                TrialState(state="planned") if why is None else TrialState(state="failed", reason=why)
            )
        if group.scheduler:
            self._add_outside(group)
            return
        self._turn.append(group.name)
        self._ready[group.name] = deque()
        self._open(group, 0, [t for t in group.trials if t.cell not in self._refused])
        if self._halted is not None:
            self._halt(self._halted)

    # -- asking ---------------------------------------------------------------------------------------------------

    def next(self, accept: Callable[[StartPack], bool] | None = None) -> StartPack | None:
        """The next pack to start; groups take turns, so that no device waits while any group has work.

        Args:
            accept: Asked before a pack is taken (may it be paid for?); one that is not accepted stays where it is.
        """
        if self._halted is not None:
            return None
        for _ in range(len(self._turn)):
            name = self._turn[0]
            self._turn.rotate(-1)
            if self._ready[name] and (accept is None or accept(self._ready[name][0])):
                pack = self._ready[name].popleft()
                self._running[pack.pack_id] = pack
                for cell in pack.cells:
                    self._states[cell] = replace(self._states[cell], state="running")
                return pack
        return None

    @property
    def done(self) -> bool:
        """Nothing runs, and nothing is left to start."""
        return not self._running and (self._halted is not None or not any(self._ready.values()))

    @property
    def waiting(self) -> int:
        """Packs that could start now."""
        return 0 if self._halted is not None else sum(map(len, self._ready.values()))

    @property
    def running(self) -> tuple[StartPack, ...]:
        """Packs that were started and have not ended."""
        return tuple(self._running.values())

    def state_of(self, cell: str) -> TrialState:
        """Where a trial stands."""
        return self._states[cell]

    def drain_decisions(self) -> tuple[Decision, ...]:
        """Rungs closed since the last call."""
        decisions, self._decisions = tuple(self._decisions), []
        return decisions

    @property
    def outside(self) -> tuple[Group, ...]:
        """Groups with trials to start that share no packs: each is a Tune trial under a scheduler of Ray Tune's."""
        if self._halted is not None:
            return ()
        return tuple(g for g in self._outside if any(self._states[t.cell].state == "planned" for t in g.trials))

    def is_withdrawn(self, cell: str) -> bool:
        """A person stopped this trial."""
        return cell in self._withdrawn

    # -- telling --------------------------------------------------------------------------------------------------

    def withdraw(self, cell: str, reason: str) -> Withdrawal | None:
        """Stops one trial where it stands: what it has reached counts, what it is doing does not; None if it has ended.

        Said again to another machine (``withdrawn``), it comes to the same whenever it is said.
        """
        before = self._states[cell]
        if before.state in FATES:
            return None
        rung = self._rungs.get(self._group_of[cell])
        done = Withdrawal(after_epoch=before.epoch, reason=reason)
        self._withdrawn[cell] = done
        self._states[cell] = replace(before, state="stopped", reason=reason)
        if rung is not None and cell not in rung.scores:
            rung.live = [t for t in rung.live if t.cell != cell]
            rung.outstanding.discard(cell)
            ready = self._ready[rung.group.name]
            packs = [replace(p, cells=tuple(c for c in p.cells if c != cell)) for p in ready]
            self._ready[rung.group.name] = deque(p for p in packs if p.cells)
            self._close_if_complete(rung)
        return done

    def report(self, event: Event) -> None:
        """Takes an event in.

        Raises:
            JournalError: If a pack ended that was not running.
        """
        if isinstance(event, TimeUp):
            self._halt(event.reason)
            return
        pack = self._running.get(event.pack_id)
        if pack is None:
            raise JournalError(f"Pack {event.pack_id} ended, but it was not running; nothing was changed.")
        if not isinstance(event, MembersDone):
            del self._running[event.pack_id]
        rung = self._rungs[pack.group]
        its_rung = rung.index == pack.rung  # else it was closed with the last member of this pack
        open_ = [c for c in pack.cells if its_rung and c in rung.outstanding and c not in self._withdrawn]
        if isinstance(event, PackStopped):
            for cell in open_:
                self._states[cell] = replace(self._states[cell], state="interrupted", reason=event.reason)
            self._halt(event.reason)
            return
        if isinstance(event, PackCut):
            self._put_back(pack, open_)
            return
        if isinstance(event, MembersDone):
            open_ = [cell for cell in open_ if cell in event.scores]
        for cell in open_:
            if isinstance(event, PackLost):
                self._fail(rung, cell, event.reason)
            elif cell in event.scores:
                self._take(rung, cell, event.scores[cell])
            else:
                self._fail(rung, cell, "the pack ended without a score for this trial")
        self._close_if_complete(rung)

    def tell_outside(self, cell: str, state: TrialState) -> None:
        """How a trial of `outside` stands now; one that a person stopped stays stopped, with what it has reached."""
        gone = self._withdrawn.get(cell)
        if gone is not None:
            if state.state in {"done", "stopped"} and state.epoch:
                self._states[cell] = replace(state, state="stopped", reason=gone.reason)
            return
        self._states[cell] = state

    # -- inside ---------------------------------------------------------------------------------------------------

    def _add_outside(self, group: Group) -> None:
        self._outside.append(group)
        for trial in group.trials:
            if trial.cell in self._ended and self._states[trial.cell].state not in FATES:
                self._states[trial.cell] = self._ended[trial.cell]
            elif (gone := self._withdrawn.get(trial.cell)) is not None:
                self._states[trial.cell] = TrialState(state="stopped", reason=gone.reason)
        if self._halted is not None:
            self._halt(self._halted)

    def _open(self, group: Group, index: int, live: list[Trial]) -> None:
        """Opens a rung: composes its packs, leaves out what is known, and closes it at once where all is."""
        rung = _Rung(group=group, index=index, live=live)
        self._rungs[group.name] = rung
        to_epoch = group.rungs[index]
        from_epoch = group.rungs[index - 1] if index else 0
        for trial in live:
            if (gone := self._withdrawn.get(trial.cell)) is not None and gone.after_epoch < to_epoch:
                self._states[trial.cell] = replace(self._states[trial.cell], state="stopped", reason=gone.reason)
        rung.live = live = [t for t in live if self._states[t.cell].state not in FATES]
        for number, members in enumerate(self._compose(group, live)):
            unknown = [t for t in members if (t.cell, to_epoch) not in self._known]
            for trial in members:
                if (trial.cell, to_epoch) in self._known:
                    self._take(rung, trial.cell, self._known[trial.cell, to_epoch])
            if unknown:
                rung.outstanding |= {t.cell for t in unknown}
                self._ready[group.name].append(
                    StartPack(
                        pack_id=f"{group.name}/r{index}/{number}",
                        group=group.name,
                        rung=index,
                        from_epoch=from_epoch,
                        to_epoch=to_epoch,
                        cells=tuple(t.cell for t in unknown),
                    )
                )
        self._close_if_complete(rung)

    def _put_back(self, pack: StartPack, cells: Sequence[str]) -> None:
        """What is left of a queue starts again under a name of its own; another time where nothing starts any more."""
        for cell in cells:
            self._states[cell] = replace(self._states[cell], state="planned")
        if self._halted is not None:
            self._halt(self._halted)
        elif cells:
            self._ready[pack.group].append(replace(pack, pack_id=_next_name(pack.pack_id), cells=tuple(cells)))

    def _compose(self, group: Group, live: Sequence[Trial]) -> list[list[Trial]]:
        """Packs of equal shape, near-equal in size, in the trials' order."""
        shapes: dict[str, list[Trial]] = {}
        for trial in live:
            shapes.setdefault(self._shape(trial), []).append(trial)
        packs = []
        for trials in shapes.values():
            count = math.ceil(len(trials) / max(1, self._pack_size(group, trials)))
            packs += [trials[i * len(trials) // count : (i + 1) * len(trials) // count] for i in range(count)]
        return packs

    def _take(self, rung: _Rung, cell: str, known: Known) -> None:
        score = known.metrics.get(self._metric, math.nan)
        if known.failed is not None or not math.isfinite(score):
            self._fail(rung, cell, known.failed or f"{self._metric} is not a finite number")
            return
        rung.outstanding.discard(cell)
        rung.scores[cell] = score
        rung.beside[cell] = beside(known.metrics, self._also)
        epoch, last = rung.group.rungs[rung.index], rung.index == len(rung.group.rungs) - 1
        state = TrialState(state="done" if last else "waiting", epoch=epoch, score=score)
        gone = self._withdrawn.get(cell)
        if gone is not None and not last and gone.after_epoch <= epoch:
            state = replace(state, state="stopped", reason=gone.reason)
        elif self._halted is not None and not last:
            state = replace(state, state="interrupted", reason=self._halted)
        self._states[cell] = state

    def _fail(self, rung: _Rung, cell: str, reason: str) -> None:
        rung.outstanding.discard(cell)
        before = self._states[cell]
        self._states[cell] = TrialState(state="failed", epoch=before.epoch, score=None, reason=reason)

    def _close_if_complete(self, rung: _Rung) -> None:
        if rung.outstanding or rung.closed:
            return
        rung.closed = True
        ranked = sorted(
            (t for t in rung.live if t.cell in rung.scores),
            key=lambda t: (-self._mode.sign * rung.scores[t.cell], tuple(-b for b in rung.beside[t.cell]), t.index),
        )
        last = rung.index == len(rung.group.rungs) - 1
        keep = len(ranked) if last else max(1, math.ceil(rung.group.keep * len(ranked) - 1e-9)) if ranked else 0
        kept, stopped = ranked[:keep], ranked[keep:]
        epoch = rung.group.rungs[rung.index]
        for trial in (
            t for t in stopped if t.cell not in self._withdrawn or self._withdrawn[t.cell].after_epoch > epoch
        ):
            self._states[trial.cell] = replace(
                self._states[trial.cell],
                state="stopped",
                reason=f"not among the best {keep} of {len(ranked)} at epoch {epoch}",
            )
        self._decisions.append(
            Decision(
                group=rung.group.name,
                rung=rung.index,
                epoch=epoch,
                kept=tuple(t.cell for t in kept),
                stopped=tuple(t.cell for t in stopped),
                scores=dict(rung.scores),
                reason=f"best {keep} of {len(ranked)} by {self._metric} at epoch {epoch}",
            )
        )
        if not last and kept and self._halted is None:
            self._open(rung.group, rung.index + 1, sorted(kept, key=lambda t: t.index))

    def _halt(self, reason: str) -> None:
        """Nothing starts any more; what has not ended is interrupted, and goes on from here another time."""
        self._halted = self._halted or reason
        for ready in self._ready.values():
            ready.clear()
        for cell, state in self._states.items():
            if state.state in {"planned", "waiting"}:
                self._states[cell] = replace(state, state="interrupted", reason=self._halted)


def _next_name(pack_id: str) -> str:
    """The name of what is left of a pack: ``own@digits/r0/3.2`` of ``own@digits/r0/3``, then ``3.3``."""
    head, _, last = pack_id.rpartition("/")
    first, _, number = last.partition(".")
    return f"{head}/{first}.{int(number or 1) + 1}"
