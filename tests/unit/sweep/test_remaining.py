"""What is left of a sweep, for any state of the record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from tiltyard.sweep.halving import Machine, PackDone
from tiltyard.sweep.plan import Group, Trial
from tiltyard.sweep.remaining import CONTINUE, RUN, SKIP, WAIT, Step, remaining
from tiltyard.types import Mode, Task

RUNGS = (1, 3, 9)


@dataclass(frozen=True)
class Score:
    metrics: Mapping[str, float] = field(default_factory=dict)
    failed: str | None = None


def group(size: int) -> Group:
    trials = tuple(
        Trial(
            cell=f"c{i}",
            index=i,
            group="mlp@rings",
            variant="mlp",
            model="mlp",
            config={},
            dataset="rings",
            dataset_version=1,
            dataset_digest="d",
            task=Task.BINARY,
            input_shape=(2,),
            num_outputs=2,
            seed=i,
            data_seed=0,
        )
        for i in range(size)
    )
    return Group(name="mlp@rings", variant="mlp", model="mlp", dataset="rings", rungs=RUNGS, keep=1 / 2, trials=trials)


def left(of: Group, known: Mapping[tuple[str, int], Score]) -> tuple[Step, ...]:
    return remaining([of], metric="accuracy", mode=Mode.MAX, known=known)


def score(index: int) -> Score:
    return Score({"accuracy": index / 100})


def test_remaining_of_nothing_recorded_runs_every_trial_to_the_first_rung() -> None:
    assert [(s.action, s.from_epoch, s.to_epoch) for s in left(group(3), {})] == [(RUN, 0, 1)] * 3


def test_remaining_between_rungs_continues_the_better_half_and_skips_the_rest() -> None:
    known = {(f"c{i}", 1): score(i) for i in range(4)}
    steps = left(group(4), known)
    assert [(s.action, s.from_epoch, s.to_epoch) for s in steps] == [(SKIP, 1, 1)] * 2 + [(CONTINUE, 1, 3)] * 2
    assert steps[0].why.startswith("stopped: not among the best 2 of 4")


def test_remaining_within_a_rung_waits_with_those_that_have_passed_it() -> None:
    steps = left(group(3), {("c0", 1): score(0), ("c1", 1): Score(failed="diverged")})
    assert [s.action for s in steps] == [WAIT, SKIP, RUN]
    assert steps[1].why == "failed: diverged"


def test_remaining_of_a_pack_that_was_saved_within_its_rung_continues_from_there() -> None:
    of = group(2)
    known = {("c0", 1): score(0), ("c1", 1): score(1)}
    (other, step) = remaining([of], metric="accuracy", mode=Mode.MAX, known=known, saved={"c0": 2, "c1": 2})
    assert other.action == SKIP, "that it was saved once does not matter"
    assert (step.action, step.from_epoch, step.to_epoch) == (CONTINUE, 2, 3)
    assert step.why == "its pack saved it at epoch 2, in the middle of the rung"
    (first, _) = remaining([of], metric="accuracy", mode=Mode.MAX, known={}, saved={"c0": 1})
    assert (first.action, first.from_epoch) == (RUN, 0), "at the end of a rung what is recorded counts"


@given(st.integers(1, 8), st.integers(0, 30), st.sets(st.integers(0, 7)))
def test_remaining_after_any_number_of_packs_is_what_the_machine_then_runs(
    size: int, packs: int, failing: set[int]
) -> None:
    of = group(size)
    known: dict[tuple[str, int], Score] = {}

    def result(cell: str) -> Score:
        index = int(cell[1:])
        return Score(failed="diverged") if index in failing else score(index)

    def machine() -> Machine:
        return Machine(
            [of],
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda _, trials: 2,
            shape=lambda _: "",
            known=known,
        )

    run = machine()
    for _ in range(packs):
        pack = run.next()
        if pack is None:
            break
        scores = {cell: result(cell) for cell in pack.cells}
        known |= {(cell, pack.to_epoch): found for cell, found in scores.items()}
        run.report(PackDone(pack.pack_id, scores))
    steps = {s.trial.cell: s for s in left(of, known)}
    assert set(steps) == {t.cell for t in of.trials}
    again = machine()
    will_run: dict[str, tuple[int, int]] = {}
    while (pack := again.next()) is not None:
        will_run |= dict.fromkeys(pack.cells, (pack.from_epoch, pack.to_epoch))
    assert {c: (s.from_epoch, s.to_epoch) for c, s in steps.items() if s.action in {RUN, CONTINUE}} == will_run
    assert all((s.action == RUN) == (s.from_epoch == 0) for s in steps.values() if s.action in {RUN, CONTINUE})
    if again.done and not will_run:
        assert {s.action for s in steps.values()} == {SKIP}
