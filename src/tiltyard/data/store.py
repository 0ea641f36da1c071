"""The store of dataset versions: Delta tables under one root, numbered by Tiltyard.

Under ``ROOT/NAME/`` lie ``table/`` (a Delta table that any engine reads; each version is exactly one Delta version),
``staged/`` (records written before the commit), ``versions/`` (records by number), ``profiles/``, ``tags/``, ``pins/``
and ``tombstones/``.

The commit point is one entry of the Delta log, written put-if-absent by delta-rs (on S3 by a conditional PUT), whose
metadata names the version and its staged record. What dies before it leaves files nobody refers to; what dies after it
is finished by the next reader, who copies the record into ``versions/``. Nothing is retried by delta-rs itself
(``max_commit_retries=0``), so a commit succeeds only on the very table state it was computed from.
"""

from __future__ import annotations

import datetime as dt
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, create_table_with_add_actions

from tiltyard.data import checks, order, parquet, rows, sources, splits
from tiltyard.data import profile as profiling
from tiltyard.data.places import Place
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
)
from tiltyard.errors import CommitConflictError, DataError, DatasetNotFoundError
from tiltyard.types import Task, check_name

RETRIES = 64
"""Times a commit is computed anew after somebody else's came first."""
_FOREVER = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
    # another engine's VACUUM would otherwise remove the files of older versions a week after a newer one came
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}


@dataclass(frozen=True, slots=True)
class _Prepared:
    """Rows ready to be written: canonical, hashed, split and checked."""

    table: pa.Table
    row_hash: npt.NDArray[np.int64]
    second: npt.NDArray[np.uint64]
    codes: npt.NDArray[np.int8]
    spec: DatasetSpec
    classes: tuple[Any, ...]

    @property
    def schema(self) -> dict[str, str]:
        return {f.name: rows.type_name(f.type) for f in self.table.schema}

    @property
    def nullable(self) -> tuple[str, ...]:
        return tuple(f.name for f in self.table.schema if self.table[f.name].null_count)

    @property
    def split_rows(self) -> dict[str, int]:
        return dict(zip(SPLITS, np.bincount(self.codes, minlength=len(SPLITS)).tolist(), strict=True))

    @property
    def row_sums(self) -> dict[str, str]:
        chosen = {name: self.codes == code for code, name in enumerate(SPLITS)}
        return {n: rows.sum_rows(self.row_hash[c], self.second[c]) for n, c in chosen.items() if c.any()}


def _label_classes(table: pa.Table, spec: DatasetSpec) -> tuple[Any, ...]:
    """The values of the label, refused where training could not use it."""
    if spec.task is None:
        return ()
    for name in spec.labels:
        column = table[name]
        missing = column.null_count
        if pa.types.is_floating(column.type):
            missing += int((~np.isfinite(column.drop_null().to_numpy())).sum())
        if missing:
            raise DataError(
                f"Label column {name!r} holds {missing} missing values (null, NaN or infinite) in {table.num_rows} rows. "
                "Training needs every label: drop those rows or fill them in, then commit again."
            )
    if spec.task not in (Task.BINARY, Task.MULTICLASS):
        return spec.labels
    values = table[spec.labels[0]].unique()
    if pa.types.is_floating(values.type) or len(values) > 10_000:
        raise DataError(
            f"Label column {spec.labels[0]!r} is {rows.type_name(values.type)} with {len(values)} values; {spec.task} "
            "wants classes (whole numbers, texts or booleans). Convert it, or declare task='regression'."
        )
    found = {*values.to_pylist(), *spec.classes}
    if len(kinds := {type(v).__name__ for v in found}) > 1:
        raise DataError(
            f"Label column {spec.labels[0]!r} is {rows.type_name(values.type)} and DatasetSpec(classes=...) names "
            f"{list(spec.classes)}: values of different types ({', '.join(sorted(kinds))}). Write them as the column does."
        )
    classes = tuple(sorted(found))
    wanted = "exactly 2" if spec.task is Task.BINARY else "3 or more"
    if (len(classes) == 2) != (spec.task is Task.BINARY) or len(classes) < 2:
        raise DataError(
            f"Label column {spec.labels[0]!r} has {len(classes)} classes {list(classes[:10])}; task {spec.task} wants "
            f"{wanted}. Declare the right task, or name absent classes: DatasetSpec(classes=...)."
        )
    return classes


def prepare(table: pa.Table, spec: DatasetSpec) -> _Prepared:
    """Canonical types, declared columns present, labels usable, hashes and splits; writes nothing.

    Raises:
        DataError: With the first thing that is wrong.
    """
    table = rows.canonical(table)
    more = (spec.group, spec.time, spec.split.stratify, *spec.sensitive, *spec.ignore)
    for name in (*spec.labels, *spec.keys, *(n for n in more if n)):
        if name not in table.column_names:
            raise DatasetNotFoundError(
                f"The dataset's spec names column {name!r}, which the source does not have. Its columns: "
                f"{', '.join(table.column_names[:30])}. Mend the spec or the source."
            )
    classes = _label_classes(table, spec)
    row_hash, second = rows.row_lanes(table)
    return _Prepared(table, row_hash, second, splits.assign(table, spec, row_hash), spec, classes)


def _run_checks(prepared: _Prepared, draft: DatasetVersion, head: DatasetVersion | None) -> tuple[str, ...]:
    """Warnings of the declared checks; raises where one refuses the rows."""
    context = checks.Context(
        spec=prepared.spec, rows_before=head.num_rows if head else None, now=dt.datetime.now(dt.UTC)
    )
    return checks.refuse(draft.name, checks.run(prepared.table, context))


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
        return [n for n in self.root.names() if (self.root / n / "table" / "_delta_log").names()]

    def newest(self) -> list[DatasetVersion]:
        """The newest version of each dataset."""
        newest = (self._versions(name) for name in self.names())
        return [versions[max(versions)] for versions in newest if versions]

    def history(self, name: str) -> list[DatasetVersion]:
        """All versions of a dataset, oldest first.

        Raises:
            DatasetNotFoundError: If there is no such dataset.
        """
        versions = self._versions(name)
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
        versions = self._versions(ref.name)
        if not versions:
            raise self._not_found(ref.name)
        number = ref.version if ref.version is not None else max(versions)
        if number not in versions:
            raise DatasetNotFoundError(
                f"Dataset {ref.name!r} has no version {number}; it has {_ranges(sorted(versions))}. "
                f"See them: tiltyard data history {ref.name}"
            )
        self._refuse_tombstone(ref.name, number)
        return versions[number]

    def _parse(self, ref: DatasetRef | str) -> DatasetRef:
        if isinstance(ref, DatasetRef):
            return ref
        name, at, tail = ref.partition("@")
        if at and not tail.isdigit():
            where = self.root / name / "tags" / f"{tail}.json"
            if where.exists():
                return DatasetRef(name, int(where.read_json()["version"]))
            tags = [t.removesuffix(".json") for t in (self.root / name / "tags").names()]
            raise DatasetNotFoundError(f"Dataset {name!r} has no tag {tail!r}; its tags: {', '.join(tags) or 'none'}.")
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
            stone = where.read_json()
            raise DataError(
                f"Dataset {name}@{number} was deleted on {stone['deleted_at'][:10]}: {stone['reason']}. Its successor "
                f"without those rows is {name}@{stone['successor']}; use that one."
            )

    def _versions(self, name: str) -> dict[int, DatasetVersion]:
        """All published versions by number; finishes what a writer that died after its commit left undone."""
        check_name(name, "Dataset")
        known = self._known.setdefault(name, {})
        folder = self.root / name
        for file in (folder / "versions").names():
            if file.endswith(".json") and int(file[:8]) not in known:
                version = DatasetVersion.from_json((folder / "versions" / file).read_json())
                known[version.version] = version
        newest = max((v.delta_version for v in known.values()), default=-1)
        log = folder / "table" / "_delta_log"
        for file in log.names():
            if file.endswith(".json") and len(file) == 25 and int(file[:20]) > newest:
                self._publish_record(name, log / file)
        return known

    def _publish_record(self, name: str, entry: Place) -> None:
        staged = _staged_record(entry.read_bytes())
        if staged is not None:
            data = (self.root / name / "staged" / staged).read_json()
            version = DatasetVersion.from_json(data)
            (self.root / name / "versions" / f"{version.version:08d}.json").write_json(data)
            self._known[name][version.version] = version

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
            CheckFailedError: If a declared check refuses the rows; nothing is left behind.
            CommitConflictError: If ``expect_parent`` is no longer the newest.
        """
        check_name(name, "Dataset")
        table = sources.read(source, types=types, filesystem=self._filesystem_for(source))

        def plan(head: DatasetVersion | None) -> _Prepared:
            return prepare(table, spec or (head.spec if head else DatasetSpec()))

        return self._publish(name, plan, message, expect_parent)

    def append(self, name: str, source: Any, *, message: str = "", types: Mapping[str, str] | None = None) -> Commit:
        """Publishes the newest version's rows plus those of a source.

        Rows of a concurrent commit are kept: the appended rows go on top of whatever is newest when they land.

        Raises:
            DatasetNotFoundError: If there is no such dataset.
            DataError: If the columns are not those of the newest version.
        """
        added = rows.canonical(sources.read(source, types=types, filesystem=self._filesystem_for(source)))

        def plan(head: DatasetVersion | None) -> _Prepared:
            if head is None:
                raise self._not_found(name)
            self._refuse_tombstone(name, head.version)
            return prepare(pa.concat_tables([self.read(head), conform(added, head)]), head.spec)

        return self._publish(name, plan, message, None)

    def _filesystem_for(self, source: Any) -> Any:
        is_s3 = isinstance(source, str) and source.startswith("s3://")
        return Place.of(source, self.storage_options).filesystem if is_s3 else None

    def _publish(
        self,
        name: str,
        plan: Callable[[DatasetVersion | None], _Prepared],
        message: str,
        expect_parent: int | None,
    ) -> Commit:
        """Prepares on the newest version, writes, commits; anew where somebody else came first."""
        prepared: _Prepared | None = None
        based_on: int | None = -1
        files: tuple[FileEntry, ...] = ()
        profile_path = ""
        for attempt in range(RETRIES):
            delta = self._delta(name)
            versions = self._versions(name)
            head = versions[max(versions)] if versions else None
            number = head.version if head else 0
            if expect_parent is not None and expect_parent != number:
                raise CommitConflictError(
                    f"Dataset {name!r} is at version {number}, not at {expect_parent} as expected. Look at what came "
                    f"in between (tiltyard data history {name}), then commit on top of it."
                )
            try:
                if prepared is None or based_on != number:
                    fresh = plan(head)
                    if prepared is None or fresh.row_sums != prepared.row_sums or fresh.schema != prepared.schema:
                        self._discard(name, files, profile_path)
                        files, profile_path = (), ""
                    prepared, based_on = fresh, number
                draft = self._draft(name, prepared, head, message)
                if head and (head.content_digest, head.spec) == (draft.content_digest, draft.spec):
                    self._discard(name, files, profile_path)
                    return Commit(version=head, created=False)
                draft = replace(draft, warnings=_run_checks(prepared, draft, head))
                if not files:
                    files, profile_path = self._write(name, prepared, draft.window_rows)
            except BaseException:
                self._discard(name, files, profile_path)
                raise
            done = self._try_commit(
                name,
                replace(draft, files=files, files_digest=files_digest(files), profile_path=profile_path),
                delta,
                prepared,
            )
            if done is not None:
                return Commit(version=done, created=True)
            time.sleep(min(0.5, 0.01 * 2**attempt) * np.random.default_rng().random())
        self._discard(name, files, profile_path)
        raise CommitConflictError(
            f"Dataset {name!r} was committed to by others {RETRIES} times while this commit was tried; nothing was "
            "published. Try again when fewer writers are at it."
        )

    def _delta(self, name: str) -> DeltaTable | None:
        try:
            return DeltaTable((self.root / name / "table").uri, storage_options=self.storage_options or None)
        except TableNotFoundError:
            return None

    def _draft(self, name: str, p: _Prepared, head: DatasetVersion | None, message: str) -> DatasetVersion:
        return DatasetVersion(
            name=name,
            version=head.version + 1 if head else 1,
            content_digest=content_digest(p.schema, p.spec, p.row_sums, p.classes),
            files_digest="",
            num_rows=p.table.num_rows,
            split_rows=p.split_rows,
            schema=p.schema,
            nullable=p.nullable,
            spec=p.spec,
            classes=p.classes,
            created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            parent=head.version if head else None,
            delta_version=-1,
            uri=(self.root / name / "table").uri,
            files=(),
            row_sums=p.row_sums,
            profile_path="",
            message=message,
        )

    def _write(self, name: str, p: _Prepared, window_rows: int) -> tuple[tuple[FileEntry, ...], str]:
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
            (self.root / name / path).write_json(profiling.Profile(splits=profiles).to_json())
        except BaseException:
            for split in SPLITS:
                folder = root / f"{rows.SPLIT}={split}"
                for file in folder.names():
                    if file.startswith(run):
                        (folder / file).remove()
            raise
        return tuple(entries), path

    def _discard(self, name: str, files: Sequence[FileEntry], profile_path: str) -> None:
        for file in files:
            (self.root / name / "table" / file.path).remove()
        if profile_path:
            (self.root / name / profile_path).remove()

    def _try_commit(
        self, name: str, draft: DatasetVersion, delta: DeltaTable | None, p: _Prepared
    ) -> DatasetVersion | None:
        """One put-if-absent of a Delta log entry; None where somebody else's came first."""
        version = replace(draft, delta_version=delta.version() + 1 if delta else 0)
        staged = f"{uuid.uuid4().hex}.json"
        record = self.root / name / "staged" / staged
        record.write_json(version.to_json())
        schema = Schema.from_arrow(
            pa.schema([*parquet.stored_schema(p.table.schema), pa.field(rows.SPLIT, pa.string())])
        )
        properties = CommitProperties(
            custom_metadata={"tiltyard.version": str(version.version), "tiltyard.record": staged}, max_commit_retries=0
        )
        adds: list[AddAction | RemoveAction] = [_add_action(f) for f in version.files]
        try:
            if delta is None:
                create_table_with_add_actions(
                    version.uri,
                    schema,
                    [_add_action(f) for f in version.files],
                    mode="error",
                    partition_by=[rows.SPLIT],
                    configuration=_FOREVER,
                    storage_options=self.storage_options or None,
                    commit_properties=properties,
                )
            else:
                delta.create_write_transaction(adds, "overwrite", schema, [rows.SPLIT], commit_properties=properties)
        except Exception as error:  # anything but a conflict may have landed: what was written stays for `gc` to judge
            if not _is_conflict(error):
                raise
            if self._record_of(name, version.delta_version) != staged:
                record.remove()
                return None
        return self._versions(name)[version.version]

    def _record_of(self, name: str, delta_version: int) -> str | None:
        """The staged record that an entry of the Delta log names: ours, where a retried request was answered 'exists'."""
        entry = self.root / name / "table" / "_delta_log" / f"{delta_version:020d}.json"
        return _staged_record(entry.read_bytes()) if entry.exists() else None

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
        where = self.root / version.name / version.profile_path
        if version.profile_path and where.exists():
            return profiling.Profile.from_json(where.read_json())
        there = [s for s in SPLITS if version.split_rows.get(s)]
        hidden = version.spec.keys
        return profiling.Profile(
            splits={s: profiling.profile(self.read(version, split=s), hidden=hidden) for s in there}
        )

    def _read_split(self, version: DatasetVersion, split: str, columns: list[str], limit: int | None) -> pa.Table:
        """Columns and the row hash of a split, ascending by hash."""
        root = Place.of(version.uri, self.storage_options)
        files = [root / f.path for f in version.files if f.split == split]
        if not files:
            fields = [(n, rows.type_of(version.schema[n])) for n in columns]
            return pa.schema([*fields, (rows.ROW, pa.int64())]).empty_table()
        share = 1.0 if limit is None else min(1.0, 1.1 * limit / max(1, version.split_rows[split]))
        parts = [parquet.read_file(f, [*columns, rows.ROW], parquet.first_groups(f, share)) for f in files]
        table = parquet.canonical_order(pa.concat_tables(parts))
        return table if limit is None else table.slice(0, limit)


def conform(table: pa.Table, head: DatasetVersion) -> pa.Table:
    """Rows to append in exactly the columns and types of a version.

    Raises:
        DataError: If a column is missing, is new, or has values that do not fit.
    """
    missing, extra = (
        sorted(set(head.schema) - set(table.column_names)),
        sorted(set(table.column_names) - set(head.schema)),
    )
    if missing or extra:
        raise DataError(
            f"The rows to append to {head.ref} lack columns {missing} and bring new ones {extra}. Append rows of the same "
            "columns, or commit the whole dataset anew."
        )
    columns = {}
    for name, kind in head.schema.items():
        try:
            columns[name] = table[name].cast(rows.type_of(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"Column {name!r} of the rows to append is {rows.type_name(table[name].type)}; {head.ref} has {kind}: "
                f"{error}. Convert it first."
            ) from error
    return pa.table(columns)


def _staged_record(entry: bytes) -> str | None:
    """Name of the staged record in an entry of the Delta log; None where another engine wrote it."""
    for line in entry.splitlines():
        action = json.loads(line)
        if "commitInfo" in action:
            staged = action["commitInfo"].get("tiltyard.record")
            return None if staged is None else str(staged)
    return None


def _is_conflict(error: Exception) -> bool:
    return isinstance(error, CommitFailedError) or "already exists" in str(error)


def _add_action(file: FileEntry) -> AddAction:
    return AddAction(
        file.path,
        file.size_bytes,
        {rows.SPLIT: file.split},
        int(time.time() * 1000),
        True,
        json.dumps({"numRecords": file.num_rows}),
    )


def _ranges(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"versions {numbers[0]} to {numbers[-1]}"
    return ("version " if len(numbers) == 1 else "versions ") + ", ".join(map(str, numbers))
