"""Before anything starts: which splits become resident, and can the others be streamed to all trials at once?

Bytes and CPU slots are counted, and a plan that would deadlock or not fit is refused with the arithmetic. Decides on plain
values: no Ray, no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tiltyard.data import order
from tiltyard.data.versions import SPLITS, DatasetVersion
from tiltyard.errors import PreflightError
from tiltyard.preprocessing import Preprocessor

READING = 1
"""Threads of the actor that reads for a stream: so many windows are decoded at a time, while another hands over what is done.
A second one takes half as much heap again, and an eighth more CPU time for each window."""
AHEAD = 16
"""Windows that may lie in the object store for one stream: read but not consumed, being read, and in the consumer's hands."""
LEAST_AHEAD = 4
"""Below this the reader and its consumer would take turns; a plan that has no room for so many is refused."""
HEAP_WINDOWS = 20
"""Windows' worth of heap that a reader needs (measured: 17 under Ray, and 1 in its consumer): of the window that is decoded the
columns as read and the matrix, the shuffled copies of it and of those that are handed over, and what Arrow's pool keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlan:
    """What the streams of all consumers need together.

    Args:
        consumers: Streams at a time.
        ahead: Windows in the object store per stream.
        window_bytes: Bytes of a window as a block.
        store_bytes: Object store that all streams may fill.
        heap_bytes: Heap that their readers may fill, one each.
        reader_cpus: CPU slots a reader holds.
    """

    consumers: int
    ahead: int
    window_bytes: int
    store_bytes: int
    heap_bytes: int
    reader_cpus: float

    @property
    def roomy(self) -> bool:
        """Room enough that a reader need not wait until its last window is seen."""
        return self.ahead >= 2 * LEAST_AHEAD


def window_bytes(version: DatasetVersion, row_bytes: int, split: str) -> int:
    """Bytes of a window of a split as a block: the mean, and six standard deviations of its rows on top."""
    total = version.split_rows.get(split, 0)
    mean = total / (1 << order.window_bits(total, version.window_rows))
    return int((mean + 6 * mean**0.5) * row_bytes)


def plan_streams(
    *,
    what: str,
    window_bytes: int,
    consumers: int,
    store_bytes: int,
    cluster_cpus: float,
    consumer_cpus: float = 1.0,
    reader_cpus: float = 0.0,
    ahead: int = AHEAD,
) -> StreamPlan:
    """Counts whether the streams of all consumers can run at once.

    Args:
        what: What is streamed, for messages.
        window_bytes: Bytes of a window as a block.
        consumers: Trials that stream at a time.
        store_bytes: Object store that is left for streams.
        cluster_cpus: CPU slots of the cluster.
        consumer_cpus: CPU slots that a trial holds.
        reader_cpus: CPU slots that a reader holds; 0 means that readers share what there is.
        ahead: Windows per stream that are wanted in the object store; fewer are planned where they do not fit.

    Raises:
        PreflightError: If it would deadlock for want of CPU slots, or thrash for want of memory; with the arithmetic.
    """
    held, read = consumers * consumer_cpus, consumers * reader_cpus
    if reader_cpus and held + read > cluster_cpus:
        raise PreflightError(
            f"Streaming {what} would deadlock: {consumers} trials x {consumer_cpus:g} CPUs = {held:g}, and {consumers} "
            f"readers x {reader_cpus:g} CPUs = {read:g}, are {held + read:g} of {cluster_cpus:g} CPUs: trials "
            "would hold the CPUs that the readers they wait for need. Run fewer trials at once, give the cluster more CPUs, "
            "or let readers hold no slot (reader_cpus=0)."
        )
    fits = store_bytes // max(1, consumers * window_bytes)
    if fits < LEAST_AHEAD:
        raise PreflightError(
            f"Streaming {what} does not fit: {consumers} streams x {LEAST_AHEAD} windows x {window_bytes:,} bytes = "
            f"{consumers * LEAST_AHEAD * window_bytes:,} bytes of object store, {store_bytes:,} are left. Run fewer "
            "trials at once, or start Ray with a larger object store."
        )
    ahead = int(min(ahead, fits))
    return StreamPlan(
        consumers=consumers,
        ahead=ahead,
        window_bytes=window_bytes,
        store_bytes=consumers * ahead * window_bytes,
        heap_bytes=consumers * HEAP_WINDOWS * window_bytes,
        reader_cpus=reader_cpus,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How one split is shared: ``mode`` is ``resident`` or ``streamed``; bytes as arrays in memory."""

    split: str
    num_rows: int
    num_bytes: int
    mode: str


def array_bytes(num_rows: int, num_features: int, num_labels: int) -> int:
    """Bytes of a split as arrays: features, labels and hashes."""
    return num_rows * (4 * num_features + 8 * max(1, num_labels) + 8)


def plan_splits(
    version: DatasetVersion, preprocessor: Preprocessor, *, allowed_bytes: int, mode: str = "auto"
) -> dict[str, SplitPlan]:
    """Which splits are resident: as many as fit, the smaller ones first, so that scoring is never the slow part.

    Raises:
        PreflightError: If ``resident`` is demanded and does not fit.
    """
    if mode not in ("auto", "resident", "streamed"):
        raise PreflightError(f"Mode {mode!r} is none of auto, resident, streamed.")
    sizes = {
        s: array_bytes(version.split_rows.get(s, 0), preprocessor.num_features_out, len(preprocessor.labels))
        for s in SPLITS
    }
    left, plans = allowed_bytes, {}
    for split in sorted(SPLITS, key=lambda s: sizes[s]):
        fits = sizes[split] <= left
        if mode == "resident" and not fits:
            raise PreflightError(
                f"Split {split!r} of {version.ref} takes {sizes[split]:,} bytes as arrays; {left:,} of the allowed "
                f"{allowed_bytes:,} bytes are left. Raise memory_share, start Ray with a larger object store, or stream it."
            )
        resident = mode == "resident" or (mode == "auto" and fits)
        left -= sizes[split] if resident else 0
        plans[split] = SplitPlan(
            split=split,
            num_rows=version.split_rows.get(split, 0),
            num_bytes=sizes[split],
            mode="resident" if resident else "streamed",
        )
    return plans


def check_whole(
    version: DatasetVersion, plans: Mapping[str, SplitPlan], whole: Mapping[str, str], allowed_bytes: int
) -> None:
    """Raises where a split of which all rows are needed at once would be streamed.

    Args:
        version: The version.
        plans: Split name to plan.
        whole: Split name to who needs all its rows at once, for the message.
        allowed_bytes: What resident splits may take together.

    Raises:
        PreflightError: With the arithmetic.
    """
    for split, who in whole.items():
        if plans[split].mode == "streamed":
            others = sum(p.num_bytes for p in plans.values() if p.mode == "resident")
            raise PreflightError(
                f"Split {split!r} of {version.ref} takes {plans[split].num_bytes:,} bytes as arrays and all its rows are "
                f"needed at once ({who}), but resident splits may take {allowed_bytes:,} bytes together, of which smaller "
                f"ones take {others:,}. Raise memory_share, start Ray with a larger object store, give the split a smaller "
                f"share of the rows, or leave out what needs them all."
            )
