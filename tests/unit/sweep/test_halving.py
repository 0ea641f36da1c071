"""Synchronous halving: whatever the order of events, the same trials go on, and each ends in a named state."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import Hyperband
from tiltyard.errors import JournalError
from tiltyard.sweep.brackets import brackets
from tiltyard.sweep.halving import (
    Decision,
    Machine,
    MembersDone,
    PackCut,
    PackDone,
    PackLost,
    PackStopped,
    StartPack,
    TimeUp,
    TrialState,
    Withdrawal,
)
from tiltyard.sweep.plan import Group, Trial
from tiltyard.types import Mode, Task


@dataclass(frozen=True)
class Score:
    metrics: Mapping[str, float]
    failed: str | None = None


Outcomes = dict[tuple[str, int], Score]
"""How each trial ends each rung, by cell and epoch: what no order of events changes."""


def trial(group: str, index: int) -> Trial:
    return Trial(
        cell=f"{group}#{index}",
        index=index,
        group=group,
        variant="mlp",
        model="mlp",
        config={"shape": index % 2},
        dataset="digits",
        dataset_version=1,
        dataset_digest="d",
        task=Task.MULTICLASS,
        input_shape=(4,),
        num_outputs=3,
        seed=0,
        data_seed=0,
    )


def group(name: str, n: int, rungs: tuple[int, ...] = (1, 3, 9), keep: float = 1 / 3, first: int = 0) -> Group:
    trials = tuple(trial(name, first + i) for i in range(n))
    return Group(name=name, variant="mlp", model="mlp", dataset="digits", rungs=rungs, keep=keep, trials=trials)


@dataclass
class Run:
    """A machine, and everything that came out of it."""

    groups: list[Group]
    outcomes: Outcomes
    size: int = 4
    mode: Mode = Mode.MAX
    known: Outcomes = field(default_factory=dict)
    withdrawn: dict[str, Withdrawal] = field(default_factory=dict)
    started: list[StartPack] = field(default_factory=list)
    decisions: dict[tuple[str, int], Decision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.machine = Machine(
            self.groups,
            metric="accuracy",
            mode=self.mode,
            pack_size=lambda group, trials: self.size,
            shape=lambda t: str(t.config["shape"]),
            known=self.known,
            withdrawn=self.withdrawn,
        )
        self.collect()

    def start(self) -> StartPack | None:
        pack = self.machine.next()
        if pack is not None:
            self.started.append(pack)
        return pack

    def end(self, pack: StartPack) -> None:
        scores = {c: self.outcomes[c, pack.to_epoch] for c in pack.cells}
        self.known.update({(c, pack.to_epoch): s for c, s in scores.items()})
        self.machine.report(PackDone(pack.pack_id, scores))
        self.collect()

    def tell(self, pack: StartPack, cells: Iterable[str]) -> None:
        """Members of a queue have ended; the others still train."""
        scores = {c: self.outcomes[c, pack.to_epoch] for c in cells}
        self.known.update({(c, pack.to_epoch): s for c, s in scores.items()})
        self.machine.report(MembersDone(pack.pack_id, scores))
        self.collect()

    def lose(self, pack: StartPack) -> None:
        self.machine.report(PackLost(pack.pack_id, "killed"))
        self.collect()

    def collect(self) -> None:
        for decision in self.machine.drain_decisions():
            assert (decision.group, decision.rung) not in self.decisions, "a rung closes once"
            self.decisions[decision.group, decision.rung] = decision

    def to_the_end(self, pick: Callable[[int], int] = lambda n: 0, at_once: int = 3) -> "Run":
        """Runs until done: ``pick(n)`` says which of n running packs ends next."""
        for _ in range(10_000):
            while len(self.machine.running) < at_once and self.start() is not None:
                pass
            running = self.machine.running
            if not running:
                break
            self.end(running[pick(len(running)) % len(running)])
        assert self.machine.done
        assert self.machine.next() is None
        return self

    @property
    def states(self) -> dict[str, TrialState]:
        return {t.cell: self.machine.state_of(t.cell) for g in self.groups for t in g.trials}

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for state in self.states.values():
            counts[state.state] += 1
        return dict(counts)


def outcomes_of(groups: Iterable[Group], score: Callable[[Trial, int], float | str]) -> Outcomes:
    found: Outcomes = {}
    for g in groups:
        for t in g.trials:
            for epoch in g.rungs:
                value = score(t, epoch)
                found[t.cell, epoch] = Score({}, failed=value) if isinstance(value, str) else Score({"accuracy": value})
    return found


# few distinct scores, so that there are ties; some fail with a reason, some are no number
scores: st.SearchStrategy[float | str] = st.sampled_from(
    [0.1, 0.2, 0.2, 0.3, 0.5, 0.5, 0.9, math.nan, math.inf, "diverged"]
)


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[list[Group], Outcomes, int]:
    groups = [
        group(
            f"g{i}",
            draw(st.integers(1, 12)),
            rungs=tuple(sorted(draw(st.sets(st.integers(1, 9), min_size=1, max_size=3)))),
            keep=draw(st.sampled_from([0.2, 1 / 3, 0.5, 0.99])),
        )
        for i in range(draw(st.integers(1, 3)))
    ]
    return groups, outcomes_of(groups, lambda t, e: draw(scores)), draw(st.integers(1, 6))


@given(sweep=sweeps(), data=st.data(), at_once=st.integers(1, 5), mode=st.sampled_from(list(Mode)))
def test_machine_with_packs_ending_in_any_order_comes_to_the_same(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject, at_once: int, mode: Mode
) -> None:
    groups, outcomes, size = sweep
    one_by_one = Run(groups, outcomes, size, mode).to_the_end(at_once=1)
    any_order = Run(groups, outcomes, size, mode).to_the_end(lambda n: data.draw(st.integers(0, n - 1)), at_once)
    assert any_order.states == one_by_one.states
    assert any_order.decisions == one_by_one.decisions
    assert sorted(p.pack_id for p in any_order.started) == sorted(p.pack_id for p in one_by_one.started)
    assert set(any_order.counts()) <= {"done", "stopped", "failed"}


@given(sweep=sweeps(), data=st.data())
def test_machine_told_of_members_as_they_end_comes_to_the_same(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    groups, outcomes, size = sweep
    at_the_end = Run(groups, outcomes, size).to_the_end()
    as_they_end = Run(groups, outcomes, size)
    for _ in range(10_000):
        while len(as_they_end.machine.running) < 3 and as_they_end.start() is not None:
            pass
        running = as_they_end.machine.running
        if not running:
            break
        pack = running[data.draw(st.integers(0, len(running) - 1))]
        if data.draw(st.booleans()):
            as_they_end.tell(pack, data.draw(st.sets(st.sampled_from(pack.cells))))  # told again, too
        else:
            as_they_end.end(pack)
    assert as_they_end.machine.done
    assert as_they_end.states == at_the_end.states
    assert as_they_end.decisions == at_the_end.decisions


@given(sweep=sweeps(), data=st.data(), lost=st.booleans())
def test_queue_that_is_lost_or_stopped_keeps_the_members_that_had_ended(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject, lost: bool
) -> None:
    run = Run(*sweep)
    pack = run.start()
    assert pack is not None
    told = data.draw(st.sets(st.sampled_from(pack.cells)))
    run.tell(pack, told)
    before = {c: run.states[c] for c in told}
    run.machine.report(PackLost(pack.pack_id, "killed") if lost else PackStopped(pack.pack_id, "stopped"))
    left = set(pack.cells) - told
    assert {run.states[c].state for c in left} <= ({"failed"} if lost else {"interrupted"})
    assert all(run.states[c].score == before[c].score for c in told if before[c].state != "failed")
    assert all(run.states[c].state != "failed" for c in told if before[c].state != "failed")
    assert run.machine.running == ()


@given(sweep=sweeps(), data=st.data())
def test_queue_whose_process_dies_again_and_again_comes_to_the_same_as_long_as_it_gets_on(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    groups, outcomes, size = sweep
    calm, cut = Run(groups, outcomes, size).to_the_end(), Run(groups, outcomes, size)
    for _ in range(10_000):
        while len(cut.machine.running) < 3 and cut.start() is not None:
            pass
        if not cut.machine.running:
            break
        pack = cut.machine.running[data.draw(st.integers(0, len(cut.machine.running) - 1))]
        done = pack.cells[: data.draw(st.integers(1, len(pack.cells)))]
        if len(done) == len(pack.cells):
            cut.end(pack)
            continue
        cut.tell(pack, done)
        cut.machine.report(PackCut(pack.pack_id))
    assert cut.machine.done
    assert cut.states == calm.states
    assert cut.decisions == calm.decisions
    assert len({p.pack_id for p in cut.started}) == len(cut.started)


def test_queue_that_is_cut_while_the_sweep_ends_goes_on_another_time() -> None:
    groups = [group("own@digits", 4, rungs=(3,))]
    run = Run(groups, outcomes_of(groups, lambda t, e: 0.5))
    pack = run.start()
    assert pack is not None
    run.tell(pack, pack.cells[:1])
    run.machine.report(PackCut(pack.pack_id))
    again = run.machine.next()
    while again is not None and again.cells != pack.cells[1:]:
        again = run.machine.next()
    assert again is not None
    assert again.pack_id == f"{pack.pack_id}.2"
    run.machine.report(TimeUp("enough"))
    run.machine.report(PackCut(again.pack_id))
    assert {run.states[c].state for c in again.cells} == {"interrupted"}


@given(sweep=sweeps())
def test_machine_says_how_many_packs_wait_before_each_of_them_starts(sweep: tuple[list[Group], Outcomes, int]) -> None:
    run = Run(*sweep)
    for left in range(run.machine.waiting, 0, -1):
        assert run.machine.waiting == left
        assert run.start() is not None
    assert run.machine.waiting == 0
    assert run.start() is None


@given(sweep=sweeps())
def test_machine_starts_no_pack_and_no_trial_of_a_rung_twice(sweep: tuple[list[Group], Outcomes, int]) -> None:
    run = Run(*sweep).to_the_end()
    ids = [p.pack_id for p in run.started]
    work = [(c, p.to_epoch) for p in run.started for c in p.cells]
    assert len(set(ids)) == len(ids)
    assert len(set(work)) == len(work)
    for pack in run.started:
        rungs = next(g.rungs for g in run.groups if g.name == pack.group)
        assert pack.to_epoch == rungs[pack.rung]
        assert pack.from_epoch == (rungs[pack.rung - 1] if pack.rung else 0)
        assert 1 <= len(pack.cells) <= run.size
        assert len({int(c.partition("#")[2]) % 2 for c in pack.cells}) == 1, "one shape a pack"


@given(sweep=sweeps(), data=st.data())
def test_machine_lets_the_best_share_of_those_with_a_score_go_on(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    run = Run(*sweep).to_the_end()
    for (name, rung), decision in run.decisions.items():
        g = next(g for g in run.groups if g.name == name)
        assert decision.epoch == g.rungs[rung]
        assert set(decision.scores) == {*decision.kept, *decision.stopped}
        live = set(run.decisions[name, rung - 1].kept) if rung else {t.cell for t in g.trials}
        finite = {c for c in live if math.isfinite(run.outcomes[c, decision.epoch].metrics.get("accuracy", math.nan))}
        assert set(decision.scores) == finite
        last = rung == len(g.rungs) - 1
        expected = len(finite) if last else max(1, math.ceil(g.keep * len(finite))) if finite else 0
        assert len(decision.kept) == expected
        if decision.kept and decision.stopped:
            assert min(decision.scores[c] for c in decision.kept) >= max(decision.scores[c] for c in decision.stopped)


@given(sweep=sweeps(), data=st.data())
def test_machine_of_another_launch_with_what_is_known_ends_as_the_undisturbed(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    groups, outcomes, size = sweep
    undisturbed = Run(groups, outcomes, size).to_the_end()
    killed = Run(groups, outcomes, size)
    for _ in range(data.draw(st.integers(0, 8))):
        while len(killed.machine.running) < 2 and killed.start() is not None:
            pass
        running = killed.machine.running
        if running:
            killed.end(running[data.draw(st.integers(0, len(running) - 1))])
    resumed = Run(groups, outcomes, size, known=dict(killed.known)).to_the_end(
        lambda n: data.draw(st.integers(0, n - 1))
    )
    assert resumed.states == undisturbed.states
    assert resumed.decisions == undisturbed.decisions
    redone = {(c, p.to_epoch) for p in resumed.started for c in p.cells}
    assert not redone & set(killed.known)
    assert not Run(groups, outcomes, size, known=dict(resumed.known)).to_the_end().started


@given(sweep=sweeps(), data=st.data())
def test_machine_with_trials_stopped_by_a_person_at_any_moment_ends_and_another_launch_comes_to_the_same(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    groups, outcomes, size = sweep
    run = Run(groups, outcomes, size)
    cells = [t.cell for g in groups for t in g.trials]
    asked: dict[str, TrialState] = {}
    for _ in range(data.draw(st.integers(0, 12))):
        while len(run.machine.running) < 2 and run.start() is not None:
            pass
        cell = data.draw(st.sampled_from(cells))
        before = run.machine.state_of(cell)
        if data.draw(st.booleans()):
            done = run.machine.withdraw(cell, "too slow")
            run.collect()
            assert (done is None) == (before.state in {"done", "stopped", "failed"})
            if done is not None:
                asked[cell] = before
        elif run.machine.running:
            run.end(run.machine.running[0])
    run.to_the_end(lambda n: data.draw(st.integers(0, n - 1)))
    for cell, before in asked.items():
        now = run.states[cell]
        assert (now.state, now.epoch, now.score, now.reason) == ("stopped", before.epoch, before.score, "too slow")
        later = [d for d in run.decisions.values() if d.epoch > before.epoch and cell in d.scores]
        assert not later, "it took part in a rung after it was stopped"
    again = Run(groups, outcomes, size, known=dict(run.known), withdrawn=dict(run.withdrawn)).to_the_end()
    assert again.states == run.states
    assert again.decisions == run.decisions
    assert not again.started


@given(sweep=sweeps(), data=st.data())
def test_machine_with_lost_packs_fails_their_members_and_ends(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject
) -> None:
    groups, outcomes, size = sweep
    run = Run(groups, outcomes, size)
    lost: dict[tuple[str, int], str] = {}
    for _ in range(10_000):
        while run.start() is not None:
            pass
        running = run.machine.running
        if not running:
            break
        pack = running[data.draw(st.integers(0, len(running) - 1))]
        if data.draw(st.booleans()):
            run.lose(pack)
            lost.update({(c, pack.to_epoch): "killed" for c in pack.cells})
        else:
            run.end(pack)
    assert run.machine.done
    assert set(run.counts()) <= {"done", "stopped", "failed"}
    assert all(run.machine.state_of(c).reason == "killed" for c, _ in lost)
    as_failures = {**outcomes, **{place: Score({}, failed="killed") for place in lost}}
    told_at_once = Run(groups, as_failures, size).to_the_end()
    assert told_at_once.states == run.states
    assert told_at_once.decisions == run.decisions


@given(sweep=sweeps(), data=st.data(), first=st.sampled_from(["time", "stopped"]))
def test_machine_halted_at_any_moment_starts_nothing_and_names_every_state(
    sweep: tuple[list[Group], Outcomes, int], data: st.DataObject, first: str
) -> None:
    groups, outcomes, size = sweep
    run = Run(groups, outcomes, size)
    for _ in range(data.draw(st.integers(0, 6))):
        while len(run.machine.running) < 3 and run.start() is not None:
            pass
        running = run.machine.running
        if running:
            run.end(running[data.draw(st.integers(0, len(running) - 1))])
    while len(run.machine.running) < 3 and run.start() is not None:
        pass
    if first == "time":
        run.machine.report(TimeUp("time is up"))
        assert run.machine.next() is None
    while run.machine.running:
        pack = run.machine.running[data.draw(st.integers(0, len(run.machine.running) - 1))]
        if data.draw(st.booleans()):
            run.end(pack)
        else:
            run.machine.report(PackStopped(pack.pack_id, "time is up"))
            run.collect()
        while first == "stopped" and run.start() is not None:
            pass
    run.machine.report(TimeUp("time is up"))
    assert run.machine.done
    assert run.machine.next() is None
    assert set(run.counts()) <= {"done", "stopped", "failed", "interrupted"}
    for state in run.states.values():
        assert (state.state == "done") == (state.reason is None)
    # what was done before the halt is not lost, and going on ends as if there had been none
    resumed = Run(groups, outcomes, size, known=dict(run.known)).to_the_end()
    assert resumed.states == Run(groups, outcomes, size).to_the_end().states


@given(data=st.data(), n=st.integers(1, 40), most=st.sampled_from([1, 5, 9, 27]), eta=st.integers(2, 4))
def test_machine_with_brackets_in_any_order_trains_each_brackets_best_to_the_end(
    data: st.DataObject, n: int, most: int, eta: int
) -> None:
    groups: list[Group] = []
    for b in brackets(Hyperband(max_epochs=most, eta=eta), n):
        groups.append(group(f"g/b{b.number}", b.trials, b.rungs, b.keep, first=sum(len(g.trials) for g in groups)))
    outcomes = outcomes_of(groups, lambda t, e: data.draw(st.sampled_from([0.1, 0.2, 0.3])))
    run = Run(groups, outcomes).to_the_end(lambda n: data.draw(st.integers(0, n - 1)))
    assert run.states == Run(groups, outcomes).to_the_end(at_once=1).states
    for g in groups:
        live = len(g.trials)
        for _ in g.rungs[1:]:
            live = max(1, -(-live // eta))
        ended = [run.states[t.cell] for t in g.trials]
        assert sum(s.state == "done" for s in ended) == live
        assert {s.epoch for s in ended if s.state == "done"} == {most}


# -- single cases -----------------------------------------------------------------------------------------------------


def test_ties_at_the_cut_go_to_the_first_of_the_plan() -> None:
    groups = [group("g", 6, rungs=(1, 2), keep=0.5)]
    run = Run(groups, outcomes_of(groups, lambda t, e: 0.5)).to_the_end()
    assert run.decisions["g", 0].kept == ("g#0", "g#1", "g#2")
    assert run.decisions["g", 0].stopped == ("g#3", "g#4", "g#5")


@pytest.mark.parametrize(("mode", "best"), [(Mode.MAX, "g#5"), (Mode.MIN, "g#0")])
def test_best_by_the_direction_of_the_metric_is_done(mode: Mode, best: str) -> None:
    groups = [group("g", 6, rungs=(1, 2, 3), keep=0.2)]
    run = Run(groups, outcomes_of(groups, lambda t, e: t.index / 10), mode=mode).to_the_end()
    assert [c for c, s in run.states.items() if s.state == "done"] == [best]
    stopped = run.states["g#2"]
    assert (stopped.state, stopped.epoch) == ("stopped", 1)
    assert stopped.reason == "not among the best 2 of 6 at epoch 1"


def test_group_whose_trials_all_fail_ends_with_the_reasons() -> None:
    groups = [group("g", 5), group("h", 2)]
    run = Run(groups, outcomes_of(groups, lambda t, e: "diverged" if t.group == "g" else 0.5)).to_the_end()
    assert run.counts() == {"failed": 5, "stopped": 1, "done": 1}
    assert {run.states[t.cell].reason for t in groups[0].trials} == {"diverged"}
    assert run.decisions["g", 0].kept == ()
    assert ("g", 1) not in run.decisions


def test_score_that_is_no_number_fails_the_trial_and_never_wins() -> None:
    groups = [group("g", 3, rungs=(1, 2), keep=0.3)]
    run = Run(groups, outcomes_of(groups, lambda t, e: math.nan if t.index == 0 else 0.1)).to_the_end()
    assert run.states["g#0"].reason == "accuracy is not a finite number"
    assert run.decisions["g", 0].kept == ("g#1",)


def test_pack_that_leaves_a_member_out_fails_it() -> None:
    groups = [group("g", 1, rungs=(1,))]
    run = Run(groups, {})
    pack = run.start()
    assert pack is not None
    run.machine.report(PackDone(pack.pack_id, {}))
    assert run.states["g#0"].reason == "the pack ended without a score for this trial"


def test_groups_take_turns_so_that_none_waits_for_another() -> None:
    groups = [group("g", 12), group("h", 12), group("i", 12)]
    run = Run(groups, outcomes_of(groups, lambda t, e: t.index / 99), size=2)
    first = [run.start() for _ in range(6)]
    assert [p.group for p in first if p is not None] == ["g", "h", "i"] * 2


def test_pack_of_one_group_never_waits_for_a_rung_of_another() -> None:
    groups = [group("g", 2, rungs=(1, 2)), group("h", 2, rungs=(1, 2))]
    run = Run(groups, outcomes_of(groups, lambda t, e: t.index / 9))
    packs = list(iter(run.start, None))
    assert len(packs) == 4  # two shapes a group
    for pack in packs:
        if pack.group == "g":
            run.end(pack)
    going_on = run.start()
    assert going_on is not None
    assert (going_on.group, going_on.rung) == ("g", 1)


def test_survivors_are_packed_anew_and_densely() -> None:
    groups = [group("g", 24, rungs=(1, 2), keep=1 / 3)]
    run = Run(groups, outcomes_of(groups, lambda t, e: t.index / 99), size=4).to_the_end()
    assert sorted(len(p.cells) for p in run.started if p.rung == 0) == [4] * 6
    assert sorted(len(p.cells) for p in run.started if p.rung == 1) == [4, 4]


def test_states_while_a_rung_is_open_tell_who_runs_and_who_waits() -> None:
    groups = [group("g", 6, rungs=(1, 2), keep=0.5)]
    run = Run(groups, outcomes_of(groups, lambda t, e: 0.5), size=3)
    pack = run.start()
    assert pack is not None
    assert run.counts() == {"running": 3, "planned": 3}
    run.end(pack)
    assert run.counts() == {"waiting": 3, "planned": 3}
    assert not run.machine.done


def test_trial_at_its_last_rung_is_done_before_the_rung_closes() -> None:
    groups = [group("g", 4, rungs=(1,))]
    run = Run(groups, outcomes_of(groups, lambda t, e: 0.5), size=1)
    pack = run.start()
    assert pack is not None
    run.end(pack)
    run.machine.report(TimeUp("time is up"))
    assert run.counts() == {"done": 1, "interrupted": 3}


def test_end_of_a_pack_that_was_not_running_is_refused() -> None:
    groups = [group("g", 2, rungs=(1,))]
    run = Run(groups, outcomes_of(groups, lambda t, e: 0.5))
    with pytest.raises(JournalError, match="Pack nobody ended, but it was not running"):
        run.machine.report(PackDone("nobody", {}))
    run.to_the_end()
    with pytest.raises(JournalError):
        run.lose(run.started[0])


def test_rung_with_equal_scores_keeps_the_trials_whose_other_scores_are_better() -> None:
    of = group("g", 4, rungs=(1, 2), keep=0.5)
    losses = dict(zip((t.cell for t in of.trials), (0.9, 0.2, 0.4, 0.1), strict=True))
    machine = Machine(
        [of],
        metric="accuracy",
        mode=Mode.MAX,
        also=("log_loss",),
        pack_size=lambda group, trials: 4,
        shape=lambda t: str(t.config["shape"]),
        known={},
    )
    while (pack := machine.next()) is not None and pack.rung == 0:
        scores = {c: Score({"accuracy": 0.5, "log_loss": losses[c]}) for c in pack.cells}
        machine.report(PackDone(pack.pack_id, scores))
    assert set(machine.drain_decisions()[0].kept) == {of.trials[1].cell, of.trials[3].cell}


# -- outside of packs -------------------------------------------------------------------------------------------------


def test_trials_outside_of_packs_are_told_from_outside_and_never_stand_in_a_pack() -> None:
    alone = replace(group("tune", 4), scheduler="asha")
    packed = group("packed", 3, rungs=(1,))
    run = Run([alone, packed], outcomes_of([packed], lambda t, e: 0.5)).to_the_end()
    assert {c for p in run.started for c in p.cells} == {t.cell for t in packed.trials}
    machine, cells = run.machine, [t.cell for t in alone.trials]
    assert [g.name for g in machine.outside] == ["tune"]
    machine.tell_outside(cells[0], TrialState(state="done", epoch=9, score=0.9))
    assert machine.withdraw(cells[0], "too late") is None
    machine.tell_outside(cells[1], TrialState(state="running"))
    assert machine.withdraw(cells[1], "too slow") is not None
    machine.tell_outside(cells[1], TrialState(state="stopped", epoch=4, score=0.4, reason="ended"))
    assert machine.state_of(cells[1]) == TrialState(state="stopped", epoch=4, score=0.4, reason="too slow")
    assert machine.withdraw(cells[2], "not wanted") is not None
    assert machine.state_of(cells[2]).state == "stopped"
    machine.report(TimeUp("the budget is used up"))
    assert machine.outside == ()
    assert machine.state_of(cells[3]).state == "interrupted"

    ended = {c: machine.state_of(c) for c in cells[:3]}
    again = Machine(
        [alone],
        metric="accuracy",
        mode=Mode.MAX,
        pack_size=lambda g, trials: 2,
        shape=lambda t: "",
        known={},
        withdrawn=dict(run.withdrawn),
        ended=ended,
    )
    assert {c: again.state_of(c) for c in cells[:3]} == ended
    assert [g.name for g in again.outside] == ["tune"]
    assert again.state_of(cells[3]).state == "planned"
