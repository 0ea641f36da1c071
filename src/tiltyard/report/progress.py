"""Shows any long work: bars that are redrawn at a terminal; elsewhere plain lines, each complete on its own.

A work that is over within `FIRST_AFTER_S` is never mentioned. One that takes longer is told of at most every
`PLAIN_EVERY_S` (every `LATER_EVERY_S` once a minute has passed), whether it moves or not: what was done of how much, how
much a second, and the time left by the mean rate since its start. What the work itself is, it says in `tiltyard.progress`.
Sweeps have their own display (`tiltyard.report.terminal.SweepProgress`); while it stands, nothing is drawn here.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from tiltyard.progress import Work, told_to
from tiltyard.report.terminal import PLAIN_EVERY_S, SteadyConsole, clock_time

FIRST_AFTER_S = 2.0
LATER_EVERY_S = 10.0
_BAR_AFTER_S = 0.4
_UNITS = ("B", "kB", "MB", "GB", "TB")


def amount(value: float, unit: str) -> str:
    """So much of something.

    >>> amount(1234567, "rows"), amount(2_500_000, "bytes"), amount(0.25, "plots")
    ('1,234,567 rows', '2.5 MB', '0.25 plots')
    """
    if unit != "bytes":
        return f"{value:,.0f} {unit}" if value >= 10 or value == int(value) else f"{value:.2g} {unit}"
    step = 0
    while value >= 1000 and step < len(_UNITS) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.{1 if step else 0}f} {_UNITS[step]}"


def line(work: Work, elapsed_s: float, *, over: bool = False) -> str:
    """One line for a log.

    >>> line(Work("verify digits@3", total=40, unit="files", done=10), 5.0)
    'verify digits@3 | 10 of 40 files | 2 files/s | 0:05 elapsed | 0:15 left'
    """
    parts = [work.what]
    if work.total is not None:
        parts.append(f"{amount(work.done, work.unit).removesuffix(f' {work.unit}')} of {amount(work.total, work.unit)}")
    elif work.done:
        parts.append(amount(work.done, work.unit))
    if work.done and elapsed_s > 0:
        parts.append(f"{amount(work.done / elapsed_s, work.unit)}/s")
    parts.append(f"{clock_time(elapsed_s)} elapsed")
    left = time_left(work, elapsed_s)
    if left is not None and not over:
        parts.append(f"{clock_time(left)} left")
    return " | ".join([*parts, *(["done"] if over else [])])


def time_left(work: Work, elapsed_s: float) -> float | None:
    """Seconds left at the mean rate so far; None while nobody can tell."""
    if work.total is None or work.done <= 0 or elapsed_s <= 0:
        return None
    return max(0.0, work.total - work.done) * elapsed_s / work.done


@dataclass(slots=True)
class _Shown:
    began: float
    told: float | None = None
    bar: TaskID | None = None


class _Facts(ProgressColumn):
    """What `line` says, beside the bar."""

    def render(self, task: Task) -> Text:
        work, shown = task.fields["work"], task.fields["shown"]
        return Text(line(work, time.monotonic() - shown.began).removeprefix(f"{work.what} | "), "dim")


class LongWorks:
    """A `tiltyard.progress.Listener` for people.

    Args:
        console: Where to; stderr, so that a command's output stays its output.
        clock: Seconds, rising.
        tick_s: Seconds between looks at works that do not move.
    """

    def __init__(
        self,
        console: SteadyConsole | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        tick_s: float = 0.25,
    ) -> None:
        self._console = console or SteadyConsole(file=sys.stderr, highlight=False)
        self._clock, self._tick_s = clock, tick_s
        self._works: dict[Work, _Shown] = {}
        self._lock = threading.RLock()
        self._progress: Progress | None = None
        self._ticking: threading.Thread | None = None
        self._over = threading.Event()

    def began(self, work: Work) -> None:
        """From now on it is looked at."""
        with self._lock:
            self._works[work] = _Shown(began=self._clock())
            if self._ticking is None:
                self._over = threading.Event()
                self._ticking = threading.Thread(target=self._tick, args=(self._over,), daemon=True)
                self._ticking.start()

    def moved(self, work: Work) -> None:
        """Shows it, where it is time."""
        with self._lock:
            if work in self._works:
                self._look(work)

    def ended(self, work: Work, *, whole: bool) -> None:
        """Its last line, where there was a first one."""
        with self._lock:
            shown = self._works.pop(work, None)
            if shown is not None and shown.bar is not None and self._progress is not None:
                self._progress.remove_task(shown.bar)
            elif shown is not None and shown.told is not None and whole:
                self._print(line(work, self._clock() - shown.began, over=True))
            if not self._works:
                self._stop()

    def _tick(self, over: threading.Event) -> None:
        while not over.wait(self._tick_s):
            with self._lock:
                for work in list(self._works):
                    self._look(work)

    def _look(self, work: Work) -> None:
        shown, now = self._works[work], self._clock()
        if self._console.is_terminal:
            self._draw(work, shown, now)
        elif now - shown.began >= FIRST_AFTER_S:
            pause = PLAIN_EVERY_S if now - shown.began < 60 else LATER_EVERY_S
            if shown.told is None or now - shown.told >= pause:
                shown.told = now
                self._print(line(work, now - shown.began))

    def _draw(self, work: Work, shown: _Shown, now: float) -> None:
        if shown.bar is None and now - shown.began < _BAR_AFTER_S:
            return
        with contextlib.suppress(OSError):
            if self._progress is None:
                columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), _Facts())
                self._progress = Progress(*columns, console=self._console, transient=True)
                self._progress.start()
            if shown.bar is None:
                shown.bar = self._progress.add_task(work.what, total=work.total, work=work, shown=shown)
            self._progress.update(shown.bar, description=work.what, completed=work.done, total=work.total)

    def _stop(self) -> None:
        self._over.set()
        self._ticking = None
        if self._progress is not None:
            with contextlib.suppress(OSError):
                self._progress.stop()
            self._progress = None

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._console.print(Text(text), soft_wrap=True)


@contextmanager
def showing(console: SteadyConsole | None = None) -> Iterator[None]:
    """Long works within the block are shown."""
    with told_to(LongWorks(console)):
        yield
