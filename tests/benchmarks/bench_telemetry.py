"""What exporting a sweep costs its driver: CPU-seconds of a round over 10,000 recorded trials, and how many series it makes.

A round is what the driver's telemetry thread does every `EVERY_S` seconds: read the journal, set Ray's gauges. Limits: 2% of
the wall time, 2,000 series.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness import Benchmark, Figure

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

TRIALS, ROUNDS, MOST_SHARE, MOST_SERIES = 10_000, 20, 0.02, 2000


def telemetry_overhead() -> Iterable[Figure]:
    """CPU time of this process, Ray's own threads in it too, over rounds without a pause between them."""
    import ray
    import recorded_sweep

    from tiltyard.journal import Journal
    from tiltyard.sweep.engine.driver import Tick
    from tiltyard.telemetry.instruments import gauge
    from tiltyard.telemetry.sweeps import EVERY_S, of_record, of_tick

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        recorded = recorded_sweep.record(Path(folder), trials=TRIALS)
        states = {"running": 200, "waiting": 800, "stopped": 8900, "done": 100}
        best = {d.name: (0.9, "mlp/0") for d in recorded.experiment.datasets}
        tick = Tick(states=states, best=best, elapsed_s=100.0, packs_running=2, work_done=0.5)
        gauges = {name: gauge(name) for name, _, _ in of_tick(tick, recorded.experiment, 0.0)}
        series: set[tuple[str, tuple[tuple[str, str], ...]]] = set()
        with Journal.open(recorded.settings.journal_uri) as journal:

            def one_round() -> None:
                attempts, spend = journal.attempts(recorded.key), journal.spend(recorded.key)
                readings = of_tick(tick, recorded.experiment, 0.0)
                for name, labels, value in readings + of_record(
                    attempts, spend, None, recorded.experiment, now=time.time()
                ):
                    if name not in gauges:
                        gauges[name] = gauge(name)
                    gauges[name].set(value, labels)
                    series.add((name, tuple(sorted(labels.items()))))

            one_round()
            start = time.process_time()
            for _ in range(ROUNDS):
                one_round()
            cpu_s = (time.process_time() - start) / ROUNDS
    ray.shutdown()
    share = cpu_s / EVERY_S
    note = f"{1000 * cpu_s:.1f} ms of CPU every {EVERY_S:g} s, {TRIALS} trials"
    yield Figure("telemetry_overhead", share, "of a core", "limit", MOST_SHARE, MOST_SHARE / share, note)
    yield Figure("telemetry_series", len(series), "series", "limit", MOST_SERIES, MOST_SERIES / len(series))


def benchmarks() -> Sequence[Benchmark]:
    """What the harness runs."""
    return [telemetry_overhead]
