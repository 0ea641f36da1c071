"""How a history is thinned, and what tells one writing of a trial from the next."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tiltyard.tracking.records import MAX_POINTS, TrialRecord, thin


def history(epochs: list[int]) -> list[tuple[int, dict[str, float]]]:
    return [(epoch, {"accuracy": epoch / 1000}) for epoch in epochs]


@given(st.integers(0, 500), st.integers(2, MAX_POINTS))
def test_thin_of_any_history_keeps_both_ends_in_order_within_the_limit(length: int, limit: int) -> None:
    whole = history(list(range(1, length + 1)))
    kept = thin(whole, limit)
    assert len(kept) == min(length, limit)
    assert [e for e, _ in kept] == sorted({e for e, _ in kept})
    assert kept[:1] == whole[:1]
    assert kept[-1:] == whole[-1:]
    assert all(point in whole for point in kept)


@given(st.integers(1, MAX_POINTS))
def test_thin_of_a_short_history_leaves_it_as_it_is(length: int) -> None:
    whole = history(list(range(1, length + 1)))
    assert thin(whole) == whole


def record(**changes: object) -> TrialRecord:
    plain = TrialRecord(
        cell="c" * 64,
        name="mlp@rings/000",
        variant="mlp",
        dataset="rings",
        dataset_version=1,
        dataset_digest="d" * 64,
        params={"lr": 0.1},
        history=history([1, 2]),
        state="stopped",
        reason="not among the best",
        duration_s=1.0,
        cpu_s=1.0,
        start_ms=1_000,
        end_ms=2_000,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_mark_of_a_trial_changes_with_its_state_its_epochs_and_its_test_scores_alone() -> None:
    one = record()
    assert one.mark == record(end_ms=9_000, duration_s=5.0).mark
    others = [record(state="done"), record(history=history([1, 2, 3])), record(test={"accuracy": 0.5})]
    assert len({one.mark, *(r.mark for r in others)}) == 4
