"""Progress and closing lines as text: what is counted, how often a log gets a line, and that no sweep ends for it."""

from __future__ import annotations

import io
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console, RenderableType

from tiltyard.distributions import loguniform
from tiltyard.experiment import Experiment, Halving, Objective, Search, Variant
from tiltyard.report.boards import leaderboard_view, most_epochs, plan_table
from tiltyard.report.terminal import (
    PIPE_WIDTH,
    Best,
    Snapshot,
    SteadyConsole,
    SweepProgress,
    clock_time,
    closing,
    drawing,
    output,
    plain_line,
    score,
)
from tiltyard.sweep import leaderboard as ranking
from tiltyard.sweep.plan import DatasetFacts, plan
from tiltyard.types import DatasetRef, Mode, Task

HALFWAY = Snapshot(
    total=300,
    done=20,
    running=30,
    stopped=125,
    failed=5,
    elapsed_s=30.0,
    eta_s=31.0,
    best={
        "wine": Best(value=1.0, trial="mlp-3fa2", rung="rung 2 of 3"),
        "digits": Best(value=0.98123, trial="resmlp-0c1d"),
    },
)


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def text_of(thing: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True)
    console.print(thing)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress(out: io.StringIO, clock: Clock, *, terminal: bool = False) -> SweepProgress:
    console = SteadyConsole(file=out, force_terminal=terminal, width=120, no_color=True)
    return SweepProgress(
        title="first-sweep", total=300, datasets=["digits", "wine"], metric="accuracy", console=console, clock=clock
    )


def test_snapshot_counts_finished_trials_and_their_rate() -> None:
    assert (HALFWAY.finished, HALFWAY.per_s) == (150, 5.0)
    assert replace(HALFWAY, elapsed_s=0.0).per_s == 0.0


def test_plain_line_halfway_tells_everything_in_one_line() -> None:
    assert plain_line(HALFWAY, "accuracy") == (
        "150/300 trials | 30 running, 125 stopped early, 5 failed | 5.0 trials/s | 0:30 elapsed | 0:31 left | "
        "best accuracy: digits 0.9812 (resmlp-0c1d), wine 1.0000 (mlp-3fa2)"
    )


def test_plain_line_at_the_end_or_without_an_estimate_tells_no_time_left() -> None:
    assert "left" not in plain_line(replace(HALFWAY, done=170), "accuracy")
    assert "left" not in plain_line(replace(HALFWAY, eta_s=None), "accuracy")


def test_drawing_halfway_shows_counts_and_every_dataset_in_order() -> None:
    drawn = text_of(drawing(HALFWAY, title="first-sweep", metric="accuracy", datasets=["wine", "digits", "iris"]))
    assert "150/300 trials" in drawn
    assert "0:31 left" in drawn
    assert "125 stopped early" in drawn
    rows = [line.split() for line in drawn.splitlines()[-3:]]
    assert rows == [
        ["wine", "1.0000", "mlp-3fa2", "rung", "2", "of", "3"],
        ["digits", "0.9812", "resmlp-0c1d"],
        ["iris", "-"],
    ]


def test_drawing_with_markup_in_a_name_shows_it_as_it_is() -> None:
    drawn = text_of(drawing(HALFWAY, title="[bold]x[/]", metric="accuracy", datasets=["[red]d"]))
    assert "[bold]x[/]" in drawn
    assert "[red]d" in drawn


def test_progress_without_a_terminal_prints_at_most_one_line_every_two_seconds() -> None:
    out, clock = io.StringIO(), Clock()
    with progress(out, clock) as shown:
        for tenth in range(50):
            clock.now = 100.0 + tenth / 10
            shown.update(replace(HALFWAY, elapsed_s=30.0 + tenth / 10))
    lines = out.getvalue().splitlines()
    assert [line.split(" | ")[3] for line in lines] == ["0:30 elapsed", "0:32 elapsed", "0:34 elapsed", "0:35 elapsed"]


def test_progress_without_a_terminal_and_without_change_prints_nothing_more() -> None:
    out, clock = io.StringIO(), Clock()
    with progress(out, clock) as shown:
        for _ in range(5):
            shown.update(HALFWAY)
            clock.now += 10
    assert len(out.getvalue().splitlines()) == 1


def test_progress_at_a_terminal_draws_the_last_state_and_keeps_messages() -> None:
    out, clock = io.StringIO(), Clock()
    with progress(out, clock, terminal=True) as shown:
        shown.say("Pack g/r0/1 ran out of memory; half its size next time.")
        shown.update(replace(HALFWAY, done=170))
    assert "300/300 trials" in out.getvalue()
    assert "ran out of memory" in out.getvalue()


def test_progress_left_by_an_error_lets_it_through() -> None:
    def stopped() -> None:
        with progress(io.StringIO(), Clock()) as shown:
            shown.update(HALFWAY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError


def test_progress_on_a_closed_pipe_does_not_stop_the_sweep() -> None:
    clock = Clock()
    with progress(Gone(), clock) as shown:
        shown.update(HALFWAY)
        shown.say("still here")
        clock.now += 10
        shown.update(replace(HALFWAY, done=21))


def test_output_into_a_pipe_is_wide_enough_for_tables_and_a_person_may_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    monkeypatch.delenv("COLUMNS", raising=False)
    assert output().width == PIPE_WIDTH
    monkeypatch.setenv("COLUMNS", "77")
    assert output().width == 77


def test_closing_lists_places_and_commands_in_order() -> None:
    told = text_of(
        closing([("journal", "sqlite:///x")], [("tiltyard up", "look at it"), ("tiltyard models", "who won")])
    )
    assert "journal  sqlite:///x" in told
    assert told.index("tiltyard up") < told.index("tiltyard models")


@pytest.mark.parametrize(("seconds", "told"), [(0.2, "0:00"), (59.6, "1:00"), (3600, "1:00:00")])
def test_clock_time_of_seconds_is_as_people_say_it(seconds: float, told: str) -> None:
    assert clock_time(seconds) == told


def test_score_of_odd_values_stays_readable() -> None:
    assert [score(v) for v in (0.0, -0.5, float("inf"), 12345.0)] == ["0.0000", "-0.5000", "inf", "1.234e+04"]


def test_plan_table_tells_groups_rungs_and_the_most_that_is_trained() -> None:
    experiment = Experiment(
        name="small",
        variants=(
            Variant(name="mlp", model="mlp", space={"lr": loguniform(1e-3, 1e-1)}, trials=9),
            Variant(name="trees", model="lightgbm", space={"learning_rate": loguniform(0.1, 0.3)}, trials=1),
            Variant(name="boosted", model="lightgbm", fixed={"learning_rate": 0.2}, trials=1),
        ),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=11, halving=Halving(rungs=(1, 3, 9), keep=1 / 3)),
    )
    facts = DatasetFacts(
        name="digits",
        version=2,
        content_digest="0" * 64,
        features=("x",),
        task=Task.MULTICLASS,
        split_rows={"train": 10, "validation": 5},
        input_shape=(64,),
        num_outputs=10,
    )
    told = text_of(plan_table(plan(experiment, {"digits": facts}, code_digest="c"), known=4))
    assert ["mlp", "digits@2", "mlp", "9", "1,", "3,", "9", "21", "epochs"] in [
        line.split() for line in told.splitlines()
    ]
    assert "trees, boosted: one trial after another, for its trees take no steps that could be shared" in told
    assert "11 trials, at most 39 epochs of training; 4 trials stand in the record already" in told


@given(
    trials=st.integers(0, 200), keep=st.floats(0.05, 0.95), steps=st.lists(st.integers(1, 9), min_size=1, max_size=4)
)
def test_most_epochs_of_any_halving_lies_between_one_survivor_and_no_stopping(
    trials: int, keep: float, steps: list[int]
) -> None:
    rungs = tuple(accumulate(steps))
    total = most_epochs(trials, rungs, keep)
    assert trials * rungs[0] <= total <= trials * rungs[-1]
    if trials:
        assert total >= rungs[-1]


def test_leaderboard_view_with_ties_marks_them_and_says_what_the_mark_means() -> None:
    results = [
        ranking.Result(
            cell=f"{i}",
            name=f"mlp@wine/{i:03d}",
            variant="mlp",
            dataset="wine",
            index=i,
            state="done",
            epoch=9,
            score=1 - i / 10,
            reason=None,
            config={"lr": 0.1},
        )
        for i in range(3)
    ]
    tests = {
        f"{i}": ranking.TestScore(metric="accuracy", value=0.9, low=0.8, high=0.95, rows=50, others={})
        for i in range(2)
    }
    board = ranking.leaderboard(
        experiment="x", key="k", metric="accuracy", mode=Mode.MAX, results=results, tests=tests, tied=frozenset({"1"})
    )
    told = text_of(leaderboard_view(board, limit=1))
    assert "0.9000 [0.8000, 0.9500] =" in told
    assert "= cannot be told apart from the best on the test rows (exact McNemar test, accuracy, Holm, 5%)" in told
    assert "mlp@wine/001" in told, "finalists are shown whatever the limit"
    assert "mlp@wine/002" not in told
    assert "1 more: tiltyard leaderboard x --all" in told


def test_leaderboard_view_of_a_variant_shows_only_what_its_trials_differ_in() -> None:
    results = [
        ranking.Result(
            cell=f"c{i}",
            name=f"mlp@wine/{i:03d}",
            variant="mlp",
            dataset="wine",
            index=i,
            state="done",
            epoch=2,
            score=0.9,
            reason=None,
            config={"batch_size": 64, "lr": 0.01 * (i + 1)},
        )
        for i in range(2)
    ]
    board = ranking.leaderboard(
        experiment="e", key="k" * 64, metric="accuracy", mode=Mode.MAX, results=results, tests={}, tied=frozenset()
    )
    text = text_of(leaderboard_view(board))
    assert "lr=0.01" in text
    assert "batch_size" not in text
