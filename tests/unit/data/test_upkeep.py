"""Tags, pins and what is removed: never what somebody needs, always with a reason, and only when told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import deletion, upkeep
from tiltyard.data.lifecycle import Pin, Tag, Tombstone, keepers
from tiltyard.data.store import DatasetStore
from tiltyard.data.verify import verify
from tiltyard.data.versions import DatasetRef, DatasetSpec
from tiltyard.errors import DataError, DatasetNotFoundError, SpecError

SPEC = DatasetSpec(key="id")


def rows(stop: int) -> dict[str, Any]:
    return {"id": np.arange(stop), "x": np.sin(np.arange(stop))}


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    store = DatasetStore(str(tmp_path / "data"))
    for stop in (20, 30, 40, 50):
        store.commit("toy", rows(stop), spec=SPEC)
    return store


def files(store: DatasetStore) -> dict[str, bytes]:
    root = Path(store.root.path)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# ---- tags and pins ----------------------------------------------------------------------------------------------


def test_tag_names_a_version_until_it_is_moved_or_taken_away(store: DatasetStore) -> None:
    made, before = upkeep.tag(store, "toy@2", "gold", message="audited")
    assert (made.version, made.message, before) == (2, "audited", None)
    store.append("toy", {"id": np.arange(90, 95), "x": np.zeros(5)})
    assert store.resolve("toy@gold").num_rows == 30
    assert upkeep.tag(store, "toy@2", "gold")[1] == made  # again: nothing happens
    with pytest.raises(DataError, match=r"names version 2, not 5.*tiltyard data tag toy@5 gold --move"):
        upkeep.tag(store, "toy", "gold")
    moved, before = upkeep.tag(store, "toy", "gold", move=True)
    assert (moved.version, moved.before, before) == (5, (2,), made)
    assert DatasetStore(store.root.uri).resolve("toy@gold").version == 5
    assert upkeep.untag(store, "toy", "gold") == moved
    with pytest.raises(DatasetNotFoundError, match="no tag 'gold'; its tags: none"):
        store.resolve("toy@gold")
    with pytest.raises(DatasetNotFoundError, match="its tags: none"):
        upkeep.untag(store, "toy", "gold")


@pytest.mark.parametrize("label", ["7", "Gold", "../x", "", "a/b"])
def test_tag_that_is_no_name_is_refused(store: DatasetStore, label: str) -> None:
    before = files(store)
    with pytest.raises(SpecError):
        upkeep.tag(store, "toy@1", label)
    if label not in ("7", ""):
        with pytest.raises(SpecError):
            store.resolve(f"toy@{label}")
    assert files(store) == before


def test_pin_of_what_is_not_pinned_or_not_there_is_refused(store: DatasetStore) -> None:
    assert upkeep.pin(store, DatasetRef("toy", 2), reason="paper").version == 2
    assert [(p.version, p.reason) for p in upkeep.pins(store, "toy")] == [(2, "paper")]
    assert upkeep.unpin(store, "toy@2").reason == "paper"
    with pytest.raises(DatasetNotFoundError, match="toy@2 is not pinned; pinned versions of 'toy': none"):
        upkeep.unpin(store, "toy@2")
    with pytest.raises(DatasetNotFoundError, match="no version 9"):
        upkeep.pin(store, "toy@9")


def test_stored_forms_come_back_and_newer_or_damaged_ones_are_refused() -> None:
    stone = Tombstone(
        name="toy", version=1, kind="removed", at="2026-11-25", reason="old", successor=None, content_digest="d",
        num_rows=1, committed_at="2026", files=("a", "b"),
    )  # fmt: skip
    for value in (Tag(name="gold", version=1, at="t", before=(3, 4)), Pin(version=1, at="t"), stone):
        assert type(value).from_json(value.to_json()) == value
        with pytest.raises(DataError, match="schema version 2"):
            type(value).from_json({**value.to_json(), "schema_version": 2})
        with pytest.raises(DataError, match="damaged"):
            type(value).from_json({"schema_version": 1})
        with pytest.raises(DataError, match="damaged"):
            type(value).from_json([])


# ---- gc ---------------------------------------------------------------------------------------------------------


def test_gc_keeps_what_is_named_pinned_needed_or_newest_and_says_why(store: DatasetStore) -> None:
    upkeep.tag(store, "toy@1", "gold")
    upkeep.pin(store, "toy@2", reason="paper")
    before = files(store)
    seen = upkeep.gc(store, "toy", others={})
    assert (seen.removed, seen.done) == ((3,), False)
    assert seen.kept == {1: ("tag gold",), 2: ("pin (paper)",), 4: ("the newest",)}
    assert files(store) == before  # only looked at
    assert upkeep.gc(store, "toy", others={3: ("model m version 1",)}, yes=True).removed == ()
    assert upkeep.gc(store, "toy", others={}, keep_last=2, yes=True).removed == ()
    assert files(store) == before
    done = upkeep.gc(store, "toy", others={}, reason="to make room", yes=True)
    assert (done.removed, done.files.free_bytes) == ((3,), seen.files.free_bytes)
    gone = {k: len(v) for k, v in before.items() if k not in files(store)}
    assert {f"toy/{path}": size for path, size in done.files.free.items()} == gone
    fresh = DatasetStore(store.root.uri)
    assert [v.version for v in fresh.history("toy")] == [1, 2, 4]
    with pytest.raises(DataError, match=r"toy@3 was removed on .*: to make room. The newest version is toy@4"):
        fresh.read("toy@3")
    assert verify(fresh, "toy").findings == ()
    assert upkeep.gc(store, "toy", others={}, yes=True).files.free == {}


def test_gc_killed_after_its_tombstone_is_finished_by_the_next(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: Any, **__: Any) -> None:
        raise KilledError

    monkeypatch.setattr(upkeep, "sweep", die)
    with pytest.raises(KilledError):
        upkeep.gc(store, "toy", others={}, yes=True)
    monkeypatch.undo()
    assert {f.ref for f in verify(store, "toy").findings} == {"toy@1", "toy@2", "toy@3"}
    assert upkeep.gc(store, "toy", others={}, yes=True).files.free_bytes > 0
    assert verify(store, "toy").findings == ()


def test_tag_that_comes_while_gc_removes_wins_and_one_that_comes_after_is_refused(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = upkeep.entomb

    def meets(the_store: DatasetStore, version: Any, **options: Any) -> Any:
        if version.version == 2:  # a tag is written between the plan and the tombstone
            upkeep.tag(DatasetStore(store.root.uri), "toy@2", "late")
        return real(the_store, version, **options)

    monkeypatch.setattr(upkeep, "entomb", meets)
    done = upkeep.gc(store, "toy", others={}, yes=True)
    assert (done.removed, done.kept[2]) == ((1, 3), ("a tag or pin that came meanwhile",))
    assert store.resolve("toy@late").num_rows == 30
    monkeypatch.undo()
    known = DatasetStore(store.root.uri)
    where = Path(store.root.path) / "toy" / "tombstones"
    resolve = DatasetStore.resolve

    def late_stone(self: DatasetStore, ref: Any) -> Any:
        found = resolve(self, ref)
        if found.version == 2 and not (where / "00000002.json").exists():
            real(store, found, kind="removed", reason="r", successor=4)
        return found

    upkeep.untag(store, "toy", "late")
    monkeypatch.setattr(DatasetStore, "resolve", late_stone)
    with pytest.raises(DataError, match="toy@2 was removed"):
        upkeep.pin(known, "toy@2")
    assert upkeep.pins(store, "toy") == []


def test_files_of_a_commit_that_died_go_when_old_and_wait_while_young(store: DatasetStore) -> None:
    folder = Path(store.root.path) / "toy"
    strays = ["table/tiltyard_split=train/dead-00000.parquet", "profiles/dead.json", "staged/dead.json"]
    for stray in strays:
        (folder / stray).write_bytes(b"1234")
    (folder / "NOTES.md").write_text("of a person")
    found = upkeep.gc(store, "toy", others={}, keep_last=9, yes=True)
    assert (found.files.free, found.files.waiting) == ({}, dict.fromkeys(strays, 4))
    old = time.time() - 25 * 3600
    for stray in strays[:2]:
        os.utime(folder / stray, (old, old))
    found = upkeep.gc(store, "toy", others={}, keep_last=9, yes=True)
    assert (set(found.files.free), set(found.files.waiting)) == (set(strays[:2]), {strays[2]})
    assert (folder / "NOTES.md").exists()
    assert verify(store, "toy").findings == ()


def test_gc_where_a_record_is_damaged_removes_nothing(store: DatasetStore) -> None:
    (Path(store.root.path) / "toy" / "versions" / "00000002.json").write_text("{}")
    before = files(store)
    with pytest.raises(DataError, match="damaged"):
        upkeep.gc(DatasetStore(store.root.uri), "toy", others={}, yes=True)
    assert files(store) == before


@given(
    tags=st.sets(st.integers(1, 6)), pins=st.sets(st.integers(1, 6)), others=st.sets(st.integers(1, 6)),
    keep_last=st.integers(1, 7),
)  # fmt: skip
def test_keepers_of_any_names_are_those_and_the_last(
    tags: set[int], pins: set[int], others: set[int], keep_last: int
) -> None:
    found = keepers(
        {1, 2, 3, 4, 5}, 5, [Tag(name=f"t{v}", version=v, at="") for v in tags], [Pin(version=v, at="") for v in pins],
        dict.fromkeys(others, ("model",)), keep_last,
    )  # fmt: skip
    assert set(found) == {5} | ((tags | pins | others | set(range(6 - keep_last, 6))) & {1, 2, 3, 4, 5})


# ---- any life ---------------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("commit"), st.integers(10, 40)),
    st.tuples(st.just("tag"), st.integers(0, 9)),
    st.tuples(st.just("untag"), st.just(0)),
    st.tuples(st.just("pin"), st.integers(0, 9)),
    st.tuples(st.just("delete"), st.integers(0, 30)),
    st.tuples(st.just("gc"), st.integers(1, 2)),
)


@given(steps=st.lists(STEPS, min_size=3, max_size=9))
@settings(max_examples=12, deadline=None)
def test_any_life_of_a_dataset_keeps_what_is_named_and_forgets_what_was_deleted(
    steps: list[tuple[str, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = DatasetStore(str(tmp_path_factory.mktemp("life")))
    store.commit("toy", rows(35), spec=SPEC)
    content = {1: set(range(35))}  # the model: version to the keys it holds
    named: dict[str, int] = {}
    pinned: set[int] = set()
    numbers = {1}
    for what, n in steps:
        living = sorted(content)
        chosen = living[n % len(living)]
        if what == "commit":
            made = store.commit("toy", rows(n)).version
            content[made.version] = set(range(n))
            assert made.version not in numbers - {store.resolve("toy").version}
        elif what == "tag":
            upkeep.tag(store, f"toy@{chosen}", "gold", move=True)
            named["gold"] = chosen
        elif what == "untag" and named:
            upkeep.untag(store, "toy", "gold")
            named.clear()
        elif what == "pin":
            upkeep.pin(store, f"toy@{chosen}")
            pinned.add(chosen)
        elif what == "gc":
            for gone in upkeep.gc(store, "toy", others={}, keep_last=n, yes=True).removed:
                assert gone not in pinned | set(named.values())
                del content[gone]
        elif what == "delete" and any(n in keys for keys in content.values()):
            done = deletion.delete(store, "toy", [n], models={})
            assert set(done.rows) == {v for v, keys in content.items() if n in keys}
            for old, new in done.successors.items():
                content[new] = content[old] - {n}
            use = {old: store.tombstones("toy")[old].successor for old in done.rows}
            named = {tag: use.get(v, v) or 0 for tag, v in named.items()}
            pinned = {use.get(v, v) or 0 for v in pinned}
            content = {v: keys for v, keys in content.items() if v not in done.rows}
        numbers |= set(content)
        fresh = DatasetStore(store.root.uri)
        assert {v.version for v in fresh.history("toy")} == set(content)
        for version, keys in content.items():
            assert set(fresh.read(f"toy@{version}", columns=["id"])["id"].to_pylist()) == keys
        assert {t: fresh.resolve(f"toy@{t}").version for t in named} == named
        assert {p.version for p in upkeep.pins(fresh, "toy")} == pinned
    assert verify(store, "toy").findings == ()
