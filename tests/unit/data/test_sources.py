"""Every kind of source gives the same rows; whatever is wrong with one is said before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tiltyard.data import rows, sources
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.errors import DataError
from tiltyard.types import Task

TABLE = pa.table({"id": range(20), "x": [i / 8 for i in range(20)], "name": [f"n{i % 3}" for i in range(20)]})


def write(path: Path, table: pa.Table = TABLE) -> Path:
    match path.suffix:
        case ".parquet":
            pq.write_table(table, path)
        case ".csv":
            pacsv.write_csv(table, path)
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in table.to_pylist()))
        case ".arrow":
            pyarrow.feather.write_feather(table, path, compression="uncompressed")
    return path


def digest(table: pa.Table) -> str:
    return rows.sum_rows(*rows.row_lanes(rows.canonical(table)))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_source_of_each_kind_of_file_gives_the_same_rows(suffix: str, tmp_path: Path) -> None:
    assert digest(sources.read(write(tmp_path / f"rows{suffix}"))) == digest(TABLE)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".arrow"])
def test_source_of_a_folder_glob_or_uri_gives_the_rows_of_all_files(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"b{suffix}", TABLE.slice(0, 5))
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / f"a{suffix}", TABLE.slice(5))
    (tmp_path / "_SUCCESS").touch()
    for source in (tmp_path, f"{tmp_path}/**/*{suffix}", tmp_path.as_uri()):
        assert digest(sources.read(source)) == digest(TABLE)


def test_source_in_memory_of_each_library_gives_the_same_rows() -> None:
    expected = digest(TABLE)
    assert digest(sources.read(TABLE)) == expected
    assert digest(sources.read(TABLE.to_batches()[0])) == expected
    assert digest(sources.read(TABLE.to_pandas())) == expected
    assert digest(sources.read({"id": np.arange(20), "x": np.arange(20) / 8, "name": TABLE["name"]})) == expected


def test_numpy_array_of_more_dimensions_becomes_a_tensor_column() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = rows.canonical(sources.read({"image": values, "y": [0, 1]}))
    assert rows.type_name(found["image"].type) == "float32[12]"
    np.testing.assert_array_equal(found["image"].combine_chunks().flatten().to_numpy().reshape(2, 3, 4), values)


def test_pictures_in_a_folder_per_class_become_tensors_and_labels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 3, 6, 5, 3)).astype(np.uint8)
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(pixels[c, i]).save(tmp_path / name / f"{i}.png")
    found = sources.read(tmp_path)
    assert found["label"].to_pylist() == ["cat"] * 3 + ["dog"] * 3
    assert found["path"][4].as_py() == "dog/1.png"
    image = found["image"].combine_chunks().flatten().to_numpy().reshape(6, 3, 6, 5)
    np.testing.assert_array_equal(image, pixels.reshape(6, 6, 5, 3).transpose(0, 3, 1, 2))


def test_pictures_of_different_sizes_are_refused_with_both_shapes(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for i, side in enumerate((4, 5)):
        Image.new("L", (side, side)).save(tmp_path / "cat" / f"{i}.png")
    with pytest.raises(DataError, match=r"\(1, 5, 5\).*\(1, 4, 4\)"):
        sources.read(tmp_path)


def test_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png.*not a picture"):
        sources.read(tmp_path)


BAD_TEXT = {
    "ragged.csv": ("a,y\n1,0\n3,4,5\n6,1\n", "ragged rows.*header.*2 fields.*row 3 has 3: '3,4,5'"),
    "short.csv": ("a,y\n1,0\n3\n6,1\n", "row 3 has 1: '3'"),
    "many.csv": ("a,y\n" + "1\n" * 9, "row 4 has 1.*6 rows more"),
    "empty.csv": ("", "is empty: 0 bytes"),
    "header.csv": ("a,y\n", "0 rows"),
    "mixed.csv": ("a,y\n1,0\nx,1\n4,0\n", r"'a' mixes types: 67% numbers.*\['x'\] on lines \[3\]"),
    "nan.csv": ("a,y\n1,0\n2,NaN\n3,1\n", "Label column 'y' holds 1 missing"),
    "nanfloat.csv": ("a,y\n1,0.5\n2,nan\n3,1.5\n", "Label column 'y' holds 1 missing"),
    "twice.csv": ("y,y\n1,0\n", "'y' occurs twice"),
    "mixed.jsonl": ('{"a": 1, "y": 0}\n{"a": "x", "y": 1}\n', "changed from number to string in row 1"),
    "broken.jsonl": ('{"a": 1, "y": 0}\n{"a": \n', "cannot be read as json"),
    "text.parquet": ("not parquet", "cannot be read as parquet"),
    "text.arrow": ("not arrow", "cannot be read as ipc"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_bad_file_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    text, told = BAD_TEXT[name]
    (tmp_path / name).write_text(text)
    store = DatasetStore(str(tmp_path / "store"))
    with pytest.raises(DataError, match=told):
        store.commit("bad", tmp_path / name, spec=DatasetSpec(task=Task.REGRESSION, label="y"))
    assert not (tmp_path / "store").exists()


def test_csv_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_bytes("a,b\n1,é\n".encode("latin1"))
    with pytest.raises(DataError, match="'b' is not UTF-8"):
        sources.read(tmp_path / "old.csv")


def test_csv_column_declared_as_text_may_mix(tmp_path: Path) -> None:
    (tmp_path / "codes.csv").write_text("code,y\n01,0\nx,1\n4,0\n")
    found = sources.read(tmp_path / "codes.csv", types={"code": "string"})
    assert found["code"].to_pylist() == ["01", "x", "4"]
    with pytest.raises(DataError, match="no column 'cod'"):
        sources.read(tmp_path / "codes.csv", types={"cod": "string"})
    with pytest.raises(DataError, match="not a column type"):
        sources.read(tmp_path / "codes.csv", types={"code": "varchar"})


def test_files_of_different_columns_are_refused_with_the_difference(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    write(tmp_path / "b.csv", TABLE.drop_columns(["x"]))
    with pytest.raises(DataError, match=r"\['x'\] are in one only"):
        sources.read(tmp_path)


def test_files_of_mixed_kinds_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    write(tmp_path / "b.parquet")
    with pytest.raises(DataError, match="mixed kinds"):
        sources.read(tmp_path)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("nowhere.csv", "Nothing to read"),
        (42, "type int cannot be read"),
        ({"a": [1, "x"]}, "'a' mixes types"),
        ({"a": [1, 2], "b": [1]}, "different numbers of rows"),
        (pd.DataFrame({"a": [1, "x"]}), "mixes types"),
    ],
)
def test_source_that_is_none_is_refused_with_what_is_wanted(source: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        sources.read(tmp_path / source if isinstance(source, str) else source)
