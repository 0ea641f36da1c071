"""Budgets around packs: reserved before, extended while they run, settled after; on a real journal, with a set clock."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tiltyard import Budget, DatasetRef, Experiment, Objective, Resources, Search, Variant, uniform
from tiltyard.journal import Journal, Owner
from tiltyard.sweep.engine.purse import FIRST_S, Purse
from tiltyard.sweep.halving import StartPack


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def experiment(cpus: float = 2.0, **budget: Any) -> Experiment:
    return Experiment(
        name="demo",
        variants=(Variant(name="mlp", model="mlp", space={"lr": uniform(0, 1)}),),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=8, epochs=3),
        resources=Resources(cpus=cpus),
        budget=Budget(**budget),
    )


def pack(number: int = 0, members: int = 4, epochs: int = 3) -> StartPack:
    cells = tuple(f"{number}-{i}" for i in range(members))
    return StartPack(
        pack_id=f"mlp@digits/r0/{number}", group="mlp@digits", rung=0, from_epoch=0, to_epoch=epochs, cells=cells
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as opened:
        yield opened


class Bench:
    """A purse on a journal, and a meter that charges what the clock says."""

    def __init__(self, journal: Journal, e: Experiment, key: str = "k" * 64) -> None:
        self.journal, self.cpus, self.clock = journal, e.resources.cpus, Clock()
        self.claim = journal.claim(key, experiment="demo", spec="{}", owner=Owner.here())
        self.purse = Purse(experiment=e, journal=journal, claim=self.claim, clock=self.clock)
        self.since: dict[str, float] = {}

    def start(self, one: StartPack) -> bool:
        taken = self.purse.may_start(one)
        if taken:
            self.since[one.pack_id] = self.clock.now
        return taken

    def end(self, one: StartPack) -> None:
        held = self.clock.now - self.since.pop(one.pack_id)
        self.journal.meter(key=self.claim.key, what="packs", wall_s=held, cpu_s=held * self.cpus)
        self.purse.ended(one.pack_id)

    @property
    def spent(self) -> float:
        return self.journal.spend(self.claim.key).cpu_s


def test_purse_without_a_budget_lets_everything_start_and_writes_nothing(journal: Journal) -> None:
    bench = Bench(journal, experiment(wall_s=5))
    assert all(bench.purse.may_start(pack(n)) for n in range(99))
    bench.clock.now = 1e9
    assert bench.purse.tick() is None
    bench.purse.ended(pack(0).pack_id)
    assert not bench.purse.closed()


def test_purse_reserves_before_a_pack_starts_and_refuses_what_is_not_free(journal: Journal) -> None:
    bench = Bench(journal, experiment(cpu_hours=2.5 * 2 * FIRST_S / 3600))  # two packs at first, and half of one
    assert bench.start(pack(0))
    assert bench.start(pack(1))
    assert not bench.start(pack(2))
    assert bench.purse.refused is not None
    assert "this experiment has 30.0 CPU-s free; 60.0 are asked for" in bench.purse.refused
    assert not bench.purse.refused.endswith("."), "whoever tells a reason ends its sentence"
    assert not bench.purse.closed()  # what runs may give something back
    bench.clock.now = 4.0
    bench.end(pack(0))
    assert bench.start(pack(2)), "a pack like the first takes 4 s, not 30"


def test_purse_with_less_than_a_first_reserve_starts_with_what_there_is(journal: Journal) -> None:
    bench = Bench(journal, experiment(cpu_hours=9 / 3600))  # 4.5 s of two CPUs
    assert bench.start(pack(0))
    assert not bench.start(pack(1))
    for now in (1.0, 2.0, 3.1):  # 3 s at first, and one more
        bench.clock.now = now
        assert bench.purse.tick() is None
    bench.clock.now = 3.3  # a fifth is for its end
    reason = bench.purse.tick()
    assert reason is not None
    assert "this experiment has 1.0 CPU-s free; 2.0 are asked for" in reason
    assert not reason.endswith(".")
    bench.end(pack(0))
    assert bench.spent <= 9


def test_purse_does_not_start_what_it_cannot_pay_to_the_end(journal: Journal) -> None:
    bench = Bench(journal, experiment(cpu_hours=100 / 3600))
    assert bench.start(pack(0, epochs=3))
    bench.clock.now = 12.0
    bench.end(pack(0, epochs=3))
    assert not bench.start(pack(1, epochs=27)), "about 108 s of two CPUs; 76 CPU-s are left"
    assert bench.purse.closed()
    bench.clock.now += 2  # it is asked again after a second
    assert bench.start(pack(2, epochs=3))


def test_purse_of_another_launch_counts_what_the_key_has_spent(journal: Journal) -> None:
    e = experiment(cpu_hours=20 / 3600)
    first = Bench(journal, e)
    assert first.start(pack(0))
    first.clock.now = 9.8
    first.end(pack(0))
    journal.release(first.claim, state="stopped", summary={})
    second = Bench(journal, e)
    assert not second.start(pack(1))
    assert second.purse.closed()


@given(
    limit=st.floats(5, 400),
    steps=st.lists(
        st.tuples(st.sampled_from(["start", "end", "wait"]), st.integers(0, 9), st.floats(0, 1)), max_size=60
    ),
)
@examples(max_examples=40)
def test_purse_in_any_order_of_events_holds_the_budget(
    tmp_path_factory: pytest.TempPathFactory, limit: float, steps: list[tuple[str, int, float]]
) -> None:
    with Journal.open(f"sqlite:///{tmp_path_factory.mktemp('purse') / 'journal.db'}") as journal:
        bench = Bench(journal, experiment(cpu_hours=limit / 3600))
        running: list[StartPack] = []
        for number, (kind, which, wait) in enumerate(steps):
            if kind == "start" and bench.start(one := pack(number, members=1 + which, epochs=1 + which)):
                running.append(one)
            elif kind == "end" and running:
                bench.end(running.pop(which % len(running)))
            elif kind == "wait":
                bench.clock.now += wait
            if bench.purse.tick() is not None:
                break
        stopped_at = bench.clock.now
        for one in running:  # the sweep ends what runs
            bench.end(one)
        assert bench.clock.now == stopped_at
        assert bench.spent <= limit + 2 * len(running) * 1.0  # a tick comes at most a second late


def test_purses_of_two_sweeps_hold_one_budget_of_their_team(journal: Journal) -> None:
    journal.budgets.set("vision", limit_cpu_s=100, limit_gpu_s=None)
    one, other = (Bench(journal, experiment(team="vision"), key=c * 64) for c in "ab")
    assert one.start(pack(0))  # 60 of 100
    assert other.start(pack(0)), "with ten seconds of two CPUs"
    assert journal.budgets.get("vision").reserved.cpu_s == 80
    assert not other.start(pack(1))
    other.clock.now = 9.0
    assert other.purse.tick() is None  # 6 more
    other.end(pack(0))
    assert journal.budgets.get("vision").spent.cpu_s == 18
    other.clock.now = 11.0
    assert not other.start(pack(1, epochs=9)), "82 are left and 60 of them held; it would take about 40 s of two CPUs"
    assert not other.purse.closed(), "the other sweep may give something back"
    one.clock.now = 1.0
    one.end(pack(0))
    other.clock.now = 13.0
    assert not other.start(pack(1, epochs=9))
    assert other.purse.closed(), "nobody holds anything, and it is not enough"
    assert other.start(pack(2)) is False, "asked again at once"
    other.clock.now = 15.0
    assert other.start(pack(2))
    assert journal.budgets.get("vision").spent.cpu_s == 20
