"""Batches of a split that is in memory, as torch tensors, in the order of ``tiltyard.data.order``.

A `Feed` is what a training loop sees, whichever way the rows come: `ArrayFeed` here for arrays in this process or mapped
from Ray's object store, `tiltyard.data.stream` for rows larger than memory. Equal content, ``data_seed``, epoch and batch
size give equal batches from both.

Needs torch and NumPy alone, so that one trial can be trained without Ray.
"""

from __future__ import annotations

import abc
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiltyard.data import order
from tiltyard.errors import DataError, SpecError

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[Any], npt.NDArray[np.int64]]
"""``x`` (rows, features) float32; ``y`` int64 (rows,) or float32 (rows, labels); ascending row hashes int64 (rows,)."""


T = TypeVar("T")


class Feed(abc.ABC):
    """Batches of one split for one consumer.

    ``num_rows`` is what this consumer gets per epoch; ``steps_per_epoch`` how many batches that is.
    """

    num_rows: int
    steps_per_epoch: int

    @abc.abstractmethod
    def epoch(self, e: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches ``(x, y)`` of epoch ``e`` in its order: x float32 ``(batch, features)``, y as the task wants it."""

    @abc.abstractmethod
    def all(self) -> tuple[Tensor, Tensor]:
        """The whole split in canonical order. Read-only: do not change the tensors in place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """What one consumer takes of a split, and how.

    Args:
        split: Which split.
        batch_size: Rows per batch; the last one is smaller unless ``drop_last``.
        data_seed: Another seed, another order.
        device: Where the batches go.
        drop_last: Leave out a last batch that is not full.
        rank: This consumer's number among ``world`` that share the split; shards of an epoch are disjoint.
        world: How many share it.

    Raises:
        SpecError: If the batch size or shard makes no sense.
    """

    split: str
    batch_size: int
    data_seed: int
    device: str | torch.device = "cpu"
    drop_last: bool = False
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise SpecError(f"Batch size {self.batch_size} is below 1.")
        if not 0 <= self.rank < self.world:
            raise SpecError(f"Shard {self.rank} of {self.world} does not exist; ranks go from 0 to {self.world - 1}.")

    def place(self, content_digest: str) -> tuple[str, str, int]:
        """What decides the order, with the epoch."""
        return content_digest, self.split, self.data_seed

    def steps(self, num_rows: int) -> int:
        """Batches of so many rows."""
        return order.steps(num_rows, self.batch_size, drop_last=self.drop_last)


def tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor on the array's memory, without copying.

    Arrays from the object store are read-only and shared by all trials; torch has no read-only tensors and warns. The
    warning is silenced here because a feed never writes and says so.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class ArrayFeed(Feed):
    """Batches gathered from arrays in canonical order. On an accelerator the whole split is moved there once.

    Args:
        arrays: The split.
        take: What is taken of it.
        content_digest: Of the dataset version; part of what decides the order.
        window_rows: Rows a window aims at (``DatasetVersion.window_rows``).
    """

    def __init__(
        self, arrays: Arrays, take: Take, *, content_digest: str, window_rows: int = order.WINDOW_ROWS
    ) -> None:
        x, y, hashes = arrays
        self._x, self._y = tensor(x).to(take.device), tensor(y).to(take.device)
        self._offsets = order.window_offsets(hashes, order.window_bits(len(x), window_rows))
        self._take, self._place = take, take.place(content_digest)
        self.num_rows = order.shard_rows(len(x), take.world)
        self.steps_per_epoch = take.steps(self.num_rows)

    def epoch(self, e: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Feed.epoch`."""
        for (index,) in itertools.islice(batched(self._windows(e), self._take.batch_size), self.steps_per_epoch):
            places = torch.from_numpy(index).to(self._x.device)
            yield self._x.index_select(0, places), self._y.index_select(0, places)

    def order(self, e: int) -> npt.NDArray[np.int64]:
        """Places in canonical order of the rows this shard sees in epoch ``e``, in order: int64 ``(num_rows,)``."""
        return np.concatenate([np.empty(0, np.int64), *(index for (index,) in self._windows(e))])

    def _windows(self, e: int) -> Iterator[tuple[npt.NDArray[np.int64]]]:
        sizes, visit = np.diff(self._offsets), order.window_order(*self._place, e, len(self._offsets) - 1)
        parts = order.shard_parts(sizes[visit].tolist(), self._take.rank, self._take.world)
        return _ahead(functools.partial(self._draw, e, int(visit[i]), skip, take) for i, skip, take in parts)

    def _draw(self, e: int, window: int, skip: int, take: int) -> tuple[npt.NDArray[np.int64]]:
        """Places of some rows of a window, in the order of epoch ``e``."""
        first, stop = self._offsets[window : window + 2].tolist()
        rows = order.row_order(*self._place, e, window, stop - first)[skip : skip + take]
        rows += first
        return (rows,)

    def all(self) -> tuple[Tensor, Tensor]:
        """See `Feed.all`; on the CPU no copy is made."""
        return self._x, self._y


def _ahead(calls: Iterator[Callable[[], T]]) -> Iterator[T]:
    """What calls return, in their order; each is made on a thread while the one before it is used.

    To draw the order of a window takes a third of the time of gathering its rows, and NumPy holds no lock meanwhile.
    """
    first, second = next(calls, None), next(calls, None)
    if first is None:
        return
    if second is None:  # most splits are one window
        yield first()
        return
    with ThreadPoolExecutor(1, "tiltyard-order") as thread:
        result: Future[T] = thread.submit(first)
        for call in itertools.chain((second,), calls):
            following = thread.submit(call)
            yield result.result()
            result = following
        yield result.result()


def batched(parts: Iterator[tuple[npt.NDArray[Any], ...]], size: int) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Cuts a stream of rows, each a tuple of arrays of one length, into tuples of ``size`` rows; the last may be smaller.

    Views where a batch lies in one part, copies where it does not.
    """
    left: list[tuple[npt.NDArray[Any], ...]] = []
    have = 0
    for part in parts:
        num_rows, start = len(part[0]), 0
        if have:
            start = min(size - have, num_rows)
            left.append(tuple(a[:start] for a in part))
            have += start
            if have < size:
                continue
            yield _joined(left)
        stop = num_rows - (num_rows - start) % size
        for at in range(start, stop, size):
            yield tuple(a[at : at + size] for a in part)
        left, have = ([tuple(a[stop:] for a in part)], num_rows - stop) if stop < num_rows else ([], 0)
    if have:
        yield _joined(left)


def _joined(parts: list[tuple[npt.NDArray[Any], ...]]) -> tuple[npt.NDArray[Any], ...]:
    return parts[0] if len(parts) == 1 else tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))


def local_feed(
    x: npt.NDArray[np.float32],
    y: npt.NDArray[Any],
    *,
    row_hash: npt.NDArray[np.int64] | None = None,
    content_digest: str,
    split: str,
    batch_size: int,
    data_seed: int,
    device: str | torch.device = "cpu",
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
    window_rows: int = order.WINDOW_ROWS,
) -> ArrayFeed:
    """A feed of arrays in this process: the same batches as `tiltyard.data.stream.open_feed`, without Ray.

    Args:
        x: Preprocessed features in canonical order, ``(rows, features)`` float32.
        y: Labels in the same order.
        row_hash: Row hashes, ascending (``DatasetStore.read_hashes``); may be left out where all rows are one window.
        content_digest: Of the dataset version.
        split: Which split the rows are.
        batch_size: Rows per batch.
        data_seed: Decides the order, with the digest, the split and the epoch.
        device: Where batches go.
        drop_last: Leave out a last batch that is not full.
        rank: Number of this shard.
        world: Number of shards.
        window_rows: ``DatasetVersion.window_rows``; the default is right for rows of up to 1 KiB.

    Raises:
        DataError: If lengths differ, or hashes are needed and missing.
    """
    if len(x) != len(y) or (row_hash is not None and len(row_hash) != len(x)):
        raise DataError(f"x has {len(x)} rows and y {len(y)}; wanted as many of each (and of row hashes).")
    if row_hash is None:
        if order.window_bits(len(x), window_rows):
            raise DataError(f"{len(x)} rows are shuffled in windows of their hashes; give row_hash (read_hashes).")
        row_hash = np.zeros(len(x), np.int64)
    take = Take(
        split=split,
        batch_size=batch_size,
        data_seed=data_seed,
        device=device,
        drop_last=drop_last,
        rank=rank,
        world=world,
    )
    return ArrayFeed((x, y, row_hash), take, content_digest=content_digest, window_rows=window_rows)
