"""A split that is larger than memory, streamed through Ray Data: the batches of a resident feed, in bounded memory.

A *stream* is a Ray Data execution over the windows of an epoch (and of those that follow it) in the epoch's order. Each
window is one block: read, preprocessed and shuffled by one of ``READERS`` actors of Ray Data, handed over through the object
store, and cut into batches where they are consumed, without copying. Actors and not tasks, because Ray Data looks for
finished work ten times a second: a task waits for its successor meanwhile, an actor has the next window in its queue.

Bounded memory: at most ``StreamPlan.ahead`` windows lie in the object store for their consumer (`tiltyard.data.preflight`).
No deadlock: readers hold no CPU slot unless told to, so trials that hold every CPU cannot starve the reader they wait for;
`tiltyard.data.preflight.plan_streams` counts what all streams need together and refuses what cannot run, before it starts.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data
import torch
from torch import Tensor

from tiltyard.data import order
from tiltyard.data.feed import Feed, check_feed, tensor
from tiltyard.data.preflight import QUEUED, READERS, StreamPlan
from tiltyard.data.versions import DatasetVersion
from tiltyard.data.windows import Decoder, Reader, Slice, Window, X, Y, epoch_slices, narrow, windows_of
from tiltyard.errors import DataError, PreflightError

SEGMENT = 256
"""Windows of one execution; a longer stream is several, the next one begun before the last one ends."""
_EARLY = 16


def _context(plan: StreamPlan) -> ray.data.DataContext:
    """Ray Data's settings of a stream; the caller's own are not touched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.target_max_block_size = plan.window_bytes  # a window is a block: it is cut from half as much again
    context._max_num_blocks_in_streaming_gen_buffer = 1  # and a task's whole output; pending tasks are counted by it
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=float((plan.ahead - 1) * plan.window_bytes)  # one more is in the consumer's hands
    )
    return context


@contextmanager
def _told() -> Iterator[None]:
    """What Ray Data raises where a window cannot be read, as an error of ours."""
    try:
        yield
    except ray.exceptions.RayError as error:
        raise DataError(
            f"A window could not be read: {_what(error)}. "
            "Wanted: the version's files as they were written. Restore them, or commit the rows anew."
        ) from error


def _what(error: Exception) -> str:
    """The line that matters of an error that Ray carried here with the tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return lines[0] if lines else f"{type(error).__name__}: {error}"


class _Segment:
    """One execution over some slices: blocks in their order."""

    def __init__(self, reader_args: tuple[Any, ...], slices: list[Slice], plan: StreamPlan) -> None:
        with warnings.catch_warnings(), ray.data.DataContext.current(_context(plan)):
            warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
            dataset = ray.data.from_arrow([pa.Table.from_pylist([asdict(s)]) for s in slices]).map_batches(
                Reader,
                fn_constructor_args=reader_args,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=plan.reader_cpus,
                compute=ray.data.ActorPoolStrategy(
                    size=min(READERS, len(slices)), max_tasks_in_flight_per_actor=QUEUED
                ),
            )
            with _told():
                self._bundles: Iterator[Any] | None = iter(dataset.iter_internal_ref_bundles())

    def __iter__(self) -> Iterator[pa.Table]:
        while self._bundles is not None:
            with _told():
                bundle = next(self._bundles, None)
            if bundle is None:
                return
            for entry in bundle.blocks:
                yield ray.get(entry.ref)

    def close(self) -> None:
        """Ends the execution and its readers."""
        self._bundles = None


class _Stream:
    """Blocks of an epoch and those after it, as long as somebody asks."""

    def __init__(self, feed: StreamedFeed, first_epoch: int) -> None:
        self._slices = itertools.chain.from_iterable(feed.slices(e) for e in itertools.count(first_epoch))
        self._feed, self.epoch = feed, first_epoch
        self._running = self._begin()
        self._next: _Segment | None = None
        self._left = SEGMENT

    def _begin(self) -> _Segment:
        return _Segment(self._feed.reader_args, list(itertools.islice(self._slices, SEGMENT)), self._feed.plan)

    def blocks(self) -> Iterator[pa.Table]:
        """Block after block, without end."""
        while True:
            for block in self._running:
                self._left -= 1
                if self._left == _EARLY:
                    self._next = self._begin()
                yield block
            self._running, self._next, self._left = self._next or self._begin(), None, SEGMENT

    def close(self) -> None:
        """Ends what runs."""
        for segment in (self._running, self._next):
            if segment is not None:
                segment.close()


class StreamedFeed(Feed):
    """Batches of a split that is streamed; those of `tiltyard.data.feed.ArrayFeed`.

    The tensors of a batch may be views of a shared, read-only block: do not change them in place.

    Args:
        version: The dataset version.
        decoder: How its files are read.
        split: Which split.
        batch_size: Rows per batch.
        data_seed: Decides the order, with the content digest, the split and the epoch.
        plan: What this and the other streams may use.
        device: Where the batches go.
        drop_last: Leave out a last batch that is not full.
        rank: This consumer's number among ``world``; each reads all windows and takes its own rows of them.
        world: How many there are.
    """

    def __init__(
        self,
        version: DatasetVersion,
        decoder: Decoder,
        *,
        split: str,
        batch_size: int,
        data_seed: int,
        plan: StreamPlan,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_feed(batch_size, rank, world)
        self._windows: list[Window] = windows_of(version, decoder.root, split)
        self._place = (version.content_digest, split, data_seed)
        self._ref, self._device, self._batch, self._rank, self._world = version.ref, device, batch_size, rank, world
        self.plan = plan
        self.reader_args = (decoder, self._windows, self._place, world)
        self._split_bytes = version.split_rows.get(split, 0) * decoder.row_bytes
        self.num_rows = order.shard_rows(sum(w.num_rows for w in self._windows), world)
        self.steps_per_epoch = order.steps(self.num_rows, batch_size, drop_last=drop_last)
        self._live: _Stream | None = None

    def slices(self, epoch: int) -> list[Slice]:
        """What this shard takes of each window, in the order of an epoch."""
        return epoch_slices(self._windows, self._place, epoch, self._rank, self._world)

    def epoch(self, e: int) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Feed.epoch`. The stream goes on to the next epoch, which is there at once when it is asked for."""
        if not self.steps_per_epoch:
            return
        stream, self._live = self._live, None
        if stream is not None and stream.epoch != e:
            stream.close()
            stream = None
        stream = stream or _Stream(self, e)
        done = False
        try:
            blocks = itertools.islice(stream.blocks(), len(self.slices(e)))
            batches = itertools.islice(cut(blocks, self._batch), self.steps_per_epoch)
            for x, y in batches:
                yield tensor(x).to(self._device), tensor(y).to(self._device)
            for _ in blocks:  # what drop_last left over
                pass
            done = True
        finally:
            if done:
                stream.epoch = e + 1
                self._live = stream
            else:
                stream.close()

    def all(self) -> tuple[Tensor, Tensor]:
        """Refused: the split is streamed because it does not fit.

        Raises:
            PreflightError: Always, with the arithmetic.
        """
        raise PreflightError(
            f"Split {self._place[1]!r} of {self._ref} is streamed: {self._split_bytes:,} bytes as arrays do not fit the share "
            "of memory that was allowed, and all rows at once were asked for (scoring and LightGBM do). Raise memory_share, "
            "give Ray a larger object store, or make the split smaller."
        )

    def close(self) -> None:
        """Ends the stream that is ready for the next epoch; also done when the feed is no longer referred to."""
        if self._live is not None:
            self._live.close()
            self._live = None


def cut(blocks: Iterator[pa.Table], size: int) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[Any]]]:
    """Batches of ``size`` rows from blocks of any size: views where a batch lies in one block, copies where it does not."""
    left: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
    have = 0
    for block in blocks:
        x, y = narrow(block[X]), narrow(block[Y])
        start = 0
        if have:
            start = min(size - have, len(x))
            left.append((x[:start], y[:start]))
            have += start
            if have < size:
                continue
            yield _joined(left)
        stop = len(x) - (len(x) - start) % size
        for at in range(start, stop, size):
            yield x[at : at + size], y[at : at + size]
        left, have = ([(x[stop:], y[stop:])], len(x) - stop) if stop < len(x) else ([], 0)
    if have:
        yield _joined(left)


def _joined(parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])
