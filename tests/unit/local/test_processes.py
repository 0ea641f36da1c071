"""Whose a process is, and that exactly these are ended: on real processes, small ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tiltyard.local import processes
from tiltyard.local.state import MARK_ENV, Cluster, ProcessId, Service

SLEEP = "import time; time.sleep(60)"
#: A parent that starts a child and prints its number; the child may leave the session or drop the environment.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=%s, env=%s)
print(child.pid, flush=True)
%s
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(0, flush=True); time.sleep(60)"


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def cluster_of(*roots: ProcessId, mark: str = "none") -> Cluster:
    services = tuple(Service(name=f"s{i}", url="", process=p, log="") for i, p in enumerate(roots))
    return Cluster(id=mark, home="/h", ready=True, started_at="", token_path="", temp_dir="", services=services)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[ProcessId, int]]]:
    """Starts a program as `up` does; gives its id and the number it printed. Whatever is left is ended afterwards."""
    seen: list[int] = []

    def begin(code: str, *, mark: str = "") -> tuple[ProcessId, int]:
        log = tmp_path / f"{len(seen)}.log"
        env = {**os.environ, MARK_ENV: mark} if mark else {k: v for k, v in os.environ.items() if k != MARK_ENV}
        process = processes.spawn([sys.executable, "-c", code], env, log)
        seen.append(process.pid)
        if "print" not in code:
            return process, 0
        until(lambda: log.read_text().endswith("\n"))
        seen.append(int(log.read_text()))
        return process, int(log.read_text())

    yield begin
    for pid in seen:
        if pid and psutil.pid_exists(pid):
            os.kill(pid, signal.SIGKILL)
            processes.collect(pid)


Start = Callable[..., tuple[ProcessId, int]]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_end_with_a_child_ends_both_and_nothing_else(start: Start) -> None:
    bystander, _ = start(SLEEP)
    root, child = start(PARENT % (False, None, "time.sleep(60)"))
    ended, left = processes.end(cluster_of(root))
    assert (ended, left) == (2, [])
    assert gone(child)
    assert processes.alive(bystander)


def test_end_with_an_orphan_in_the_session_ends_it(start: Start) -> None:
    root, orphan = start(PARENT % (False, {}, ""))  # the parent ends at once; the child has no mark
    until(lambda: processes.collect(root.pid) or gone(root.pid))
    assert not gone(orphan)
    assert processes.end(cluster_of(root)) == (1, [])
    assert gone(orphan)


def test_end_with_an_orphan_in_another_session_finds_it_by_its_mark(start: Start) -> None:
    root, orphan = start(PARENT % (True, None, ""), mark="mark-1")
    until(lambda: processes.collect(root.pid) or gone(root.pid))
    assert processes.end(cluster_of(root, mark="another")) == (0, [])
    assert not gone(orphan)
    assert processes.end(cluster_of(root, mark="mark-1")) == (1, [])
    assert gone(orphan)


def test_end_with_a_process_that_ignores_the_polite_signal_ends_it_by_force(start: Start) -> None:
    root, _ = start(STUBBORN)
    assert processes.end(cluster_of(root), patience_s=0.2) == (1, [])
    assert not processes.alive(root)


def test_end_with_a_number_used_again_leaves_the_stranger_alone(start: Start) -> None:
    stranger, _ = start(SLEEP)
    recorded = ProcessId(pid=stranger.pid, started=stranger.started - 3600)
    # The stranger leads a session of that number, too; it began after the recorded process, so the session rule would
    # take it. Only a leader that is the recorded process vouches for its session.
    assert processes.end(cluster_of(recorded)) == (0, [])
    assert processes.alive(stranger)


def test_marked_with_a_marked_process_tells_mark_and_home(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_HOME", "/some/home")
    process, _ = start(SLEEP, mark="mark-2")
    until(lambda: process.pid in processes.marked())
    _, mark, home = processes.marked()[process.pid]
    assert (mark, home) == ("mark-2", "/some/home")


def test_spawn_writes_a_private_log_and_does_not_share_our_session(start: Start, tmp_path: Path) -> None:
    process, _ = start(SLEEP)
    assert os.getsid(process.pid) == process.pid != os.getsid(0)
    assert (tmp_path / "0.log").stat().st_mode & 0o777 == 0o600


def test_alive_with_an_ended_child_is_false_before_and_after_it_is_collected(start: Start) -> None:
    process, _ = start("pass")
    until(lambda: not processes.alive(process))
    until(lambda: processes.collect(process.pid))
    assert not processes.alive(process)


def test_find_with_a_number_nobody_has_is_none() -> None:
    finished = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert processes.find(ProcessId(pid=int(finished.stdout), started=0.0)) is None
