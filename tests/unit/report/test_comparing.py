"""Two launches held against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import recorded_sweep

from tiltyard import cli
from tiltyard.report.comparing import compare, differences
from tiltyard.sweep import leaderboard as ranking
from tiltyard.sweep.leaderboard import Leaderboard, Row


def board(value: float | None, *, metric: str = "accuracy", half: float = 0.02) -> Leaderboard:
    test = (
        None
        if value is None
        else ranking.TestScore(metric=metric, value=value, low=value - half, high=value + half, rows=400, others={})
    )
    row = Row(
        rank=1,
        cell="c" * 64,
        name="mlp@rings/000",
        variant="mlp",
        state="done",
        epoch=3,
        validation=0.9,
        test=test,
        tied_with_best=False,
        reason=None,
        config={},
    )
    return Leaderboard(experiment="x", key="k", metric=metric, mode="max", tables={"rings": (row,)})


V1, V2 = {"rings": 1}, {"rings": 2}


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (board(0.80), board(0.90), "the second is better"),
        (board(0.90), board(0.80), "the first is better"),
        (board(0.90), board(0.91), "cannot be told apart"),
        (board(0.30, metric="log_loss"), board(0.10, metric="log_loss"), "the second is better"),
        (board(0.9), board(0.1, metric="log_loss"), "not compared: one is ranked by accuracy, the other by log_loss"),
        (board(None), board(None), "no interval: neither is known by more than one number"),
        (board(None), board(0.9), "not compared: one is known on validation rows, the other on test rows"),
    ],
)
def test_compare_of_two_leaderboards_says_who_is_better_by_more_than_chance(
    first: Leaderboard, second: Leaderboard, verdict: str
) -> None:
    assert [c.verdict for c in compare(first, second, (V1, V1))] == [verdict]


def test_compare_of_other_versions_of_the_data_compares_nothing() -> None:
    found = compare(board(0.8), board(0.9), (V1, V2))[0]
    assert found.verdict == "not compared: other rows (version 1 and 2)"
    assert found.better is None


def test_differences_of_a_variant_that_was_added_names_it_alone() -> None:
    one = recorded_sweep.experiment("one", 10, ["rings"])
    other = one.model_copy(update={"variants": one.variants[:1]})
    assert {where.split(".")[1] for where, _, _ in differences(one, other)} == {"logistic"}


def test_compare_command_with_two_experiments_tells_scores_and_what_was_set_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded_sweep.record(tmp_path, trials=24, datasets=["rings"], name="one")
    recorded_sweep.record(tmp_path, trials=60, datasets=["rings", "moons"], name="two", seed=1)
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", "one", "two"])
    told = capsys.readouterr().out
    assert done.value.code == 0
    assert "only one of the two has a score here" in told
    assert "search.trials" in told
