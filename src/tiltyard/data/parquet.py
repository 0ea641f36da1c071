"""How a split lies on disk: Parquet files of rows sorted by row hash, a row group per window.

Row groups end where windows end (``tiltyard.data.order``), so that a streamed window is whole row groups, found from the
statistics of the hash column without decoding anything else. Numbers are written plain, which decodes fastest; texts and
booleans by dictionary.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.data import order, rows
from tiltyard.data.places import Place
from tiltyard.data.profile import Builder
from tiltyard.data.versions import FileEntry
from tiltyard.progress import work

WINDOWS_PER_FILE = 8
"""About half a million rows per file: enough files to read in parallel, few enough to open quickly."""


class _Hashing:
    """A stream that hashes what passes through it."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.digest, self.size, self.closed = stream, hashlib.sha256(), 0, False

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self.size += view.nbytes
        self.stream.write(view)
        return view.nbytes

    def flush(self) -> None:
        self.stream.flush()

    def tell(self) -> int:
        return self.size

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.closed = True
        self.stream.close()


def stored_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of the files: the columns, then the row hash."""
    return pa.schema([*schema, pa.field(rows.ROW, pa.int64())])


def _dictionary_columns(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema if pa.types.is_string(f.type) or pa.types.is_boolean(f.type)]


def _windows(hashes: npt.NDArray[np.int64], bits: int) -> Iterator[tuple[int, int]]:
    """Non-empty windows of ascending hashes as (first row, row after the last)."""
    offsets = order.window_offsets(hashes, bits).tolist()
    yield from ((a, b) for a, b in itertools.pairwise(offsets) if b > a)


def write_split(
    table: pa.Table,
    row_hash: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    *,
    split: str,
    bits: int,
    run: str,
    root: Place,
    profile: Builder,
) -> list[FileEntry]:
    """Writes the rows of one split, ascending by hash.

    Args:
        table: Canonical rows of all splits; one chunk per column is fastest.
        row_hash: Their hashes.
        places: Which rows to write, already ascending by hash.
        split: The split's name.
        bits: Windows to cut row groups at (``order.window_bits``).
        run: A name no other write has.
        root: The dataset's Delta table.
        profile: Takes each window as it is written.
    """
    entries: list[FileEntry] = []
    windows = list(_windows(row_hash[places], bits))
    with work(f"write the {split} split", total=len(places), unit="rows") as doing:
        for number, first in enumerate(range(0, len(windows), WINDOWS_PER_FILE)):
            path = f"{rows.SPLIT}={split}/{run}-{number:05d}.parquet"
            of_file = windows[first : first + WINDOWS_PER_FILE]
            entries.append(_write_file(table, row_hash, places, of_file, split, root / path, path, profile))
            doing.advance(entries[-1].num_rows)
    return entries


def _write_file(
    table: pa.Table,
    row_hash: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    windows: Sequence[tuple[int, int]],
    split: str,
    where: Place,
    path: str,
    profile: Builder,
) -> FileEntry:
    schema = stored_schema(table.schema)
    with where.asked():
        sink = _Hashing(where.open_output())
        with pq.ParquetWriter(
            sink,
            schema,
            compression="lz4",
            use_dictionary=_dictionary_columns(schema),
            write_statistics=[rows.ROW],  # min and max of a column of persons would outlive the deletion of a person
        ) as writer:
            for start, stop in windows:
                chosen = places[start:stop]
                part = table.take(pa.array(chosen)).append_column(rows.ROW, pa.array(row_hash[chosen]))
                profile.add(part)
                writer.write_table(part.cast(schema) if part.schema != schema else part, row_group_size=stop - start)
        sink.close()
    return FileEntry(
        path=path,
        split=split,
        num_rows=windows[-1][1] - windows[0][0],
        size_bytes=sink.size,
        sha256=sink.digest.hexdigest(),
    )


def read_file(where: Place, columns: Sequence[str] | None, row_groups: Sequence[int] | None = None) -> pa.Table:
    """A file's rows (or those of some row groups), with the named columns, threads off: callers run in parallel."""
    with where.open_input() as source:
        file = pq.ParquetFile(source, pre_buffer=True)
        if row_groups is None:
            return file.read(columns=columns, use_threads=False)
        return file.read_row_groups(list(row_groups), columns=columns, use_threads=False)


def first_groups(where: Place, share: float) -> list[int] | None:
    """Row groups that hold the rows whose hash is in the first ``share`` of all hashes; None means all of them."""
    if share >= 1.0:
        return None
    bound = int(np.iinfo(np.int64).min + share * 2.0**64)
    return [i for i, (low, _, _) in enumerate(file_hash_ranges(where)) if low <= bound]


def file_hash_ranges(where: Place) -> list[tuple[int, int, int]]:
    """Smallest hash, largest hash and rows of each row group of a file, from its footer."""
    with where.open_input() as source:
        metadata = pq.ParquetFile(source).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    place = metadata.num_columns - 1
    stats = [(g.column(place).statistics, g.num_rows) for g in groups]
    return [(s.min, s.max, n) for s, n in stats]


def canonical_order(table: pa.Table) -> pa.Table:
    """Rows ascending by hash; unchanged where they are already."""
    hashes = table[rows.ROW].combine_chunks().to_numpy(zero_copy_only=False)
    if (hashes[1:] >= hashes[:-1]).all():
        return table
    return table.take(pa.array(np.argsort(hashes, kind="stable")))
