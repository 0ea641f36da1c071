"""How far long work is, told to whoever listens: a store, an evaluation or a page says what it does, a terminal shows it.

A work that may take more than a second says what it is, how much there is to do and how much was done; it does not know
who listens, and nothing happens where nobody does. `tiltyard.report.progress` is who listens for people.

>>> with work("verify digits@3", total=10, unit="files") as doing:
...     doing.advance(4)
>>> doing.done
4.0
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, eq=False)
class Work:
    """Something that takes its time.

    Args:
        what: As a person would say it: ``verify digits@3``.
        total: How much there is to do; None where nobody knows.
        unit: Of it; ``bytes`` are shown as such.
        done: How much was done.
    """

    what: str
    total: float | None = None
    unit: str = "steps"
    done: float = 0.0
    _listener: Listener | None = field(default=None, repr=False)

    def advance(self, amount: float = 1.0) -> None:
        """So much more was done; cheap enough for every batch of rows."""
        self.done += amount
        if self._listener is not None:
            self._listener.moved(self)


class Listener(Protocol):
    """Is told of every work; must not raise, and returns at once."""

    def began(self, work: Work) -> None:
        """It starts."""

    def moved(self, work: Work) -> None:
        """More of it was done."""

    def ended(self, work: Work, *, whole: bool) -> None:
        """It is over; not ``whole`` where an error ended it."""


class Lazily:
    """A listener that is made when the first work begins: what draws is then imported, and not before.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Listener]) -> None:
        self._make = make
        self._made: Listener | None = None

    def began(self, work: Work) -> None:
        """Makes the listener, and tells it."""
        if self._made is None:
            self._made = self._make()
        self._made.began(work)

    def moved(self, work: Work) -> None:
        """Tells it."""
        if self._made is not None:
            self._made.moved(work)

    def ended(self, work: Work, *, whole: bool) -> None:
        """Tells it."""
        if self._made is not None:
            self._made.ended(work, whole=whole)


_listeners: list[Listener | None] = [None]


@contextmanager
def work(what: str, *, total: float | None = None, unit: str = "steps") -> Iterator[Work]:
    """A work that lasts as long as the block; its steps are told by ``advance``."""
    listener = _listeners[-1]
    doing = Work(what=what, total=total, unit=unit, _listener=listener)
    if listener is None:
        yield doing
        return
    listener.began(doing)
    whole = False
    try:
        yield doing
        whole = True
    finally:
        listener.ended(doing, whole=whole)


@contextmanager
def told_to(listener: Listener | None) -> Iterator[None]:
    """Works that begin within the block are told to this listener, or to nobody; of several the innermost one."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.pop()
