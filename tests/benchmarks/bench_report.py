"""The report of 10,000 trials: how long it takes to make, from the journal and the curves. Limit: 20 s."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Benchmark, Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

TRIALS, LIMIT_S, RUNS = 10_000, 20.0, 3


def report_10000() -> Iterable[Figure]:
    """Median of three, with the import of what draws in the first."""
    import recorded_sweep

    from tiltyard.report.html import report

    with tempfile.TemporaryDirectory() as folder:
        recorded = recorded_sweep.record(Path(folder), trials=TRIALS)
        seconds, size = [], 0
        for _ in range(RUNS):
            start = time.perf_counter()
            size = len(report(recorded.settings)[1])
            seconds.append(time.perf_counter() - start)
    median = sorted(seconds)[RUNS // 2]
    note = f"{size / 1e6:.2f} MB; {', '.join(f'{s:.1f}' for s in seconds)} s"
    yield Figure("report_10000_seconds", median, "s", "limit", LIMIT_S, LIMIT_S / median, note)


def benchmarks() -> Sequence[Benchmark]:
    """What the harness runs."""
    return [report_10000]
