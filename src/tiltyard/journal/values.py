"""What goes into the journal and comes out: small, frozen, picklable values."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _process_start(pid: int) -> float | None:
    """When the process with this number started; None where none lives. One that only waits to be reaped does not."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that may hold a claim. ``started`` tells it from a later one with the same number."""

    host: str
    pid: int
    started: float
    job: str = ""

    @classmethod
    def here(cls, job: str = "") -> Owner:
        """This process."""
        pid = os.getpid()
        return cls(host=socket.gethostname(), pid=pid, started=_process_start(pid) or time.time(), job=job)

    def is_alive(self) -> bool | None:
        """Whether this process lives; None on another host, where it cannot be known."""
        if self.host != socket.gethostname():
            return None
        started = _process_start(self.pid)
        return started is not None and abs(started - self.started) <= 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on a key, as long as its fence is the newest.

    ``outcome`` is ``new``, ``taken_over`` (the holder was dead, or on another host with a lease that ran out), ``held``
    (``holder`` works on it) or ``finished``.
    """

    key: str
    launch_id: str
    fence: int
    outcome: str
    holder: Owner | None = None
    parent_run_id: str | None = None
    lease_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One experiment's key and how its newest launch stands."""

    key: str
    experiment: str
    launch_id: str
    state: str
    fence: int
    started: float
    ended: float | None
    parent_run_id: str | None
    spec: str
    summary: Mapping[str, Any]


REASON_CHARS = 5000
"""The most that is kept of why something failed."""


def storable(told: str) -> str:
    r"""A text as every database takes it: lone surrogates and NUL written out, and no longer than `REASON_CHARS`.

    >>> print(storable("a\udce4b\x00c"))
    a\udce4b\x00c
    """
    return told[:REASON_CHARS].encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRow:
    """One trial of one key."""

    cell: str
    key: str
    group: str
    index: int
    variant: str
    model: str
    dataset: str
    dataset_version: int
    config: Mapping[str, Any]
    seed: int
    data_seed: int
    state: str = "planned"
    epoch: int = 0
    score: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialUpdate:
    """A trial's new state."""

    cell: str
    state: str
    epoch: int | None = None
    score: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellScore:
    """The result of a cell at an epoch. It depends on the cell alone, so any experiment may reuse it."""

    cell: str
    epoch: int
    metrics: Mapping[str, float]
    storage_uri: str
    pack_id: str
    attempt: int
    seconds: float = 0.0
    """This trial's share of the pack's seconds in this rung."""
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One numbered try at a pack; a newer one fences it."""

    key: str
    pack_id: str
    number: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt as recorded."""

    key: str
    pack_id: str
    number: int
    rung: int
    state: str
    started: float
    ended: float | None
    metered_s: float
    reason: str | None
    storage_uri: str | None
    cells: tuple[str, ...] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One row of the append-only, hash-chained record of decisions."""

    number: int
    at: float
    kind: str
    subject: str
    actor: str
    evidence: Mapping[str, Any]
    reasons: tuple[str, ...]
    outcome: str
    once: str | None
    previous: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Metered seconds of a key, by what they were for."""

    wall_s: float
    cpu_s: float
    gpu_s: float
    by_what: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a person asked of a running sweep, and what its driver answered.

    ``kind`` is ``pause``, ``continue``, ``stop`` or ``add``; ``state`` is ``asked``, ``done`` or ``refused``. ``answer``
    says what it came to (``said``, for people), and what a resumed launch needs to obey it again.
    """

    number: int
    key: str
    at: float
    kind: str
    subject: str
    detail: Mapping[str, Any]
    actor: str
    reason: str
    state: str
    answer: Mapping[str, Any]
    answered: float | None
