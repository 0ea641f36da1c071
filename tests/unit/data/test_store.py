"""The store of versions: commit, append, resolve, history; concurrent and killed writers; maintenance by others."""

from __future__ import annotations

import datetime as dt
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import Card, Check, DatasetRef, DatasetSpec, DatasetVersion, SplitSpec
from tiltyard.errors import CommitConflictError, DataError, DatasetNotFoundError, SpecError
from tiltyard.types import Task

SPEC = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")


def table(start: int, stop: int) -> pa.Table:
    numbers = np.arange(start, stop)
    return pa.table({"id": numbers, "x": np.sin(numbers).astype(np.float32), "y": numbers % 3})


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(str(tmp_path / "data"))


def ids(store: DatasetStore, version: DatasetVersion | str) -> list[int]:
    return sorted(store.read(version, columns=["id"])["id"].to_pylist())


def test_commit_of_new_content_makes_numbered_versions_that_stay(store: DatasetStore) -> None:
    first = store.commit("toy", table(0, 100), spec=SPEC, message="first")
    second = store.commit("toy", table(0, 150), message="more")
    assert (first.created, second.created) == (True, True)
    assert [(v.version, v.num_rows, v.parent, v.message) for v in store.history("toy")] == [
        (1, 100, None, "first"),
        (2, 150, 1, "more"),
    ]
    assert ids(store, "toy@1") == list(range(100))
    assert ids(store, "toy") == list(range(150))
    assert second.version.spec == SPEC  # kept where none is given
    assert first.version.content_digest != second.version.content_digest


def test_commit_of_the_same_content_in_another_order_makes_no_version(store: DatasetStore) -> None:
    first = store.commit("toy", table(0, 100), spec=SPEC)
    shuffled = table(0, 100).take(np.random.default_rng(0).permutation(100)).select(["y", "x", "id"])
    again = store.commit("toy", shuffled, spec=SPEC)
    assert (again.created, again.version) == (False, first.version)
    assert len(store.history("toy")) == 1


def test_commit_of_the_same_rows_under_another_spec_makes_a_version_of_the_same_content(store: DatasetStore) -> None:
    first = store.commit("toy", table(0, 100), spec=SPEC)
    card = DatasetSpec(task=Task.MULTICLASS, label="y", key="id", card=Card(licence="CC0"))
    second = store.commit("toy", table(0, 100), spec=card)
    assert second.created
    assert second.version.content_digest == first.version.content_digest
    other_split = store.commit(
        "toy", table(0, 100), spec=DatasetSpec(task=Task.MULTICLASS, label="y", split=SplitSpec(seed=1))
    )
    assert other_split.version.content_digest != first.version.content_digest


@given(
    cuts=st.lists(st.integers(1, 59), max_size=4, unique=True),
    order=st.randoms(use_true_random=False),
    compression=st.sampled_from(["none", "zstd"]),
)
@settings(max_examples=10, deadline=None)
def test_content_digest_of_any_files_and_order_is_the_same(
    cuts: list[int], order: Any, compression: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("shards")
    numbers = list(range(60))
    order.shuffle(numbers)
    shuffled = table(0, 60).take(numbers)
    bounds = [0, *sorted(cuts), 60]
    for i in range(len(bounds) - 1):
        pq.write_table(
            shuffled.slice(bounds[i], bounds[i + 1] - bounds[i]), folder / f"{i}.parquet", compression=compression
        )
    found = DatasetStore(str(folder / "store")).commit("toy", str(folder / "*.parquet"), spec=SPEC).version
    plain = DatasetStore(str(folder / "other")).commit("toy", table(0, 60), spec=SPEC).version
    assert found.content_digest == plain.content_digest
    assert found.files_digest == plain.files_digest  # the same rows are the same bytes


def test_read_of_a_version_gives_canonical_order_columns_splits_and_limits(store: DatasetStore) -> None:
    version = store.commit("toy", table(0, 500), spec=SPEC).version
    train = store.read(version, split="train")
    assert train.column_names == ["id", "x", "y"]
    hashes = rows.row_lanes(train)[0]
    assert (np.diff(hashes) >= 0).all()
    np.testing.assert_array_equal(hashes, store.read_hashes(version, "train"))
    assert train.num_rows == version.split_rows["train"]
    assert store.read(version, columns=["y", "id"]).column_names == ["y", "id"]
    assert store.read(version, split="train", limit=7).equals(train.slice(0, 7))
    assert sum(version.split_rows.values()) == 500


def test_resolve_of_what_is_not_there_names_what_is(store: DatasetStore) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"none yet.*tiltyard data commit toy"):
        store.resolve("toy")
    for stop in (10, 20, 30):
        store.commit("toy", table(0, stop), spec=SPEC)
    assert store.resolve(DatasetRef("toy", 2)).num_rows == 20
    assert store.resolve("toy").version == 3
    with pytest.raises(DatasetNotFoundError, match="no version 7; it has versions 1 to 3"):
        store.resolve("toy@7")
    with pytest.raises(DatasetNotFoundError, match=r"no dataset 'tye'.*there are: toy"):
        store.history("tye")
    with pytest.raises(DatasetNotFoundError, match="no column 'z'; it has id, x, y"):
        store.read("toy", columns=["z"])
    with pytest.raises(DatasetNotFoundError, match="no split 'dev'"):
        store.read("toy", split="dev")
    with pytest.raises(SpecError, match="is not a name"):
        store.commit("Not A Name", table(0, 10))


def test_append_puts_rows_on_top_and_moves_no_old_row(store: DatasetStore) -> None:
    store.commit("toy", table(0, 200), spec=SPEC)
    before = {
        s: set(store.read("toy@1", columns=["id"], split=s)["id"].to_pylist()) for s in ("train", "validation", "test")
    }
    added = store.append("toy", table(200, 260).select(["y", "id", "x"]), message="night")
    assert (added.created, added.version.version, added.version.num_rows) == (True, 2, 260)
    for split, old in before.items():
        assert old <= set(store.read("toy", columns=["id"], split=split)["id"].to_pylist())
    assert ids(store, "toy@1") == list(range(200))


def test_append_of_other_columns_or_types_is_refused_with_the_difference(store: DatasetStore) -> None:
    with pytest.raises(DatasetNotFoundError):
        store.append("toy", table(0, 10))
    store.commit("toy", table(0, 10), spec=SPEC)
    with pytest.raises(DataError, match=r"lack columns \['x'\] and bring new ones \['w'\]"):
        store.append("toy", table(10, 20).rename_columns(["id", "w", "y"]))
    with pytest.raises(DataError, match="Column 'y' of the rows to append is string"):
        store.append("toy", table(10, 20).set_column(2, "y", pa.array(["no"] * 10)))
    assert len(store.history("toy")) == 1


def test_commit_with_an_expected_parent_that_is_no_longer_newest_is_a_conflict(store: DatasetStore) -> None:
    store.commit("toy", table(0, 10), spec=SPEC, expect_parent=0)
    store.commit("toy", table(0, 20), expect_parent=1)
    with pytest.raises(CommitConflictError, match="at version 2, not at 1"):
        store.commit("toy", table(0, 30), expect_parent=1)
    assert store.resolve("toy").num_rows == 20


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (DatasetSpec(task=Task.MULTICLASS, label="z"), "names column 'z', which the source does not have"),
        (DatasetSpec(task=Task.BINARY, label="y"), "3 classes.*exactly 2"),
        (DatasetSpec(task=Task.MULTICLASS, label="x"), "wants classes"),
        (DatasetSpec(task=Task.MULTICLASS, label="y", classes=("a",)), "values of different types"),
        (DatasetSpec(sensitive=("age",)), "names column 'age'"),
        (DatasetSpec(split=SplitSpec(stratify="age")), "names column 'age'"),
    ],
)
def test_spec_that_does_not_fit_the_rows_is_refused_before_writing(
    store: DatasetStore, spec: DatasetSpec, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        store.commit("toy", table(0, 50), spec=spec)
    assert store.names() == []


def test_version_and_spec_as_json_come_back_equal(store: DatasetStore) -> None:
    spec = DatasetSpec(
        task=Task.MULTICLASS,
        label="y",
        key=("id",),
        time="when",
        split=SplitSpec(time_cuts=("2026-01-01", "2026-02-01")),
        sensitive=("x",),
        checks=(Check(kind="allowed", column="y", params={"values": (0, 1, 2)}),),
        card=Card(known_gaps=("one",)),
    )
    assert DatasetSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    version = store.commit("toy", table(0, 30), spec=SPEC).version
    assert DatasetVersion.from_json(json.loads(json.dumps(version.to_json()))) == version
    with pytest.raises(DataError, match="schema version 99"):
        DatasetVersion.from_json({**version.to_json(), "schema_version": 99})
    with pytest.raises(SpecError, match="no field 'lable'"):
        DatasetSpec.from_json({"lable": "y"})


def test_features_leave_out_label_key_and_marked_columns(store: DatasetStore) -> None:
    source = table(0, 30).append_column("age", pa.array(range(30))).append_column("note", pa.array(["a"] * 30))
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", key="id", sensitive=("age",), ignore=("note",))
    assert store.commit("toy", source, spec=spec).version.features == ("x",)


# ---- several processes -------------------------------------------------------------------------------------------


def _append(root: str, number: int, start: Any) -> None:
    store = DatasetStore(root)
    start.wait()
    for step in range(2):
        first = 1_000 + 100 * number + 10 * step
        store.append("toy", table(first, first + 10), message=f"{number}/{step}")


def _create(root: str, number: int, start: Any) -> None:
    start.wait()
    DatasetStore(root).commit("new", table(0, 20 + number), spec=SPEC, message=str(number))


def _together(work: Any, root: str, processes: int = 8) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiltyard.data.store"])
    start = context.Barrier(processes)
    running = [context.Process(target=work, args=(root, i, start)) for i in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.slow
def test_appends_of_eight_processes_at_once_lose_nothing(store: DatasetStore) -> None:
    store.commit("toy", table(0, 50), spec=SPEC)
    _together(_append, store.root.uri)
    history = store.history("toy")
    assert [v.version for v in history] == list(range(1, 18))
    assert [v.parent for v in history] == [None, *range(1, 17)]
    added = [1_000 + 100 * n + i for n in range(8) for i in range(20)]
    assert ids(store, "toy") == sorted([*range(50), *added])
    assert {v.message for v in history[1:]} == {f"{n}/{s}" for n in range(8) for s in range(2)}
    assert [v.num_rows for v in history] == [50 + 10 * i for i in range(17)]
    assert not list((Path(store.root.path) / "toy").rglob("*.part"))


@pytest.mark.slow
def test_first_commits_of_eight_processes_at_once_all_become_versions(store: DatasetStore) -> None:
    _together(_create, store.root.uri)
    history = store.history("new")
    assert [v.version for v in history] == list(range(1, 9))
    assert sorted(v.num_rows for v in history) == [20 + n for n in range(8)]
    for version in history:
        assert ids(store, version) == list(range(version.num_rows))


KILLED = """
import os, signal, sys
import numpy as np, pyarrow as pa
import tiltyard.data.deltatable as deltatable
import tiltyard.data.store as module
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore

root, where = sys.argv[1:]
store = DatasetStore(root)
numbers = np.arange(300)
rows = pa.table({"id": numbers, "x": np.sin(numbers).astype(np.float32), "y": numbers % 3})

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "files":        # some files are written, none is referred to
    real, calls = module.parquet._write_file, []
    def second(*args):
        calls.append(1)
        return die() if len(calls) == 2 else real(*args)
    module.parquet._write_file = second
elif where == "record":     # files and staged record, no log entry
    deltatable._add_action = die
elif where == "published":  # the log entry is there, the record is not copied yet
    DatasetStore._publish_record = die
store.commit("toy", rows)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["files", "record", "published"])
def test_commit_killed_in_the_middle_leaves_the_last_version_whole(store: DatasetStore, where: str) -> None:
    first = store.commit("toy", table(0, 100), spec=SPEC).version
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), store.root.uri, where], check=False, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    fresh = DatasetStore(store.root.uri)
    expected = 2 if where == "published" else 1  # what passed the commit point is finished by the next reader
    assert fresh.resolve("toy").version == expected
    assert fresh.resolve("toy@1") == first
    assert ids(fresh, "toy@1") == list(range(100))
    assert ids(fresh, "toy") == list(range(300 if where == "published" else 100))
    third = fresh.commit("toy", table(0, 120))
    assert (third.created, third.version.version) == (True, expected + 1)


@pytest.mark.slow
def test_commits_killed_at_random_times_never_leave_a_broken_version(store: DatasetStore) -> None:
    store.commit("toy", table(0, 40), spec=SPEC)
    code = (
        "import sys, numpy as np, pyarrow as pa\n"
        "from tiltyard.data.store import DatasetStore\n"
        "store = DatasetStore(sys.argv[1]); print('ready', flush=True)\n"
        "for stop in range(41, 10_000):\n"
        "    n = np.arange(stop)\n"
        "    store.commit('toy', pa.table({'id': n, 'x': np.sin(n).astype(np.float32), 'y': n % 3}))\n"
    )
    rng = np.random.default_rng(7)
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code, store.root.uri], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.05, 0.3))  # any moment will do: this is the point
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
    history = DatasetStore(store.root.uri).history("toy")
    assert [v.version for v in history] == list(range(1, len(history) + 1))
    for version in history[-3:]:
        assert ids(store, version) == list(range(version.num_rows))


# ---- maintenance by other engines --------------------------------------------------------------------------------


def test_vacuum_and_compaction_by_delta_change_no_version(store: DatasetStore) -> None:
    first = store.commit("toy", table(0, 200), spec=SPEC).version
    second = store.commit("toy", table(0, 300)).version
    read = [store.read(v) for v in (first, second)]
    delta = DeltaTable(first.uri)
    delta.optimize.z_order(["x"])  # rewrites every file, as a compaction of many small ones would
    delta.optimize.compact()
    assert delta.vacuum(dry_run=False) == []  # the table says that nothing is old enough, ever
    assert DeltaTable(first.uri).version() > second.delta_version
    fresh = DatasetStore(store.root.uri)
    assert fresh.history("toy") == [first, second]
    assert [fresh.read(v).equals(t) for v, t in zip((first, second), read, strict=True)] == [True, True]
    third = fresh.commit("toy", table(0, 310))
    assert (third.version.version, third.version.num_rows) == (3, 310)
    assert fresh.commit("toy", table(0, 310)).created is False


def test_delta_table_of_a_version_is_readable_by_any_engine(store: DatasetStore) -> None:
    version = store.commit("toy", table(0, 90), spec=SPEC).version
    store.commit("toy", table(0, 95))
    plain = DeltaTable(version.uri, version=version.delta_version).to_pyarrow_table()
    assert sorted(plain["id"].to_pylist()) == list(range(90))
    assert set(plain[rows.SPLIT].to_pylist()) == {"train", "validation", "test"}


# ---- a commit that does not go as it should ----------------------------------------------------------------------


def _files(store: DatasetStore) -> list[Path]:
    return sorted(p for p in Path(store.root.path).rglob("*") if p.is_file())


def test_commit_whose_disk_fills_says_so_and_leaves_no_file(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit("toy", table(0, 100), spec=SPEC)
    before = _files(store)
    real = Place.open_output
    opened: list[Any] = []

    def full(place: Place) -> Any:
        if len(opened) == 2:
            raise OSError(28, "No space left on device")
        opened.append(real(place))
        return opened[-1]

    monkeypatch.setattr(Place, "open_output", full)
    with pytest.raises(DataError, match=r"No space left on device.*disk is full"):
        store.commit("toy", table(0, 200))
    assert len(opened) == 2
    assert _files(store) == before


@pytest.mark.parametrize("damage", ["log", "record"])
def test_table_that_is_broken_is_told_with_how_to_look_and_takes_no_commit(store: DatasetStore, damage: str) -> None:
    store.commit("toy", table(0, 100), spec=SPEC)
    root = Path(store.root.path) / "toy"
    if damage == "log":
        (root / "table/_delta_log/00000000000000000000.json").write_text("{bad")
    else:
        for folder in ("staged", "versions"):
            for file in (root / folder).iterdir():
                file.unlink()
    before = _files(store)
    with pytest.raises(DataError, match=r"tiltyard data verify toy") as caught:
        DatasetStore(store.root.uri).append("toy", table(100, 120))
    assert len(str(caught.value).splitlines()) == 1
    assert _files(store) == before


def test_append_answered_as_conflict_though_it_landed_is_not_done_twice(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit("toy", table(0, 50), spec=SPEC)
    real = DeltaTable.create_write_transaction

    def lost_answer(self: DeltaTable, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        monkeypatch.undo()
        raise CommitFailedError("the retried request found that the entry exists")  # S3 after a lost answer

    monkeypatch.setattr(DeltaTable, "create_write_transaction", lost_answer)
    added = store.append("toy", table(50, 60))
    assert (added.created, added.version.version) == (True, 2)
    assert ids(store, "toy") == list(range(60))
    assert [v.num_rows for v in DatasetStore(store.root.uri).history("toy")] == [50, 60]


def test_version_with_dates_after_one_without_leaves_a_table_that_can_be_opened(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    days = pa.array([dt.datetime(2026, 1, 1 + i) for i in range(20)], pa.timestamp("us"))
    plain = {"id": np.arange(20), "x": np.arange(20.0)}
    store.commit("d", plain)
    assert store.commit("d", pa.table({**plain, "day": days})).version.version == 2
    assert store.append("d", pa.table({"id": [20], "x": [1.0], "day": days[:1]})).version.num_rows == 21
    assert store.commit("d", plain).version.version == 4
    assert store.read("d@2", columns=["day"])["day"].type == pa.timestamp("us")
    assert len(store.current_files("d")) == len(store.resolve("d").files)


def test_home_that_was_moved_reads_its_own_files(store: DatasetStore, tmp_path: Path) -> None:
    store.commit("toy", table(0, 50), spec=SPEC)
    moved = tmp_path / "elsewhere"
    Path(store.root.path).rename(moved)
    there = DatasetStore(str(moved))
    assert ids(there, "toy") == list(range(50))
    assert there.append("toy", table(50, 60)).version.num_rows == 60
    assert [v.uri for v in there.history("toy")] == [str(moved / "toy/table")] * 2
