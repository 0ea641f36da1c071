"""Asking something of a sweep: what is refused at once, and what waits for whoever works on it."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tiltyard.cli import app
from tiltyard.errors import SpecError
from tiltyard.journal import Claim, Journal, Owner, TrialRow
from tiltyard.settings import Settings
from tiltyard.who import person

KEY, CELL = "a" * 64, "c" * 64
SPEC = '{"name": "demo"}'


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    found = Settings.from_env()
    found.ensure_home()
    return found


def recorded(settings: Settings, *, state: str | None = None) -> Claim:
    """A sweep with one trial, worked on by this process or ended."""
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim(KEY, experiment="demo", spec=SPEC, owner=Owner.here())
        row = TrialRow(
            cell=CELL,
            key=KEY,
            group="mlp@digits",
            index=3,
            variant="mlp",
            model="mlp",
            dataset="digits",
            dataset_version=1,
            config={},
            seed=0,
            data_seed=0,
        )
        journal.add_trials(claim, [row])
        if state is not None:
            journal.release(claim, state=state, summary={})
        return claim


def answering(settings: Settings, claim: Claim, state: str, said: str) -> threading.Thread:
    """Stands for a driver: answers the first request that comes."""

    def work() -> None:
        with Journal.open(settings.journal_uri) as journal:
            for _ in range(3000):
                for request in journal.requests.of(KEY, state="asked"):
                    journal.requests.answer(claim, request.number, state=state, answer={"said": said})
                    return
                threading.Event().wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_pause_of_a_sweep_that_runs_waits_for_the_answer(settings: Settings) -> None:
    thread = answering(settings, recorded(settings), "done", "paused")
    result = CliRunner().invoke(app, ["pause", "demo", "--reason", "lunch"])
    thread.join()
    assert result.exit_code == 0, result.output
    assert result.output == "demo: done: paused\n"
    with Journal.open(settings.journal_uri) as journal:
        (request,) = journal.requests.of(KEY)
    assert (request.kind, request.reason, request.actor) == ("pause", "lunch", person())


def test_stop_of_a_trial_that_has_ended_exits_with_1_and_says_so(settings: Settings) -> None:
    thread = answering(settings, recorded(settings), "refused", "it has ended: done")
    result = CliRunner().invoke(app, ["trial", "stop", "mlp@digits/003"])
    thread.join()
    assert (result.exit_code, result.output) == (1, "mlp@digits/003: refused: it has ended: done\n")


@pytest.mark.parametrize("command", ["pause", "continue"])
def test_pause_of_a_sweep_that_nobody_works_on_is_refused(settings: Settings, command: str) -> None:
    recorded(settings, state="stopped")
    with pytest.raises(
        SpecError, match=rf"demo \(key a+\) is stopped: nobody works on it, so there is nothing to {command}"
    ):
        CliRunner().invoke(app, [command, "demo"], catch_exceptions=False)


def test_trials_added_to_a_sweep_that_was_stopped_wait_for_its_next_start(settings: Settings) -> None:
    recorded(settings, state="stopped")
    result = CliRunner().invoke(app, ["trial", "add", "demo", "8", "--variant", "mlp"])
    assert result.exit_code == 0, result.output
    assert "it is taken up by whoever works on the sweep, now or next" in result.output
    with Journal.open(settings.journal_uri) as journal:
        (request,) = journal.requests.of(KEY, state="asked")
    assert request.detail == {"trials": 8, "variant": "mlp", "dataset": None}


def test_trial_of_a_finished_sweep_is_neither_stopped_nor_given_company(settings: Settings) -> None:
    recorded(settings, state="finished")
    for command in (["trial", "stop", CELL[:8]], ["trial", "add", "demo", "1"]):
        with pytest.raises(SpecError, match="is finished; a finished sweep does not change"):
            CliRunner().invoke(app, command, catch_exceptions=False)
