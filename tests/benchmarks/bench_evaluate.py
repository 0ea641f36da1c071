"""A whole evaluation (scores, calibration, drift on 40 columns, kept answers) against the bare forward pass of its rows.

The bare pass has the preprocessed rows in memory and one thread, as each process here. The evaluation reads Parquet, goes
through Serve, folds and keeps. Its seconds begin when the replica is up: starting one costs seconds whatever it answers.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
from harness import Benchmark, Figure, median_seconds

ROWS = 10_000_000
BOUND_GIB = 4.0
"""All processes of an evaluation together, Ray's object store included, whatever the number of rows."""


class _Peak:
    """Most memory that this process and its descendants held together: what each holds alone, and what they share once."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.gib = 0.0

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            total, shared = 0, 0
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                except psutil.Error:
                    continue
                total += memory.uss
                shared = max(shared, process.memory_info().shared)
            self.gib = max(self.gib, (total + shared) / 2**30)


def _evaluate(rows: int, *, forward: bool) -> tuple[float, float, float]:
    """Seconds of an evaluation of so many rows, and of the bare pass where wanted, else the peak of memory in GiB."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ.update({"HOME": folder, "TILTYARD_HOME": folder, "RAY_USAGE_STATS_ENABLED": "0"})
        from tiltyard.data.store import DatasetStore
        from tiltyard.data.versions import DatasetSpec
        from tiltyard.evaluation.runner import evaluate
        from tiltyard.evaluation.spec import Evaluation
        from tiltyard.ray_token import use_own_token
        from tiltyard.registry import read_bundle
        from tiltyard.registry.mlflow_registry import ModelRegistry
        from tiltyard.settings import Settings
        from tiltyard.testing.bundles import numbers_bundle
        from tiltyard.types import Task

        logging.getLogger("mlflow").setLevel(logging.ERROR)
        settings = Settings.from_env()
        use_own_token(settings)
        table, bundle = numbers_bundle(home / "wide", hidden=(256, 256), rows=1_000)
        ModelRegistry(settings).register("b.wide", bundle)
        store = DatasetStore(settings.data_uri)
        small = table.append_column("label", pa.array(["no", "yes"] * (table.num_rows // 2)))
        store.commit("numbers", small, spec=DatasetSpec(task=Task.BINARY, label="label"))
        random = np.random.default_rng(1)
        columns = {n: random.standard_normal(rows, dtype=np.float32) for n in table.column_names}
        labels = pa.array(["no", "yes"]).take(pa.array(random.integers(0, 2, rows)))
        store.commit("numbers", pa.table({**columns, "label": labels}))
        del columns, labels
        spec = Evaluation(dataset="numbers", models=("b.wide@1",), rows="all", metric="accuracy")
        peak = _Peak()
        with nullcontext() if forward else peak:  # who looks at all processes twice a second takes a part of a core
            done = evaluate(settings, spec)
        result = done[-1].result
        assert result is not None
        assert result.scored.labelled == rows
        assert result.drift is not None
        assert len(result.drift.columns) > 40
        bare = 0.0
        if forward:
            opened = read_bundle(bundle)
            x = opened.preprocessor.transform(store.read("numbers@2", limit=500_000))
            network, resident = opened.trained, torch.from_numpy(x)

            def bare_pass() -> None:
                """The torch module itself; a bundle's own pass over the same rows is faster (`registry.forward`)."""
                with torch.inference_mode():
                    for start in range(0, len(x), 2048):
                        network(resident[start : start + 2048])

            bare = median_seconds(bare_pass, runs=3) * rows / len(x)
        return result.seconds, bare, peak.gib


def rows_per_second() -> Iterable[Figure]:
    """Rows a second of a whole evaluation."""
    seconds, bare, _ = _evaluate(ROWS, forward=True)
    yield Figure(
        "evaluate_rows_vs_forward",
        ROWS / seconds,
        "rows/s",
        "bare forward pass, rows/s",
        ROWS / bare,
        bare / seconds,
        f"{ROWS:,} rows of 40 columns, MLP 40-256-256-2, scores and drift; 0.4 was promised",
    )


def peak_of_ten_million() -> Iterable[Figure]:
    """Memory of an evaluation of ten million rows."""
    seconds, _, gib = _evaluate(ROWS, forward=False)
    yield Figure(
        "evaluate_10m_peak_gib",
        gib,
        "GiB",
        "stated bound, all processes",
        BOUND_GIB,
        BOUND_GIB / gib,
        f"{ROWS:,} rows of 40 columns in {seconds:.0f} s",
    )


def benchmarks() -> list[Benchmark]:
    """What this file measures."""
    return [rows_per_second, peak_of_ten_million]
