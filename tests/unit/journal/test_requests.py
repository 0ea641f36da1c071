"""What people ask of a running sweep: asked by anybody, answered once, by whoever holds the claim."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tiltyard.errors import FencedError
from tiltyard.journal import Claim, Journal, Owner

KEY = "k" * 64


def claim(journal: Journal, lease_s: float = 60.0) -> Claim:
    owner = Owner(host="some-other-host", pid=1, started=1.0)
    return journal.claim(KEY, experiment="demo", spec="{}", owner=owner, lease_s=lease_s)


def test_request_stands_as_it_was_asked_until_it_is_answered_once(journal: Journal) -> None:
    by = claim(journal)
    asked = journal.requests.ask(
        KEY, "stop", subject="mlp@digits/003", detail={"cell": "c3"}, actor="ada@here", reason="too slow"
    )
    assert journal.requests.of(KEY) == [asked]
    assert journal.requests.of("other" * 10) == []
    assert (asked.state, asked.answered, asked.actor, asked.reason) == ("asked", None, "ada@here", "too slow")
    assert journal.requests.answer(by, asked.number, state="done", answer={"after_epoch": 3})
    assert not journal.requests.answer(by, asked.number, state="refused", answer={})
    now = journal.requests.get(asked.number)
    assert now is not None
    assert (now.state, now.answer) == ("done", {"after_epoch": 3})
    assert now.answered is not None
    assert journal.requests.of(KEY, state="asked") == []
    assert journal.requests.stopped(KEY) == {"c3"}


def test_request_answered_by_a_launch_that_lost_its_claim_stays_open(journal: Journal) -> None:
    late = claim(journal, lease_s=-1)
    assert claim(journal).fence == 2
    asked = journal.requests.ask(KEY, "pause", subject="demo", detail={}, actor="ada")
    with pytest.raises(FencedError):
        journal.requests.answer(late, asked.number, state="done", answer={})
    assert journal.requests.of(KEY, state="asked") == [asked]


def test_requests_of_many_at_once_are_numbered_each_once(journal: Journal) -> None:
    def ask(n: int) -> int:
        return journal.requests.ask(KEY, "add", subject="demo", detail={"trials": n}, actor="ada").number

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(ask, range(24))) == list(range(1, 25))
    assert [r.number for r in journal.requests.of(KEY)] == list(range(1, 25))
