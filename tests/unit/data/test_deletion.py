"""Deletion by key: no byte of the person is left, what must stay has a successor, and a killed deletion is finished."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from tiltyard.data import deletion, lifecycle, upkeep
from tiltyard.data.store import DatasetStore
from tiltyard.data.verify import verify
from tiltyard.data.versions import Check, DatasetSpec
from tiltyard.errors import CommitConflictError, DataError, SpecError
from tiltyard.types import Task

SPEC = DatasetSpec(
    task=Task.BINARY,
    label="y",
    key="id",
    checks=(Check(kind="range", column="income", params={"max": 100.0}, severity="warning"),),
)
PERSON = 17
MARKS = (b"zebulon quark", struct.pack("<d", 123456.789012), b"123456.789012")


def people(start: int, stop: int) -> pa.Table:
    """Rows of persons; number 17 has a name, and an income that no check lets pass."""
    ids = np.arange(start, stop)
    income = np.where(ids == PERSON, 123456.789012, np.sin(ids))
    names = ["zebulon quark" if i == PERSON else f"person {i % 4}" for i in ids]
    return pa.table({"id": ids, "income": income, "name": names, "y": ids % 2})


def files_with_the_person(root: Path) -> list[str]:
    return [
        str(p.relative_to(root))
        for p in sorted(root.rglob("*"))
        if p.is_file() and any(mark in p.read_bytes() for mark in MARKS)
    ]


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    """Versions 1 (without the person), 2 tagged, 3, 4 pinned, 5 the newest."""
    store = DatasetStore(str(tmp_path / "data"))
    store.commit("people", people(0, 10), spec=SPEC)
    for stop in (60, 70, 80, 90):
        store.commit("people", people(0, stop))
    upkeep.tag(store, "people@2", "gold")
    upkeep.pin(store, "people@4", reason="audit")
    return store


def ids(store: DatasetStore, ref: str) -> list[int]:
    return sorted(store.read(ref, columns=["id"])["id"].to_pylist())


def without(stop: int) -> list[int]:
    return [i for i in range(stop) if i != PERSON]


def test_deletion_leaves_no_byte_of_the_person_and_successors_where_versions_were_kept(store: DatasetStore) -> None:
    root = Path(store.root.path)
    DeltaTable(store.resolve("people").uri).optimize.z_order(["income"])  # another engine's copy of the rows
    before = files_with_the_person(root)
    assert {f.split("/")[1] for f in before} >= {"table", "versions", "profiles", "staged"}  # warnings name the person
    done = deletion.delete(store, "people", ["17"], models={3: ("model m version 1",)})
    assert done.rows == {2: 1, 3: 1, 4: 1, 5: 1}
    assert done.successors == {2: 6, 3: 7, 4: 8, 5: 9}
    assert done.models == ("model m version 1",)
    assert done.moved == ("tag gold from version 2 to 6", "pin from version 4 to 8")
    assert files_with_the_person(root) == []
    fresh = DatasetStore(store.root.uri)
    assert fresh.resolve("people").version == 9
    assert ids(fresh, "people") == without(90)
    assert ids(fresh, "people@gold") == without(60)
    assert ids(fresh, "people@8") == without(80)
    assert ids(fresh, "people@1") == list(range(10))  # it never held the person: untouched
    assert [(v.version, v.beside, v.successor_of) for v in fresh.history("people")] == [
        (1, False, None), (6, True, 2), (7, True, 3), (8, True, 4), (9, False, 5)
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"people@2 was deleted on .* successor without those rows is people@6"):
        fresh.resolve("people@2")
    assert verify(fresh, "people").findings == ()
    assert fresh.append("people", people(90, 95)).version.version == 10
    assert ids(fresh, "people") == [*without(90), *range(90, 95)]


def test_version_that_nothing_keeps_has_no_successor_of_its_own(store: DatasetStore) -> None:
    done = deletion.delete(store, "people", [PERSON], models={})
    assert done.successors == {2: 6, 4: 7, 5: 8}
    stones = store.tombstones("people")
    assert {n: s.successor for n, s in stones.items()} == {2: 6, 3: 7, 4: 7, 5: 8}  # 3: that of the next one kept
    assert "17" not in json.dumps([s.reason for s in stones.values()])


def test_rows_of_others_stay_in_their_split_and_order(store: DatasetStore) -> None:
    before = store.read("people", split="train")
    kept = before.filter(pa.array(before["id"].to_numpy() != PERSON))
    deletion.delete(store, "people", ["17"], models={})
    assert store.read("people", split="train").equals(kept)


def test_deletion_in_one_older_version_leaves_the_newest_alone(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    store.commit("people", people(0, 60), spec=SPEC)
    newest = store.commit("people", people(20, 90)).version
    upkeep.tag(store, "people@1", "gold")
    done = deletion.delete(store, "people", ["17"], models={})
    assert done.successors == {1: 3}
    assert DatasetStore(str(tmp_path)).resolve("people") == newest  # 3 stands beside the line
    upkeep.untag(store, "people", "gold")
    assert upkeep.gc(store, "people", others={}, yes=True).removed == (3,)
    assert store.append("people", people(90, 91)).version.version == 4  # a number is never given twice
    assert files_with_the_person(tmp_path) == []


def test_class_that_loses_its_last_row_stays_declared(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    ids = np.arange(40)
    store.commit("rare", {"id": ids, "x": np.sin(ids), "y": (ids == 7).astype(int)}, spec=SPEC_PLAIN)
    deletion.delete(store, "rare", ["7"], models={})
    assert store.resolve("rare").classes == (0, 1)
    assert set(store.read("rare")["y"].to_pylist()) == {0}


SPEC_PLAIN = DatasetSpec(task=Task.BINARY, label="y", key="id")


def test_deletion_whose_check_fails_on_what_is_left_is_not_held_up(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    spec = DatasetSpec(key="id", checks=(Check(kind="row_count", params={"min": 30}),))
    store.commit("small", {"id": np.arange(30)}, spec=spec)
    deletion.delete(store, "small", ["3"], models={})
    assert store.resolve("small").warnings == ("row_count: 29 rows, wanted 30 to inf",)


@pytest.mark.parametrize(
    ("values", "options", "error", "told"),
    [
        (["170"], {}, DataError, "No version of 'people' has rows whose 'id'"),
        (["ann"], {}, SpecError, "'id' of people@5 is int64, and a value does not fit"),
        (["1"], {"column": "ident"}, SpecError, "no column 'ident'"),
        ([], {}, SpecError, "No value"),
        ([str(i) for i in range(90)], {}, DataError, "a version needs a row"),
    ],
)
def test_deletion_that_cannot_be_meant_changes_nothing(
    store: DatasetStore, values: list[str], options: dict[str, Any], error: type[Exception], told: str
) -> None:
    before = {p: p.read_bytes() for p in Path(store.root.path).rglob("*") if p.is_file()}
    with pytest.raises(error, match=told):
        deletion.delete(store, "people", values, models={}, **options)
    assert {p: p.read_bytes() for p in Path(store.root.path).rglob("*") if p.is_file()} == before


def test_deletion_by_another_column_tells_which_versions_lack_it(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    store.commit("cards", {"id": np.arange(20)}, spec=DatasetSpec(key="id"))
    store.commit("cards", {"id": np.arange(20), "owner": ["ann", "bob"] * 10})
    done = deletion.delete(store, "cards", ["ann"], column="owner", models={})
    assert (done.rows, done.unknown) == ({2: 10}, (1,))


def test_append_that_lands_during_a_deletion_is_kept_and_cleared(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = DatasetStore.succeed
    calls: list[int] = []

    def late(self: DatasetStore, old: Any, *args: Any) -> Any:
        calls.append(old.version)
        if old.version == 5:  # the newest as it was: somebody appends on top of it just now
            DatasetStore(store.root.uri).append("people", people(200, 210))
        return real(self, old, *args)

    monkeypatch.setattr(DatasetStore, "succeed", late)
    done = deletion.delete(store, "people", ["17"], models={})
    assert calls[-1] > 5
    assert ids(store, "people") == [*without(90), *range(200, 210)]
    assert set(done.rows) == {2, 3, 4, 5, calls[-1]}
    assert files_with_the_person(Path(store.root.path)) == []
    monkeypatch.undo()
    with pytest.raises(CommitConflictError):
        store.commit("people", people(0, 5), expect_parent=5)


def test_deletions_and_appends_at_once_lose_nobody_and_forget_all_who_asked(store: DatasetStore) -> None:
    failures: list[str] = []

    def work(number: int) -> None:
        try:
            mine = DatasetStore(store.root.uri)
            if number < 4:
                deletion.delete(mine, "people", [str(15 + number)], models={})
            else:
                mine.append("people", people(100 * number, 100 * number + 5))
        except BaseException:  # shown below
            failures.append(traceback.format_exc())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "\n".join(failures)
    fresh = DatasetStore(store.root.uri)
    deleted = {15, 16, 17, 18}
    assert ids(fresh, "people") == [*(i for i in range(90) if i not in deleted), *range(400, 405), *range(500, 505)]
    assert ids(fresh, "people@gold") == [i for i in range(60) if i not in deleted]
    for version in fresh.history("people"):
        assert not deleted & set(ids(fresh, str(version.ref)))
    assert files_with_the_person(Path(store.root.path)) == []
    assert verify(fresh, "people").findings == ()


KILLED = """
import os, signal, sys
from tiltyard.data import deletion, upkeep
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore

root, where = sys.argv[1:]

def dies_at(owner, name, call, before=True):
    real, calls = getattr(owner, name), []
    def wrapped(*args, **kwargs):
        calls.append(1)
        if before and len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

store = DatasetStore(root)
if where == "successors":     # one of three is published
    dies_at(DatasetStore, "succeed", 2)
elif where == "names":        # all are published, tags and pins still name the old ones
    dies_at(upkeep, "move_names", 1)
elif where == "tombstones":   # two of four stand
    dies_at(upkeep, "entomb", 3)
elif where == "files":        # some files are gone
    real = upkeep.sweep
    def sweep(*args, **kwargs):
        dies_at(Place, "remove", 4)
        return real(*args, **kwargs)
    upkeep.sweep = sweep
deletion.delete(store, "people", ["17"], models={})
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["successors", "names", "tombstones", "files"])
def test_deletion_killed_in_the_middle_is_finished_by_the_next_call(store: DatasetStore, where: str) -> None:
    root = Path(store.root.path)
    command = [sys.executable, "-c", textwrap.dedent(KILLED), store.root.uri, where]
    done = subprocess.run(command, check=False, capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    fresh = DatasetStore(store.root.uri)
    assert ids(fresh, "people") in (list(range(90)), without(90))  # whoever reads meanwhile reads a whole version
    assert ids(fresh, "people@gold") in (list(range(60)), without(60))
    assert any("deletion of" in f.told for f in verify(fresh, "people").findings)
    (finished,) = deletion.finish(fresh, "people", models={})
    assert finished.files.waiting == {}
    assert files_with_the_person(root) == []
    assert ids(fresh, "people") == without(90)
    assert ids(fresh, "people@gold") == without(60)
    assert [v.num_rows for v in fresh.history("people")] == [10, 59, 79, 89]  # each successor once
    assert verify(fresh, "people").findings == ()
    assert not list((root / "people" / "deletions").iterdir())
    assert deletion.finish(fresh, "people", models={}) == []


def test_plan_of_a_deletion_publishes_the_newest_last_and_nothing_twice() -> None:
    plan = lifecycle.plan_deletion({2, 3, 5}, {1, 2, 5}, 5, {})
    assert (plan.publish, plan.bury, plan.standing) == ((2, 5), (2, 3, 5), {})
    again = lifecycle.plan_deletion({2, 3, 5}, {2, 5}, 5, {6: 2, 7: 1})
    assert (again.publish, again.standing) == ((5,), {2: 6})
    assert lifecycle.plan_deletion({2, 6}, {2, 6}, 9, {6: 2}).publish == (2, 6)  # a successor that holds them too
    assert [lifecycle.successor_for(n, {2: 6, 5: 7}, 7) for n in (1, 2, 3, 5, 8)] == [6, 6, 7, 7, 7]
