"""Plans that would deadlock or not fit are refused before they start, with the arithmetic; those that run keep the bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.data import order, parquet, preflight, rows
from tiltyard.data.features import fit_preprocessor
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.data.windows import Decoder, Reader, epoch_slices, narrow, windows_of
from tiltyard.errors import PreflightError
from tiltyard.types import Task

MB = 1 << 20


def plan(**more: object) -> preflight.StreamPlan:
    options: dict[str, object] = {
        "what": "train of big@1",
        "window_bytes": 12 * MB,
        "consumers": 2,
        "store_bytes": 512 * MB,
        "cluster_cpus": 4.0,
        **more,
    }
    return preflight.plan_streams(**options)  # type: ignore[arg-type]


@given(
    window=st.integers(1, 64 * MB),
    consumers=st.integers(1, 64),
    store=st.integers(0, 8 << 30),
    cpus=st.integers(1, 64),
    reader=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_plan_of_any_size_stays_within_the_store_and_the_cpus_or_is_refused(
    window: int, consumers: int, store: int, cpus: int, reader: float
) -> None:
    try:
        made = plan(
            window_bytes=window, consumers=consumers, store_bytes=store, cluster_cpus=float(cpus), reader_cpus=reader
        )
    except PreflightError:
        too_small = consumers * preflight.LEAST_AHEAD * window > store
        too_few = reader > 0 and consumers * (1 + reader) > cpus
        assert too_small or too_few
        return
    assert made.store_bytes == consumers * made.ahead * window <= store
    assert preflight.LEAST_AHEAD <= made.ahead <= preflight.AHEAD
    assert reader == 0 or consumers * (1 + reader) <= cpus


def test_plan_that_would_deadlock_says_what_holds_and_what_waits() -> None:
    with pytest.raises(PreflightError, match=r"4 trials x 1 CPUs = 4, and 4 readers x 0.5 CPUs = 2, are 6 of 4 CPUs"):
        plan(consumers=4, reader_cpus=0.5)
    assert plan(consumers=4, reader_cpus=0.0).reader_cpus == 0


def test_plan_without_room_says_how_much_is_missing() -> None:
    with pytest.raises(
        PreflightError, match=r"2 streams x 4 windows x 12,582,912 bytes = 100,663,296 bytes.*50,000,000"
    ):
        plan(store_bytes=50_000_000)


def test_windows_of_a_split_are_its_row_groups_and_every_slice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW_ROWS", 512)
    rng = np.random.default_rng(0)
    source = {"id": np.arange(3_000), "y": rng.integers(0, 2, 3_000)}
    store = DatasetStore(str(tmp_path))
    version = store.commit("toy", source, spec=DatasetSpec(task=Task.BINARY, label="y", key="id")).version
    assert version.window_rows == 512
    root = Place.of(version.uri)
    windows = windows_of(version, root, "train")
    assert len(windows) == 4
    assert sum(w.num_rows for w in windows) == version.split_rows["train"]
    assert all(len(w.groups) == 1 and all(len(g) == 1 for g in w.groups.values()) for w in windows)
    fitted = fit_preprocessor(store, version, features=["id"])
    place = (version.content_digest, "train", 0)
    reader = Reader(Decoder(root, fitted), place[:2], windows)
    ids = fitted.transform(store.read(version, split="train", columns=["id"]))
    seen = [
        narrow(reader.read(s)["x"])[:, 0].tolist()
        for rank in range(3)
        for s in epoch_slices(windows, place, rank, 3, 4)
    ]
    together = sorted(v for part in seen for v in part)
    assert len(together) == len(set(together)) == version.split_rows["train"] // 3 * 3
    assert set(together) <= set(ids[:, 0].tolist())


def test_split_that_is_needed_whole_and_would_be_streamed_is_refused_with_who_needs_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spec = DatasetSpec(task=Task.BINARY, label="y")
    store = DatasetStore(str(tmp_path))
    version = store.commit("toy", {"x": rng.normal(size=1_000), "y": rng.integers(0, 2, 1_000)}, spec=spec).version
    plans = preflight.plan_splits(version, fit_preprocessor(store, version), allowed_bytes=9_000)
    needed = {"validation": "by scoring", "train": "by boosted, which cannot be streamed"}
    assert {s: p.mode for s, p in plans.items()} == {"test": "resident", "validation": "resident", "train": "streamed"}
    preflight.check_whole(version, plans, {"validation": "by scoring"}, 9_000)
    with pytest.raises(
        PreflightError, match=r"'train' of toy@1 takes [\d,]+ bytes.*by boosted, which cannot.*may take 9,000 bytes"
    ):
        preflight.check_whole(version, plans, needed, 9_000)


def test_reader_decodes_the_wanted_columns_and_row_groups_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW_ROWS", 256)
    rng = np.random.default_rng(0)
    source = {f"x{i}": rng.normal(size=2_000) for i in range(4)}
    pictures = rng.normal(size=(2_000, 2, 3)).astype(np.float32)
    spec = DatasetSpec(task=Task.BINARY, label="y")
    store = DatasetStore(str(tmp_path))
    version = store.commit("toy", {**source, "p": pictures, "y": rng.integers(0, 2, 2_000)}, spec=spec).version
    fitted = fit_preprocessor(store, version, features=["x2", "p"])
    windows = windows_of(version, Place.of(version.uri), "train")
    read = parquet.read_file
    decoded: list[tuple[int, set[str]]] = []

    def counting(*args: Any) -> Any:
        table = read(*args)
        decoded.append((table.num_rows, set(table.column_names)))
        return table

    monkeypatch.setattr(parquet, "read_file", counting)
    reader = Reader(Decoder(Place.of(version.uri), fitted), (version.content_digest, "train"), windows)
    place = (version.content_digest, "train", 0)
    slices = epoch_slices(windows, place, 1, 2, 0)
    blocks = [reader.read(s) for s in slices]
    assert len(windows) >= 4
    assert len(slices) <= len(windows) // 2 + 1  # the other shard's windows are not decoded
    assert [n for n, _ in decoded] == [windows[s.window].num_rows for s in slices]
    assert all(columns == {"x2", "p", "y", rows.ROW} for _, columns in decoded)
    x = np.concatenate([narrow(b["x"]) for b in blocks])
    assert x.shape == (version.split_rows["train"] // 2, 1 + 6)
    assert x.dtype == np.float32  # tensors, never objects
