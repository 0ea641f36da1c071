"""A sweep while it runs: paused, a trial stopped, trials added, ended by its budget; a resume and the record agree."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sweeps

from tiltyard import control
from tiltyard.distributions import choice
from tiltyard.errors import SpecError
from tiltyard.experiment import Budget, Champion, Experiment, Variant
from tiltyard.journal import Journal, Request
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.resume import find
from tiltyard.run import run
from tiltyard.settings import Settings
from tiltyard.who import person

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(ray_session: None, tmp_path: Path, data: str) -> Settings:
    return sweeps.settings_at(tmp_path / "home", data)


def test_sweep_obeys_what_is_asked_while_it_runs_and_records_who_asked(settings: Settings, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    gated = sweeps.gated(gate, steps=2)
    deaf = Variant(
        name="deaf", model="train:users_training:misbehave", space={"how": choice("deaf", "well")}, trials=2
    )  # a queue
    points: dict[str, Any] = {"deaf": ({"how": "deaf"}, {"how": "well"})}
    search = gated.search.model_copy(update={"trials": 6, "points": points})
    wanted = sweeps.gated(gate, steps=2, name="asked").model_copy(
        update={
            "variants": (*gated.variants, deaf),
            "search": search,
            "budget": Budget(trial_s=400),
        }  # the deaf one ends, whatever happens
    )
    answers: list[Request] = []

    def both_run() -> bool:
        if not sweeps.marks(gate) or not Path(settings.journal_uri.removeprefix("sqlite:///")).exists():
            return False
        with Journal.open(settings.journal_uri) as journal:
            return sum(len(journal.attempts(launch.key)) for launch in journal.launches()) == 2

    def ask() -> None:
        try:
            sweeps.until(both_run, what="the pack at the gate")
            answers.append(control.pause(settings, "asked", wait_s=90))
            answers.append(control.stop_trial(settings, "deaf@rings/000", reason="it hears nothing", wait_s=90))
            answers.append(control.stop_trial(settings, "own@rings/001", wait_s=90))
            answers.append(control.add_trials(settings, "asked", 2, variant="own", reason="promising", wait_s=90))
            key = answers[0].key
            gate.unlink()
            sweeps.until(
                lambda: "done" in {a.state for a in sweeps.attempts(settings, key)}, what="the end of the pack"
            )
            assert sorted(a.state for a in sweeps.attempts(settings, key)) == ["done", "running"], "something new began"
            with Journal.open(settings.journal_uri) as journal:
                waits = next(t for t in journal.trials(key) if (t.variant, t.index) == ("deaf", 1))
                assert not journal.cell_scores([waits.cell]), "the queue went on"
        finally:
            gate.unlink(missing_ok=True)
            answers.append(control.go_on(settings, "asked", wait_s=90))

    with sweeps.meanwhile(ask):
        outcome = sweeps.run_launch(settings, wanted)
    assert [(r.kind, r.state) for r in answers] == [
        ("pause", "done"),
        ("stop", "done"),
        ("stop", "done"),
        ("add", "done"),
        ("continue", "done"),
    ]

    assert outcome.state == "finished"
    rows = {r.name: r for r in outcome.leaderboard.tables["rings"]}
    assert set(rows) == {
        *(f"own@rings/{i:03d}" for i in range(4)),
        "deaf@rings/000",
        "deaf@rings/001",
        "own@rings/w1/004",
        "own@rings/w1/005",
    }
    who = person()
    assert (rows["deaf@rings/000"].state, rows["deaf@rings/000"].reason) == (
        "stopped",
        f"stopped by {who}: it hears nothing",
    )
    assert rows["deaf@rings/001"].state == "done"
    assert (rows["own@rings/001"].state, rows["own@rings/001"].epoch) == ("stopped", 0)
    assert {rows[f"own@rings/w1/{i:03d}"].state for i in (4, 5)} == {"done", "stopped"}
    with Journal.open(settings.journal_uri) as journal:
        decided = journal.decisions(kind="request")
        assert [d.outcome.split(":")[0] for d in decided] == [r.state for r in answers]
        assert {d.actor for d in decided} == {who}
        assert decided[3].reasons == ("promising",)
        assert journal.verify_decisions() == len(journal.decisions())
        assert journal.requests.of(outcome.claim.key, state="asked") == []

    reused = sweeps.run_launch(settings, wanted)
    assert (reused.state, reused.leaderboard) == ("reused", outcome.leaderboard)
    with pytest.raises(SpecError, match="is finished; a finished sweep does not change"):
        control.add_trials(settings, "asked", 1)
    with pytest.raises(SpecError, match="nobody works on it, so there is nothing to pause"):
        control.pause(settings, "asked")


class Clock:
    """Time that flies once the quick variant is done."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead_s


def test_sweep_that_its_budget_ends_ranks_tests_and_crowns_what_was_trained_to_the_end(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, clock = tmp_path / "gate", Clock()
    gate.touch()
    gated = sweeps.gated(gate, steps=2)
    quick = Variant(name="quick", model="logistic", fixed={"batch_size": 32}, space=gated.variants[0].space)
    wanted = Experiment(
        name="held",
        variants=(quick, *gated.variants),
        datasets=gated.datasets,
        objective=gated.objective,
        search=gated.search.model_copy(update={"trials": 6}),
        budget=Budget(wall_s=3600),
        champion=Champion(serve=False),
    )
    monkeypatch.setattr("tiltyard.sweep.engine.driver.time", SimpleNamespace(monotonic=clock, time=time.time))

    def let_time_fly() -> None:
        def quick_is_done() -> Any:
            if not Path(settings.journal_uri.removeprefix("sqlite:///")).exists():
                return False
            with Journal.open(settings.journal_uri) as journal:
                rows = [t for launch in journal.launches() for t in journal.trials(launch.key) if t.variant == "quick"]
            return rows and {t.state for t in rows} <= {"done", "stopped"}

        sweeps.until(quick_is_done, what="the quick variant's end")
        clock.ahead_s = 4000.0
        gate.unlink()  # what trains may end its rung, and nothing follows

    with sweeps.meanwhile(let_time_fly):
        assert run(wanted, settings=settings) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "Its budget ended it: the budget's wall time of 3600 s is used up." in told
    with Journal.open(settings.journal_uri) as journal:
        launch = journal.launches()[0]
        states = Counter((t.variant, t.state) for t in journal.trials(launch.key))
    assert launch.state == "finished"
    assert (states["quick", "done"], states["quick", "stopped"]) == (2, 1)
    assert states["own", "interrupted"] in {2, 3}  # at the first rung or before it
    assert states["own", "interrupted"] + states["own", "stopped"] == 3
    (version,) = ModelRegistry(settings).versions("held.rings")
    assert "champion" in version.aliases

    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # nobody is there, and nobody is needed
    assert run(wanted, settings=settings) == 0
    assert "the answer is from the record" in " ".join(capsys.readouterr().out.split())
    steps = find(settings, launch.key).steps
    assert {s.action for s in steps} == {"skip"}
    assert sum("the budget's wall time" in s.why for s in steps) >= 2
