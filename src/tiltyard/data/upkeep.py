"""Keeps a dataset's folder in order: tags, pins, and the removal of what nobody needs.

What is removed becomes a tombstone first and loses its files after, so that whoever dies in between leaves a version that
is refused with its reason, and files that the next `gc` takes. Tagging writes first and looks for a tombstone after;
removing writes the tombstone first and looks for tags and pins after: of two that meet, the one that keeps wins.

A file that no version and no log entry names may belong to a commit under way; it is left until it is `ORPHAN_HOURS` old.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from tiltyard.data import deltalog, lifecycle
from tiltyard.data.lifecycle import Needs, Pin, Tag, Tombstone
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetRef, DatasetVersion, newest
from tiltyard.errors import DataError, DatasetNotFoundError, SpecError
from tiltyard.progress import work
from tiltyard.types import check_name

ORPHAN_HOURS = 24.0
"""Age from which a file that nothing names is taken for the rest of a commit that died."""
_SWEPT = ("table/", "staged/", "versions/", "profiles/")


def now() -> str:
    """The time as it is stored: ISO 8601, UTC."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


# ---- tags and pins -------------------------------------------------------------------------------------------------


def tags(store: DatasetStore, name: str) -> list[Tag]:
    """All tags of a dataset, by name.

    Raises:
        DataError: If one is damaged.
    """
    folder = store.root / check_name(name, "Dataset") / "tags"
    return [Tag.from_json((folder / f).read_json()) for f in folder.names() if f.endswith(".json")]


def tag(
    store: DatasetStore, ref: DatasetRef | str, label: str, *, message: str = "", move: bool = False
) -> tuple[Tag, Tag | None]:
    """Names a version, so that ``NAME@TAG`` means it and nothing removes it.

    Args:
        store: Where the dataset is.
        ref: The version; the newest where it names none.
        label: The tag: lower case letters, digits, ``.``, ``_`` and ``-``, not digits alone.
        message: Why.
        move: The tag may name another version now.

    Returns:
        The tag, and what it was before (None where it is new).

    Raises:
        SpecError: If the tag cannot be told from a version number, or is no name.
        DataError: If it names another version and ``move`` is false, or the version is gone.
    """
    check_name(label, "Tag")
    if label.isdigit():
        raise SpecError(f"Tag {label!r} reads like a version number. Wanted: a name with a letter in it, such as gold.")
    version = store.resolve(ref)
    where = store.root / version.name / "tags" / f"{label}.json"
    before = Tag.from_json(where.read_json()) if where.exists() else None
    if before is not None and before.version == version.version:
        return before, before
    if before is not None and not move:
        raise DataError(
            f"Tag {label!r} of {version.name!r} names version {before.version}, not {version.version}. To move it: "
            f"tiltyard data tag {version.ref} {label} --move"
        )
    earlier = () if before is None else (*before.before, before.version)
    made = Tag(name=label, version=version.version, at=now(), message=message, before=earlier)
    where.write_json(made.to_json())
    _undo_if_gone(store, version.ref, where, before)
    return made, before


def untag(store: DatasetStore, name: str, label: str) -> Tag:
    """Takes a tag away; the version stays until `gc` finds that nothing needs it.

    Raises:
        DatasetNotFoundError: If there is no such tag.
    """
    where = store.root / check_name(name, "Dataset") / "tags" / f"{check_name(label, 'Tag')}.json"
    if not where.exists():
        have = ", ".join(t.name for t in tags(store, name)) or "none"
        raise DatasetNotFoundError(f"Dataset {name!r} has no tag {label!r}; its tags: {have}.")
    was = Tag.from_json(where.read_json())
    where.remove()
    return was


def pins(store: DatasetStore, name: str) -> list[Pin]:
    """All pins of a dataset, by version.

    Raises:
        DataError: If one is damaged.
    """
    folder = store.root / check_name(name, "Dataset") / "pins"
    return [Pin.from_json((folder / f).read_json()) for f in folder.names() if f.endswith(".json")]


def _pin_place(store: DatasetStore, name: str, version: int) -> Place:
    return store.root / name / "pins" / f"{version:08d}.json"


def pin(store: DatasetStore, ref: DatasetRef | str, *, reason: str = "") -> Pin:
    """Keeps a version from `gc`; a second pin replaces the reason.

    Raises:
        DataError: If there is no such version, or it is gone.
    """
    version = store.resolve(ref)
    made = Pin(version=version.version, at=now(), reason=reason)
    where = _pin_place(store, version.name, version.version)
    where.write_json(made.to_json())
    _undo_if_gone(store, version.ref, where, None)
    return made


def unpin(store: DatasetStore, ref: DatasetRef | str) -> Pin:
    """Takes the pin of a version away.

    Raises:
        DatasetNotFoundError: If it is not pinned.
    """
    version = store.resolve(ref)
    where = _pin_place(store, version.name, version.version)
    if not where.exists():
        have = ", ".join(str(p.version) for p in pins(store, version.name)) or "none"
        raise DatasetNotFoundError(f"{version.ref} is not pinned; pinned versions of {version.name!r}: {have}.")
    was = Pin.from_json(where.read_json())
    where.remove()
    return was


def _undo_if_gone(store: DatasetStore, ref: DatasetRef, where: Place, before: Tag | None) -> None:
    """Takes back what was written for a version that was removed meanwhile, and says so."""
    try:
        store.resolve(ref)
    except DataError:
        if before is None:
            where.remove()
        else:
            where.write_json(before.to_json())
        raise


def move_names(store: DatasetStore, name: str, to: Mapping[int, int]) -> tuple[str, ...]:
    """Points tags and pins of versions at others; says in words what it moved."""
    moved = []
    for found in tags(store, name):
        if found.version in to:
            new = replace(found, version=to[found.version], at=now(), before=(*found.before, found.version))
            (store.root / name / "tags" / f"{found.name}.json").write_json(new.to_json())
            moved.append(f"tag {found.name} from version {found.version} to {new.version}")
    for held in pins(store, name):
        if held.version in to:
            _pin_place(store, name, to[held.version]).write_json(replace(held, version=to[held.version]).to_json())
            _pin_place(store, name, held.version).remove()
            moved.append(f"pin from version {held.version} to {to[held.version]}")
    return tuple(moved)


# ---- what is needed ------------------------------------------------------------------------------------------------


def kept(store: DatasetStore, name: str, others: Mapping[int, Collection[str]], keep_last: int = 1) -> Needs:
    """The versions that must stay, each with everything that keeps it.

    Args:
        store: Where the dataset is.
        name: The dataset.
        others: Version to what else needs it, as the caller knows (registered models).
        keep_last: So many of the newest numbers stay as well.
    """
    versions = {v.version: v for v in store.history(name)}
    head = newest(versions)
    assert head is not None
    return lifecycle.keepers(versions, head.version, tags(store, name), pins(store, name), others, keep_last)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Files of a dataset's folder that no version needs, by path under it, with their bytes.

    Args:
        free: May go now.
        waiting: Nothing names them, and they are younger than the stated hours: perhaps a commit under way.
    """

    free: Mapping[str, int]
    waiting: Mapping[str, int]

    @property
    def free_bytes(self) -> int:
        """Bytes that may go now."""
        return sum(self.free.values())


def survey(
    store: DatasetStore, name: str, *, without: Iterable[int] = (), orphan_hours: float = ORPHAN_HOURS
) -> Survey:
    """Which files no version needs.

    Args:
        store: Where the dataset is.
        name: The dataset.
        without: Versions to leave out, as if they were gone.
        orphan_hours: Age from which a file that nothing names may go.

    Raises:
        DataError: If a record, a tombstone or an entry of the log is damaged; nothing can be told then.
    """
    folder = store.root / name
    files = folder.files()  # before versions are read: a commit that lands after this is found among them
    log = folder / "table" / "_delta_log"
    said = [deltalog.parse((log / f).read_bytes()) for f in log.names() if deltalog.delta_version(f) is not None]
    stones = store.tombstones(name)
    gone = {*stones, *without}
    living = [v for v in store.versions(name).values() if v.version not in gone]
    records = {e.version: f"staged/{e.record}" for e in said if e.record}
    needed = {f"table/{path}" for path in store.current_files(name)}
    for version in living:
        needed |= set(files_of(version, records.get(version.version)))
    named = {f"table/{path}" for e in said for path, _ in e.adds} | {p for s in stones.values() for p in s.files}
    named |= {p for n, p in records.items() if n in gone}
    named |= {p for v in store.versions(name).values() if v.version in gone for p in files_of(v, None)}
    oldest = dt.datetime.now(dt.UTC).timestamp() - orphan_hours * 3600
    free, waiting = {}, {}
    for info in files:
        path = info.path[len(folder.path) + 1 :]
        ours = path.startswith(_SWEPT) and not path.startswith("table/_delta_log/")
        if path in needed or not ours:
            continue
        if path in named or info.mtime.timestamp() < oldest:
            free[path] = info.size
        else:
            waiting[path] = info.size
    return Survey(free=free, waiting=waiting)


def files_of(version: DatasetVersion, record: str | None) -> tuple[str, ...]:
    """Everything that is kept of one version, relative to the dataset's folder; ``record`` is its staged record."""
    stem = f"versions/{version.version:08d}"
    more = [version.profile_path, record or "", f"{stem}.md", f"{stem}.seal", f"{stem}.json"]
    return (*(f"table/{f.path}" for f in version.files), *(p for p in more if p))


# ---- removing ------------------------------------------------------------------------------------------------------


def entomb(
    store: DatasetStore,
    version: DatasetVersion,
    *,
    kind: str,
    reason: str,
    successor: int | None,
    models: Collection[str] = (),
) -> Tombstone:
    """Writes the tombstone of a version: from here on it is refused. Its files go with the next `sweep`."""
    folder = store.root / version.name
    entry = folder / "table" / "_delta_log" / deltalog.file_name(version.delta_version)
    record = deltalog.parse(entry.read_bytes()).record if entry.exists() else None
    stone = Tombstone(
        name=version.name,
        version=version.version,
        kind="deleted" if kind == "deleted" else "removed",
        at=now(),
        reason=reason,
        successor=successor,
        content_digest=version.content_digest,
        num_rows=version.num_rows,
        committed_at=version.created_at,
        files=files_of(version, f"staged/{record}" if record else None),
        models=tuple(models),
    )
    _stone_place(store, version).write_json(stone.to_json())
    return stone


def _stone_place(store: DatasetStore, version: DatasetVersion) -> Place:
    return store.root / version.name / "tombstones" / f"{version.version:08d}.json"


def sweep(store: DatasetStore, name: str, *, orphan_hours: float = ORPHAN_HOURS) -> Survey:
    """Removes the files that no version needs; returns what went, and what waits."""
    found = survey(store, name, orphan_hours=orphan_hours)
    with work(f"remove files of {name}", total=len(found.free), unit="files") as doing:
        for path in found.free:
            (store.root / name / path).remove()
            doing.advance()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What `gc` removed, or would remove.

    Args:
        name: The dataset.
        removed: Versions, ascending.
        kept: The others, each with what keeps it.
        files: The files, and those that wait.
        done: False where it was only looked at.
    """

    name: str
    removed: tuple[int, ...]
    kept: Needs
    files: Survey
    done: bool


def gc(
    store: DatasetStore,
    name: str,
    *,
    others: Mapping[int, Collection[str]],
    keep_last: int = 1,
    orphan_hours: float = ORPHAN_HOURS,
    reason: str = "",
    yes: bool = False,
) -> Collected:
    """Removes the versions that nothing needs, and every file that no version needs.

    Args:
        store: Where the dataset is.
        name: The dataset.
        others: Version to what needs it besides tags and pins: registered models. Whoever calls must know them all.
        keep_last: So many of the newest numbers stay as well.
        orphan_hours: Age from which a file that nothing names may go.
        reason: Why; shown to whoever asks for a removed version.
        yes: Do it; without, it is only looked at.

    Raises:
        DataError: If a record is damaged: what it needs cannot be told, and nothing is removed.
    """
    needs = kept(store, name, others, keep_last)
    versions = {v.version: v for v in store.history(name)}
    spare = [n for n in sorted(versions) if n not in needs]
    if not yes:
        files = survey(store, name, without=spare, orphan_hours=orphan_hours)
        return Collected(name=name, removed=tuple(spare), kept=needs, files=files, done=False)
    head = newest(versions)
    told = reason or "no tag, pin or registered model needed it"
    removed = []
    for number in spare:
        entomb(store, versions[number], kind="removed", reason=told, successor=head.version if head else None)
        if number in {t.version for t in tags(store, name)} | {p.version for p in pins(store, name)}:
            _stone_place(store, versions[number]).remove()  # somebody wanted it meanwhile
            needs = {**needs, number: ("a tag or pin that came meanwhile",)}
        else:
            removed.append(number)
    files = sweep(store, name, orphan_hours=orphan_hours)
    return Collected(name=name, removed=tuple(removed), kept=needs, files=files, done=True)
