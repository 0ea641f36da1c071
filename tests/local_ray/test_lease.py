"""A sweep that lost its key while it worked neither looks at the test split nor writes the leaderboard."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sweeps
from sqlalchemy import create_engine, text

from tiltyard.errors import FencedError
from tiltyard.experiment import Search
from tiltyard.settings import Settings
from tiltyard.sweep.engine.driver import Tick
from tiltyard.sweep.engine.finals import look_at_test
from tiltyard.sweep.engine.lease import keep_alive
from tiltyard.sweep.engine.outcome import Silent
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray

WANTED = sweeps.experiment(
    name="loses", variants=(sweeps.MLP,), datasets=(DatasetRef("rings"),), search=Search(trials=2, epochs=1)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))


class Ledger:
    """The journal's tables, as another host's process changes and reads them."""

    def __init__(self, settings: Settings) -> None:
        self.uri = settings.journal_uri

    def __call__(self, statement: str, *, writes: bool = False) -> Any:
        engine = create_engine(self.uri)
        try:
            with engine.begin() as c:
                found = c.execute(text(statement))
                return found.rowcount if writes else found.scalar()
        finally:
            engine.dispose()

    def take_over(self) -> None:
        """What a takeover from another host does to the launch; on this one a living holder keeps its key."""
        assert self("UPDATE launches SET fence = fence + 1", writes=True) == 1


class AtTheEnd(Silent):
    """Does something once, when no trial is left to run."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then: Callable[[], None] | None = then

    def tick(self, tick: Tick) -> None:
        ended = tick.states.get("done", 0) + tick.states.get("stopped", 0)
        if self.then is not None and ended == sum(tick.states.values()):
            self.then()
            self.then = None


def leaderboards(settings: Settings) -> list[Path]:
    return [p for p in Path(settings.storage_uri).rglob("*leaderboard*") if p.is_file()]


def test_sweep_that_lost_its_key_at_the_end_records_no_look_and_writes_no_leaderboard(
    ray_session: None, data: str, tmp_path: Path
) -> None:
    settings = sweeps.settings_at(tmp_path, data)
    ledger = Ledger(settings)
    watch = AtTheEnd(ledger.take_over)
    with pytest.raises(FencedError, match="taken over"):
        sweeps.run_launch(settings, WANTED, watch)
    assert watch.then is None, "the key was never taken over"
    assert ledger("SELECT COUNT(*) FROM test_looks") == 0
    assert leaderboards(settings) == []
    assert ledger("SELECT state FROM launches") == "running"


def test_sweep_keeps_its_lease_before_its_first_and_after_its_last_turn(
    ray_session: None, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = sweeps.settings_at(tmp_path, data)
    ledger, kept = Ledger(settings), []

    def lapse_and_wait(what: str) -> None:
        assert ledger("UPDATE launches SET lease_until = 1", writes=True) == 1
        sweeps.until(lambda: ledger("SELECT lease_until FROM launches") > 1, what=what)
        kept.append(what)

    class Slow(Silent):
        def planned(self, plan: Any, known: int) -> None:
            lapse_and_wait("before the first turn")

    def slow_look(**given: Any) -> Any:
        lapse_and_wait("after the last turn")
        found = look_at_test(**given)
        ledger.take_over()
        return found

    monkeypatch.setattr("tiltyard.sweep.engine.launch.keep_alive", partial(keep_alive, every_s=0.2))
    monkeypatch.setattr("tiltyard.sweep.engine.launch.look_at_test", slow_look)
    with pytest.raises(FencedError, match="taken over"):
        sweeps.run_launch(settings, WANTED, Slow())
    assert kept == ["before the first turn", "after the last turn"]
    assert ledger("SELECT COUNT(*) FROM test_looks") == 1
    assert leaderboards(settings) == [], "written by a launch that had lost its key"
