"""Raw rows of a version through Ray Data, in the order of its files, with bounded memory.

A module of its own: the processes that read import it, and must not import MLflow and Serve (seconds) for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data

from tiltyard.data import parquet, rows
from tiltyard.data.places import Place
from tiltyard.data.versions import FileEntry

BLOCK_BYTES = 16 << 20
"""About a request's worth. Ray Data's own 128 MiB fill a small object store, and requests then wait for it (measured: half the
rows a second)."""


class _Source(ray.data.Datasource):
    """Ray Data's source over raw rows of a version: a read task a file, a block a row group."""

    def __init__(self, root: Place, files: Sequence[FileEntry], columns: Sequence[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._root, self._files, self._columns = root, list(files), [*columns, rows.ROW]

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all blocks, about."""
        return sum(f.num_rows for f in self._files) * 8 * len(self._columns)

    def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
        """One task per file; the parallelism asked for is not followed, files are of the right size already."""
        root, columns = self._root, self._columns

        def task(file: FileEntry) -> Any:
            meta = ray.data.block.BlockMetadata(
                num_rows=file.num_rows,
                size_bytes=file.num_rows * 8 * len(columns),
                input_files=(file.path,),
                exec_stats=None,
            )
            return ray.data.ReadTask(lambda: _row_groups(root / file.path, columns), meta)

        return [task(f) for f in self._files]


def _row_groups(where: Place, columns: Sequence[str]) -> Iterator[pa.Table]:
    for number in range(len(parquet.file_hash_ranges(where))):
        yield parquet.read_file(where, columns, [number])


def blocks(root: Place, files: Sequence[FileEntry], columns: Sequence[str]) -> Iterator[pa.Table]:
    """Row groups in the order of the files; reading holds no CPU slot, so that it cannot starve the replicas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.target_max_block_size = BLOCK_BYTES
        with ray.data.DataContext.current(context):
            dataset = ray.data.read_datasource(
                _Source(root, files, columns),
                ray_remote_args={"num_cpus": 0},
                concurrency=min(2, len(files)),
                override_num_blocks=len(files),  # one task a file, whose blocks are not split further
            )
            bundles = dataset.iter_internal_ref_bundles()
    for bundle in bundles:
        for ref in bundle.block_refs:
            yield ray.get(ref)


def batches(blocks: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in the same order, in tables of ``size`` rows and a last one of fewer."""
    held: list[pa.Table] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.num_rows
        if count < size:
            continue
        table = pa.concat_tables(held)
        whole = count - count % size
        for start in range(0, whole, size):
            yield table.slice(start, size).combine_chunks()
        held, count = [table.slice(whole)], count - whole
    if count:
        yield pa.concat_tables(held).combine_chunks()
