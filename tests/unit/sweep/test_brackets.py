"""HyperBand: the paper's brackets, shared out, and a sweep through them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import Hyperband
from tiltyard.sweep.brackets import brackets, published

hyperbands = st.builds(Hyperband, max_epochs=st.integers(1, 300), eta=st.integers(2, 5))


def test_published_brackets_are_those_of_the_paper() -> None:
    # R = 81, eta = 3: n = ceil((s_max + 1) / (s + 1) * eta^s), r = R / eta^s, algorithm 1
    assert [(b.trials, b.rungs) for b in published(Hyperband(max_epochs=81, eta=3))] == [
        (81, (1, 3, 9, 27, 81)),
        (34, (3, 9, 27, 81)),
        (15, (9, 27, 81)),
        (8, (27, 81)),
        (5, (81,)),
    ]


@pytest.mark.parametrize(("most", "eta", "count"), [(243, 3, 6), (1000, 10, 4), (8, 2, 4), (1, 3, 1), (2, 3, 1)])
def test_published_brackets_are_as_many_as_whole_powers_fit(most: int, eta: int, count: int) -> None:
    assert len(published(Hyperband(max_epochs=most, eta=eta))) == count


@given(hyperband=hyperbands, trials=st.integers(1, 500))
def test_brackets_share_out_every_trial_and_all_end_at_the_full_length(hyperband: Hyperband, trials: int) -> None:
    found = brackets(hyperband, trials)
    assert sum(b.trials for b in found) == trials
    assert all(b.trials >= 1 for b in found)
    for b in found:
        assert b.rungs[-1] == hyperband.max_epochs
        assert b.rungs[0] >= 1
        assert list(b.rungs) == sorted(set(b.rungs))
        assert b.keep == (1 / hyperband.eta if b.number else 1.0)
    assert [b.number for b in found] == sorted((b.number for b in found), reverse=True)


@given(hyperband=hyperbands, rounds=st.integers(1, 3))
def test_brackets_of_whole_rounds_are_the_papers(hyperband: Hyperband, rounds: int) -> None:
    whole = published(hyperband)
    found = brackets(hyperband, rounds * sum(b.trials for b in whole))
    assert [b.trials for b in found] == [rounds * b.trials for b in whole]
