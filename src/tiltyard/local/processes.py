"""Which processes on this machine belong to a cluster, and how are exactly these ended?

A process belongs to a cluster if one of three things holds:

* it is, or descends from, a process that ``up`` recorded, number **and** start time both agreeing;
* it carries the cluster's mark in its environment (`state.MARK_ENV`): this finds what lost its parent;
* it is in the session that a recorded process leads: Ray's workers overwrite the memory that holds their environment
  when they set their title, so the mark alone would miss those that lost their parent.

Nothing is ever ended by name, and ``ray stop``, which ends every Ray on the machine, is never called.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from tiltyard.local.state import MARK_ENV, Cluster, ProcessId

_START_TOLERANCE_S = 2.0
"""psutil adds ticks since boot to the time of boot, which moves when the clock is set."""


def identify(pid: int) -> ProcessId:
    """The process that now has this number."""
    return ProcessId(pid=pid, started=psutil.Process(pid).create_time())


def alive(process: ProcessId) -> bool:
    """True while that very process runs; one that ended and waits to be collected does not."""
    return find(process) is not None


def find(process: ProcessId) -> psutil.Process | None:
    """That very process, or None where it ended or its number is another's now."""
    try:
        found = psutil.Process(process.pid)
        return found if _same(process) and found.status() != psutil.STATUS_ZOMBIE else None
    except psutil.NoSuchProcess:
        return None


def _same(process: ProcessId) -> bool:
    try:
        return abs(psutil.Process(process.pid).create_time() - process.started) <= _START_TOLERANCE_S
    except psutil.NoSuchProcess:
        return False


def marked() -> dict[int, tuple[psutil.Process, str, str]]:
    """Every process of this user that carries a mark: (process, cluster id, TILTYARD_HOME), by number."""
    found = {}
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.uids().real != os.getuid():
                continue
            environ = process.environ()
        except (psutil.Error, OSError):
            continue
        if environ.get(MARK_ENV):
            found[process.pid] = (process, environ[MARK_ENV], environ.get("TILTYARD_HOME", ""))
    return found


def belonging(cluster: Cluster) -> list[psutil.Process]:
    """Every living process of the cluster; see the module for what belongs."""
    found: dict[int, psutil.Process] = {}
    for service in cluster.services:
        root = find(service.process)
        if root is not None:
            found[root.pid] = root
            found.update((p.pid, p) for p in _children(root))
        found.update((p.pid, p) for p in _session(service.process))
    for process, mark, _home in marked().values():
        if mark == cluster.id:
            found[process.pid] = process
            found.update((p.pid, p) for p in _children(process))
    found.pop(os.getpid(), None)  # `tiltyard down` typed inside a job of the cluster ends the rest, then itself
    return [p for p in found.values() if _running(p)]


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _session(leader: ProcessId) -> Iterable[psutil.Process]:
    """Those in the session that the recorded process leads or led.

    The system gives a number to nobody else while a session bears it, so a living stranger with the leader's number
    means that the leader's session is over.
    """
    if psutil.pid_exists(leader.pid) and not _same(leader):
        return
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader.pid:
                yield process
        except OSError:
            continue


def _running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end(cluster: Cluster, *, patience_s: float = 10.0) -> tuple[int, list[psutil.Process]]:
    """Ends every process of the cluster: the recorded ones, which end their own; then what is left; then by force.

    Args:
        cluster: Whose processes.
        patience_s: How long the recorded ones may take to end theirs in order; what is left gets half of it, twice.

    Returns:
        How many processes ended, and those that would not.
    """
    everything = belonging(cluster)
    roots = [p for s in cluster.services if (p := find(s.process)) is not None]
    _signal(roots, signal.SIGTERM)
    _wait(roots, patience_s)
    left = _wait(everything, patience_s / 10 if roots else 0)  # a child that was told ends a moment after its parent
    for sign in (signal.SIGTERM, signal.SIGKILL):
        left = _unique([*left, *belonging(cluster)])  # what was born meanwhile, too
        everything = _unique([*everything, *left])
        if not left:
            break
        _signal(left, sign)
        left = _wait(left, patience_s / 2)
    return len(everything) - len(left), left


def _unique(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    return list({p.pid: p for p in processes}.values())


def _signal(processes: Iterable[psutil.Process], sign: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(sign)
        except psutil.NoSuchProcess:
            continue


def _wait(processes: Sequence[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that still run when the time is over; collects what was this process's own child."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        left = [p for p in left if not collect(p.pid) and _running(p)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.05)


def collect(pid: int) -> bool:
    """True where ``pid`` was a child of this process and has ended; its exit status is then taken."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return False


def spawn(argv: Sequence[str], env: dict[str, str], log: Path) -> ProcessId:
    """Starts a program in a session of its own, its output in ``log`` (mode 0600), and does not wait for it.

    ``posix_spawn`` rather than ``subprocess``: the process outlives the command that started it, which is what
    ``subprocess`` warns about.
    """
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return identify(os.posix_spawn(argv[0], list(argv), env, file_actions=files, setsid=True))
