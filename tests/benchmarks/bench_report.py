"""The report of 10,000 trials: how long it takes to make (limit: 20 s), how large it is (10 MB), and to open (3 s)."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Benchmark, Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

TRIALS, LIMIT_S, RUNS = 10_000, 20.0, 3
OPENS_LIMIT_S, LIMIT_BYTES = 3.0, 10_000_000


def report_10000() -> Iterable[Figure]:
    """Medians of three: drawing, with the import of what draws in the first; opening, in a Chromium that runs already."""
    import recorded_sweep

    from tiltyard.report.html import report

    with tempfile.TemporaryDirectory() as folder:
        recorded = recorded_sweep.record(Path(folder), trials=TRIALS)
        recorded_sweep.evaluate_champion(recorded, versions=8)
        seconds, page = [], ""
        for _ in range(RUNS):
            start = time.perf_counter()
            page = report(recorded.settings)[1]
            seconds.append(time.perf_counter() - start)
        path = Path(folder) / "report.html"
        path.write_text(page, encoding="utf-8")
        size = path.stat().st_size
        opened = _opened(path, Path(folder))
    assert size < LIMIT_BYTES, f"the page has {size:,} bytes, limit {LIMIT_BYTES:,}"
    median = sorted(seconds)[RUNS // 2]
    note = f"{size / 1e6:.2f} MB; {', '.join(f'{s:.1f}' for s in seconds)} s"
    yield Figure("report_10000_seconds", median, "s", "limit", LIMIT_S, LIMIT_S / median, note)
    if opened:
        median = sorted(opened)[RUNS // 2]
        note = f"loaded, laid out and painted at 1280 pixels; {', '.join(f'{s:.2f}' for s in opened)} s"
        yield Figure("report_10000_opens_seconds", median, "s", "limit", OPENS_LIMIT_S, OPENS_LIMIT_S / median, note)


def _opened(page: Path, folder: Path) -> list[float]:
    """Seconds to open it, several times; none where there is no Chromium."""
    from chromium import chromium

    program = shutil.which("chromium")
    if program is None:
        return []
    home = folder / "chromium"
    home.mkdir()
    with chromium(program, home) as tab:
        tab.window(1280, "light")
        return [tab.open(page) for _ in range(RUNS)]


def benchmarks() -> Sequence[Benchmark]:
    """What the harness runs."""
    return [report_10000]
