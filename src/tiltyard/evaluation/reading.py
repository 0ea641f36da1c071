"""Raw rows of a version through Ray Data, in the order of its files, with bounded memory.

A module of its own: the processes that read import it, and must not import MLflow and Serve (seconds) for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from tiltyard.data import parquet, rows
from tiltyard.data.places import Place
from tiltyard.data.versions import FileEntry
from tiltyard.placement import AWAY_FROM_GPU_NODES

BLOCK_SHARE = 1.4
"""A block may grow to 1.5 of what Ray Data is told and is given out from 1 on: so a request's rows come as they were read."""


class _Source(ray.data.Datasource):
    """Ray Data's source over raw rows of a version: a read task a file, a block about a request's rows."""

    def __init__(
        self, root: Place, files: Sequence[FileEntry], columns: Sequence[str], batch_rows: int, seen: Any
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._files, self._columns = root, list(files), [*columns, rows.ROW]
        self._batch_rows, self._seen = batch_rows, seen

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all blocks, about."""
        return sum(f.num_rows for f in self._files) * 8 * len(self._columns)

    def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
        """One task per file; the parallelism asked for is not followed, files are of the right size already."""
        root, columns, batch_rows, seen = self._root, self._columns, self._batch_rows, self._seen

        def task(file: FileEntry) -> Any:
            meta = ray.data.block.BlockMetadata(
                num_rows=file.num_rows,
                size_bytes=file.num_rows * 8 * len(columns),
                input_files=(file.path,),
                exec_stats=None,
            )
            return ray.data.ReadTask(lambda: _tables(root / file.path, columns, batch_rows, seen), meta)

        return [task(f) for f in self._files]


def _tables(where: Place, columns: Sequence[str], batch_rows: int, seen: Any) -> Iterator[pa.Table]:
    """Rows of a file, without those that were seen, in tables of whole row groups where they fit into a request."""
    known = None if seen is None else ray.get(seen)
    groups = (parquet.read_file(where, columns, [n]) for n in range(len(parquet.file_hash_ranges(where))))
    yield from batches(groups if known is None else (unseen(g, known) for g in groups), batch_rows)


def unseen(table: pa.Table, seen: npt.NDArray[np.int64]) -> pa.Table:
    """Rows whose hash is none of these, which ascend."""
    if not len(seen):
        return table
    hashes = table[rows.ROW].to_numpy()
    places = np.minimum(np.searchsorted(seen, hashes), len(seen) - 1)
    return table.filter(pa.array(seen[places] != hashes))


def blocks(
    root: Place,
    files: Sequence[FileEntry],
    columns: Sequence[str],
    *,
    batch_rows: int,
    row_bytes: int,
    seen: npt.NDArray[np.int64] | None = None,
) -> Iterator[Any]:
    """References to tables of about ``batch_rows`` rows, in the order of the files.

    What a replica answers is handed on to it as it is: no row passes through this process on its way. Reading holds no CPU
    slot, so that it cannot starve the replicas.

    Args:
        root: Of the dataset's Delta table.
        files: Which files.
        columns: Which columns; the row hash comes beside them.
        batch_rows: Rows of a request.
        row_bytes: What a row takes in memory, about.
        seen: Ascending hashes of rows that are left out.
    """
    known = None if seen is None else ray.put(seen)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        # Ray Data's own 128 MiB fill a small object store, and requests then wait for it (measured: half the rows a second)
        context.target_max_block_size = max(1, int(batch_rows * row_bytes / BLOCK_SHARE))
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(
                _Source(root, files, columns, batch_rows, known),
                ray_remote_args={"num_cpus": 0, "label_selector": AWAY_FROM_GPU_NODES},
                concurrency=min(2, len(files)),
                override_num_blocks=len(files),  # one task a file, whose blocks are not split further
            )
            bundles = dataset.iter_internal_ref_bundles()
    for bundle in bundles:
        yield from bundle.block_refs


def batches(parts: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in the same order, in tables of at most ``size`` rows: whole parts where they fit, none without rows."""
    held: list[pa.Table] = []
    count = 0
    for part in parts:
        if held and count + part.num_rows > size:
            yield _one(held)
            held, count = [], 0
        whole = max(0, part.num_rows - 1) // size * size
        for start in range(0, whole, size):
            yield _one([part.slice(start, size)])
        if rest := part.num_rows - whole:
            held.append(part.slice(whole))
            count += rest
    if held:
        yield _one(held)


def _one(parts: Sequence[pa.Table]) -> pa.Table:
    """One table of one chunk a column."""
    return pa.concat_tables(parts).combine_chunks() if len(parts) > 1 else parts[0].combine_chunks()
