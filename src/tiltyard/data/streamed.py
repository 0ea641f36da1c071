"""A split that is larger than memory, streamed through Ray Data: the batches of a resident feed, in bounded memory.

A *stream* is a Ray Data execution over the windows of an epoch (and of those that follow it) in the epoch's order. Each
window is one block: read, preprocessed and shuffled by an actor of Ray Data, handed over through the object store, and cut
into batches where they are consumed, without copying. The actor outlives its execution (`tiltyard.data.readers`), so that a
stream begins in tenths of a second.

Bounded memory: at most ``StreamPlan.ahead`` windows lie in the object store for their consumer (`tiltyard.data.preflight`).
No deadlock: readers hold no CPU slot unless told to, so trials that hold every CPU cannot starve the reader they wait for;
`tiltyard.data.preflight.plan_streams` counts what all streams need together and refuses what cannot run, before it starts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from torch import Tensor

from tiltyard.data import order
from tiltyard.data.feed import Feed, Take, batched, tensor
from tiltyard.data.readers import Readers
from tiltyard.data.windows import Request, Slice, X, Y, epoch_slices, narrow, stream_slices
from tiltyard.errors import DataError, PreflightError

SEGMENT = 1_024
"""Windows of one execution of a stream, about 67 million rows; the next one takes tenths of a second to begin."""
ATTEMPTS = 3
"""Times a window is asked for whose readers die."""


def _what(error: Exception) -> str:
    """The line that matters of an error that Ray carried here with the tracebacks of other processes."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return lines[0] if lines else f"{type(error).__name__}: {error}"


Part = tuple[npt.NDArray[np.float32], npt.NDArray[Any]]


class _Stream:
    """Rows of an epoch and those after it, as long as somebody asks."""

    def __init__(self, feed: StreamedFeed, first_epoch: int) -> None:
        self._shard = (
            feed.shard
        )  # and not the feed: it refers to its stream, whose reader is free once nobody refers to it
        self._readers, self._split, self._rows_per_epoch = feed.readers, feed.split, feed.num_rows
        self.epoch, self._first = first_epoch, first_epoch
        self._got, self._due = (
            0,
            0,
        )  # rows since the first epoch began; of them, those that the execution has yet to bring
        self._left: Part | None = None
        self._bundles: Iterator[Any] | None = None
        self._holds = ExitStack()
        self._lease = self._holds.enter_context(self._readers.taken())

    def rows(self, num_rows: int) -> Iterator[Part]:
        """The next so many rows, in parts; where a reader dies, from the first row that is missing.

        Raises:
            DataError: If a window cannot be read.
        """
        while num_rows:
            x, y = self._left or self._next()
            take = min(num_rows, len(x))
            self._left = (x[take:], y[take:]) if take < len(x) else None
            num_rows -= take
            yield x[:take], y[:take]

    def _next(self) -> Part:
        left = ATTEMPTS
        while True:
            try:
                return self._block()
            except ray.exceptions.RayError as error:
                left -= 1
                self._bundles = None
                if left and isinstance(error, (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError)):
                    continue
                raise DataError(
                    f"A window could not be read: {_what(error)}. "
                    "Wanted: the version's files as they were written. Restore them, or commit the rows anew."
                ) from error

    def _block(self) -> Part:
        """The block that comes next, of this execution or a new one."""
        while True:
            if self._bundles is None:
                self._bundles = self._ask()
            bundle = next(self._bundles, None)
            if bundle is None:
                if self._due:
                    raise DataError(
                        f"Ray Data ended a stream of split {self._split!r} with {self._due} rows still to come; every one was "
                        "wanted. Read it again; where that is no help, look at Ray's logs of the readers."
                    )
                self._bundles = None
                continue
            blocks = [ray.get(entry.ref) for entry in bundle.blocks]
            parts = [(narrow(block[X]), narrow(block[Y])) for block in blocks if block.num_rows]
            if parts:
                x, y = parts[0] if len(parts) == 1 else (np.concatenate(a) for a in zip(*parts, strict=True))
                self._got, self._due = self._got + len(x), self._due - len(x)
                return x, y

    def _ask(self) -> Iterator[Any]:
        """A new execution, from the first row that did not come yet."""
        windows, (_, _, data_seed), rank, world = self._shard
        epochs, done = divmod(self._got, self._rows_per_epoch)
        asked = Request(
            data_seed=data_seed,
            epoch=self._first + epochs,
            done=done,
            rank=rank,
            world=world,
            num_windows=SEGMENT,
            lease=self._lease.path,
            holder=self._lease.holder,
        )
        every = stream_slices(windows, self._shard[1], rank, world, asked.epoch, done)
        self._due = sum(s.take for s in itertools.islice(every, SEGMENT))
        return self._readers.blocks(self._split, {self._lease.number: asked.to_table()})

    def close(self) -> None:
        """Ends what runs."""
        self._holds.close()  # first: the reader stops where it would no longer be held back
        self._bundles = None


class StreamedFeed(Feed):
    """Batches of a split that is streamed; those of `tiltyard.data.feed.ArrayFeed`.

    The tensors of a batch may be views of a shared, read-only block: do not change them in place.

    Args:
        readers: Who reads its windows.
        take: What is taken of the split; a shard reads the windows that its own run of the epoch lies in.
    """

    def __init__(self, readers: Readers, take: Take) -> None:
        windows = readers.windows(take.split)
        self.shard = (windows, take.place(readers.version.content_digest), take.rank, take.world)
        self.readers, self._take = readers, take
        self.num_rows = order.shard_rows(sum(w.num_rows for w in windows), take.world)
        self.steps_per_epoch = take.steps(self.num_rows)
        self._live: _Stream | None = None

    @property
    def split(self) -> str:
        """Which split is streamed."""
        return self._take.split

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
            parts = stream.rows(self.num_rows)
            for x, y in itertools.islice(batched(parts, self._take.batch_size), self.steps_per_epoch):
                yield tensor(x).to(self._take.device), tensor(y).to(self._take.device)
            for _ in parts:  # what drop_last left over
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
