"""A split that is larger than memory, streamed through Ray Data: the batches of a resident feed, in bounded memory.

A *stream* is a Ray Data execution over the windows of an epoch (and of those that follow it) in the epoch's order. Each
window is one block: read, preprocessed and shuffled by one of ``READERS`` actors of Ray Data, handed over through the object
store, and cut into batches where they are consumed, without copying. Actors and not tasks, because Ray Data looks for
finished work ten times a second: a task waits for its successor meanwhile, an actor has the next windows in its queue. They
outlive their execution (`tiltyard.data.readers`), so that a stream begins in tenths of a second.

Bounded memory: at most ``StreamPlan.ahead`` windows lie in the object store for their consumer (`tiltyard.data.preflight`).
No deadlock: readers hold no CPU slot unless told to, so trials that hold every CPU cannot starve the reader they wait for;
`tiltyard.data.preflight.plan_streams` counts what all streams need together and refuses what cannot run, before it starts.
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import ray
import torch
from torch import Tensor

from tiltyard.data import order
from tiltyard.data.feed import Feed, batched, check_feed, tensor
from tiltyard.data.readers import Readers
from tiltyard.data.windows import Reader, Slice, X, Y, epoch_slices, narrow
from tiltyard.errors import DataError, PreflightError

FIRST, SEGMENT = 64, 512
"""Windows of the first and of each later execution of a stream: to put a request takes a millisecond, and all are put first."""
ATTEMPTS = 3
"""Times a window is asked for whose readers die."""


def _what(error: Exception) -> str:
    """The line that matters of an error that Ray carried here with the tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return lines[0] if lines else f"{type(error).__name__}: {error}"


class _Stream:
    """Blocks of an epoch and those after it, as long as somebody asks."""

    def __init__(self, feed: StreamedFeed, first_epoch: int) -> None:
        shard = feed.shard  # and not the feed: it refers to its stream, whose readers are free once nobody refers to it
        self._slices = (s for e in itertools.count(first_epoch) for s in epoch_slices(*shard, e))
        self._readers, self._split, self.epoch = feed.readers, feed.split, first_epoch
        self._asked: deque[Slice] = deque(itertools.islice(self._slices, FIRST))
        self._bundles: Iterator[Any] | None = None
        self._holds = ExitStack()
        self._set = self._holds.enter_context(self._readers.taken())

    def blocks(self) -> Iterator[pa.Table]:
        """Block after block, without end; where a reader dies, from the first block that is missing.

        Raises:
            DataError: If a window cannot be read.
        """
        left = ATTEMPTS
        while True:
            try:
                blocks = self._some()
            except ray.exceptions.RayError as error:
                left -= 1
                self._bundles = None
                if left and isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)):
                    continue
                raise DataError(
                    f"A window could not be read: {_what(error)}. "
                    "Wanted: the version's files as they were written. Restore them, or commit the rows anew."
                ) from error
            for block in blocks:
                left = ATTEMPTS
                self._asked.popleft()
                yield block

    def _some(self) -> list[pa.Table]:
        """The blocks that come next; none where an execution ended."""
        if self._bundles is None:
            if not self._asked:
                self._asked.extend(itertools.islice(self._slices, SEGMENT))
            self._bundles = self._readers.blocks([Reader.request([s]) for s in self._asked], [self._set], self._split)
        bundle = next(self._bundles, None)
        if bundle is None:
            if self._asked:
                raise DataError(
                    f"Ray Data ended a stream of split {self._split!r} with {len(self._asked)} windows still to come; every one "
                    "was wanted. Read it again; where that is no help, look at Ray's logs of the readers."
                )
            self._bundles = None
            return []
        return [ray.get(entry.ref) for entry in bundle.blocks]

    def close(self) -> None:
        """Ends what runs."""
        self._bundles = None
        self._holds.close()


class StreamedFeed(Feed):
    """Batches of a split that is streamed; those of `tiltyard.data.feed.ArrayFeed`.

    The tensors of a batch may be views of a shared, read-only block: do not change them in place.

    Args:
        readers: Who reads its windows.
        split: Which split.
        batch_size: Rows per batch.
        data_seed: Decides the order, with the content digest, the split and the epoch.
        device: Where the batches go.
        drop_last: Leave out a last batch that is not full.
        rank: This consumer's number among ``world``; each reads the windows that its own run of the epoch lies in.
        world: How many there are.
    """

    def __init__(
        self,
        readers: Readers,
        *,
        split: str,
        batch_size: int,
        data_seed: int,
        device: str | torch.device = "cpu",
        drop_last: bool = False,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        check_feed(batch_size, rank, world)
        windows = readers.windows(split)
        self.shard = (windows, (readers.version.content_digest, split, data_seed), rank, world)
        self._device, self._batch = device, batch_size
        self.readers, self.split = readers, split
        self.num_rows = order.shard_rows(sum(w.num_rows for w in windows), world)
        self.steps_per_epoch = order.steps(self.num_rows, batch_size, drop_last=drop_last)
        self._live: _Stream | None = None

    def slices(self, epoch: int) -> list[Slice]:
        """What this shard takes of each window, in the order of an epoch."""
        return epoch_slices(*self.shard, epoch)

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
            parts = ((narrow(block[X]), narrow(block[Y])) for block in blocks)
            for x, y in itertools.islice(batched(parts, self._batch), self.steps_per_epoch):
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
        version = self.readers.version
        split_bytes = version.split_rows.get(self.split, 0) * self.readers.decoder.row_bytes
        raise PreflightError(
            f"Split {self.split!r} of {version.ref} is streamed: {split_bytes:,} bytes as arrays do not fit the share "
            "of memory that was allowed, and all rows at once were asked for (scoring and LightGBM do). Raise memory_share, "
            "give Ray a larger object store, or make the split smaller."
        )

    def close(self) -> None:
        """Ends the stream that is ready for the next epoch; also done when the feed is no longer referred to."""
        if self._live is not None:
            self._live.close()
            self._live = None
