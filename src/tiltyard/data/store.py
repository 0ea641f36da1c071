"""The store of dataset versions: Delta tables under one root, numbered by Tiltyard.

Under ``ROOT/NAME/`` lie ``table/`` (a Delta table that any engine reads; each version is exactly one Delta version),
``staged/`` (records written before the commit), ``versions/`` (record, seal and card by number), ``profiles/``, and what
`tiltyard.data.upkeep` writes: ``tags/``, ``pins/``, ``tombstones/`` and ``deletions/``.

The commit point is one entry of the Delta log, written put-if-absent by delta-rs (on S3 by a conditional PUT), whose
metadata names the version, its staged record and the record's SHA-256; the record holds those of the data files and of
the profile, the seal that of the log entry. What dies before the commit point leaves files nobody refers to; what dies
after it is finished by the next reader, who copies the record into ``versions/``. Nothing is retried by delta-rs itself
(``max_commit_retries=0``), so a commit succeeds only on the very table state it was computed from.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data import cards, deltalog, lifecycle, order, parquet, refusals, rows, sources, splits
from tiltyard.data import profile as profiling
from tiltyard.data.deltatable import DatasetTable
from tiltyard.data.places import Place, json_bytes
from tiltyard.data.prepare import Prepared, conform, prepare, run_checks
from tiltyard.data.versions import (
    SPLITS,
    Commit,
    DatasetRef,
    DatasetSpec,
    DatasetVersion,
    FileEntry,
    check_columns,
    check_split,
    content_digest,
    files_digest,
    newest,
)
from tiltyard.errors import CommitConflictError, DataError, DatasetNotFoundError
from tiltyard.progress import work
from tiltyard.types import check_name

RETRIES = 64
"""Times a commit is computed anew after somebody else's came first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """Files that a commit has written and not yet published."""

    files: tuple[FileEntry, ...] = ()
    profile_path: str = ""
    profile_sha256: str = ""


class DatasetStore:
    """Versioned datasets under one root.

    Args:
        root_uri: A local folder, or ``s3://BUCKET/PREFIX``.
        storage_options: delta-rs's names, for S3: ``AWS_ENDPOINT_URL``, ``AWS_REGION``, ``AWS_ALLOW_HTTP``, ...; what is
            not given is taken from the environment.
    """

    def __init__(self, root_uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.root = Place.of(root_uri, storage_options)
        self.storage_options = dict(storage_options or {})
        self._known: dict[str, dict[int, DatasetVersion]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (DatasetStore, (self.root.uri, self.storage_options))

    # ---- finding -------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of all datasets."""
        found = self.root.names()
        if not found:
            self.root.check_bucket()
        return [n for n in found if (self.root / n / "table" / "_delta_log").names()]

    def newest(self) -> list[DatasetVersion]:
        """The newest version of each dataset."""
        heads = (newest(self.versions(name)) for name in self.names())
        return [head for head in heads if head is not None]

    def history(self, name: str) -> list[DatasetVersion]:
        """All versions of a dataset that there are, oldest first; `tombstones` has the others.

        Raises:
            DatasetNotFoundError: If there is no such dataset.
        """
        versions = self.versions(name)
        if not versions:
            raise self._not_found(name)
        return [versions[n] for n in sorted(versions)]

    def resolve(self, ref: DatasetRef | str) -> DatasetVersion:
        """The version a reference means; the newest where it names none.

        Raises:
            DatasetNotFoundError: If there is no such dataset or version; names what exists.
            DataError: If its rows were deleted; says why and names the successor.
        """
        ref = self._parse(ref)
        versions = self.versions(ref.name)
        head = newest(versions)
        if head is None:
            raise self._not_found(ref.name)
        number = head.version if ref.version is None else ref.version
        if number not in versions:
            self._refuse_tombstone(ref.name, number)
            raise DatasetNotFoundError(
                f"Dataset {ref.name!r} has no version {number}; it has {_ranges(sorted(versions))}. "
                f"See them: tiltyard data history {ref.name}"
            )
        return versions[number]

    def _parse(self, ref: DatasetRef | str) -> DatasetRef:
        if isinstance(ref, DatasetRef):
            return ref
        name, at, tail = ref.partition("@")
        if at and not (tail.isascii() and tail.isdigit()):
            where = self.root / check_name(name, "Dataset") / "tags" / f"{check_name(tail, 'Tag')}.json"
            if where.exists():
                return DatasetRef(name, lifecycle.Tag.from_json(where.read_json()).version)
            if not self.versions(name):
                raise self._not_found(name)
            tags = [t.removesuffix(".json") for t in (self.root / name / "tags").names()]
            raise DatasetNotFoundError(
                f"Dataset {name!r} has no tag {tail!r}; its tags: {', '.join(tags) or 'none'}. "
                f"Make it: tiltyard data tag {name}@VERSION {tail}"
            )
        return DatasetRef.parse(ref)

    def _not_found(self, name: str) -> DatasetNotFoundError:
        have = ", ".join(self.names()) or "none yet"
        return DatasetNotFoundError(
            f"There is no dataset {name!r} at {self.root.uri}; there are: {have}. "
            f"Commit it: tiltyard data commit {name} SOURCE"
        )

    def _refuse_tombstone(self, name: str, number: int) -> None:
        where = self.root / name / "tombstones" / f"{number:08d}.json"
        if where.exists():
            raise DataError(lifecycle.Tombstone.from_json(where.read_json()).told)

    def tombstones(self, name: str) -> dict[int, lifecycle.Tombstone]:
        """What stands where versions were, by number.

        Raises:
            DataError: If one of them is damaged.
        """
        folder = self.root / check_name(name, "Dataset") / "tombstones"
        return {n: lifecycle.Tombstone.from_json((folder / f"{n:08d}.json").read_json()) for n in folder.numbers()}

    def versions(self, name: str) -> dict[int, DatasetVersion]:
        """All versions there are by number; finishes what a writer that died after its commit left undone.

        Raises:
            DataError: If a record is damaged.
        """
        check_name(name, "Dataset")
        known = self._known.setdefault(name, {})
        folder = self.root / name
        gone = set((folder / "tombstones").numbers())
        for number in (folder / "versions").numbers():
            if number not in known and number not in gone:
                try:
                    record = (folder / "versions" / f"{number:08d}.json").read_json()
                    known[number] = self._here(DatasetVersion.from_json(record))
                except FileNotFoundError:  # removed just now: its tombstone stands already
                    gone.add(number)
        last = max((v.delta_version for v in known.values()), default=-1)
        log = folder / "table" / "_delta_log"
        for file in log.names():
            entry = deltalog.delta_version(file)
            if entry is not None and entry > last:
                self._publish_record(name, log / file, gone)
        for number in gone:
            known.pop(number, None)
        return known

    def _publish_record(self, name: str, entry: Place, gone: Collection[int]) -> None:
        raw = entry.read_bytes()
        said = deltalog.parse(raw)
        if said.record is None or said.version in gone:
            return
        try:
            data = (self.root / name / "staged" / said.record).read_bytes()
            version = DatasetVersion.from_json(json.loads(data))
        except (FileNotFoundError, ValueError) as error:
            raise DataError(
                f"The record of {name}@{said.version} is missing or damaged: {error}. Wanted staged/{said.record}, which the "
                f"Delta log names. Restore it from a backup; see what else is: tiltyard data verify {name}"
            ) from error
        stem = f"{version.version:08d}"
        folder = self.root / name / "versions"
        (folder / f"{stem}.seal").write_json({"schema_version": 1, "log_sha256": hashlib.sha256(raw).hexdigest()})
        (folder / f"{stem}.md").write_bytes(cards.render(version, self._kept_profile(version)).encode())
        (folder / f"{stem}.json").write_bytes(data)
        self._known[name][version.version] = self._here(version)

    def _here(self, version: DatasetVersion) -> DatasetVersion:
        """The version with its files under this root: a home that was moved or restored elsewhere reads its own."""
        return replace(version, uri=(self.root / version.name / "table").uri)

    def current_files(self, name: str) -> set[str]:
        """Files of the newest Delta version, relative to the table: other than a version's own after a compaction."""
        return self._table(name).files()

    # ---- writing -------------------------------------------------------------------------------------------------

    def commit(
        self,
        name: str,
        source: Any,
        *,
        spec: DatasetSpec | None = None,
        message: str = "",
        types: Mapping[str, str] | None = None,
        expect_parent: int | None = None,
    ) -> Commit:
        """Publishes the rows of a source as the newest version, or says that they already are.

        Args:
            name: The dataset's name.
            source: See `tiltyard.data.sources.read`.
            spec: What is declared about it; the newest version's where it is None.
            message: Why; shown in the history.
            types: Column types that override what a CSV looks like.
            expect_parent: Publish only if this version is still the newest (0: if there is none).

        Raises:
            DataError: If the source cannot be read or stored, or rows leak between splits.
            CheckFailedError: If a declared check refuses the rows; nothing is left behind but a line in the home's journal.
            CommitConflictError: If ``expect_parent`` is no longer the newest.
        """
        check_name(name, "Dataset")
        with work(f"read the rows for {name}"):
            table = sources.read(source, types=types, filesystem=self._filesystem_for(source))

        def plan(head: DatasetVersion | None) -> Prepared:
            return prepare(table, spec or (head.spec if head else DatasetSpec()))

        return self._publish(name, plan, message, expect_parent)

    def append(self, name: str, source: Any, *, message: str = "", types: Mapping[str, str] | None = None) -> Commit:
        """Publishes the newest version's rows plus those of a source.

        Rows of a concurrent commit are kept: the appended rows go on top of whatever is newest when they land.

        Raises:
            DatasetNotFoundError: If there is no such dataset.
            DataError: If the columns are not those of the newest version.
        """
        with work(f"read the rows for {name}"):
            added = rows.canonical(sources.read(source, types=types, filesystem=self._filesystem_for(source)))

        def plan(head: DatasetVersion | None) -> Prepared:
            if head is None:
                raise self._not_found(name)
            return prepare(pa.concat_tables([self.read(head), conform(added, head)]), head.spec)

        return self._publish(name, plan, message, None)

    def succeed(self, old: DatasetVersion, plan: Callable[[], Prepared], message: str) -> DatasetVersion:
        """Publishes what takes the place of a version; declared checks warn and never refuse.

        Args:
            old: The version. Its successor is the newest where the version is; else it stands beside the line.
            plan: Gives its rows.
            message: Shown in the history.

        Raises:
            CommitConflictError: If the version was the newest when it was handed in and no longer is.
        """
        head = newest(self.versions(old.name))
        beside = head is not None and head.version != old.version
        expected = None if beside else old.version
        return self._publish(old.name, lambda _: plan(), message, expected, old, beside=beside).version

    def fence(self, name: str) -> None:
        """Adds an empty entry to the Delta log: whoever prepares a commit on what was there before must look again."""
        self._table(name).fence()

    def _filesystem_for(self, source: Any) -> Any:
        is_s3 = isinstance(source, str) and source.startswith("s3://")
        return Place.of(source, self.storage_options).filesystem if is_s3 else None

    def _publish(
        self,
        name: str,
        plan: Callable[[DatasetVersion | None], Prepared],
        message: str,
        expect_parent: int | None,
        old: DatasetVersion | None = None,
        *,
        beside: bool = False,
    ) -> Commit:
        """Prepares on the newest version, writes, commits; anew where somebody else came first."""
        prepared: Prepared | None = None
        based_on: int | None = -1
        written = _Written()
        for attempt in range(RETRIES):
            at = self._table(name)
            versions = self.versions(name)
            head = newest(versions)
            number = head.version if head else 0
            try:
                _expect(name, number, expect_parent)
                if old is not None and old.version not in versions:
                    self._refuse_tombstone(name, old.version)
                if prepared is None or (based_on != number and not beside):
                    with work(f"hash and split the rows of {name}"):
                        fresh = plan(head)
                    if prepared is None or fresh.row_sums != prepared.row_sums or fresh.schema != prepared.schema:
                        self._discard(name, written)
                        written = _Written()
                    prepared, based_on = fresh, number
                last = max([0, *versions, *(self.root / name / "tombstones").numbers()])
                draft = self._draft(name, prepared, old or head, last + 1, message)
                draft = replace(draft, successor_of=old.version if old else None, beside=beside)
                if head and not old and (head.content_digest, head.spec) == (draft.content_digest, draft.spec):
                    self._discard(name, written)
                    return Commit(version=head, created=False)
                now = dt.datetime.now(dt.UTC)
                with work(f"check the rows of {name}"), refusals.recorded(self.root, name):
                    found = run_checks(prepared, name, old or head, now, refusing=old is None)
                draft = replace(draft, warnings=found)
                if not written.files:
                    written = self._write(name, prepared, draft.window_rows)
            except BaseException:
                self._discard(name, written)
                raise
            draft = replace(
                draft,
                files=written.files,
                files_digest=files_digest(written.files),
                profile_path=written.profile_path,
                profile_sha256=written.profile_sha256,
            )
            done = self._try_commit(name, draft, at, prepared)
            if done is not None:
                return Commit(version=done, created=True)
            time.sleep(min(0.5, 0.01 * 2**attempt) * np.random.default_rng().random())
        self._discard(name, written)
        raise CommitConflictError(
            f"Dataset {name!r} was committed to by others {RETRIES} times while this commit was tried; nothing was "
            "published. Try again when fewer writers are at it."
        )

    def _table(self, name: str) -> DatasetTable:
        return DatasetTable.open(self.root / name / "table")

    def _draft(
        self, name: str, p: Prepared, parent: DatasetVersion | None, number: int, message: str
    ) -> DatasetVersion:
        return DatasetVersion(
            name=name,
            version=number,
            content_digest=content_digest(p.schema, p.spec, p.row_sums, p.classes),
            files_digest="",
            num_rows=p.table.num_rows,
            split_rows=p.split_rows,
            schema=p.schema,
            nullable=p.nullable,
            spec=p.spec,
            classes=p.classes,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            parent=parent.version if parent else None,
            delta_version=-1,
            uri=(self.root / name / "table").uri,
            files=(),
            row_sums=p.row_sums,
            profile_path="",
            message=message,
        )

    def _write(self, name: str, p: Prepared, window_rows: int) -> _Written:
        """Files of every split and their profile; what is written is removed again where it cannot be finished."""
        run, root = uuid.uuid4().hex, self.root / name / "table"
        table = p.table.combine_chunks()
        by_hash = np.argsort(p.row_hash, kind="stable")
        entries: list[FileEntry] = []
        profiles: dict[str, profiling.SplitProfile] = {}
        try:
            for code, split in enumerate(SPLITS):
                places = by_hash[p.codes[by_hash] == code]
                if len(places):
                    bits = order.window_bits(len(places), window_rows)
                    builder = profiling.Builder(hidden=p.spec.keys)
                    entries += parquet.write_split(
                        table, p.row_hash, places, split=split, bits=bits, run=run, root=root, profile=builder
                    )
                    profiles[split] = builder.done()
            path = f"profiles/{run}.json"
            data = json_bytes(profiling.Profile(splits=profiles).to_json())
            (self.root / name / path).write_bytes(data)
        except BaseException:
            for split in SPLITS:
                folder = root / f"{rows.SPLIT}={split}"
                for file in folder.names():
                    if file.startswith(run):
                        (folder / file).remove()
            raise
        return _Written(files=tuple(entries), profile_path=path, profile_sha256=hashlib.sha256(data).hexdigest())

    def _discard(self, name: str, written: _Written) -> None:
        for file in written.files:
            (self.root / name / "table" / file.path).remove()
        if written.profile_path:
            (self.root / name / written.profile_path).remove()

    def _try_commit(self, name: str, draft: DatasetVersion, at: DatasetTable, p: Prepared) -> DatasetVersion | None:
        """One put-if-absent of a Delta log entry; None where somebody else's came first."""
        version = replace(draft, delta_version=at.next_version)
        staged = f"{uuid.uuid4().hex}.json"
        record = self.root / name / "staged" / staged
        data = json_bytes(version.to_json())
        record.write_bytes(data)
        said = {
            "tiltyard.version": str(version.version),
            "tiltyard.record": staged,
            "tiltyard.record_sha256": hashlib.sha256(data).hexdigest(),
        }
        # what else goes wrong may have landed: then what was written stays for `gc` to judge
        if (
            not at.replace(p.table.schema, version.files, said)
            and self._record_of(name, version.delta_version) != staged
        ):
            record.remove()
            return None
        return self.versions(name).get(version.version, version)  # others may have deleted from it already

    def _record_of(self, name: str, delta_version: int) -> str | None:
        """The staged record that an entry of the Delta log names: ours, where a retried request was answered 'exists'."""
        entry = self.root / name / "table" / "_delta_log" / deltalog.file_name(delta_version)
        return deltalog.parse(entry.read_bytes()).record if entry.exists() else None

    # ---- reading -------------------------------------------------------------------------------------------------

    def read(
        self,
        version: DatasetVersion | DatasetRef | str,
        *,
        columns: Sequence[str] | None = None,
        split: str | None = None,
        limit: int | None = None,
    ) -> pa.Table:
        """Rows of a version in canonical order (of each split; train, validation, test one after another).

        Args:
            version: Which one.
            columns: Only these, in this order; all where it is None.
            split: Only this split.
            limit: At most so many rows of each split: the first by hash, hence a uniform sample.

        Raises:
            DatasetNotFoundError: If there is no such version, column or split.
        """
        if not isinstance(version, DatasetVersion):
            version = self.resolve(version)
        wanted = list(version.schema) if columns is None else list(columns)
        check_columns(version, wanted)
        return pa.concat_tables(
            [self._read_split(version, s, wanted, limit).select(wanted) for s in check_split(version, split)]
        )

    def read_hashes(self, version: DatasetVersion, split: str) -> npt.NDArray[np.int64]:
        """Row hashes of a split, ascending: what `tiltyard.data.feed.local_feed` needs for large splits."""
        column = self._read_split(version, split, [], None)[rows.ROW]
        return np.asarray(column.to_numpy(), dtype=np.int64)

    def profile(self, version: DatasetVersion | DatasetRef | str) -> profiling.Profile:
        """What a version looks like; computed while it was written (or now, from its rows, where it was not kept).

        Raises:
            DatasetNotFoundError: If there is no such version.
            DataError: If its profile is damaged.
        """
        if not isinstance(version, DatasetVersion):
            version = self.resolve(version)
        kept = self._kept_profile(version)
        if kept is not None:
            return kept
        there = [s for s in SPLITS if version.split_rows.get(s)]
        hidden = version.spec.keys
        return profiling.Profile(
            splits={s: profiling.profile(self.read(version, split=s), hidden=hidden) for s in there}
        )

    def _kept_profile(self, version: DatasetVersion) -> profiling.Profile | None:
        where = self.root / version.name / version.profile_path
        there = bool(version.profile_path) and where.exists()
        return profiling.Profile.from_json(where.read_json()) if there else None

    def read_fold(
        self,
        version: DatasetVersion | DatasetRef | str,
        fold: int,
        *,
        of: int,
        seed: int = 0,
        columns: Sequence[str] | None = None,
    ) -> tuple[pa.Table, pa.Table]:
        """The training split for k-fold cross-validation: what to train on, and the fold that is held out.

        Each group (or key, or row, as for splits) is in exactly one fold, by a function of its values and the seed alone:
        rows added later move nothing. Validation and test splits take no part.

        Args:
            version: Which one.
            fold: Which fold is held out: 0 to ``of - 1``.
            of: How many folds there are, 2 or more.
            seed: Another seed, other folds.
            columns: Only these, in this order; all where it is None.

        Returns:
            Rows to train on and rows held out, both in canonical order.

        Raises:
            SpecError: If there is no such fold.
        """
        if not isinstance(version, DatasetVersion):
            version = self.resolve(version)
        wanted = list(version.schema) if columns is None else list(columns)
        check_columns(version, wanted)
        named = [version.spec.group] if version.spec.group else list(version.spec.keys)
        table = self._read_split(version, "train", list(dict.fromkeys([*wanted, *named])), None)
        held_out = splits.in_fold(table, version.spec, fold, of, seed)
        return table.filter(~held_out).select(wanted), table.filter(held_out).select(wanted)

    def _read_split(self, version: DatasetVersion, split: str, columns: list[str], limit: int | None) -> pa.Table:
        """Columns and the row hash of a split, ascending by hash."""
        root = Place.of(version.uri, self.storage_options)
        files = [root / f.path for f in version.files if f.split == split]
        if not files:
            fields = [(n, rows.type_of(version.schema[n])) for n in columns]
            return pa.schema([*fields, (rows.ROW, pa.int64())]).empty_table()
        share = 1.0 if limit is None else min(1.0, 1.1 * limit / max(1, version.split_rows[split]))
        try:
            parts = [parquet.read_file(f, [*columns, rows.ROW], parquet.first_groups(f, share)) for f in files]
        except FileNotFoundError as error:
            self._refuse_tombstone(version.name, version.version)
            raise DataError(
                f"A file of {version.ref} is missing: {error}. See what else is: tiltyard data verify {version.ref}"
            ) from error
        table = parquet.canonical_order(pa.concat_tables(parts))
        return table if limit is None else table.slice(0, limit)


def _expect(name: str, number: int, parent: int | None) -> None:
    if parent is not None and parent != number:
        raise CommitConflictError(
            f"Dataset {name!r} is at version {number}, not at {parent} as expected. Look at what came in between "
            f"(tiltyard data history {name}), then commit on top of it."
        )


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"versions {numbers[0]} to {numbers[-1]}"
    return ("version " if len(numbers) == 1 else "versions ") + ", ".join(map(str, numbers))
