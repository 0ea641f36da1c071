"""A member of a queue whose process dies again and again takes no other along."""

from __future__ import annotations

import pytest

from tiltyard.journal import AttemptRow
from tiltyard.sweep.engine.worker import died_twice


def attempts(*firsts: str | None, reason: str | None = None) -> list[AttemptRow]:
    return [
        AttemptRow(
            key="k",
            pack_id="own@rings/r0/0",
            number=number,
            rung=0,
            state="fenced",
            started=0.0,
            ended=None,
            metered_s=0.0,
            reason=reason,
            storage_uri=None,
            layout={} if first is None else {"first": first},
        )
        for number, first in enumerate(firsts, start=1)
    ]


@pytest.mark.parametrize(
    ("firsts", "left", "gives_up"),
    [
        ((), ("a", "b"), False),
        (("a",), ("a", "b"), False),  # it died once: it may have been somebody's doing
        (("a",), ("b",), False),
        (("a", "b"), ("b",), True),  # the first attempt died at b, for the second began with it
        (("a", "a"), ("a", "b"), True),
        (("a", "b"), ("c",), False),
        (("a", "b"), (), False),
        ((None, None), ("a",), False),
    ],
)
def test_member_at_which_the_last_two_attempts_died_is_given_up(
    firsts: tuple[str | None, ...], left: tuple[str, ...], gives_up: bool
) -> None:
    assert (died_twice(attempts(*firsts), left) is not None) is gives_up


def test_member_that_is_given_up_bears_the_reason_that_its_attempt_left() -> None:
    assert died_twice(attempts("a", "a", reason="ValueError: no"), ["a"]) == "ValueError: no"
    assert "died twice" in str(died_twice(attempts("a", "a"), ["a"]))
