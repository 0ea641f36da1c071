"""Export: the same rows come back; a folder is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv

from tiltyard.data import parquet
from tiltyard.data.export import export
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import Card, DatasetSpec, DatasetVersion
from tiltyard.errors import DataError, SpecError
from tiltyard.types import Task

SPEC = DatasetSpec(task=Task.MULTICLASS, label="y", key="id", card=Card(description="made up"))


def rows(tensor: bool = True) -> dict[str, Any]:
    n = np.arange(200)
    when = pa.array(n * 86_400_000_000, pa.timestamp("us", "UTC"))
    found: dict[str, Any] = {
        "id": n,
        "x": np.sin(n),
        "name": [None if i % 9 == 0 else f"n, {i}" for i in n],
        "at": when,
    }
    more = {"image": np.arange(800, dtype=np.float32).reshape(200, 4)} if tensor else {}
    return {**found, "y": n % 3, **more}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetStore:
    monkeypatch.setattr(parquet, "WINDOWS_PER_FILE", 1)
    monkeypatch.setattr(DatasetVersion, "window_rows", property(lambda _: 32))  # several files a split
    store = DatasetStore(str(tmp_path / "data"))
    store.commit("toy", rows(), spec=SPEC)
    return store


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_export_committed_again_is_the_same_content(store: DatasetStore, form: str, tmp_path: Path) -> None:
    version, files = export(store, "toy", str(tmp_path / "out" / "toy"), form=form)
    assert len([f for f in version.files if f.split == "train"]) > 1
    names = ["README.md", "_dataset.json", f"test.{form}", f"train.{form}", f"validation.{form}"]
    assert [f.name for f in files] == names
    again = DatasetStore(str(tmp_path / "again")).commit("toy", str(tmp_path / "out" / "toy"), spec=SPEC).version
    assert again.content_digest == version.content_digest
    assert "made up" in files[0].read_text()
    assert DatasetVersion.from_json(json.loads(files[1].read_text())) == version
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["toy"]


def test_export_of_one_split_as_csv_has_its_rows_in_order(store: DatasetStore, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"CSV cannot hold column 'image' of toy@1, which is float32\[4\]"):
        export(store, "toy", str(tmp_path / "out"), form="csv")
    assert not (tmp_path / "out").exists()
    store.commit("flat", rows(tensor=False), spec=SPEC)
    (tmp_path / "out").mkdir()  # an empty folder will do
    _, files = export(store, "flat", str(tmp_path / "out"), split="train", form="csv")
    assert [f.name for f in files] == ["README.md", "_dataset.json", "train.csv"]
    found = csv.read_csv(files[2], convert_options=csv.ConvertOptions(strings_can_be_null=True))
    train = store.read("flat", split="train")
    for name in ("id", "x", "name", "y"):
        assert found[name].to_pylist() == train[name].to_pylist()


def test_export_with_a_damaged_or_missing_file_leaves_nothing(store: DatasetStore, tmp_path: Path) -> None:
    version = store.resolve("toy")
    last = Path(version.uri) / version.files[-1].path
    whole = last.read_bytes()
    last.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"not as it was written; nothing was exported.*tiltyard data verify toy@1"):
        export(store, "toy", str(tmp_path / "out" / "toy"))
    last.unlink()
    with pytest.raises(DataError, match="missing"):
        export(store, "toy", str(tmp_path / "out" / "toy"))
    assert list((tmp_path / "out").iterdir()) == []


def test_export_to_what_is_there_or_in_no_format_is_refused(store: DatasetStore, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        export(store, "toy", str(tmp_path / "full"))
    with pytest.raises(SpecError, match=r"no export format 'xlsx'. Formats: parquet, csv, arrow"):
        export(store, "toy", str(tmp_path / "out"), form="xlsx")
    with pytest.raises(SpecError, match="no folder of this machine"):
        export(store, "toy", "s3://bucket/out")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
