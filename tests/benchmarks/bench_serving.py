"""Served models against the bare forward pass, HTTP against the handle, and what a switch of champions costs.

Two benchmarks, each with a Ray and a Serve of its own: large tables (``make bench ONLY=serving_tables``) and single rows
(``ONLY=serving_rows``). Each process computes with one thread, as the bare pass does.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import Benchmark, Figure

ROWS, CALL_ROWS = 1 << 19, 65_536
"""Rows of a pass, and of one request: large, for a request costs a millisecond whatever it carries."""
HTTP_ROWS = 32_768
STACKED = 16
ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class Stage:
    """What all figures share."""

    settings: Any
    registry: Any
    table: pa.Table
    bundle: Any
    url: str
    traffic: Any
    cold_s: float


_stage: list[Stage] = []


@contextmanager
def _stage_up() -> Iterator[Stage]:
    """A home with a model of 40-256-256-2 and 16 of 40-32-2, on a Ray of its own with Serve."""
    import logging
    import os

    import ray
    import torch

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ.update({"HOME": folder, "TILTYARD_HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"})
        torch.set_num_threads(1)
        from tiltyard.local.ports import choose
        from tiltyard.registry import read_bundle
        from tiltyard.registry.mlflow_registry import ModelRegistry
        from tiltyard.serving.client import deploy, end_serving, set_environment
        from tiltyard.serving.deployment import app_from_args
        from tiltyard.settings import Settings
        from tiltyard.testing.bundles import numbers_bundle

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        settings = Settings.from_env()
        registry = ModelRegistry(settings)
        table, wide = numbers_bundle(home / "wide", hidden=(256, 256), rows=ROWS)
        registry.promote("b.wide", registry.register("b.wide", wide).version)
        for seed in range(STACKED):
            _, small = numbers_bundle(home / f"small{seed}", hidden=(32,), rows=1000, seed=seed)
            registry.register("b.small", small)
        registry.promote("b.small", 1)
        set_environment()  # as `tiltyard serve` and `tiltyard up` start theirs
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=1 << 30,
        )
        port = choose(["serve"], seed=folder)["serve"]
        begun = time.perf_counter()
        args = {"models": "b.wide,b.small", "auth": "off", "rows": str(ROWS)}
        handle = deploy(app_from_args(args, settings), name="bench", http=True, port=port)
        url = f"http://127.0.0.1:{port}"
        while _post(f"{url}/models/b.small/predict", _json(table.slice(0, 1)))[0] != 200:
            time.sleep(0.05)
        cold = time.perf_counter() - begun
        try:
            yield Stage(settings, registry, table, read_bundle(wide), url, handle, cold)
        finally:
            end_serving()
            ray.shutdown()


def _post(url: str, body: bytes, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, headers={"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def _json(table: pa.Table) -> bytes:
    return json.dumps({"rows": table.to_pylist()}).encode()


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def _slices(table: pa.Table, rows: int) -> list[pa.Table]:
    return [table.slice(i, rows) for i in range(0, len(table), rows)]


def _best_rate(work: Callable[[], int], runs: int = 3) -> float:
    """Rows a second of the best of some runs, after one that does not count: the machine is shared."""
    work()
    rates = []
    for _ in range(runs):
        begun = time.perf_counter()
        rows = work()
        rates.append(rows / (time.perf_counter() - begun))
    return max(rates)


def _in_turns(*works: Callable[[], int], runs: int = 5) -> list[float]:
    """Rows a second of the best run of each, run in turns, so that what else the machine does meets all of them."""
    for work in works:
        work()
    best = [0.0] * len(works)
    for _ in range(runs):
        for i, work in enumerate(works):
            begun = time.perf_counter()
            rows = work()
            best[i] = max(best[i], rows / (time.perf_counter() - begun))
    return best


def _bare_forward(stage: Stage) -> Callable[[], int]:
    """The bare network over a resident, prepared matrix of all rows, in batches of the size that is fastest here."""
    import torch

    module = stage.bundle.trained
    x = torch.from_numpy(stage.bundle.preprocessor.transform(stage.table))

    def forward(size: int, rows: int = ROWS) -> int:
        with torch.inference_mode():
            for start in range(0, rows, size):
                module(x[start : start + size])
        return rows

    sizes = (512, 1024, 2048, 4096, 8192, 65_536)
    rates = _in_turns(*(functools.partial(forward, size, 1 << 17) for size in sizes), runs=3)
    return functools.partial(forward, sizes[int(np.argmax(rates))])


def serving_tables() -> Iterable[Figure]:
    """Large tables by handle and by HTTP."""
    with _stage_up() as stage:
        handle_rate = yield from _evaluation(stage)
        yield from _http(stage, handle_rate)


def serving_rows() -> Iterable[Figure]:
    """The application's start, and single rows by HTTP."""
    with _stage_up() as stage:
        yield Figure("serve_cold_start_seconds", stage.cold_s, "s", "limit: 10 s", 10.0, 10.0 / stage.cold_s)
        yield _latency(stage)
        yield _switches(stage)


def _evaluation(stage: Stage) -> Generator[Figure, None, float]:
    from tiltyard.serving.client import deploy, remove, stream_rows, stream_rows_through_all
    from tiltyard.serving.deployment import evaluation_app

    names = [f"b.small@{v}" for v in range(1, STACKED + 1)]
    handle = deploy(evaluation_app(["b.wide@1", *names], stage.settings), name="evaluation")
    tables = _slices(stage.table, CALL_ROWS)

    def through(model: str, parts: list[pa.Table]) -> int:
        return sum(len(a.outputs) for a in stream_rows(handle, model, parts))

    x = stage.bundle.preprocessor.transform(stage.table)

    def quick() -> int:
        return len(stage.bundle.predict_matrix(x))

    bare, served, alone = _in_turns(_bare_forward(stage), lambda: through("b.wide@1", tables), quick)
    note = (
        f"{CALL_ROWS} rows a call, preprocessing included; the bare pass is the torch module over a prepared matrix in its "
        f"best batch size; a bundle's own pass without Serve {alone:,.0f} rows/s; one computing thread each, best of five "
        "runs in turns"
    )
    yield Figure(
        "serve_handle_vs_forward", served, "rows/s", "bare forward pass, 40-256-256-2", bare, served / bare, note
    )

    few = tables[:2]

    def one_by_one() -> int:
        return sum(through(name, few) for name in names)

    def stacked() -> int:
        return sum(len(a.outputs) for answers in stream_rows_through_all(handle, names, few) for a in answers)

    together, apart = _in_turns(stacked, one_by_one, runs=3)
    note = f"{STACKED} models 40-32-2 through the handle, {CALL_ROWS} rows a call; rows x models a second"
    yield Figure("serve_stacked_vs_one_by_one", together, "rows/s", "one by one", apart, together / apart, note)
    remove("evaluation")
    return served


def _http(stage: Stage, handle_rate: float) -> Iterator[Figure]:
    url = f"{stage.url}/models/b.wide/predict"
    bodies = [_stream(t) for t in _slices(stage.table.slice(0, 8 * HTTP_ROWS), HTTP_ROWS)]
    few = [_json(t) for t in _slices(stage.table.slice(0, 4096), 1024)]

    def in_pairs(parts: list[bytes], kind: str) -> None:
        """Two clients, as the handle has more than one request in flight."""
        left = list(parts)
        failed: list[int] = []

        def client() -> None:
            while left:
                status, _ = _post(url, left.pop(), kind)
                if status != 200:
                    failed.append(status)

        threads = [threading.Thread(target=client) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise RuntimeError(f"refused with {failed}")

    def arrow() -> int:
        in_pairs(bodies, ARROW)
        return len(bodies) * HTTP_ROWS

    def as_json() -> int:
        in_pairs(few, "application/json")
        return 4096

    by_arrow, by_json = _best_rate(arrow), _best_rate(as_json)
    yield Figure("serve_handle_vs_json", handle_rate, "rows/s", "HTTP JSON, 1024 rows", by_json, handle_rate / by_json)
    yield Figure("serve_arrow_http_vs_handle", by_arrow, "rows/s", "the handle", handle_rate, by_arrow / handle_rate)


def _at_rate(stage: Stage, per_s: float, seconds: float) -> tuple[list[float], list[int]]:
    """Latencies (ms, from when a request was due) and statuses of single rows sent at a steady rate."""
    import http.client
    import queue

    host = stage.url.removeprefix("http://")
    body = _json(stage.table.slice(0, 1))
    due: queue.Queue[float | None] = queue.Queue()
    latencies: list[float] = []
    statuses: list[int] = []

    def client() -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        while (when := due.get()) is not None:
            if (wait := when - time.perf_counter()) > 0:
                time.sleep(wait)
            connection.request("POST", "/models/b.small/predict", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            latencies.append(1000 * (time.perf_counter() - when))
            statuses.append(answer.status)
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(16)]
    start = time.perf_counter() + 0.2
    for i in range(int(per_s * seconds)):
        due.put(start + i / per_s)
    for _ in clients:
        due.put(None)
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return latencies, statuses


def _latency(stage: Stage) -> Figure:
    _at_rate(stage, 50, 2)
    found = []
    for _ in range(3):
        latencies, _ = _at_rate(stage, 50, 8)
        found.append(statistics.quantiles(latencies, n=100))
    p99 = statistics.median(q[98] for q in found)
    p50 = statistics.median(q[49] for q in found)
    note = f"one row by HTTP JSON at 50 requests/s, p50 {p50:.1f} ms; client and server share the cores"
    return Figure("serve_http_p99_ms", p99, "ms", "limit: 30 ms", 30.0, 30.0 / p99, note)


def _switches(stage: Stage) -> Figure:
    def switch() -> None:
        for i in range(10):
            time.sleep(1.4)
            stage.registry.promote("b.small", 2 + i % 2)

    mover = threading.Thread(target=switch)
    mover.start()
    latencies, statuses = _at_rate(stage, 200, 16)
    mover.join()
    failures = sum(s != 200 for s in statuses)
    note = (
        f"ten moved aliases under 200 requests/s; {len(statuses)} requests, p99 {np.quantile(latencies, 0.99):.0f} ms"
    )
    return Figure("serve_alias_switch_failures", failures, "requests", "limit: 0", 0.0, None, note)


def benchmarks() -> list[Benchmark]:
    """What this file measures."""
    return [serving_tables, serving_rows]
