"""Shares: the same request always is or is not in one, a larger one keeps those of a smaller, the newest decision holds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import ServingError
from tiltyard.registry import ModelAddress
from tiltyard.serving.traffic import Split, splits_from_args, standing

SHADOW = Split.parse("a.b@candidate:10%", "shadow")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_split_of_many_requests_takes_its_share(share: float) -> None:
    split = Split(mode="canary", challenger=ModelAddress.parse("a.b@3"), share=share)
    taken = sum(split.takes(f"request-{i}") for i in range(10_000))
    assert abs(taken / 10_000 - share) < 0.02


@given(st.text(), st.floats(0.001, 1), st.floats(0.001, 1))
def test_split_with_a_larger_share_keeps_every_request_of_a_smaller(request_id: str, one: float, other: float) -> None:
    less, more = (Split(mode="shadow", challenger=SHADOW.challenger, share=s) for s in sorted([one, other]))
    assert less.takes(request_id) <= more.takes(request_id)
    assert less.takes(request_id) == less.takes(request_id)


def test_split_of_everything_takes_everything() -> None:
    assert all(Split(mode="shadow", challenger=SHADOW.challenger, share=1).takes(str(i)) for i in range(1000))


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("a.b:0.1", "shadow", "NAME@ALIAS:SHARE"),
        ("a.b@candidate", "shadow", "NAME@ALIAS:SHARE"),
        ("a.b@candidate:many", "canary", "'many' for a share"),
        ("a.b@candidate:0", "canary", "above 0"),
        ("a.b@candidate:110%", "canary", "at most 1"),
        ("a.b@champion:0.1", "shadow", "another version than the champion"),
        ("a.b@2:nan", "shadow", "above 0"),
    ],
)
def test_split_that_says_nothing_sensible_is_refused(text: str, mode: str, told: str) -> None:
    with pytest.raises(ServingError, match=told):
        Split.parse(text, mode)


def test_splits_of_a_config_are_one_a_model() -> None:
    found = splits_from_args({"shadow": "a.b@candidate:10%, a.c@4:1", "canary": "a.d@2:0.5"})
    assert {name: str(split) for name, split in found.items()} == {
        "a.b": "shadow of 0.1 to a.b@candidate",
        "a.c": "shadow of 1 to a.c@4",
        "a.d": "canary of 0.5 to a.d@2",
    }
    with pytest.raises(ServingError, match=r"a\.b has two challengers"):
        splits_from_args({"shadow": "a.b@candidate:10%", "canary": "a.b@2:0.5"})


def test_standing_splits_are_the_newest_decided_and_the_config_elsewhere() -> None:
    configured = splits_from_args({"shadow": "a.b@candidate:10%,a.c@candidate:10%,a.d@candidate:10%"})
    more = Split.parse("a.b@3:0.5", "canary")
    decided = [("a.b", "off", {}), ("a.c", "off", {}), ("a.b", "canary", more.to_evidence())]
    assert standing(configured, decided) == {"a.b": more, "a.d": configured["a.d"]}
