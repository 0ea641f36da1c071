"""Groups compared by their confusion matrices."""

from __future__ import annotations

import numpy as np
import pytest

from tiltyard.evaluation.fairness import fairness


def test_groups_with_known_counts_give_the_ratio_and_the_odds_by_hand() -> None:
    # a: 60 of 100 selected, 45 of 50 positives, 15 of 50 negatives; b: 30 of 100, 25 of 50, 5 of 50
    found = fairness("sex", {"a": [[35, 15], [5, 45]], "b": [[45, 5], [25, 25]]})
    assert found.ratio is not None
    assert found.ratio.value == pytest.approx(0.5)
    assert (found.lowest, found.highest) == ("b", "a")
    assert found.odds_difference == pytest.approx(0.9 - 0.5)
    assert found.verdict == "flagged"


@pytest.mark.parametrize(("selected", "verdict"), [(500, "alike"), (390, "unsure"), (200, "flagged")])
def test_verdict_follows_the_whole_interval_and_not_the_ratio_alone(selected: int, verdict: str) -> None:
    found = fairness("sex", {"a": [[500, 500], [0, 0]], "b": [[1000 - selected, selected], [0, 0]]})
    assert found.verdict == verdict


def test_small_groups_are_named_and_left_out() -> None:
    found = fairness("sex", {"a": [[10, 10], [10, 10]], "b": [[1, 0], [0, 1]]})
    assert found.too_few == {"b": 2}
    assert (found.verdict, found.ratio) == ("too few", None)


def test_group_of_which_nobody_is_selected_has_a_ratio_of_zero_and_a_finite_interval() -> None:
    found = fairness("sex", {"a": [[50, 50], [0, 0]], "b": [[100, 0], [0, 0]]})
    assert found.ratio is not None
    assert (found.ratio.value, found.verdict) == (0.0, "flagged")
    assert fairness("sex", {"a": [[100, 0], [0, 0]], "b": [[100, 0], [0, 0]]}).verdict == "unsure"


def test_interval_of_the_ratio_over_many_draws_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(0), 0
    for _ in range(200):
        a, b = int(rng.binomial(300, 0.5)), int(rng.binomial(300, 0.35))
        ratio = fairness("g", {"a": [[300 - a, a], [0, 0]], "b": [[300 - b, b], [0, 0]]}).ratio
        assert ratio is not None
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= 0.7 <= ratio.high
    assert held >= 178  # 190 wanted; fewer than 178 happens once in a thousand times
