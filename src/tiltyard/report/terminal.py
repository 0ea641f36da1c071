"""What a sweep looks like in a terminal: how far it is, who leads, and where everything is afterwards.

At a terminal a few lines are redrawn in place; elsewhere (a log file, ``ray job logs``, CI) a plain line is printed at
most every two seconds. Both say the same: trials finished of all, running, stopped early, failed; trials a second;
time left; the best so far of each dataset.

A trial is *finished* when nothing more is done for it: trained to the end, stopped early by a rung, or failed.
This module draws and decides nothing; the engine fills `Snapshot`.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tiltyard.progress import told_to

PLAIN_EVERY_S = 2.0
PIPE_WIDTH = 160
_REDRAW_PER_S = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The leader of one dataset so far."""

    value: float
    """Score on the validation split."""
    trial: str
    """A name a person can hand to ``tiltyard trial show``."""
    rung: str = ""
    """How far the dataset's groups are, e.g. ``rung 2 of 3``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a sweep is, at one moment. The four counts of trials exclude each other."""

    total: int
    done: int
    """Trained to the end."""
    running: int
    stopped: int
    """Stopped early by a rung."""
    failed: int
    elapsed_s: float
    eta_s: float | None = None
    """Seconds left; None while nobody can tell."""
    best: Mapping[str, Best] = field(default_factory=dict)
    """By dataset."""

    @property
    def finished(self) -> int:
        """Trials for which nothing more is done."""
        return self.done + self.stopped + self.failed

    @property
    def per_s(self) -> float:
        """Trials finished a second, over the whole launch."""
        return self.finished / self.elapsed_s if self.elapsed_s > 0 else 0.0


def clock_time(seconds: float) -> str:
    """Seconds as a person says them.

    >>> clock_time(41.6), clock_time(3723)
    ('0:42', '1:02:03')
    """
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def score(value: float | None) -> str:
    """A score with four decimals, large and tiny ones with four digits.

    >>> score(0.98123), score(1234567.0), score(0.0000123), score(float("nan")), score(None)
    ('0.9812', '1.235e+06', '1.230e-05', 'NaN', '-')
    """
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if value != 0 and not 1e-3 <= abs(value) < 1e4:
        return f"{value:.3e}"
    return f"{value:.4f}"


def configuration(config: Mapping[str, Any]) -> str:
    """Hyperparameters on one line.

    >>> configuration({"lr": 0.00312345, "hidden": (64, 32), "optimizer": "adamw"})
    'hidden=64x32 lr=0.003123 optimizer=adamw'
    """
    return " ".join(f"{name}={_parameter(config[name])}" for name in sorted(config))


def _parameter(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return "x".join(_parameter(v) for v in value)
    return str(value)


def plain_line(snapshot: Snapshot, metric: str) -> str:
    """One line for a log: complete on its own, so that any single one tells how it goes."""
    parts = [
        f"{snapshot.finished}/{snapshot.total} trials",
        f"{snapshot.running} running, {snapshot.stopped} stopped early, {snapshot.failed} failed",
        f"{snapshot.per_s:.1f} trials/s",
        f"{clock_time(snapshot.elapsed_s)} elapsed",
    ]
    if snapshot.eta_s is not None and snapshot.finished < snapshot.total:
        parts.append(f"{clock_time(snapshot.eta_s)} left")
    if snapshot.best:
        leaders = ", ".join(f"{name} {score(b.value)} ({b.trial})" for name, b in sorted(snapshot.best.items()))
        parts.append(f"best {metric}: {leaders}")
    return " | ".join(parts)


def drawing(snapshot: Snapshot, *, title: str, metric: str, datasets: Sequence[str]) -> RenderableType:
    """The lines that are redrawn in place at a terminal."""
    left = "" if snapshot.eta_s is None else f"{clock_time(snapshot.eta_s)} left"
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(title, "bold"),
        ProgressBar(total=max(snapshot.total, 1), completed=snapshot.finished, width=32),
        f"{snapshot.finished}/{snapshot.total} trials",
        f"{clock_time(snapshot.elapsed_s)} elapsed",
        Text(left, "cyan"),
    )
    counts = Text.assemble(
        (f"{snapshot.running} running", "cyan"),
        f"  {snapshot.done} done  {snapshot.stopped} stopped early  ",
        (f"{snapshot.failed} failed", "red" if snapshot.failed else ""),
        f"  {snapshot.per_s:.1f} trials/s",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (("dataset", "left"), (f"best {metric}", "right"), ("trial", "left"), ("", "left")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in datasets:
        best = snapshot.best.get(name)
        cells = (score(best.value), best.trial, best.rung) if best else ("-", "", "")
        table.add_row(*(Text(cell) for cell in (name, *cells)))
    return Group(head, counts, table)


class SteadyConsole(Console):
    """A console whose reader may go away: rich would exit the program then, and a sweep is not to end for that."""

    def on_broken_pipe(self) -> None:
        """Goes silent."""
        self.quiet = True


def output() -> SteadyConsole:
    """Where results go: stdout, as wide as the terminal; into a pipe or a file wide enough that no table is cut."""
    wide = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return SteadyConsole(highlight=False, width=wide)


class SweepProgress:
    """Shows a sweep while it runs; a context manager.

    Args:
        title: Name of the experiment.
        total: Trials of this launch.
        datasets: Their names, in the order to show.
        metric: What the best is measured by.
        console: Where to; stderr, so that a command's output stays its output.
        clock: Seconds, rising.

    The display never stops a sweep: writing to a terminal that went away is ignored.
    """

    def __init__(
        self,
        *,
        title: str,
        total: int,
        datasets: Sequence[str],
        metric: str,
        console: SteadyConsole | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._datasets, self._metric = title, tuple(datasets), metric
        self._console = console or SteadyConsole(file=sys.stderr, highlight=False)
        self._clock = clock
        self._last: Snapshot | None = None
        self._printed: Snapshot | None = None
        self._printed_at = -math.inf
        self._live: Live | None = None
        self._alone = ExitStack()
        self._empty = Snapshot(total=total, done=0, running=0, stopped=0, failed=0, elapsed_s=0.0)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._alone.enter_context(told_to(None))  # two displays would draw over each other
            self._live = Live(
                self._draw(self._empty), console=self._console, refresh_per_second=_REDRAW_PER_S, transient=False
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._alone.close()
        try:
            if self._live is not None:
                self._live.stop()
            elif self._last is not None and self._last != self._printed:
                self._print_plain(self._last)  # the last state is always told, however soon it came
        except OSError:
            return

    def update(self, snapshot: Snapshot) -> None:
        """Shows a newer state; cheap enough to be called at every event."""
        self._last = snapshot
        try:
            if self._live is not None:
                self._live.update(self._draw(snapshot))
            elif self._clock() - self._printed_at >= PLAIN_EVERY_S and snapshot != self._printed:
                self._print_plain(snapshot)
        except OSError:
            return

    def say(self, message: str, *, style: str = "") -> None:
        """Prints a message that stays, above the lines that are redrawn."""
        try:
            self._console.print(Text(message, style), soft_wrap=True)
        except OSError:
            return

    def _draw(self, snapshot: Snapshot) -> RenderableType:
        return drawing(snapshot, title=self._title, metric=self._metric, datasets=self._datasets)

    def _print_plain(self, snapshot: Snapshot) -> None:
        self._printed, self._printed_at = snapshot, self._clock()
        self._console.print(Text(plain_line(snapshot, self._metric)), soft_wrap=True)


def closing(places: Sequence[tuple[str, str]], commands: Sequence[tuple[str, str]]) -> RenderableType:
    """Where everything is, and what to type next.

    Args:
        places: (what, where).
        commands: (command, what it does), in the order worth trying.
    """
    where = Table.grid(padding=(0, 2))
    for what, place in places:
        where.add_row(what, Text(place, "cyan"))
    following = Table.grid(padding=(0, 2))
    for command, purpose in commands:
        following.add_row(Text(command, "bold"), Text(purpose, "dim"))
    return Group(
        Text("Where everything is", "bold"),
        Padding(where, (0, 0, 1, 2)),
        Text("Next", "bold"),
        Padding(following, (0, 0, 0, 2)),
    )


def heading(text: str) -> RenderableType:
    """A title above a table."""
    return Padding(f"[bold]{escape(text)}[/bold]", (1, 0, 0, 0))
