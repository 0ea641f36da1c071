"""Following a sweep by a real journal: while somebody works on it, when it ends, and where its process is gone."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.distributions import loguniform
from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment, Objective, Search, Variant
from tiltyard.journal import Claim, Journal, Owner, TrialRow, TrialUpdate
from tiltyard.report.terminal import SteadyConsole
from tiltyard.report.watch import follow, glance, running, snapshot_of
from tiltyard.settings import Settings
from tiltyard.types import DatasetRef, Mode

KEY = "ab" * 32


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"TILTYARD_HOME": str(tmp_path)})


def trial(index: int) -> TrialRow:
    return TrialRow(
        cell=f"{index:02x}" * 32,
        key=KEY,
        group="mlp@rings",
        index=index,
        variant="mlp",
        model="mlp",
        dataset="rings",
        dataset_version=1,
        config={},
        seed=index,
        data_seed=0,
    )


def begin(journal: Journal, owner: Owner) -> Claim:
    experiment = Experiment(
        name="watched",
        variants=(Variant(name="mlp", model="mlp", space={"lr": loguniform(1e-3, 1e-1)}),),
        datasets=(DatasetRef("rings"),),
        objective=Objective(metric="log_loss"),
        search=Search(trials=3, epochs=2),
    )
    claim = journal.claim(KEY, experiment="watched", spec=experiment.to_json(), owner=owner)
    journal.add_trials(claim, [trial(i) for i in range(3)])
    return claim


def watched(settings: Settings, journal: Journal, steps: list[list[TrialUpdate]], claim: Claim) -> str:
    """What is shown while these things happen, one at each pause; the launch ends after the last."""
    text = io.StringIO()

    def pause(_: float) -> None:
        if steps:
            journal.set_trial_states(claim, steps.pop(0))
        else:
            journal.release(claim, state="finished", summary={"reason": None})

    follow(settings, "watched", console=SteadyConsole(file=text, width=200), pause=pause)
    return text.getvalue()


def test_follow_of_a_running_sweep_shows_it_until_it_ends(settings: Settings) -> None:
    with Journal.open(settings.journal_uri) as journal:
        claim = begin(journal, Owner.here())
        done = [TrialUpdate(cell=trial(i).cell, state="done", epoch=2, score=0.5 - i / 10) for i in range(3)]
        told = watched(settings, journal, [[replace(done[0], state="running", score=None)], done], claim)
    assert "3/3 trials" in told
    assert "best log_loss: rings 0.3000 (mlp@rings/002)" in told
    assert "finished. Its trials: tiltyard leaderboard watched" in told


def test_follow_of_a_sweep_whose_process_is_gone_says_how_to_go_on(settings: Settings) -> None:
    with Journal.open(settings.journal_uri) as journal:
        begin(journal, replace(Owner.here(), pid=2**22 + 5))
        text = io.StringIO()
        launch = follow(
            settings, None, console=SteadyConsole(file=text, width=200), pause=lambda _: pytest.fail("waits")
        )
    assert launch.state == "running"
    assert "tiltyard resume watched" in text.getvalue()


def test_follow_of_a_sweep_that_nobody_began_is_refused(settings: Settings) -> None:
    with Journal.open(settings.journal_uri) as journal:
        begin(journal, Owner.here())
    with pytest.raises(SpecError, match="'other' is recorded"):
        follow(settings, "other")


def test_holder_of_a_key_is_a_live_process_here_or_one_elsewhere_within_its_lease(settings: Settings) -> None:
    with Journal.open(settings.journal_uri) as journal:
        assert journal.holder(KEY) is None
        claim = begin(journal, Owner.here())
        assert journal.holder(KEY) == Owner.here()
        journal.release(claim, state="stopped", summary={})
        assert journal.holder(KEY) is None
        experiment = journal.launches()[0].spec
        elsewhere = Owner(host="some-other-host", pid=1, started=1.0)
        journal.claim(KEY, experiment="watched", spec=experiment, owner=elsewhere, lease_s=-1)
        assert journal.holder(KEY) is None


def test_snapshot_of_a_launch_counts_states_and_leaves_failures_out_of_the_best(settings: Settings) -> None:
    with Journal.open(settings.journal_uri) as journal:
        begin(journal, Owner.here())
        launch = journal.launches()[0]
    rows = [
        replace(trial(0), state="done", score=0.9),
        replace(trial(1), state="failed", score=2.0),
        replace(trial(2), state="stopped", score=0.95, dataset="flips"),
    ]
    seen = snapshot_of(launch, rows, Mode.MAX, now=launch.started + 5)
    assert (seen.total, seen.done, seen.stopped, seen.failed, seen.finished) == (3, 1, 1, 1, 3)
    assert {d: b.value for d, b in seen.best.items()} == {"flips": 0.95, "rings": 0.9}
    assert seen.elapsed_s == pytest.approx(5)


def ask(journal: Journal, claim: Claim, kind: str) -> None:
    asked = journal.requests.ask(KEY, kind, subject="watched", detail={}, actor="ann", reason="")
    journal.requests.answer(claim, asked.number, state="done", answer={"said": kind, "fence": claim.fence})


def test_glance_at_a_sweep_says_whether_it_runs_is_paused_or_lost_its_process(settings: Settings) -> None:
    assert running(settings) == []  # nothing was ever recorded
    with Journal.open(settings.journal_uri) as journal:
        claim = begin(journal, Owner.here())
        assert [line.startswith("watched  key abababababab  running | 0/3 trials") for line in running(settings)] == [
            True
        ]
        ask(journal, claim, "pause")
        assert "paused by ann | 0/3 trials" in glance(settings, "watched")
        ask(journal, claim, "continue")
        assert "running | 0/3 trials" in glance(settings, None)
        journal.release(claim, state="stopped", summary={})
        assert running(settings) == []
        begin(journal, replace(Owner.here(), pid=2**22 + 5))
    assert running(settings) == []
    assert "its process is gone | 0/3 trials" in glance(settings, "watched")


def test_follow_of_a_sweep_that_is_paused_says_who_did_and_when_it_goes_on(settings: Settings) -> None:
    text = io.StringIO()
    with Journal.open(settings.journal_uri) as journal:
        claim = begin(journal, Owner.here())
        steps = ["pause", "continue"]

        def pause(_: float) -> None:
            if steps:
                ask(journal, claim, steps.pop(0))
            else:
                journal.release(claim, state="finished", summary={"reason": None})

        follow(settings, "watched", console=SteadyConsole(file=text, width=200), pause=pause)
    told = text.getvalue()
    assert told.index("paused by ann; go on: tiltyard continue watched") < told.index("it goes on")
