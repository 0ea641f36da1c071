"""Work that is done once: by whoever claims it first, again only where it failed or its holder died."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest

from tiltyard.errors import FencedError, JournalError
from tiltyard.journal import Journal, Owner, WorkClaim

KEY = "e" * 64
ABOUT: Mapping[str, Any] = {"model": "m@1", "dataset": "digits@2"}


def claim(journal: Journal, key: str = KEY, *, owner: Owner | None = None, lease_s: float = 60.0) -> WorkClaim:
    return journal.works.claim(
        key, kind="evaluation", subject="m", about=ABOUT, owner=owner or Owner.here(), lease_s=lease_s
    )


def test_claim_by_many_at_once_is_won_by_one(journal: Journal) -> None:
    gate = Barrier(8)

    def one(_: int) -> str:
        gate.wait(timeout=30)
        return claim(journal).outcome

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(one, range(8)))
    assert sorted(outcomes) == ["held"] * 7 + ["new"]


def test_finished_work_is_not_done_again_and_keeps_its_result(journal: Journal) -> None:
    mine = claim(journal)
    first = journal.works.finish(mine, {"accuracy": 0.5}, cause="evaluated")
    assert first.revision == 1
    assert claim(journal).outcome == "finished"
    with pytest.raises(FencedError):
        journal.works.finish(mine, {"accuracy": 0.6}, cause="twice")
    assert [r.result for r in journal.works.results(KEY)] == [{"accuracy": 0.5}]
    work = journal.works.get(KEY)
    assert work is not None
    assert (work.state, work.about, work.subject) == ("finished", ABOUT, "m")
    assert [w.key for w in journal.works.find("evaluation", "m")] == [KEY]
    assert journal.works.find("evaluation", "another") == []


def test_work_that_failed_is_taken_over_and_its_reason_is_kept_until_then(journal: Journal) -> None:
    mine = claim(journal)
    journal.works.fail(mine, "the dataset was deleted")
    work = journal.works.get(KEY)
    assert work is not None
    assert (work.state, work.reason) == ("failed", "the dataset was deleted")
    again = claim(journal)
    assert (again.outcome, again.fence) == ("taken_over", 2)
    with pytest.raises(FencedError, match="nothing was written"):
        journal.works.finish(mine, {}, cause="late")
    with pytest.raises(FencedError):
        journal.works.renew(mine)
    journal.works.fail(mine, "too late to matter")
    work = journal.works.get(KEY)
    assert work is not None
    assert (work.state, work.reason) == ("running", None)
    journal.works.finish(again, {}, cause="evaluated")


def test_work_of_a_dead_process_is_taken_over_at_once_and_that_of_a_living_one_is_not(journal: Journal) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = replace(Owner.here(), pid=int(done.stdout))
    assert claim(journal, owner=dead, lease_s=1e6).outcome == "new"
    taken = claim(journal)
    assert taken.outcome == "taken_over"
    journal.works.renew(taken)
    assert claim(journal, lease_s=-1).outcome == "held"


def test_work_of_another_host_is_taken_over_when_its_lease_has_ended(journal: Journal) -> None:
    away = replace(Owner.here(), host="elsewhere")
    assert claim(journal, owner=away, lease_s=600).outcome == "new"
    assert claim(journal).outcome == "held"
    assert claim(journal, "f" * 64, owner=away, lease_s=-1).outcome == "new"
    assert claim(journal, "f" * 64).outcome == "taken_over"


def test_revision_is_appended_unless_another_came_first(journal: Journal) -> None:
    mine = claim(journal)
    with pytest.raises(JournalError, match="running"):
        journal.works.revise(KEY, {}, cause="labels", after=1)
    journal.works.finish(mine, {"labelled": 0}, cause="evaluated")
    gate = Barrier(4)

    def one(n: int) -> bool:
        gate.wait(timeout=30)
        return journal.works.revise(KEY, {"labelled": n}, cause="labels", after=1) is not None

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(one, range(4))) == 1
    assert [r.revision for r in journal.works.results(KEY)] == [1, 2]
    assert journal.works.newest([KEY, "0" * 64])[KEY].revision == 2
    with pytest.raises(JournalError, match="no work"):
        journal.works.revise("0" * 64, {}, cause="labels", after=1)
