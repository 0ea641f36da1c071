"""Requests taken up by a launch and obeyed again by the next one: the same trials, whoever ran them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, uniform
from tiltyard.journal import Claim, Journal, Owner
from tiltyard.sweep.engine import saving
from tiltyard.sweep.engine.control import Control, replay
from tiltyard.sweep.engine.saving import is_paused
from tiltyard.sweep.growth import Growth
from tiltyard.sweep.halving import Machine
from tiltyard.sweep.plan import DatasetFacts, plan
from tiltyard.types import Mode, Task

FACTS = {
    "digits": DatasetFacts(
        name="digits",
        version=1,
        content_digest="d",
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 60, "validation": 20},
        input_shape=(4,),
        num_outputs=3,
    )
}
EXPERIMENT = Experiment(
    name="demo",
    variants=(Variant(name="mlp", model="mlp", space={"lr": uniform(0, 1)}),),
    datasets=(DatasetRef("digits"),),
    objective=Objective(metric="accuracy"),
    search=Search(trials=3, epochs=1),
)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as opened:
        yield opened


class Launch:
    """What a launch has of these parts."""

    def __init__(self, journal: Journal) -> None:
        first = plan(EXPERIMENT, FACTS, code_digest="c")
        self.key, self.now = first.key, 100.0
        self.growth = Growth(experiment=EXPERIMENT, plan=first, facts=FACTS, code_digest="c", known={})
        self.withdrawn = replay(journal, self.key, self.growth)
        owner = Owner(host="elsewhere", pid=1, started=1.0)
        self.claim: Claim = journal.claim(self.key, experiment="demo", spec="{}", owner=owner, lease_s=-1)
        self.machine = Machine(
            first.groups,
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda group, trials: 2,
            shape=lambda trial: "",
            known={},
            withdrawn=self.withdrawn,
        )
        self.growth.grow(self.machine, lambda _: None)
        self.control = Control(
            journal=journal, claim=self.claim, experiment=EXPERIMENT, growth=self.growth, clock=lambda: self.now
        )

    def look(self) -> bool:
        self.now += 1.0
        changed = self.control.look(self.machine)
        self.growth.grow(self.machine, lambda _: None)
        return changed

    @property
    def states(self) -> dict[str, str]:
        return {t.name: self.machine.state_of(t.cell).state for t in self.growth.plan.trials}


def ask(journal: Journal, launch: Launch, kind: str, **detail: Any) -> int:
    return journal.requests.ask(
        launch.key, kind, subject="demo", detail=detail, actor="ada@here", reason="why not"
    ).number


def test_requests_are_obeyed_answered_and_obeyed_again_by_the_next_launch(journal: Journal) -> None:
    first = Launch(journal)
    cell = first.growth.plan.trials[1].cell
    ask(journal, first, "stop", cell=cell)
    ask(journal, first, "add", trials=2, variant=None, dataset=None)
    ask(journal, first, "stop", cell="f" * 64)
    ask(journal, first, "dance")
    assert first.look()
    told = [(r.state, r.answer["said"]) for r in journal.requests.of(first.key)]
    assert told == [
        ("done", "stopped after 0 epochs"),
        ("done", "added 2 of mlp on digits"),
        ("refused", "no such trial is planned"),
        ("refused", "this version of Tiltyard does not know 'dance'"),
    ]
    assert not first.look()
    second = Launch(journal)
    assert second.states == first.states
    assert second.states["mlp@digits/001"] == "stopped"
    assert second.machine.state_of(cell).reason == "stopped by ada@here: why not"
    assert {"mlp@digits/w1/003", "mlp@digits/w1/004"} <= set(second.states)
    decided = journal.decisions(kind="request")
    assert [(d.actor, d.reasons) for d in decided] == [("ada@here", ("why not",))] * 4


def test_pause_lasts_until_it_is_continued_or_the_launch_ends(journal: Journal) -> None:
    first = Launch(journal)
    ask(journal, first, "pause")
    assert not first.look()
    assert first.control.paused == "ada@here"
    assert is_paused(journal, first.claim)
    second = Launch(journal)
    assert second.control.paused is None
    assert not is_paused(journal, second.claim)
    ask(journal, second, "continue")
    second.look()
    assert second.control.paused is None
    assert journal.requests.of(second.key)[-1].answer["said"] == "it was not paused"
    ask(journal, second, "pause")
    second.look()
    assert is_paused(journal, second.claim)
    ask(journal, second, "continue")
    second.look()
    assert not is_paused(journal, second.claim)


def test_queue_of_a_paused_launch_waits_between_members_until_it_goes_on_or_is_told_to_end(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(saving, "_POLL_S", 0.0)
    launch = Launch(journal)
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 5:
            ask(journal, launch, "continue")
            launch.look()
        return looks > 7

    go_on = saving.GoOn(journal, launch.claim, ended)
    assert go_on()
    ask(journal, launch, "pause")
    launch.look()
    assert go_on()
    assert looks == 5
    ask(journal, launch, "pause")
    launch.look()
    assert not go_on()
    assert looks == 8


def test_requests_are_looked_up_once_a_second_and_those_too_late_are_told_so(journal: Journal) -> None:
    launch = Launch(journal)
    launch.look()
    late = ask(journal, launch, "pause")
    launch.now += 0.5
    assert not launch.control.look(launch.machine)
    assert launch.control.paused is None
    launch.control.refuse_rest()
    answered = journal.requests.get(late)
    assert answered is not None
    assert (answered.state, answered.answer) == ("refused", {"said": "it came too late: the sweep had ended"})
