"""The main job from empty state, as a newcomer runs it: how long it takes, how much memory all its processes hold."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from harness import Benchmark, Figure

ROOT = Path(__file__).parents[2]
LIMIT_S, LIMIT_GIB = 90.0, 6.0
RUNS = 3
SAMPLE_EVERY_S = 0.5


def demo() -> Iterable[Figure]:
    """``python jobs/first_sweep.py`` with packages installed, from empty state, then once more over the same record."""
    seconds, peaks, again = [], [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory(prefix="ty-demo-") as home:
            took, peak = _run(Path(home))
            seconds.append(took)
            peaks.append(peak)
            again.append(_run(Path(home))[0])
    took, peak, unchanged = (statistics.median(values) for values in (seconds, peaks, again))
    told = ", ".join(f"{s:.0f}" for s in seconds)
    yield Figure("demo_seconds", took, "s", "the most that it may take", LIMIT_S, LIMIT_S / took, f"runs: {told} s")
    yield Figure("demo_peak_gib", peak, "GiB", "the most that it may take", LIMIT_GIB, LIMIT_GIB / peak)
    yield Figure("demo_unchanged_seconds", unchanged, "s", "the sweep itself", took, took / unchanged)


def _run(home: Path) -> tuple[float, float]:
    """Seconds, and the largest sum over all processes of their proportional set size, in GiB."""
    env = {**os.environ, "TILTYARD_HOME": str(home / "t"), "HOME": str(home)}
    begun = time.perf_counter()
    job = subprocess.Popen(
        [sys.executable, "jobs/first_sweep.py"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak = 0
    while job.poll() is None:
        peak = max(peak, _held_bytes(psutil.Process(job.pid)))
        time.sleep(SAMPLE_EVERY_S)
    took = time.perf_counter() - begun
    if job.returncode != 0:
        assert job.stderr is not None
        raise RuntimeError(f"the demo ended with {job.returncode}: {job.stderr.read().decode()[-2000:]}")
    return took, peak / 2**30


def _held_bytes(root: psutil.Process) -> int:
    """A page that several processes share counts once: each is charged its share of it (PSS, Linux)."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # ended meanwhile
            continue
    return total


def benchmarks() -> list[Benchmark]:
    """One run gives all three."""
    return [demo]
