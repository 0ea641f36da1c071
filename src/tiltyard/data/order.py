"""In which order do the rows of a split reach a trial in one epoch?

Rows of a split stand in *canonical order*: ascending row hash. A *window* is the rows whose hash begins with the same
bits; there is a power of two of them, about `WINDOW_ROWS` rows each (fewer where rows are wide: `window_rows`), so a
window is a function of the rows, their number and their schema alone, whatever files hold them. An epoch visits the
windows in a random order and the rows inside each window in a random order: the two-level windowed shuffle. Both come
from (content digest, split, data_seed, epoch) by a counter-based generator, so a resident and a streamed feed, on any
machine, give the same batches.

Quality, stated: a split of up to 1.4 windows (92,681 rows of up to 1 KiB each) is shuffled uniformly. In a larger one
the rows of a window stay together within an epoch; a window is a sample by hash, hence as good as random with respect to
the order in which the source was written, but the same in each epoch: two rows of different windows are never neighbours
except where one window ends.

Pure NumPy: no file, no Ray, no torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

WINDOW_ROWS = 65_536
"""Rows a window aims at; windows hold between 0.7 and 1.4 times as many in expectation."""
WINDOW_BYTES = 64 << 20
"""Where rows are wider than 1 KiB, a window aims at so many bytes instead: a streamed feed holds several in memory."""
MIN_WINDOW_ROWS = 256
"""However wide the rows: fewer would hardly be shuffled inside a window."""

I64 = npt.NDArray[np.int64]


def window_rows(row_bytes: int) -> int:
    """Rows a window aims at where a row takes so many bytes: a power of two.

    >>> window_rows(160), window_rows(3 * 224 * 224)
    (65536, 256)
    """
    fits = max(1, WINDOW_BYTES // max(1, row_bytes))
    return min(WINDOW_ROWS, max(MIN_WINDOW_ROWS, 1 << (fits.bit_length() - 1)))


def window_bits(num_rows: int, window_rows: int = WINDOW_ROWS) -> int:
    """How many leading bits of the row hash make a window: the nearest power of two to ``num_rows / window_rows``.

    >>> window_bits(50_000), window_bits(2_000_000)
    (0, 5)
    """
    return max(0, round(math.log2(max(1, num_rows) / window_rows))) if num_rows > window_rows else 0


def window_starts(bits: int) -> I64:
    """Smallest row hash of each of the ``2**bits`` windows, ascending, int64."""
    if bits == 0:
        return np.array([np.iinfo(np.int64).min], dtype=np.int64)
    unsigned = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
    return (unsigned ^ np.uint64(1 << 63)).view(np.int64)


def window_offsets(sorted_hashes: I64, bits: int) -> I64:
    """Where each window begins in ascending hashes, and at the end their number: ``(2**bits + 1,)``."""
    return np.append(np.searchsorted(sorted_hashes, window_starts(bits)), len(sorted_hashes)).astype(np.int64)


def _generator(*parts: object) -> np.random.Generator:
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def window_order(content_digest: str, split: str, data_seed: int, epoch: int, num_windows: int) -> I64:
    """The order in which an epoch visits the windows."""
    return _generator("windows", content_digest, split, data_seed, epoch).permutation(num_windows)


def row_order(content_digest: str, split: str, data_seed: int, epoch: int, window: int, num_rows: int) -> I64:
    """The order of the rows inside one window, as places counted from the window's first row."""
    return _generator("rows", content_digest, split, data_seed, epoch, window).permutation(num_rows)


def steps(num_rows: int, batch_size: int, *, drop_last: bool) -> int:
    """Batches in an epoch."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def shard_rows(num_rows: int, world: int) -> int:
    """Rows each of ``world`` shards gets per epoch; the up to ``world - 1`` rows left over differ by epoch."""
    return num_rows // world


def shard_parts(sizes: Sequence[int], rank: int, world: int) -> Iterator[tuple[int, int, int]]:
    """What a shard takes of the windows of an epoch: one run of its order, so that it reads few windows of the others.

    Args:
        sizes: Rows of the windows, in the order in which the epoch visits them.
        rank: Number of the shard.
        world: How many there are.

    Yields:
        ``(i, skip, take)``: of the epoch's ``i``-th window ``take`` rows of its order, from the row ``skip`` on.

    >>> list(shard_parts([5, 5], 1, 3))
    [(0, 3, 2), (1, 0, 1)]
    """
    mine = shard_rows(sum(sizes), world)
    start, stop, seen = rank * mine, (rank + 1) * mine, 0
    for i, size in enumerate(sizes):
        skip, end = max(start - seen, 0), min(stop - seen, size)
        if skip < end:
            yield i, skip, end - skip
        seen += size
