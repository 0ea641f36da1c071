"""Approvals count once a person, never the author's, and for one digest alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tiltyard.governance.approvals import Approval, approvers, lacks


def test_approvers_of_a_digest_leave_out_the_author_and_those_who_withdrew() -> None:
    given_ = [
        Approval(by="ann", digest="d"),
        Approval(by="bob", digest="d"),
        Approval(by="bob", digest="d", withdrawn=True),
        Approval(by="cat", digest="other"),
        Approval(by="eve", digest="d"),
    ]
    assert approvers(given_, digest="d", author="eve") == ("ann",)
    assert lacks(given_, needed=1, digest="d", author="eve") == ""
    assert lacks(given_, needed=2, digest="d", author="eve").startswith("approved by ann; 2 approvals")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())), st.integers(1, 4))
def test_approvals_of_any_sequence_count_the_last_word_of_each(words: list[tuple[str, bool]], needed: int) -> None:
    approvals = [Approval(by=who, digest="d", withdrawn=withdrawn) for who, withdrawn in words]
    last = dict(words)
    expected = sum(not withdrawn for withdrawn in last.values())
    assert len(approvers(approvals, digest="d")) == expected
    assert (lacks(approvals, needed=needed, digest="d") == "") == (expected >= needed)
