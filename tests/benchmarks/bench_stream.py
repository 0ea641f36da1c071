"""Datasets at the speed of memory: commits, resident and streamed epochs, and a table larger than memory.

Everything goes the way a trial's rows go: committed to a store, shared, and fed to a consumer in a process of its own. 2
million rows of 40 float32 and a label, in batches of 4,096; each rival reads the same rows in the same run, in turns.
"""

from __future__ import annotations

import contextlib
import cProfile
import logging
import os
import pstats
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import Benchmark, Figure

ROWS, COLUMNS, BATCH = 2_000_000, 40, 4_096
LARGE_ROWS = 7_200_000
"""More than four times the memory that its stream is allowed."""
RUNS, COLD_RUNS = 4, 2

_made: list[tuple[Any, Any, Any]] = []


def _table(num_rows: int) -> pa.Table:
    rng = np.random.default_rng(0)
    columns = {f"x{i:02d}": rng.standard_normal(num_rows, dtype=np.float32) for i in range(COLUMNS)}
    return pa.table({**columns, "y": rng.integers(0, 2, num_rows)})


def _spec() -> Any:
    from tiltyard.data.versions import DatasetSpec, SplitSpec
    from tiltyard.types import Task

    return DatasetSpec(task=Task.BINARY, label="y", split=SplitSpec(train=1.0, validation=0.0, test=0.0))


@contextmanager
def _store() -> Iterator[Any]:
    from tiltyard.data.store import DatasetStore

    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({"HOME": folder, "TILTYARD_HOME": folder})  # Ray writes its token to the home folder
        yield DatasetStore(folder)


@contextmanager
def _committed(num_rows: int) -> Iterator[tuple[Any, Any, Any]]:
    """A store, a version of so many training rows in it, and its preprocessor."""
    from tiltyard.data.features import fit_preprocessor

    with _store() as store:
        version = store.commit("rows", _table(num_rows), spec=_spec()).version
        yield store, version, fit_preprocessor(store, version)


@contextmanager
def _ray(store_bytes: int = 1 << 30) -> Iterator[None]:
    """A Ray of its own on two CPUs, at rest."""
    import ray
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    AuthenticationTokenLoader.instance().reset_cache()  # this process may know the token of another home folder
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # workers find `stream_actors` there
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=store_bytes,
        logging_level=logging.ERROR,
    )
    try:
        time.sleep(2.0)  # workers that Ray starts beforehand are there
        yield
    finally:
        ray.shutdown()


def _consumer() -> Any:
    """A consumer in a process of its own, which holds no CPU slot: Ray Data at its defaults has both."""
    import ray
    from stream_actors import Consumer

    actor: Any = ray.remote(num_cpus=0)(Consumer).remote(BATCH)
    ray.get(actor.ready.remote())
    return actor


def _rates(num_rows: int, seconds: Iterable[float]) -> str:
    return ", ".join(f"{num_rows / s / 1e6:.2f}" for s in seconds)


def commit() -> Iterable[Figure]:
    """A commit (hashed, split, checked, profiled, written, published) against Parquet written and profiled."""
    from tiltyard.data.profile import profile

    table, ours, theirs = _table(ROWS), [], []
    with _store() as store:
        for run in range(3):
            start = time.perf_counter()
            pq.write_table(table, Path(store.root.path) / f"bare{run}.parquet")
            middle = time.perf_counter()
            profile(table)
            theirs.append((middle - start, time.perf_counter() - middle))
            start = time.perf_counter()
            store.commit(f"rows{run}", table, spec=_spec())
            ours.append(time.perf_counter() - start)
        watch = cProfile.Profile()
        watch.runcall(store.commit, "watched", table, spec=_spec())
    rival, mine = statistics.median(sum(t) for t in theirs), statistics.median(ours)
    spent = {what: _seconds_in(watch, function) for what, function in _parts_of_a_commit().items()}
    note = (
        f"Parquet alone {statistics.median(t[0] for t in theirs):.2f} s, its profile "
        f"{statistics.median(t[1] for t in theirs):.2f} s. A commit under the profiler, in seconds: "
        f"{', '.join(f'{what} {s:.2f}' for what, s in spent.items())}. Wanted: 0.5x."
    )
    yield Figure(
        "data_commit_vs_parquet", ROWS / mine, "rows/s", "pyarrow.parquet.write_table and its profile", ROWS / rival,
        rival / mine, note,
    )  # fmt: skip


def _parts_of_a_commit() -> dict[str, Any]:
    from tiltyard.data import parquet, rows, splits
    from tiltyard.data.profile import Builder
    from tiltyard.data.store import DatasetStore

    return {
        "all": DatasetStore.commit,
        "row hashes": rows.row_lanes,
        "digests": rows.sum_rows,
        "splits": splits.assign,
        "profile": Builder.add,
        "Parquet": pq.ParquetWriter.write_table,
        "of which SHA-256 and disk": parquet._Hashing.write,
    }


def _seconds_in(watch: cProfile.Profile, function: Any) -> float:
    code = function.__code__
    stats: dict[Any, Any] = pstats.Stats(watch).stats  # type: ignore[attr-defined]
    return float(stats.get((code.co_filename, code.co_firstlineno, code.co_name), (0, 0, 0, 0.0))[3])


def resident() -> Iterable[Figure]:
    """An epoch of a resident split against gathering the same permutation from a tensor of one's own."""
    import ray

    from tiltyard.data.stream import share

    with _committed(ROWS) as (store, version, preprocessor), _ray():
        handle = share(version, store, preprocessor=preprocessor, splits=("train",), mode="resident", whole={})
        trials = [_consumer() for _ in range(2)]
        one = trials[0]
        asked = ray.get(one.ask.remote(handle, 0))
        ray.get(one.prepare_memory.remote())
        assert ray.get(one.equal.remote(1)), "the batches are not those of the permutation"
        ours, theirs, drawn = [], [], []
        for e in range(1, RUNS + 1):
            drawn.append(ray.get(one.draw.remote(e)))
            theirs.append(ray.get(one.memory.remote(e)))
            ours.append(ray.get(one.epoch.remote(e)))
        for seed in range(1, 8):  # eight trials in all
            ray.get(trials[seed % 2].ask.remote(handle, seed))
        counted = handle.counters()
        handle.close()
    mine, rival, draw = statistics.median(ours), statistics.median(theirs), statistics.median(drawn)
    yield Figure(
        "stream_resident_vs_memory", ROWS / mine, "rows/s", "index_select of the same permutation, in memory",
        ROWS / rival, rival / mine,
        f"Runs, M rows/s: {_rates(ROWS, ours)} against {_rates(ROWS, theirs)}. The permutation is known beforehand in theirs; to "
        f"draw it takes {draw:.3f} s, in ours on a thread of its own, a window ahead: where no core is free for that, theirs with "
        f"the drawing, {rival + draw:.3f} s, is the limit. First batch {asked[0]:.3f} s after asking. Wanted: 0.9x.",
    )  # fmt: skip
    yield Figure(
        "stream_rows_decoded_by_8_trials", counted["rows_decoded"], "rows", "rows of the split", ROWS,
        ROWS / counted["rows_decoded"], f"{counted['reads']} read; counted by the owner of the arrays.",
    )  # fmt: skip


def streamed() -> Iterable[Figure]:
    """A streamed epoch against a bare scan of the same files, and against Ray Data."""
    import ray

    from tiltyard.data import order
    from tiltyard.data.stream import share

    with _committed(ROWS) as (store, version, preprocessor):
        files = [f"{version.uri}/{f.path}" for f in version.files]
        columns = list(preprocessor.features)
        options: dict[str, Any] = {"preprocessor": preprocessor, "splits": ("train",), "mode": "streamed", "whole": {}}
        cold: dict[str, list[Any]] = {"ours": [], "default": [], "share": []}
        warm: dict[str, list[Any]] = {k: [] for k in ("ours", "default", "tuned", "plain", "steady", "bare1", "bare2")}
        for run in range(COLD_RUNS):
            with _ray():
                cold["default"].append(ray.get(_consumer().ray_default.remote(files)))
            with _ray():
                start = time.perf_counter()
                handle = share(version, store, consumers=1, **options)
                cold["share"].append(time.perf_counter() - start)
                trial = _consumer()
                cold["ours"].append(ray.get(trial.ask.remote(handle, 0)))
                if run < COLD_RUNS - 1:
                    handle.close()
                    continue
                for seed in range(1, RUNS + 1):
                    warm["ours"].append(ray.get(trial.ask.remote(handle, seed)))
                    warm["steady"] += ray.get(trial.later.remote())
                    ray.get(trial.close.remote())
                    for threads in (1, 2):
                        warm[f"bare{threads}"].append(ray.get(trial.bare.remote(handle, seed, 1, threads)))
                    if seed <= 3:
                        warm["default"].append(ray.get(trial.ray_default.remote(files)))
                    if seed <= 2:
                        warm["tuned"].append(ray.get(trial.ray_tuned.remote(files, columns, "y")))
                        warm["plain"].append(ray.get(trial.ray_plain.remote(files, [*columns, "y"])))
                parts = ray.get(trial.parts.remote(handle))
                a_window = ROWS / 2 ** order.window_bits(ROWS, version.window_rows)
                handle.close()
    bare = {k: statistics.median(warm[k]) for k in ("bare1", "bare2")}
    steady, fastest = statistics.median(warm["steady"]), min(bare, key=lambda k: bare[k])
    yield Figure(
        "stream_streamed_vs_pyarrow", ROWS / steady, "rows/s", "bare pyarrow-to-torch scan, same windowed shuffle",
        ROWS / bare[fastest], bare[fastest] / steady,
        f"Epochs of a stream that flows, preprocessed; runs, M rows/s: {_rates(ROWS, warm['steady'])} against "
        f"{_rates(ROWS, warm[fastest])} ({fastest[-1]} torch threads, the faster). One reader thread "
        f"alone would give {a_window / sum(parts.values()) / 1e6:.1f} M rows/s; in ms a window: "
        f"{', '.join(f'{what} {s * 1e3:.1f}' for what, s in parts.items())}. Wanted: 0.7x.",
    )  # fmt: skip
    firsts = [o[0] for o in [*cold["ours"], *warm["ours"]]]
    first = statistics.median(o[0] for o in cold["ours"])
    yield Figure(
        "stream_first_batch", first, "s", "wanted: within", 2.0, 2.0 / first,
        f"Of a process that asks for the first time: {', '.join(f'{s:.2f}' for s in firsts[:COLD_RUNS])} s; again in the same "
        f"process {', '.join(f'{s:.2f}' for s in firsts[COLD_RUNS:])} s. Sharing, once for all trials, took "
        f"{', '.join(f'{s:.1f}' for s in cold['share'])} s: it starts Ray Data and the readers.",
    )  # fmt: skip
    mine, rival = (statistics.median(o[1] for o in cold[k]) for k in ("ours", "default"))
    together = statistics.median(s + o[1] for s, o in zip(cold["share"], cold["ours"], strict=True))
    yield Figure(
        "stream_streamed_vs_ray_default", mine, "s", "iter_torch_batches at its defaults, a fresh Ray", rival,
        rival / mine,
        f"From asking to the last batch of the first epoch in a Ray that is up, the dataset shared. Their first batch came "
        f"after {', '.join(f'{o[0]:.1f}' for o in cold['default'])} s. With the sharing ours takes {together:.2f} s "
        f"({rival / together:.1f}x). Wanted: 5x.",
    )  # fmt: skip
    again = statistics.median(o[1] for o in warm["ours"])
    tuned = min(("tuned", "plain"), key=lambda name: statistics.median(o[1] for o in warm[name]))
    how = {"tuned": "one matrix a block", "plain": "40 arrays a batch"}[tuned]
    for figure, name, against in (
        ("stream_again_vs_ray_default", "default", "Ray Data at its defaults, once more"),
        ("stream_again_vs_ray_tuned", tuned, "Ray Data tuned, once more"),
    ):
        other = statistics.median(o[1] for o in warm[name])
        note = f"An epoch from asking, in a process that has asked before: {', '.join(f'{o[1]:.2f}' for o in warm['ours'])} s."
        if name == tuned:
            note = f"Only the columns, 8 batches ahead, {how}: the better of two ways."
        yield Figure(figure, again, "s", against, other, other / again, note)


def bounded() -> Iterable[Figure]:
    """A table of more than four times the memory that its stream may take, read under that limit."""
    import ray
    import stream_actors

    from tiltyard.data.preflight import HEAP_WINDOWS
    from tiltyard.data.readers import Readers
    from tiltyard.data.stream import share

    with contextlib.ExitStack() as stack:
        store, version, preprocessor = stack.enter_context(_committed(LARGE_ROWS))
        stack.enter_context(_ray(80 << 20))
        handle = share(
            version, store, preprocessor=preprocessor, splits=("train",), mode="streamed", whole={}, consumers=1
        )
        assert handle.readers is not None
        assert handle.streams is not None
        plan, told = handle.streams, Path(store.root.path) / "told"
        allowed = plan.store_bytes + plan.heap_bytes
        group = stack.enter_context(stream_actors.memory_group(allowed))
        told.mkdir()
        handle.readers.close()
        decoder = stream_actors.Watched(handle.readers.decoder.root, preprocessor)
        decoder.folder, decoder.group = str(told), group
        handle = replace(handle, readers=Readers(version, decoder, plan))
        trial = _consumer()
        pid = ray.get(trial.ready.remote())
        idle = ray.get(trial.idle.remote(group))
        peaks: dict[int, int] = {}
        done = threading.Event()
        sampler = threading.Thread(target=_sample, args=(told, pid, peaks, done), daemon=True)
        sampler.start()
        first, seconds, rows = ray.get(trial.ask.remote(handle, 0))
        done.set()
        sampler.join()
        handle.close()
        readers = [(peaks[int(f.stem)], int(f.read_text())) for f in told.glob("*.idle")]
        table_bytes = handle.plans["train"].num_bytes
    assert rows == version.num_rows
    assert len(readers) == 1, f"{len(readers)} readers: some were ended by the kernel, for they took more than allowed"
    heap = sum(peak - idle_before for peak, idle_before in readers)
    used = heap + (peaks[pid] - idle) + plan.store_bytes
    assert group is not None or used <= allowed, f"{used:,} bytes were used, {allowed:,} allowed"
    how = "held by the kernel (control group)" if group else "watched every 50 ms: no control group can be made here"
    yield Figure(
        "stream_memory_of_a_large_table", used / 2**20, "MiB", "allowed: object store and readers' heap", allowed / 2**20,
        allowed / used,
        f"A table of {table_bytes / 2**20:,.0f} MiB as arrays, {table_bytes / allowed:.1f} times what is allowed; an epoch took "
        f"{seconds:.1f} s ({rows / seconds / 1e6:.2f} M rows/s, first batch {first:.1f} s). The limit, for what reader and "
        f"consumer take beyond what they have at rest, was {how}. Ray's object store was 80 MiB in all; the reader may use "
        f"{HEAP_WINDOWS} windows of {plan.window_bytes / 2**20:.1f} MiB. Used at most, in MiB beyond rest: reader "
        f"{', '.join(f'{(p - i) / 2**20:.0f}' for p, i in readers)}, consumer {(peaks[pid] - idle) / 2**20:.0f}, and the "
        f"{plan.ahead} windows of the object store in full.",
    )  # fmt: skip


def _sample(told: Path, pid: int, peaks: dict[int, int], done: threading.Event) -> None:
    """Highest private memory of the consumer and of each reader, looked at every 50 ms."""
    from stream_actors import private_bytes

    while not done.wait(0.05):
        for each in [pid, *(int(f.stem) for f in told.glob("*.idle"))]:
            with contextlib.suppress(Exception):
                peaks[each] = max(peaks.get(each, 0), private_bytes(each))


def benchmarks() -> list[Benchmark]:
    """Commit, resident, streamed, and larger than memory."""
    return [commit, resident, streamed, bounded]
