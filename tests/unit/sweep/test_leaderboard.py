"""Ranking, intervals and ties: what the leaderboard says and how sure it is."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tiltyard.errors import SpecError
from tiltyard.sweep import leaderboard as lb
from tiltyard.sweep.leaderboard import (
    Leaderboard,
    Result,
    finalists,
    leaderboard,
    rank,
    wilson,
)
from tiltyard.types import Mode


def result(index: int = 0, **changes: Any) -> Result:
    made = Result(
        cell=f"cell-{index}",
        name=f"mlp@digits/{index:03d}",
        variant="mlp",
        dataset="digits",
        index=index,
        state="done",
        epoch=9,
        score=0.5,
        reason=None,
        config={"hidden": (64, 32), "lr": 0.1},
    )
    return replace(made, **changes)


results = st.builds(
    Result,
    cell=st.uuids().map(str),
    name=st.just("n"),
    variant=st.sampled_from(["a", "b"]),
    dataset=st.sampled_from(["digits", "wine"]),
    index=st.integers(0, 99),
    state=st.sampled_from(["done", "stopped", "failed", "interrupted"]),
    epoch=st.sampled_from([1, 3, 9]),
    score=st.none() | st.sampled_from([0.1, 0.2, 0.2, 0.9]),
    reason=st.none() | st.text(max_size=3),
    config=st.dictionaries(
        st.text(max_size=2), st.integers() | st.tuples(st.integers(), st.text(max_size=2)), max_size=2
    ),
)


@given(rows=st.lists(results, max_size=12, unique_by=lambda r: (r.dataset, r.variant, r.index)), data=st.data())
def test_rank_is_the_same_for_any_order_of_results(rows: list[Result], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(rows))
    for mode in Mode:
        assert rank(shuffled, mode) == rank(rows, mode)


@given(rows=st.lists(results, max_size=12), mode=st.sampled_from(list(Mode)))
def test_rank_puts_longer_training_first_then_the_score(rows: list[Result], mode: Mode) -> None:
    ranked = rank(rows, mode)
    assert sorted(r.cell for r in ranked) == sorted(r.cell for r in rows)
    valid = [r.score is not None and r.state not in {"failed", "interrupted"} for r in ranked]
    assert valid == sorted(valid, reverse=True)
    good = ranked[: sum(valid)]
    for before, after in itertools.pairwise(good):
        assert before.epoch >= after.epoch
        if before.epoch == after.epoch:
            assert not mode.better(after.score or 0, before.score or 0)


def test_rank_breaks_ties_by_the_place_in_the_plan() -> None:
    assert [r.index for r in rank([result(2), result(0), result(1)], Mode.MAX)] == [0, 1, 2]


@pytest.mark.parametrize("state", ["failed", "interrupted"])
def test_best_of_a_dataset_is_never_a_trial_that_failed(state: str) -> None:
    board = board_of([result(0, state=state, score=0.99, epoch=99), result(1, score=0.2)])
    best = board.best("digits")
    assert best is not None
    assert best.cell == "cell-1"
    assert board_of([result(0, state="failed", score=None)]).best("digits") is None


def test_rank_compares_across_brackets_by_length_then_score() -> None:
    rows = [
        result(0, name="mlp@digits/b2/000", state="stopped", epoch=1, score=0.99),
        result(1, name="mlp@digits/b1/001", state="stopped", epoch=3, score=0.7),
        result(2, name="mlp@digits/b2/002", state="stopped", epoch=3, score=0.8),
        result(3, name="mlp@digits/b0/003", score=0.85),
        result(4, name="mlp@digits/b2/004", score=0.9),
    ]
    assert [r.index for r in rank(rows, Mode.MAX)] == [4, 3, 2, 1, 0]
    assert [r.index for r in finalists(rows, Mode.MAX, 3)] == [4, 3]


def test_finalists_are_the_best_that_trained_to_the_end() -> None:
    rows = [result(0, score=0.9, state="stopped", epoch=3), result(1, score=0.3), result(2, score=0.6), result(3)]
    assert [r.index for r in finalists(rows, Mode.MAX, 2)] == [2, 3]
    assert [r.index for r in finalists(rows, Mode.MIN, 9)] == [1, 3, 2]


def board_of(rows: list[Result], **changes: Any) -> Leaderboard:
    fields: dict[str, Any] = {
        "experiment": "demo",
        "key": "k",
        "metric": "accuracy",
        "mode": Mode.MAX,
        "results": rows,
        "tests": {},
        "tied": frozenset(),
    }
    return leaderboard(**{**fields, **changes})


@given(rows=st.lists(results, max_size=8, unique_by=lambda r: r.cell), data=st.data())
def test_leaderboard_through_json_text_reads_back_equal(rows: list[Result], data: st.DataObject) -> None:
    test = lb.TestScore(metric="accuracy", value=0.9, low=0.8, high=0.95, rows=20, others={"log_loss": 0.1})
    some = [r.cell for r in rows if data.draw(st.booleans())]
    board = board_of(rows, tests=dict.fromkeys(some, test), tied=frozenset(some), test_looks=2)
    assert Leaderboard.from_json(json.loads(lb.dumps(board))) == board


def test_leaderboard_of_a_newer_tiltyard_is_refused() -> None:
    with pytest.raises(SpecError, match="schema version 99; this Tiltyard reads up to version 2"):
        Leaderboard.from_json({**board_of([result()]).to_json(), "schema_version": 99})


# -- intervals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("successes", "n"), [(95, 100), (0, 10), (10, 10), (1, 3), (500, 1797)])
def test_wilson_interval_is_that_of_scipy(successes: int, n: int) -> None:
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_leaderboard_says_how_ties_were_found_and_an_old_one_that_it_was_a_bootstrap() -> None:
    board = board_of([result()])
    assert board.comparison == "exact McNemar test"
    old = {name: value for name, value in board.to_json().items() if name != "comparison"}
    assert Leaderboard.from_json(old).comparison == "paired bootstrap of rows"
