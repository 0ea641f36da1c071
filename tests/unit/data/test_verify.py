"""Verification: any changed byte of a version is found and named; what is missing too; what is whole passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import upkeep
from tiltyard.data.feed import local_feed
from tiltyard.data.store import DatasetStore
from tiltyard.data.verify import verify
from tiltyard.data.versions import DatasetSpec, DatasetVersion
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.types import Task

SPEC = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")


def table(start: int, stop: int) -> pa.Table:
    numbers = np.arange(start, stop)
    return pa.table({"id": numbers, "x": np.sin(numbers).astype(np.float32), "y": numbers % 3})


def committed(root: Path) -> DatasetStore:
    store = DatasetStore(str(root))
    store.commit("toy", table(0, 60), spec=SPEC)
    store.append("toy", table(60, 90))
    return store


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return committed(tmp_path_factory.mktemp("verify"))


def hashed(store: DatasetStore) -> list[Path]:
    """Every file of the dataset but cards."""
    return sorted(p for p in (Path(store.root.path) / "toy").rglob("*") if p.is_file() and p.suffix != ".md")


def test_verify_of_what_is_whole_reads_everything_and_finds_nothing(untouched: DatasetStore) -> None:
    found = verify(untouched, "toy")
    assert (found.findings, found.notes, found.versions) == ((), (), ("toy@1", "toy@2"))
    files = hashed(untouched)
    assert (found.num_files, found.num_bytes) == (len(files), sum(f.stat().st_size for f in files))
    assert verify(untouched, "toy", 1).versions == ("toy@1",)


@given(data=st.data(), flip=st.integers(1, 255))
@settings(deadline=None, max_examples=60)
def test_verify_after_any_one_byte_changed_names_the_file(
    untouched: DatasetStore, data: st.DataObject, flip: int
) -> None:
    file = data.draw(st.sampled_from(hashed(untouched)))
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    try:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        found = verify(DatasetStore(untouched.root.uri), "toy")
    finally:
        file.write_bytes(whole)
    name = str(file.relative_to(Path(untouched.root.path) / "toy"))
    assert any(name in f.path for f in found.findings), found.findings


@pytest.mark.parametrize("kind", ["table/tiltyard_split=*/*.parquet", "versions/*1.json", "profiles/*", "staged/*"])
def test_verify_names_a_missing_file_and_says_which_copy_is_whole(kind: str, tmp_path: Path) -> None:
    store = committed(tmp_path)
    file = sorted((tmp_path / "toy").glob(kind))[0]
    file.unlink()
    (finding,) = verify(DatasetStore(store.root.uri), "toy").findings
    assert finding.path == str(file.relative_to(tmp_path / "toy"))
    assert "missing" in finding.told
    if "json" in kind or "staged" in kind:
        assert "is whole: copy it here" in finding.told


def test_damaged_record_is_a_clear_error_for_whoever_reads_it(tmp_path: Path) -> None:
    store = committed(tmp_path)
    record = tmp_path / "toy" / "versions" / "00000001.json"
    for damaged in (b"{", b"\xff\xfe", b"[]", record.read_bytes().replace(b'"label"', b'"lable"')):
        record.write_bytes(damaged)
        with pytest.raises(DataError, match="tiltyard data verify"):
            DatasetStore(store.root.uri).resolve("toy")
        assert verify(DatasetStore(store.root.uri), "toy").findings


def test_verify_of_rows_that_are_not_those_of_the_digest_says_so(tmp_path: Path) -> None:
    """A record that was written consistently, of other rows: only hashing the rows anew finds it."""
    store = committed(tmp_path)
    folder = tmp_path / "toy"
    version = store.resolve("toy@1")
    other = DatasetStore(str(tmp_path / "other")).commit("toy", table(0, 60), spec=DatasetSpec(key="id")).version
    data = {**version.to_json(), "content_digest": other.content_digest}
    text = json.dumps(data, indent=1).encode()
    log = folder / "table" / "_delta_log" / f"{0:020d}.json"
    entry = json.loads(log.read_bytes().splitlines()[0])["commitInfo"]
    (folder / "versions" / "00000001.json").write_bytes(text)
    (folder / "staged" / entry["tiltyard.record"]).write_bytes(text)
    told = [f.told for f in verify(DatasetStore(str(tmp_path)), "toy", 1).findings]
    assert "its content digest is not that of its rows" in told


def test_verify_of_a_tag_or_pin_of_nothing_is_a_finding(tmp_path: Path) -> None:
    store = committed(tmp_path)
    upkeep.tag(store, "toy@1", "gold")
    upkeep.pin(store, "toy@1")
    assert verify(store, "toy").findings == ()
    tag = tmp_path / "toy" / "tags" / "gold.json"
    tag.write_text(tag.read_text().replace('"version": 1', '"version": 7'))
    (tmp_path / "toy" / "pins" / "00000001.json").write_text("{}")
    told = {f.path: f.told for f in verify(store, "toy").findings}
    assert told == {"tags/gold.json": "names version 7, which is not there", "pins/00000001.json": "is damaged"}


def test_verify_of_what_is_not_there_names_what_is(untouched: DatasetStore) -> None:
    with pytest.raises(DatasetNotFoundError, match="it has versions 1, 2"):
        verify(untouched, "toy", 9)
    with pytest.raises(DatasetNotFoundError, match="there are: toy"):
        verify(untouched, "tye")


def batches(store: DatasetStore, version: DatasetVersion) -> list[bytes]:
    rows = store.read(version, split="train")
    x = np.ascontiguousarray(rows["x"].to_numpy()[:, None])
    feed = local_feed(
        x,
        rows["y"].to_numpy(),
        row_hash=store.read_hashes(version, "train"),
        content_digest=version.content_digest,
        split="train",
        batch_size=16,
        data_seed=3,
    )
    return [a.numpy().tobytes() + b.numpy().tobytes() for epoch in (0, 1) for a, b in feed.epoch(epoch)]


def test_maintenance_by_delta_leaves_every_byte_digest_and_batch(tmp_path: Path) -> None:
    store = committed(tmp_path)
    versions = store.history("toy")
    before = [batches(store, v) for v in versions]
    delta = DeltaTable(versions[-1].uri)
    delta.optimize.z_order(["x"])
    delta.optimize.compact()
    delta.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=True)
    assert delta.vacuum(dry_run=False) == []
    delta.create_checkpoint()
    fresh = DatasetStore(store.root.uri)
    assert fresh.history("toy") == versions
    assert [batches(fresh, v) for v in fresh.history("toy")] == before
    assert verify(fresh, "toy").findings == ()
    assert fresh.append("toy", table(90, 95)).version.version == 3
    assert verify(fresh, "toy").findings == ()


def test_log_entries_by_other_engines_hold_no_values_of_columns(tmp_path: Path) -> None:
    store = committed(tmp_path)
    DeltaTable(store.resolve("toy").uri).optimize.z_order(["x"])
    log = sorted((tmp_path / "toy" / "table" / "_delta_log").glob("*.json"))[-1].read_text()
    assert "OPTIMIZE" in log
    stats = [json.loads(json.loads(line)["add"]["stats"]) for line in log.splitlines() if '"add"' in line]
    assert stats
    assert not any(s.get("minValues") or s.get("maxValues") for s in stats)


def test_version_of_an_older_tiltyard_is_checked_as_far_as_its_record_goes(tmp_path: Path) -> None:
    """As schema version 1 was written: no seal, no digest of the record in the log, none of the profile in the record."""
    store = DatasetStore(str(tmp_path))
    version = store.commit("toy", table(0, 60), spec=SPEC).version
    folder = tmp_path / "toy"
    newer = ("profile_sha256", "successor_of", "beside")
    data = {k: v for k, v in version.to_json().items() if k not in newer} | {"schema_version": 1}
    log = folder / "table" / "_delta_log" / f"{0:020d}.json"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    staged = folder / "staged" / lines[0]["commitInfo"]["tiltyard.record"]
    del lines[0]["commitInfo"]["tiltyard.record_sha256"]
    log.write_text("\n".join(map(json.dumps, lines)))
    record = folder / "versions" / "00000001.json"
    for copy in (record, staged):
        copy.write_text(json.dumps(data, indent=1))
    (folder / "versions" / "00000001.seal").unlink()
    found = verify(DatasetStore(str(tmp_path)), "toy")
    assert found.findings == ()
    assert ["seal" in note for note in found.notes] == [True, False]
    assert "no digest of the profile" in found.notes[1]
    record.write_text(record.read_text().replace('"message": ""', '"message": "x"'))
    (finding,) = verify(DatasetStore(str(tmp_path)), "toy").findings
    assert "is not as its staged copy" in finding.told
    assert DatasetStore(str(tmp_path)).append("toy", table(60, 70)).version.version == 2
