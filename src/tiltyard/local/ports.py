"""Which ports of the loopback interface are free?

Drawn from 20000 to 32767: below the range from which Linux takes ports for outgoing connections (32768 and up), so that
a port found free is not gone a moment later; and away from Ray's and MLflow's own defaults, which belong to whoever
started those. Where the search begins follows from the home, so the same home gets the same addresses again and two
homes get different ones.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable

from tiltyard.errors import MachineError

FIRST, LAST = 20_000, 32_767


def is_free(port: int) -> bool:
    """True where nothing holds the port on any interface that would answer for 127.0.0.1."""
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104 - a try, closed at once; never listens
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def choose(names: list[str], *, seed: str, free: Callable[[int], bool] = is_free) -> dict[str, int]:
    """One free port for each name.

    Args:
        names: What the ports are for.
        seed: Where the search begins; the same seed and the same ports in use give the same answer.
        free: Whether a port can be had.

    Raises:
        MachineError: If the whole range is taken.
    """
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big")
    span = LAST - FIRST + 1
    found = []
    for step in range(span):
        port = FIRST + (start + step) % span
        if free(port):
            found.append(port)
        if len(found) == len(names):
            return dict(zip(names, found, strict=True))
    raise MachineError(
        f"{len(found)} of the {len(names)} ports needed are free between {FIRST} and {LAST} on 127.0.0.1. "
        "End what holds them (ss -ltnp shows it) and try again."
    )
