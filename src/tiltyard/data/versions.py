"""What a dataset version is: which rows, in which splits, of what schema, under which number.

Words: a *spec* is what a person declares when committing (task, label, key, splits, checks, card); a *version* is what
was committed under it. ``content_digest`` answers "would a trial learn the same from it": it covers every row, the split
each row is in, the schema, the task and the label, and is blind to files, shards, row order and maintenance.
``files_digest`` answers "are these the very bytes that were written".

This module holds values and their JSON form (with ``schema_version``) and does nothing: no file, no clock, no pyarrow.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tiltyard.data import order, rules
from tiltyard.errors import DataError, DatasetNotFoundError, SpecError
from tiltyard.types import DatasetRef, Task, check_schema_version

__all__ = [
    "SPLITS",
    "Card",
    "Check",
    "Commit",
    "DatasetRef",
    "DatasetSpec",
    "DatasetVersion",
    "FileEntry",
    "SplitSpec",
]

SCHEMA_VERSION = 2
"""1 had no ``profile_sha256``, ``successor_of`` and ``beside``."""
SPLITS = ("train", "validation", "test")


def _names(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSpec:
    """How rows are assigned to splits; see ``tiltyard.data.splits``.

    Args:
        train: Share of the rows (or keys, or groups) in the training split, 0 to 1.
        validation: Share in the validation split.
        test: Share in the test split; the three add up to 1.
        seed: Another seed, another assignment.
        stratify: Column whose values each get the fractions in expectation, drawn independently.
        time_cuts: Two ISO dates ``(validation_from, test_from)``: a fixed cut on the dataset's time column, instead of
            fractions. Rows before the first train, from the second on they test.
    """

    train: float = 0.6
    validation: float = 0.2
    test: float = 0.2
    seed: int = 0
    stratify: str | None = None
    time_cuts: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise SpecError(f"Split fractions {shares} are not three shares that add up to 1, such as 0.6, 0.2, 0.2.")
        if self.time_cuts is not None:
            if len(self.time_cuts) != 2 or self.time_cuts[0] > self.time_cuts[1]:
                raise SpecError(f"time_cuts {self.time_cuts} are not (validation_from, test_from) in that order.")
            if self.stratify is not None:
                raise SpecError("A split by time cannot be stratified as well; leave one of the two out.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule the rows must keep; ``tiltyard.data.checks`` says which kinds there are and what they take.

    Args:
        kind: ``not_null``, ``range``, ``allowed``, ``matches``, ``unique``, ``schema``, ``row_count``,
            ``row_count_change``, ``label_balance`` or ``freshness``.
        column: The column it is about, where it is about one.
        columns: The columns it is about, where it is about several (``unique``).
        severity: ``error`` refuses the version; ``warning`` records the failure in it.
        params: What the kind takes, e.g. ``{"min": 0, "max": 120}``.
    """

    kind: str
    column: str | None = None
    columns: tuple[str, ...] = ()
    severity: str = "error"
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.severity not in ("error", "warning"):
            raise SpecError(f"Check {self.kind!r} has severity {self.severity!r}; wanted 'error' or 'warning'.")
        try:  # as JSON gives them back, so that a spec equals the one that was stored
            object.__setattr__(self, "params", json.loads(json.dumps(dict(self.params))))
        except (TypeError, ValueError) as error:
            raise SpecError(f"Check {self.kind!r} has params that are no plain values: {error}.") from error
        rules.check_declared(self.kind, self.column, self.columns, self.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a reader must know before using the data."""

    description: str = ""
    source: str = ""
    licence: str = ""
    collected: str = ""
    contact: str = ""
    known_gaps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """What a person declares about a dataset when committing it; stored in each version.

    Args:
        task: What is predicted from it; None for a table that nothing is trained on.
        label: The column (several for multilabel and multi-target regression) that is predicted.
        key: Column(s) that say which person or thing a row is about; rows of one key stay in one split.
        group: Column whose equal values stay together in one split (a customer, a patient).
        time: Column that says when a row happened; needed by ``split.time_cuts`` and freshness checks.
        split: How rows are assigned to splits.
        sensitive: Columns that never reach a model unless an experiment names them.
        ignore: Columns that are no features (free text, file names).
        classes: Values the label can take that one version may lack (a night without a fraud).
        checks: Rules run on each commit.
        card: The dataset card.
    """

    task: Task | None = None
    label: str | tuple[str, ...] | None = None
    key: str | tuple[str, ...] | None = None
    group: str | None = None
    time: str | None = None
    split: SplitSpec = SplitSpec()
    sensitive: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    classes: tuple[str | int | bool, ...] = ()
    checks: tuple[Check, ...] = ()
    card: Card = Card()

    def __post_init__(self) -> None:
        if self.task is not None:
            try:
                object.__setattr__(self, "task", Task(self.task))  # a plain string will do
            except ValueError as error:
                raise SpecError(f"There is no task {self.task!r}; there are: {', '.join(Task)}.") from error
        if self.task is not None and not self.label:
            raise SpecError(f"A dataset for {self.task} needs its label column: DatasetSpec(task=..., label='...').")
        if self.task in (Task.BINARY, Task.MULTICLASS) and len(self.labels) > 1:
            raise SpecError(f"{self.task} has one label column; found {list(self.labels)}. Several make it multilabel.")
        if self.split.time_cuts is not None and self.time is None:
            raise SpecError("split.time_cuts needs the column that says when: DatasetSpec(time='...').")

    @property
    def labels(self) -> tuple[str, ...]:
        """The label columns, as a tuple."""
        return _names(self.label)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key columns, as a tuple."""
        return _names(self.key)

    @property
    def personal(self) -> tuple[str, ...]:
        """Columns whose values stay out of logs: keys, which name a person or a thing, and sensitive ones."""
        return tuple(sorted({*self.keys, *self.sensitive}))

    @property
    def reserved(self) -> frozenset[str]:
        """Columns that are no features: labels, keys, group, time, sensitive and ignored ones."""
        more = (self.group, self.time)
        return frozenset({*self.labels, *self.keys, *self.sensitive, *self.ignore, *(c for c in more if c)})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The spec that ``to_json`` wrote, or that a person wrote as JSON.

        Raises:
            SpecError: If a field is unknown or has an unusable value.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - known):
            raise SpecError(f"A dataset spec has no field {unknown[0]!r}. Fields: {', '.join(sorted(known))}.")
        values = dict(data)
        try:
            if values.get("task") is not None:
                values["task"] = Task(values["task"])
            for name in ("label", "key"):
                if isinstance(values.get(name), list):
                    values[name] = tuple(values[name])
            for name in ("sensitive", "ignore", "classes"):
                values[name] = tuple(values.get(name, ()))
            split = dict(values.get("split", {}))
            if split.get("time_cuts") is not None:
                split["time_cuts"] = tuple(split["time_cuts"])
            values["split"] = SplitSpec(**split)
            values["checks"] = tuple(
                Check(**{**c, "columns": tuple(c.get("columns", ()))}) for c in values.get("checks", ())
            )
            card = dict(values.get("card", {}))
            card["known_gaps"] = tuple(card.get("known_gaps", ()))
            values["card"] = Card(**card)
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise SpecError(f"A dataset spec cannot be read: {error}.") from error


_TYPE_BYTES = {"bool": 1, "int8": 1, "int16": 2, "int32": 4, "float32": 4, "date": 4, "string": 32, "binary": 32}


def _type_bytes(name: str) -> int:
    base, bracket, size = name.partition("[")
    if base.startswith("decimal"):
        return 16
    count = math.prod(int(n) for n in size[:-1].split(",")) if bracket and base != "timestamp" else 1
    return _TYPE_BYTES.get(base, 8) * count


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One Parquet file of a version: a run of rows of one split, sorted by row hash.

    ``path`` is relative to the dataset's Delta table. ``row_groups`` are cut so that each holds one or more whole
    ranges of row hashes (``tiltyard.data.order``).
    """

    path: str
    split: str
    num_rows: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetVersion:
    """One immutable snapshot of a dataset.

    Args:
        name: The dataset's name.
        version: Tiltyard's own number: 1, 2, ...
        content_digest: Of rows, their splits, schema, task and label; hex.
        files_digest: Of the bytes of all files; hex.
        num_rows: Rows in all splits.
        split_rows: Split name to number of rows.
        schema: Column name to type (``float32``, ``int64``, ``string``, ``float32[64]``, ``uint8[28,28,1]``), sorted.
        nullable: Columns that hold at least one null.
        spec: What was declared.
        classes: Values of the label in ascending order (binary and multiclass), else the label columns.
        created_at: ISO 8601, UTC.
        parent: The version this one succeeded, or None.
        delta_version: The version of the Delta table that holds exactly these files.
        uri: Where the dataset's Delta table lives.
        files: The files.
        row_sums: Split name to the additive hash of its rows (hex), from which the digest is made.
        profile_path: Where its profile lies, relative to the dataset's folder.
        warnings: Checks that failed and were declared as warnings.
        message: What the committer said.
        profile_sha256: Of the bytes of its profile; empty where an older Tiltyard wrote it.
        successor_of: The version that it took the place of when rows were deleted by key, or None.
        beside: True for the successor of an older version: it stands beside the line, and a bare name never means it.
    """

    name: str
    version: int
    content_digest: str
    files_digest: str
    num_rows: int
    split_rows: Mapping[str, int]
    schema: Mapping[str, str]
    nullable: tuple[str, ...]
    spec: DatasetSpec
    classes: tuple[str | int | float | bool, ...]
    created_at: str
    parent: int | None
    delta_version: int
    uri: str
    files: tuple[FileEntry, ...]
    row_sums: Mapping[str, str]
    profile_path: str
    warnings: tuple[str, ...] = ()
    message: str = ""
    profile_sha256: str = ""
    successor_of: int | None = None
    beside: bool = False

    @property
    def ref(self) -> DatasetRef:
        """Its name and version."""
        return DatasetRef(self.name, self.version)

    @property
    def num_classes(self) -> int:
        """How many classes (binary, multiclass) or labels (multilabel, targets) there are."""
        return len(self.classes)

    @property
    def size_bytes(self) -> int:
        """Bytes of its files."""
        return sum(f.size_bytes for f in self.files)

    @property
    def row_bytes(self) -> int:
        """Bytes a row takes in memory, by its schema; a text or bytes value counts as 32."""
        return sum(_type_bytes(kind) for kind in self.schema.values())

    @property
    def window_rows(self) -> int:
        """Rows a window of this version aims at; see `tiltyard.data.order`."""
        return order.window_rows(self.row_bytes)

    @property
    def features(self) -> tuple[str, ...]:
        """Columns that a model may learn from unless an experiment says otherwise: no label, key or marked column."""
        return tuple(c for c in self.schema if c not in self.spec.reserved)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The version that ``to_json`` wrote.

        Raises:
            DataError: If it was written by a newer Tiltyard, or is damaged.
        """
        found = data.get("schema_version") if isinstance(data, Mapping) else None
        if not isinstance(found, int):
            raise DataError(
                "The record of a dataset version is damaged: it is no object with a schema version. "
                "See which: tiltyard data verify"
            )
        check_schema_version(found, SCHEMA_VERSION, "A dataset version")
        values = {k: v for k, v in data.items() if k != "schema_version"}
        try:
            values["spec"] = DatasetSpec.from_json(values["spec"])
            values["files"] = tuple(FileEntry(**f) for f in values["files"])
            for name in ("nullable", "classes", "warnings"):
                values[name] = tuple(values[name])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, SpecError) as error:
            told = f"The record of a dataset version is damaged: {error}. See which: tiltyard data verify"
            raise DataError(told) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The answer to a commit: the version, and whether it is new (False: the same content was already the newest)."""

    version: DatasetVersion
    created: bool


def content_digest(
    schema: Mapping[str, str], spec: DatasetSpec, row_sums: Mapping[str, str], classes: tuple[object, ...]
) -> str:
    """Digest of what a trial learns from: schema, task, label, classes, and the rows of each split; hex SHA-256."""
    facts = {
        "schema": dict(sorted(schema.items())),
        "task": spec.task,
        "labels": spec.labels,
        "classes": classes,
        "rows": dict(sorted(row_sums.items())),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def newest(versions: Mapping[int, DatasetVersion]) -> DatasetVersion | None:
    """The version that a bare name means: the last one that does not stand beside the line; None where there is none."""
    return versions[max(line)] if (line := [n for n, v in versions.items() if not v.beside]) else None


def files_digest(files: tuple[FileEntry, ...]) -> str:
    """Digest of the bytes of all files, whatever their names; hex SHA-256."""
    lines = sorted(f"{f.split} {f.sha256} {f.size_bytes} {f.num_rows}" for f in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def check_columns(version: DatasetVersion, columns: Sequence[str]) -> None:
    """Raises where a version lacks a column.

    Raises:
        DatasetNotFoundError: Naming the columns there are.
    """
    for name in columns:
        if name not in version.schema:
            raise DatasetNotFoundError(
                f"Dataset {version.ref} has no column {name!r}; it has {', '.join(list(version.schema)[:30])}."
            )


def check_split(version: DatasetVersion, split: str | None) -> tuple[str, ...]:
    """The splits that are meant: one, or all where it is None.

    Raises:
        DatasetNotFoundError: If there is no such split.
    """
    if split is None:
        return SPLITS
    if split not in SPLITS:
        raise DatasetNotFoundError(f"Dataset {version.ref} has no split {split!r}; splits: {', '.join(SPLITS)}.")
    return (split,)
