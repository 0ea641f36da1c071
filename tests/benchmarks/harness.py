"""Runs every benchmark and writes ``.tiltyard/bench.json``.

A file ``bench_<subject>.py`` beside this one has a function ``benchmarks()`` returning callables; each measures its
subject **and** its rival or limit in the same run and returns `Figure` values. Run all of it with ``make bench``, or
what contains a word with ``make bench ONLY=pack``.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
OUT = Path(".tiltyard/bench.json")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure and what it is held against. ``ratio`` above 1 is better than the rival."""

    name: str
    value: float
    unit: str
    against: str
    against_value: float | None
    ratio: float | None
    note: str = ""


Benchmark = Callable[[], Iterable[Figure]]


def median_seconds(work: Callable[[], object], *, runs: int = 5, warmup: int = 1) -> float:
    """Median wall time of ``work`` over ``runs`` calls, after ``warmup`` uncounted ones."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def load(only: str) -> list[tuple[str, Benchmark]]:
    """The benchmarks whose file or function name contains ``only``."""
    found: list[tuple[str, Benchmark]] = []
    sys.path.insert(0, str(HERE))  # so that a benchmark's worker processes can import it by name
    for path in sorted(HERE.glob("bench_*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            continue
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        for bench in module.benchmarks():
            name = f"{path.stem}.{getattr(bench, '__name__', 'benchmark')}"
            if only in name:
                found.append((name, bench))
    return found


def row(figure: Figure) -> str:
    """One line of the table."""
    against = "" if figure.against_value is None else f"{figure.against_value:,.4g}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}x"
    return f"{figure.name:36} {figure.value:>12,.4g} {figure.unit:10} {figure.against:44} {against:>12} {ratio:>9}"


def tell(name: str, done: int, total: int, elapsed_s: float) -> None:
    """How far a run of several benchmarks is, on stderr: the table stays on stdout."""
    from tiltyard.progress import Work
    from tiltyard.report.progress import line

    if total > 1:
        work = Work(what=name, total=total, unit="benchmarks", done=done)
        print(line(work, elapsed_s), file=sys.stderr, flush=True)


def main(only: str = "") -> int:
    """Runs each benchmark in a process of its own, prints as it goes, and writes what was measured even where one failed.

    A process of its own: Ray keeps the token of the home folder it met first, and what one benchmark leaves in memory is
    no business of the next.
    """
    figures: list[Figure] = []
    failed = 0
    print(f"{'figure':36} {'value':>12} {'unit':10} {'against':44} {'its value':>12} {'ratio':>9}", flush=True)
    with tempfile.TemporaryDirectory(prefix="ty-bench-") as folder:
        wanted, begun = [name for name, _ in load(only)], time.monotonic()
        for number, name in enumerate(wanted):
            tell(name, number, len(wanted), time.monotonic() - begun)
            told = Path(folder) / f"{name}.jsonl"
            done = subprocess.run([sys.executable, __file__, "--alone", name, str(told)], check=False)
            failed += done.returncode != 0
            lines = told.read_text().splitlines() if told.exists() else []
            figures += [Figure(**json.loads(line)) for line in lines]
    OUT.parent.mkdir(exist_ok=True)
    kept: dict[str, dict[str, object]] = {}
    if only and OUT.exists():
        kept = {f["name"]: f for f in json.loads(OUT.read_text())}
    kept |= {f.name: asdict(f) for f in figures}
    OUT.write_text(json.dumps(list(kept.values()), indent=1))
    print(f"\n{len(figures)} figures, {failed} benchmarks failed; written to {OUT}")
    return 1 if failed else 0


def alone(wanted: str, told: Path) -> int:
    """Runs one benchmark here; its figures go to ``told``, a line each, as they come."""
    (bench,) = [bench for name, bench in load(wanted) if name == wanted]
    try:
        for figure in bench():
            print(row(figure), flush=True)
            if figure.note:
                print(f"    {figure.note}", flush=True)
            with told.open("a") as file:
                file.write(json.dumps(asdict(figure)) + "\n")
    except Exception:
        print(f"{wanted} failed:\n{traceback.format_exc()}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.modules["harness"] = sys.modules["__main__"]
    if sys.argv[1:2] == ["--alone"]:
        raise SystemExit(alone(sys.argv[2], Path(sys.argv[3])))
    raise SystemExit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
