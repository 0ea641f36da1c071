"""Ctrl-C, once: the sweep ends in order, keeping all that is finished. Twice: at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by a signal; read by the driver at each turn."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> str | None:
        """Why to stop, or None."""
        return self.reason


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGINT and SIGTERM become a request to stop; a second SIGINT raises ``KeyboardInterrupt``.

    Only the main thread can catch signals; elsewhere the request is simply never set.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if request.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.reason = "stopped by Ctrl-C" if number == signal.SIGINT else "stopped by SIGTERM"

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, handle)
    except ValueError:  # not the main thread
        before = {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
