"""One window of a split, read and turned into what a trial sees: features, labels, in the order of an epoch.

This runs inside Ray Data's tasks and imports neither Ray nor torch, so that a fresh worker process is ready soon. Only the
columns that are wanted, and only the row groups that hold the window, are decoded.
"""

from __future__ import annotations

import itertools
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data import order, parquet, rows
from tiltyard.data.places import Place
from tiltyard.data.preflight import READING
from tiltyard.data.versions import DatasetVersion
from tiltyard.errors import DataError
from tiltyard.preprocessing import Preprocessor
from tiltyard.types import Task

X, Y = "x", "y"
"""Names of the columns of a block: features (a tensor a row) and label."""


def wide(matrix: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """A matrix as a column of tensors; no copy."""
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def narrow(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """A column as an array, ``(rows, size)`` where it is of tensors; no copy where it is one chunk."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten().to_numpy()).reshape(len(array), array.type.list_size)
    return np.asarray(array.to_numpy())


class Buffers:
    """Matrices that are written anew once nobody refers to them, by threads too.

    To touch memory that the system gave out just now takes longer than to fill it (measured: 6 of the 20 ms of a window).
    """

    def __init__(self) -> None:
        self._made: list[npt.NDArray[np.float32]] = []
        self._lock = threading.Lock()

    def matrix(self, num_rows: int, width: int) -> npt.NDArray[np.float32]:
        """A matrix ``(num_rows, width)``, float32, of any content; its memory is the caller's until the last reference goes."""
        size = num_rows * width
        with self._lock:
            free = [m for m in self._made if sys.getrefcount(m) == 3]  # the list, ``m``, and the argument
            fits = next((m for m in free if m.size >= size), None)
            if fits is None:
                fits = np.empty(size + size // 16, np.float32)  # windows differ by a few rows
                self._made = [m for m in self._made if not any(m is f for f in free)] + [fits]
            return fits[:size].reshape(num_rows, width)

    def clear(self) -> None:
        """Gives back what nobody refers to."""
        with self._lock:
            self._made = [m for m in self._made if sys.getrefcount(m) > 3]


class Decoder:
    """Turns one file, or some of its row groups, into features, labels and row hashes.

    Args:
        root: The dataset's Delta table.
        preprocessor: What turns columns into features.
    """

    def __init__(self, root: Place, preprocessor: Preprocessor) -> None:
        self.root, self.preprocessor = root, preprocessor
        self.columns = [*preprocessor.features, *preprocessor.labels, rows.ROW]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as arrays: features, labels and the hash."""
        return 4 * self.preprocessor.num_features_out + 8 * max(1, len(self.preprocessor.labels)) + 8

    @property
    def block_row_bytes(self) -> int:
        """Bytes of a row of `block`."""
        return 4 * self.preprocessor.num_features_out + (4 * len(self.preprocessor.labels) if self._wide_label else 8)

    @property
    def _wide_label(self) -> bool:
        return self.preprocessor.task not in (Task.BINARY, Task.MULTICLASS)

    def raw(self, path: str, row_groups: Sequence[int] | None = None) -> pa.Table:
        """The columns that are needed, and the hashes."""
        return parquet.read_file(self.root / path, self.columns, row_groups)

    def __call__(self, path: str) -> pa.Table:
        """A whole file, in its order."""
        raw = self.raw(path)
        return self.block(raw).append_column(rows.ROW, raw[rows.ROW])

    def block(self, raw: pa.Table) -> pa.Table:
        """Features and labels of rows."""
        return _block(self.preprocessor.transform(raw), self.preprocessor.transform_label(raw))

    def shuffled(self, raw: pa.Table, places: npt.NDArray[np.int64], buffers: Buffers) -> pa.Table:
        """Features and labels of the rows at ``places``, in that order, in memory of some buffers."""
        width = self.preprocessor.num_features_out
        x = self.preprocessor.transform(raw, out=buffers.matrix(raw.num_rows, width))
        out = buffers.matrix(len(places), width)
        np.take(x, places, axis=0, out=out, mode="clip")  # "raise" would write into a copy of ``out``
        return _block(out, self.preprocessor.transform_label(raw).take(places, axis=0))


def _block(x: npt.NDArray[np.float32], y: npt.NDArray[Any]) -> pa.Table:
    return pa.table({X: wide(x), Y: wide(y) if y.ndim == 2 else pa.array(y)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where a window lies.

    Args:
        number: Its number in canonical order.
        num_rows: Rows of it.
        groups: File path to the row groups that hold any of it.
        first: Smallest row hash that belongs to it.
        last: Largest row hash that belongs to it.
    """

    number: int
    num_rows: int
    groups: Mapping[str, tuple[int, ...]]
    first: int
    last: int


def windows_of(version: DatasetVersion, root: Place, split: str) -> list[Window]:
    """All windows of a split with their row groups, from the footers of its files; empty ones too.

    Written by Tiltyard, a window is exactly one row group.

    Raises:
        DataError: If a file is missing or damaged.
    """
    total = version.split_rows.get(split, 0)
    starts = order.window_starts(order.window_bits(total, version.window_rows)).tolist()
    ends = [*(s - 1 for s in starts[1:]), np.iinfo(np.int64).max]
    groups: list[dict[str, list[int]]] = [{} for _ in starts]
    counts = [0] * len(starts)
    exact = True
    for file in (f for f in version.files if f.split == split):
        for number, (low, high, num_rows) in enumerate(_ranges(version, root / file.path)):
            first, last = (int(np.searchsorted(starts, h, side="right")) - 1 for h in (low, high))
            exact = exact and first == last
            counts[first] += num_rows
            for window in range(first, last + 1):
                groups[window].setdefault(file.path, []).append(number)
    if not exact:
        counts = _count(version, root, split, starts)
    return [
        Window(number=i, num_rows=counts[i], groups={p: tuple(g) for p, g in groups[i].items()}, first=a, last=b)
        for i, (a, b) in enumerate(zip(starts, ends, strict=True))
    ]


def _ranges(version: DatasetVersion, where: Place) -> list[tuple[int, int, int]]:
    try:
        return parquet.file_hash_ranges(where)
    except (FileNotFoundError, DataError) as error:
        raise DataError(
            f"A file of {version.ref} cannot be read: {error} Wanted: the version's files as they were written. "
            "Restore them, or commit the rows anew."
        ) from error


def _count(version: DatasetVersion, root: Place, split: str, starts: Sequence[int]) -> list[int]:
    """Rows of each window, from the hashes themselves: for files whose row groups do not end where windows do."""
    counts = np.zeros(len(starts), np.int64)
    for file in (f for f in version.files if f.split == split):
        hashes = narrow(parquet.read_file(root / file.path, [rows.ROW])[rows.ROW])
        counts += np.bincount(np.searchsorted(starts, hashes, side="right") - 1, minlength=len(starts))
    return [int(n) for n in counts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one shard takes of one window in one epoch: ``take`` rows of the epoch's order, from ``skip`` on."""

    data_seed: int
    epoch: int
    window: int
    skip: int
    take: int


def epoch_slices(
    windows: Sequence[Window], place: tuple[str, str, int], rank: int, world: int, epoch: int
) -> list[Slice]:
    """The slices of a shard in the order of an epoch, without empty ones.

    Args:
        windows: Of the split.
        place: Content digest, split and data seed.
        rank: Number of the shard.
        world: How many there are; all get the same number of rows.
        epoch: Which one.
    """
    visit = order.window_order(*place, epoch, len(windows)).tolist()
    return [
        Slice(data_seed=place[2], epoch=epoch, window=visit[i], skip=skip, take=take)
        for i, skip, take in order.shard_parts([windows[w].num_rows for w in visit], rank, world)
    ]


def stream_slices(
    windows: Sequence[Window], place: tuple[str, str, int], rank: int, world: int, epoch: int, done: int = 0
) -> Iterator[Slice]:
    """The slices of an epoch and of all that follow it, without end (none where the shard has no rows).

    Args:
        windows: Of the split.
        place: Content digest, split and data seed.
        rank: Number of the shard.
        world: How many there are.
        epoch: The first one.
        done: Rows of the first epoch to leave out.
    """
    for e in itertools.count(epoch):
        slices = epoch_slices(windows, place, rank, world, e)
        if not slices:
            return
        for s in slices:
            left_out = min(done, s.take)
            done -= left_out
            if left_out < s.take:
                yield replace(s, skip=s.skip + left_out, take=s.take - left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a stream asks a reader for: its windows, from some row of an epoch on.

    Args:
        data_seed: Decides the order, with the content digest, the split and the epoch.
        epoch: The first one; those that follow are read too.
        done: Rows of it that are not wanted.
        rank: Number of the shard.
        world: How many there are.
        num_windows: How many windows.
        lease: Path of a file that says for which stream the reader works; empty where it works for none.
        holder: What stands in it while this stream wants more.
    """

    data_seed: int
    epoch: int
    done: int = 0
    rank: int
    world: int
    num_windows: int
    lease: str = ""
    holder: str = ""

    def to_table(self) -> pa.Table:
        """As a table of one row, which is how it reaches a reader."""
        return pa.Table.from_pylist([asdict(self)], REQUEST)

    @classmethod
    def of_table(cls, table: pa.Table) -> list[Request]:
        """The requests in a table."""
        return [cls(**row) for row in table.to_pylist()]


REQUEST = pa.schema([(f.name, pa.string() if f.type == "str" else pa.int64()) for f in fields(Request)])


class Reader:
    """Reads slices of windows of one split, one after another; lives in an actor of Ray Data.

    Args:
        decoder: How a window becomes features and labels.
        place: Content digest and split: with data seed and epoch, what decides the order.
        windows: Of the split.
    """

    def __init__(self, decoder: Decoder, place: tuple[str, str], windows: Sequence[Window]) -> None:
        self._decoder, self._place, self._windows, self._buffers = decoder, place, windows, Buffers()

    def slices(self, asked: Request) -> Iterator[Slice]:
        """What a request asks for, in its order."""
        place = (*self._place, asked.data_seed)
        every = stream_slices(self._windows, place, asked.rank, asked.world, asked.epoch, asked.done)
        return itertools.islice(every, asked.num_windows)

    def read(self, asked: Slice) -> pa.Table:
        """The rows of one slice, in the order of its epoch."""
        window = self._windows[asked.window]
        parts = [self._decoder.raw(path, groups) for path, groups in window.groups.items()]
        raw = parts[0] if len(parts) == 1 else parquet.canonical_order(pa.concat_tables(parts))
        if raw.num_rows != window.num_rows:
            hashes = narrow(raw[rows.ROW])
            raw = raw.filter(pa.array((hashes >= window.first) & (hashes <= window.last)))
        places = order.row_order(*self._place, asked.data_seed, asked.epoch, window.number, window.num_rows)
        return self._decoder.shuffled(raw, places[asked.skip : asked.skip + asked.take], self._buffers)

    def ahead(self, slices: Iterable[Slice]) -> Iterator[pa.Table]:
        """`read` of each, in their order, by `READING` threads beside the one that uses them."""
        due: deque[Future[pa.Table]] = deque()
        threads = ThreadPoolExecutor(READING, "tiltyard-reading")
        try:
            for asked in slices:
                due.append(threads.submit(self.read, asked))
                if len(due) > READING:
                    yield due.popleft().result()
            while due:
                yield due.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)
