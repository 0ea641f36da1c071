"""The Delta table of a dataset: opened, and given one entry of its log at a time.

An entry is written put-if-absent by delta-rs (on S3 by a conditional PUT), which retries nothing by itself: who comes second is
told so, and looks again. deltalake's one home.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
from deltalake import DeltaTable, Schema, TableFeatures
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, CommitProperties, RemoveAction, create_table_with_add_actions

from tiltyard.data import parquet, rows
from tiltyard.data.places import Place, brief
from tiltyard.data.versions import FileEntry
from tiltyard.errors import DataError
from tiltyard.settings import shown

_FOREVER = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.enableExpiredLogCleanup": "false",
    # another engine's VACUUM would otherwise remove the files of older versions a week after a newer one came
    "delta.deletedFileRetentionDuration": "interval 36500 days",
    # nor may its OPTIMIZE write least and greatest values of columns into the log: they would outlive a person's deletion
    "delta.dataSkippingNumIndexedCols": "0",
}
_FEATURES = {"timestamp_ntz": (TableFeatures.TimestampWithoutTimezone, "timestampNtz")}
"""Types that a table holds only where its protocol says so: the feature, and its name there."""


@dataclass(frozen=True, slots=True)
class DatasetTable:
    """A dataset's Delta table as it stood when it was opened.

    Args:
        root: Where it is.
        delta: As delta-rs has it; None where there is none yet.
    """

    root: Place
    delta: DeltaTable | None

    @classmethod
    def open(cls, root: Place) -> DatasetTable:
        """The table as it is now.

        Raises:
            DataError: If its log cannot be read, or its place does not answer.
        """
        with _told(root):
            try:
                return cls(root, DeltaTable(root.uri, storage_options=dict(root.options) or None))
            except TableNotFoundError:
                return cls(root, None)

    @property
    def next_version(self) -> int:
        """Delta's number of the entry that comes next."""
        return self.delta.version() + 1 if self.delta else 0

    def files(self) -> set[str]:
        """Files of the newest Delta version, relative to the table: other than a version's own after a compaction."""
        with _told(self.root):
            return set() if self.delta is None else set(pa.table(self.delta.get_add_actions())["path"].to_pylist())

    def fence(self) -> None:
        """Adds an empty entry: whoever prepares one on what was there before must look again."""
        if self.delta is not None:
            said = _properties({"tiltyard.fence": "deletion"})
            with (
                _told(self.root),
                contextlib.suppress(CommitFailedError),
            ):  # somebody else's entry came just now, and is as good
                self.delta.create_write_transaction(
                    [], "append", self.delta.schema(), [rows.SPLIT], commit_properties=said
                )

    def replace(self, schema: pa.Schema, files: Sequence[FileEntry], said: Mapping[str, str]) -> bool:
        """Adds the entry after which the table is these files; False where somebody else's came first: open it and look.

        Also False where the table had to be told first that it may hold a type, which is an entry of its own.

        Args:
            schema: Of the rows, without hash and split.
            files: All of them.
            said: For the entry's ``commitInfo``.

        Raises:
            DataError: If its place does not answer, or delta-rs refuses: then the entry may have landed all the same.
        """
        stored = Schema.from_arrow(pa.schema([*parquet.stored_schema(schema), pa.field(rows.SPLIT, pa.string())]))
        adds: list[AddAction | RemoveAction] = [_add_action(f) for f in files]
        try:
            if self.delta is None:
                create_table_with_add_actions(
                    self.root.uri,
                    stored,
                    [_add_action(f) for f in files],
                    mode="error",
                    partition_by=[rows.SPLIT],
                    configuration=_FOREVER,
                    storage_options=dict(self.root.options) or None,
                    commit_properties=_properties(said),
                )
            elif missing := self._missing_features(stored):
                self.delta.alter.add_feature(missing, allow_protocol_versions_increase=True)
                return False
            else:
                self.delta.create_write_transaction(
                    adds, "overwrite", stored, [rows.SPLIT], commit_properties=_properties(said)
                )
        except Exception as error:  # anything but a conflict may have landed
            if isinstance(error, CommitFailedError) or "already exists" in str(error):
                return False
            with _told(self.root):
                raise
        return True

    def _missing_features(self, schema: Schema) -> list[TableFeatures]:
        """Features that a table of this schema needs and was not made with: without them it could never be opened again."""
        assert self.delta is not None
        has, wanted = self.delta.protocol().writer_features or [], schema.to_json()
        return [feature for kind, (feature, name) in _FEATURES.items() if f'"{kind}"' in wanted and name not in has]


@contextlib.contextmanager
def _told(root: Place) -> Iterator[None]:
    """Words delta-rs's own errors: those of its place as the place does, those of its log with how to look."""
    with root.asked():
        try:
            yield
        except DeltaError as error:
            dataset = root.uri.removesuffix("/table").rpartition("/")[2]
            raise DataError(
                f"The Delta table at {shown(root.uri)} cannot be used: {brief(error)}. Wanted a log whose entries are as "
                f"they were written. Look: tiltyard data verify {dataset}"
            ) from error


def _properties(said: Mapping[str, str]) -> CommitProperties:
    return CommitProperties(custom_metadata=dict(said), max_commit_retries=0)


def _add_action(file: FileEntry) -> AddAction:
    return AddAction(
        file.path,
        file.size_bytes,
        {rows.SPLIT: file.split},
        int(time.time() * 1000),
        True,
        json.dumps({"numRecords": file.num_rows}),
    )
