"""Progress of long work: plain lines with a rate and a time left, bars at a terminal, nothing of what is soon over."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tiltyard import cli
from tiltyard.data.store import DatasetStore
from tiltyard.progress import Lazily, Work, told_to, work
from tiltyard.report.progress import LongWorks, line, showing
from tiltyard.report.terminal import SteadyConsole, SweepProgress


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Noted:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.done: dict[str, tuple[float, float | None, str]] = {}

    def began(self, work: Work) -> None:
        self.told.append(("began", work.what))

    def moved(self, work: Work) -> None:
        self.done[work.what] = (work.done, work.total, work.unit)

    def ended(self, work: Work, *, whole: bool) -> None:
        self.told.append(("ended", work.what, whole))


def plain() -> tuple[SteadyConsole, io.StringIO]:
    out = io.StringIO()
    return SteadyConsole(file=out, highlight=False, width=200), out


def test_work_is_told_to_the_innermost_listener_and_to_nobody_without_one() -> None:
    with work("silent") as silent:
        silent.advance(3)
    assert silent.done == 3
    outer, inner = Noted(), Noted()
    with told_to(outer), told_to(None), told_to(inner):
        with work("a", total=2) as a:
            a.advance()
        with told_to(None), work("not told"):
            pass
    with pytest.raises(ZeroDivisionError), told_to(inner), work("b"):
        raise ZeroDivisionError
    assert outer.told == []
    assert inner.told == [("began", "a"), ("ended", "a", True), ("began", "b"), ("ended", "b", False)]


def test_listener_that_is_made_late_is_made_once_and_only_where_there_is_work() -> None:
    made: list[Noted] = []

    def make() -> Noted:
        made.append(Noted())
        return made[-1]

    with told_to(Lazily(make)):
        assert made == []
        for name in ("a", "b"):
            with work(name) as doing:
                doing.advance()
    (noted,) = made
    assert [t[:2] for t in noted.told] == [("began", "a"), ("ended", "a"), ("began", "b"), ("ended", "b")]


def test_lines_where_nobody_watches_have_a_rate_and_a_time_left_and_come_every_two_seconds() -> None:
    clock = Clock()
    console, out = plain()
    with told_to(LongWorks(console, clock=clock, tick_s=3600)), work("verify x", total=40, unit="files") as doing:
        for _ in range(40):
            clock.now += 0.5
            doing.advance()
    lines = out.getvalue().splitlines()
    assert lines[0] == "verify x | 4 of 40 files | 2 files/s | 0:02 elapsed | 0:18 left"
    assert lines[1] == "verify x | 8 of 40 files | 2 files/s | 0:04 elapsed | 0:16 left"
    assert lines[-1] == "verify x | 40 of 40 files | 2 files/s | 0:20 elapsed | done"
    assert len(lines) == 11
    assert line(Work("send x"), 3.0) == "send x | 0:03 elapsed"
    assert line(Work("read", total=4e6, unit="bytes", done=1e6), 2.0) == (
        "read | 1.0 MB of 4.0 MB | 500.0 kB/s | 0:02 elapsed | 0:06 left"
    )


def test_lines_of_work_that_is_soon_over_or_fails_are_not_printed() -> None:
    clock = Clock()
    console, out = plain()
    with told_to(LongWorks(console, clock=clock, tick_s=3600)):
        with work("short", total=3) as doing:
            for _ in range(3):
                clock.now += 0.5
                doing.advance()
        with suppress(ZeroDivisionError), work("fails", total=3) as doing:
            clock.now += 5
            doing.advance()
            raise ZeroDivisionError
    assert out.getvalue().splitlines() == ["fails | 1 of 3 steps | 0.2 steps/s | 0:05 elapsed | 0:10 left"]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_work_that_does_not_move_is_told_of_all_the_same() -> None:
    clock = Clock()
    console, out = plain()
    with told_to(LongWorks(console, clock=clock, tick_s=0.01)), work("wait"):
        clock.now = 2.5
        until(lambda: "wait | 0:02 elapsed" in out.getvalue())


def test_bars_at_a_terminal_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    clock = Clock()
    out = io.StringIO()
    console = SteadyConsole(file=out, force_terminal=True, width=160, highlight=False)
    with told_to(LongWorks(console, clock=clock, tick_s=0.01)), work("read [b]x[/b]", total=4, unit="files") as doing:
        doing.advance()
        assert out.getvalue() == ""
        clock.now = 1.0
        doing.advance()
        until(lambda: "2 of 4 files" in re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()))
    shown = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "read [b]x[/b]" in shown
    assert "done" not in shown


def test_bars_wait_while_a_sweep_is_drawn() -> None:
    noted = Noted()
    console = SteadyConsole(file=io.StringIO(), force_terminal=True, width=120)
    with told_to(noted):
        with SweepProgress(title="x", total=1, datasets=["d"], metric="accuracy", console=console), work("within"):
            pass
        with work("after"):
            pass
    assert [t[:2] for t in noted.told] == [("began", "after"), ("ended", "after")]


def test_terminal_that_went_away_ends_no_work() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    works = LongWorks(SteadyConsole(file=Gone(), width=80), clock=clock, tick_s=3600)
    with told_to(works), work("x", total=2) as doing:
        clock.now = 5
        doing.advance()
    assert doing.done == 1


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    store = DatasetStore(str(tmp_path_factory.mktemp("data")))
    for rows in (300, 400):
        store.commit("told", pa.table({"x": np.arange(rows), "person": np.arange(rows) % 50}))
    return store


def test_long_works_of_a_store_say_how_far_they_are(store: DatasetStore, tmp_path: Path) -> None:
    from tiltyard.data import deletion, upkeep
    from tiltyard.data.export import export
    from tiltyard.data.verify import verify

    noted, size = Noted(), sum(f.size_bytes for f in store.resolve("told@2").files)
    with told_to(noted):
        store.commit("other", pa.table({"x": np.arange(200)}))
        verify(store, "told")
        export(store, "told@2", str(tmp_path / "out"))
        deletion.delete(store, "told", [3], column="person", models={})
        upkeep.gc(store, "told", others={}, orphan_hours=0.0, yes=True)
    done = noted.done
    rows = [d for what, d in done.items() if what.startswith("write the ")]
    assert all(done == total for done, total, _ in rows)
    expected = {
        "verify told": (2, 2, "versions"),
        "read told@2": (size, size, "bytes"),
        "export told@2": (400, 400, "rows"),
    }
    assert {what: done[what] for what in expected} == expected
    assert done["remove files of told"][2] == "files"
    assert {t[2] for t in noted.told if t[0] == "ended"} == {True}


def test_command_that_takes_long_tells_on_stderr_and_keeps_stdout_for_its_answer(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import tiltyard.report.progress as module

    monkeypatch.setattr(module, "FIRST_AFTER_S", 0.0)
    monkeypatch.setenv("TILTYARD_DATA_URI", store.root.uri)
    with pytest.raises(SystemExit) as done:
        cli.main(["data", "verify", "told", "--json"])
    assert done.value.code == 0
    told = capfd.readouterr()
    assert re.search(r"^verify told \| \d of \d versions \| .*elapsed", told.err, re.MULTILINE)
    assert told.out.startswith("{")


def test_showing_prints_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    with showing(), work("x", total=1) as doing:
        doing.advance()
    assert capfd.readouterr() == ("", "")
