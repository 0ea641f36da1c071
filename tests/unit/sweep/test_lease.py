"""A claim is kept while a launch works, whatever it does; one that was lost is told to whoever asks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from tiltyard.errors import FencedError
from tiltyard.journal import Claim, Journal, Owner
from tiltyard.sweep.engine.lease import keep_alive

KEY = "k" * 64
ELSEWHERE = Owner(host="some-other-host", pid=1, started=1.0)
SOON, NEVER = 0.02, 3600.0


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'journal.db'}"


@pytest.fixture
def journal(uri: str) -> Iterator[Journal]:
    with Journal.open(uri) as opened:
        yield opened


@pytest.fixture
def claim(journal: Journal) -> Claim:
    """Of a process on another host: the lease alone says whether it lives."""
    return journal.claim(KEY, experiment="demo", spec="{}", owner=ELSEWHERE)


def let_lapse(journal: Journal, claim: Claim) -> None:
    journal.renew(replace(claim, lease_s=-1))


def take_over(journal: Journal, claim: Claim) -> Claim:
    """As another process does that finds the lease late."""

    def taken() -> Claim | None:
        let_lapse(journal, claim)
        got = journal.claim(KEY, experiment="demo", spec="{}", owner=replace(ELSEWHERE, pid=2))
        return got if got.outcome == "taken_over" else None

    got: Claim = until(taken)  # the lease may have been renewed between the two
    return got


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
    return found


def fenced(work: Callable[[], object]) -> bool:
    try:
        work()
    except FencedError:
        return True
    return False


def keepers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("lease-")]


def test_lease_is_renewed_while_the_block_does_something_else(journal: Journal, claim: Claim) -> None:
    let_lapse(journal, claim)
    with keep_alive(journal, claim, SOON):
        assert journal.holder(KEY) == ELSEWHERE  # at once
        for _ in range(3):
            let_lapse(journal, claim)
            until(lambda: journal.holder(KEY) == ELSEWHERE)


def test_lease_is_not_renewed_after_the_block(journal: Journal, claim: Claim) -> None:
    with pytest.raises(FencedError, match="of the block itself"), keep_alive(journal, claim, SOON):
        raise FencedError("of the block itself" if keepers() else "nobody keeps the claim")
    assert keepers() == []
    let_lapse(journal, claim)
    assert journal.holder(KEY) is None


def test_lease_that_was_taken_over_is_told_at_every_check(journal: Journal, claim: Claim) -> None:
    with keep_alive(journal, claim, SOON) as lease:
        lease.check()
        take_over(journal, claim)
        until(lambda: fenced(lease.check))
        for ask in (lease.check, lease.renew, lease.check):
            with pytest.raises(FencedError, match="taken over"):
                ask()
    with pytest.raises(FencedError):
        lease.check()


def test_renew_finds_a_takeover_that_the_thread_has_not_seen(journal: Journal, claim: Claim) -> None:
    with keep_alive(journal, claim, NEVER) as lease:
        take_over(journal, claim)
        lease.check()
        for ask in (lease.renew, lease.check):
            with pytest.raises(FencedError, match="taken over"):
                ask()


def test_lease_of_a_claim_that_is_lost_already_is_refused_and_keeps_nothing(journal: Journal, claim: Claim) -> None:
    take_over(journal, claim)
    with pytest.raises(FencedError), keep_alive(journal, claim, SOON):
        pytest.fail("the block was entered")
    assert keepers() == []


def test_lease_of_a_released_claim_ends_quietly_though_another_goes_on(journal: Journal, claim: Claim) -> None:
    with keep_alive(journal, claim, SOON) as lease:
        journal.release(claim, state="stopped", summary={})
        assert journal.claim(KEY, experiment="demo", spec="{}", owner=ELSEWHERE).outcome == "taken_over"
        until(lambda: keepers() == [])
        assert fenced(lease.check)


def test_lease_outlives_a_journal_that_is_away_for_a_while(
    journal: Journal, claim: Claim, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(uri)

    def rename(old: str, new: str) -> None:
        with engine.begin() as c:
            c.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))

    try:
        with caplog.at_level(logging.WARNING), keep_alive(journal, claim, SOON) as lease:
            rename("launches", "away")
            until(lambda: [r for r in caplog.records if "was not renewed, trying again" in r.getMessage()])
            rename("away", "launches")
            let_lapse(journal, claim)
            until(lambda: journal.holder(KEY) == ELSEWHERE)
            lease.check()
    finally:
        engine.dispose()
