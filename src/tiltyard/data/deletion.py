"""Deletes a person's rows by key: from every version, and from the disk.

Versions that would be kept (`tiltyard.data.lifecycle`) get a successor without the rows: the newest one as the new newest,
the others beside the line, where tags and pins follow. Then every version that held the rows becomes a tombstone, and its
files go: data, record, profile, card. What was begun is written down first (with the keys, until it is done), so that a
deletion that died is finished by the next one, or by ``tiltyard data gc --yes``.

What evaluations kept of the rows is `tiltyard.evaluation.erasure`'s to take away; ``tiltyard data delete`` asks both. What this
cannot reach: models that learned from the rows (they are listed), copies that were exported, old object versions in a bucket
that keeps them, and the digests that remain, by which somebody who knows a whole row could test a guess.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tiltyard.data import rows, upkeep
from tiltyard.data.lifecycle import Intent, plan_deletion, successor_for
from tiltyard.data.places import Place
from tiltyard.data.prepare import Prepared, prepare
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec, DatasetVersion, newest
from tiltyard.errors import CommitConflictError, DataError, SpecError
from tiltyard.progress import work
from tiltyard.types import DatasetRef, Task

ROUNDS = 16
"""Times the versions are looked through anew, where others commit meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted:
    """What a deletion did.

    Args:
        name: The dataset.
        rows: Version that held such rows to how many; all of them are tombstones now.
        successors: Version to what took its place, for versions that got one.
        moved: Tags and pins that moved, in words.
        models: Registered models that learned from such a version.
        unknown: Versions that lack the key column: whether they hold the person cannot be told.
        files: What went from the disk, and what waits.
    """

    name: str
    rows: Mapping[int, int] = field(default_factory=dict)
    successors: Mapping[int, int] = field(default_factory=dict)
    moved: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    unknown: tuple[int, ...] = ()
    files: upkeep.Survey = field(default_factory=lambda: upkeep.Survey(free={}, waiting={}))


def delete(
    store: DatasetStore,
    name: str,
    values: Sequence[Any],
    *,
    column: str | None = None,
    reason: str = "",
    models: Mapping[int, Collection[str]],
) -> Deleted:
    """Deletes all rows whose key is one of some values, from all versions.

    Args:
        store: Where the dataset is.
        name: The dataset.
        values: Keys; texts will do for any type.
        column: The column they stand in; the dataset's key where it has one of one column.
        reason: Why, for the tombstones. Must not name the person.
        models: Version to the registered models that learned from it: they keep a version, and are listed.

    Raises:
        SpecError: If no column is meant, or a value does not fit it.
        DataError: If no version holds such rows, or nothing would be left of the newest version.
        CommitConflictError: If others commit faster than this can follow; call it again.
    """
    finished = finish(store, name, models=models)
    try:
        found = find(store, name, values, column=column)
    except NoSuchRowsError:
        if finished:
            return finished[-1]
        raise
    column, texts = found.column, found.values
    intent = Intent(column=column, values=texts, reason=reason or "rows were deleted by key", at=upkeep.now())
    where = store.root / name / "deletions" / f"{uuid.uuid4().hex}.json"
    where.write_json(intent.to_json())
    return _carry_out(store, name, intent, where, models)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Rows that a deletion would take: how many of each version, and which versions lack the column."""

    column: str
    values: tuple[str, ...]
    rows: Mapping[int, int]
    unknown: tuple[int, ...]


class NoSuchRowsError(DataError):
    """No version holds rows of the keys given."""


def find(store: DatasetStore, name: str, values: Sequence[Any], *, column: str | None = None) -> Found:
    """Which rows `delete` would take; changes nothing. Arguments and errors as there."""
    head = store.resolve(name)
    if column is None and len(head.spec.keys) != 1:
        raise SpecError(
            f"Dataset {name!r} has {'no key' if not head.spec.keys else 'the key ' + ', '.join(head.spec.keys)}; say which "
            "column tells whose row it is: --column COLUMN"
        )
    column = column or head.spec.keys[0]
    texts = _as_texts(head, column, values)
    counts, unknown = _holding(store, name, column, texts)
    if not counts:
        lack = f" Versions {', '.join(map(str, unknown))} have no column {column!r}." if unknown else ""
        raise NoSuchRowsError(
            f"No version of {name!r} has rows whose {column!r} is one of the {len(texts)} values given; nothing was "
            f"deleted.{lack} Check the value and --column."
        )
    _refuse_empty(newest(store.versions(name)), counts)
    return Found(column=column, values=texts, rows=counts, unknown=unknown)


def hashes(store: DatasetStore, name: str, found: Found) -> npt.NDArray[np.int64]:
    """Hashes of the rows that were found, each once: by them their answers are known in what evaluations kept."""
    parts = [np.empty(0, np.int64)]
    for number in found.rows:
        version = store.resolve(DatasetRef(name, number))
        for split in (s for s, n in version.split_rows.items() if n):
            theirs = _matching(store.read(version, columns=[found.column], split=split)[found.column], found.values)
            parts.append(store.read_hashes(version, split)[theirs])
    return np.unique(np.concatenate(parts))


def pending(store: DatasetStore, name: str) -> list[tuple[Place, Intent]]:
    """Deletions that were begun and not finished, oldest first."""
    folder = store.root / name / "deletions"
    found = []
    for file in (f for f in folder.names() if f.endswith(".json")):
        with contextlib.suppress(FileNotFoundError):  # done meanwhile
            found.append((folder / file, Intent.from_json((folder / file).read_json())))
    return sorted(found, key=lambda item: item[1].at)


def finish(store: DatasetStore, name: str, *, models: Mapping[int, Collection[str]]) -> list[Deleted]:
    """Finishes every deletion that was begun; returns what each did."""
    return [_carry_out(store, name, intent, where, models) for where, intent in pending(store, name)]


def _carry_out(
    store: DatasetStore, name: str, intent: Intent, where: Place, models: Mapping[int, Collection[str]]
) -> Deleted:
    done = Deleted(name=name)
    for _ in range(ROUNDS):
        gone = set(store.tombstones(name))
        store.fence(name)  # a successor that somebody prepares from a version that fell before this is not published
        counts, unknown = _holding(store, name, intent.column, intent.values)
        done = replace(done, unknown=unknown)
        if not counts:
            done = replace(done, files=upkeep.sweep(store, name))
            where.remove()
            return done
        try:
            done = _one_round(store, intent, counts, models, done)
        except CommitConflictError:
            continue  # somebody committed on top of the newest version: look again
        except DataError:
            if set(store.tombstones(name)) == gone:
                raise  # else another deletion took a version away while it was read: look again
    raise CommitConflictError(
        f"Others committed to {name!r} {ROUNDS} times while rows were being deleted. Versions may be left that hold them. "
        f"When fewer writers are at it: tiltyard data gc {name} --yes"
    )


def _one_round(
    store: DatasetStore,
    intent: Intent,
    counts: Mapping[int, int],
    models: Mapping[int, Collection[str]],
    done: Deleted,
) -> Deleted:
    """Successors, names, tombstones, in this order: what is published stands before what it replaces falls."""
    name = done.name
    versions = dict(store.versions(name))
    counts = {number: count for number, count in counts.items() if number in versions}
    head = newest(versions)
    assert head is not None
    _refuse_empty(head, counts)
    kept = upkeep.kept(store, name, models)
    before = {v.version: v.successor_of for v in versions.values() if v.successor_of is not None}
    plan = plan_deletion(counts, kept, head.version, before)
    made = dict(plan.standing)
    with work(f"write {name} without the rows", total=len(plan.publish), unit="versions") as doing:
        for number in plan.publish:
            old = versions[number]
            if counts[number] < old.num_rows:  # of an older version nothing may be left: then it has no successor
                rest = functools.partial(_without, store, old, intent)
                made[number] = store.succeed(old, rest, f"{old.ref} without rows deleted by key").version
            doing.advance()
    last = newest(store.versions(name))
    assert last is not None
    to = {number: successor_for(number, made, last.version) for number in plan.bury}
    if newly := set(upkeep.kept(store, name, models)) & set(plan.bury) - set(kept):
        raise CommitConflictError(
            f"Versions {sorted(newly)} of {name!r} were named while rows were deleted. Try again."
        )
    moved = upkeep.move_names(store, name, to)
    told: list[str] = []
    for number in plan.bury:
        who = tuple(models.get(number, ()))
        told += who
        upkeep.entomb(store, versions[number], kind="deleted", reason=intent.reason, successor=to[number], models=who)
    return replace(
        done,
        rows={**done.rows, **counts},
        successors={**done.successors, **made},
        moved=(*done.moved, *moved),
        models=tuple(dict.fromkeys([*done.models, *told])),
    )


def _refuse_empty(head: DatasetVersion | None, counts: Mapping[int, int]) -> None:
    if head is not None and counts.get(head.version) == head.num_rows:
        raise DataError(
            f"All {head.num_rows:,} rows of {head.ref}, the newest version, would go, and a version needs a row. Commit rows "
            f"that may stay first (tiltyard data commit {head.name} SOURCE), then delete again."
        )


# ---- which rows ----------------------------------------------------------------------------------------------------


def _as_texts(head: DatasetVersion, column: str, values: Sequence[Any]) -> tuple[str, ...]:
    """Values as texts of the column's type, so that they can be written down and compared with any version's."""
    if column not in head.schema:
        raise SpecError(f"{head.ref} has no column {column!r}; it has {', '.join(list(head.schema)[:30])}.")
    if not values:
        raise SpecError("No value was given; say whose rows go: --key VALUE")
    kind = rows.type_of(head.schema[column])
    if pa.types.is_binary(kind) or pa.types.is_fixed_size_list(kind):
        raise SpecError(f"Column {column!r} is {head.schema[column]}; rows can be deleted by numbers, texts and dates.")
    try:
        given = [pc.cast(pa.scalar(v), kind) for v in values]
        return tuple(str(pc.cast(v, pa.string()).as_py()) for v in given)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise SpecError(
            f"Column {column!r} of {head.ref} is {head.schema[column]}, and a value does not fit it: {error}."
        ) from error


def _matching(column: pa.ChunkedArray, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows have one of the values; nulls have none."""
    found = pc.is_in(pc.cast(column, pa.string()), value_set=pa.array(texts, pa.string()))
    return np.asarray(found.combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)


def _holding(
    store: DatasetStore, name: str, column: str, texts: Sequence[str]
) -> tuple[dict[int, int], tuple[int, ...]]:
    """Version to number of rows that match, where there are some; and versions that lack the column."""
    counts, unknown = {}, []
    for number, version in sorted(dict(store.versions(name)).items()):
        if column not in version.schema:
            unknown.append(number)
            continue
        try:
            count = int(_matching(store.read(version, columns=[column])[column], texts).sum())
        except DataError:
            if number not in store.tombstones(name):
                raise
            continue  # another deletion took it away while it was read
        if count:
            counts[number] = count
    return counts, tuple(unknown)


def _without(store: DatasetStore, old: DatasetVersion, intent: Intent) -> Prepared:
    table = store.read(old)
    left = table.filter(pa.array(~_matching(table[intent.column], intent.values)))
    return prepare(left, _spec_of_what_is_left(old, left, intent))


def _spec_of_what_is_left(old: DatasetVersion, left: pa.Table, intent: Intent) -> DatasetSpec:
    """The version's spec; classes that lost their last row stay declared, unless the class is the key itself."""
    spec = old.spec
    if spec.task not in (Task.BINARY, Task.MULTICLASS):
        return spec
    label = spec.labels[0]
    is_key = label == intent.column
    classes = tuple(c for c in old.classes if not (is_key and str(c) in intent.values))
    present = set(left[label].unique().to_pylist())
    declared = tuple(c for c in spec.classes if c in classes)
    missing = tuple(c for c in classes if c not in present and c not in declared and not isinstance(c, float))
    return replace(spec, classes=(*declared, *missing))
