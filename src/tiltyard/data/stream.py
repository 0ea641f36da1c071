"""From a dataset version to the batches of a trial, through Ray Data.

`share` decides once, for all trials, how a version's splits reach them:

* *resident*: the split fits the stated share of the object store. An owner actor reads its files once through Ray Data,
  preprocessed where they are decoded, and puts one float32 matrix, the labels and the row hashes into the object store in
  canonical order. Trials map that memory; none copies or decodes a row. Where the owner dies, Ray restarts it and it reads
  again when next asked; trials that have mapped the arrays keep them. A version of `SMALL_BYTES` or less is read by the
  process that shares it, which then owns the arrays: a process of its own takes seconds to start, and reading it none.
* *streamed*: it does not fit. Each trial streams its epochs through Ray Data, with bounded memory
  (`tiltyard.data.streamed`).

`open_feed`, called inside a trial, gives the same batches either way. Reading takes no CPU slot from Ray (``num_cpus=0``
with a bounded number of tasks), so trials that hold every CPU cannot starve the reader they wait for; what streams need
together is counted here, and refused where it could not run (`tiltyard.data.preflight`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from tiltyard.data import rows
from tiltyard.data.features import feature_columns, fit_preprocessor
from tiltyard.data.feed import ArrayFeed, Arrays, Feed, Take
from tiltyard.data.places import Place
from tiltyard.data.preflight import SplitPlan, StreamPlan, check_whole, plan_splits, plan_streams, window_bytes
from tiltyard.data.readers import Readers, hush
from tiltyard.data.store import DatasetStore
from tiltyard.data.streamed import StreamedFeed
from tiltyard.data.versions import SPLITS, DatasetVersion, FileEntry, check_split
from tiltyard.data.windows import Decoder, X, Y, narrow
from tiltyard.errors import DataError, PreflightError
from tiltyard.placement import AWAY_FROM_GPU_NODES, groups_of, store_sizes
from tiltyard.preprocessing import Preprocessor

__all__ = [
    "Shared",
    "SplitPlan",
    "StreamPlan",
    "feature_columns",
    "fit_preprocessor",
    "open_feed",
    "plan_splits",
    "plan_streams",
    "share",
]

STREAM_SHARE = 0.8
"""Of the object store, resident splits and streams together; the rest is for results, checkpoints and Ray itself."""
SMALL_BYTES = 32 << 20
"""As arrays, all splits together. Reading so much takes a second at most; an owner and Ray Data take 3 s to start."""
READ_AT_ONCE = 8
"""Files of a small version, which may lie far away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A version as trials get it: small, serialisable, passed to every trial as an argument.

    Args:
        version: The dataset version.
        preprocessor: What turned its columns into features.
        plans: Split name to plan.
        owner: The actor that owns the resident arrays; None where the process that shared them does.
        kept: By split, the reference to its arrays where that process owns them, in a list so that it travels as one.
        storage_options: How to reach the store.
        streams: What the streams of all trials may use together; None where no split is streamed.
        readers: Who reads for them.
    """

    version: DatasetVersion
    preprocessor: Preprocessor
    plans: Mapping[str, SplitPlan]
    owner: Any = field(repr=False)
    kept: Mapping[str, list[Any]] = field(default_factory=dict, repr=False)
    streams: StreamPlan | None = None
    readers: Readers | None = None
    storage_options: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def content_digest(self) -> str:
        """The version's content digest."""
        return self.version.content_digest

    @property
    def num_features(self) -> int:
        """Inputs of a model on this data."""
        return self.preprocessor.num_features_out

    @property
    def num_classes(self) -> int:
        """Outputs of a model on this data."""
        return self.preprocessor.num_classes

    def counters(self) -> dict[str, int]:
        """``rows_decoded`` and ``reads`` of the owner so far."""
        if self.owner is None:
            return {"rows_decoded": sum(self.plans[s].num_rows for s in self.kept), "reads": 1}
        return dict(ray.get(self.owner.counters.remote()))

    def close(self) -> None:
        """Ends the owner and the readers; feeds that are open keep the arrays they have."""
        if self.owner is not None:
            ray.kill(self.owner)
        if self.readers is not None:
            self.readers.close()


class FilesSource(ray.data.Datasource):
    """Ray Data's source over the files of a version: one read task per file, decoded and preprocessed in the task."""

    def __init__(self, decoder: Decoder, files: Sequence[FileEntry]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._decoder, self._files = decoder, list(files)

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all blocks."""
        return sum(f.num_rows for f in self._files) * self._decoder.row_bytes

    def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
        """One task per file; the parallelism asked for is not followed, files are of the right size already."""
        decoder = self._decoder
        width = decoder.row_bytes

        def task(file: FileEntry) -> Any:
            meta = ray.data.block.BlockMetadata(
                num_rows=file.num_rows, size_bytes=file.num_rows * width, input_files=(file.path,), exec_stats=None
            )
            return ray.data.ReadTask(lambda: [decoder(file.path)], meta)

        return [task(f) for f in self._files]


def _quiet_context() -> Any:
    hush()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _blocks(source: Any, *, concurrency: int) -> Iterator[pa.Table]:
    """Blocks of a source in the order of its tasks, without holding a CPU slot."""
    context = _quiet_context()
    context.execution_options.preserve_order = True
    dataset = ray.data.read_datasource(
        source,
        ray_remote_args={"num_cpus": 0, "label_selector": AWAY_FROM_GPU_NODES},
        concurrency=concurrency,
        override_num_blocks=None,
    )
    for bundle in dataset.iter_internal_ref_bundles():
        for ref in bundle.block_refs:
            yield ray.get(ref)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3, label_selector=AWAY_FROM_GPU_NODES)
class _Owner:
    """Reads splits through Ray Data when first asked, and owns their arrays in the object store."""

    def __init__(self, version: DatasetVersion, preprocessor: Preprocessor, options: Mapping[str, str]) -> None:
        self._version = version
        self._decoder = Decoder(Place.of(version.uri, options), preprocessor)
        self._refs: dict[str, Any] = {}
        self._rows_decoded = 0
        self._reads = 0

    def load(self, splits: Sequence[str]) -> dict[str, int]:
        """Reads the splits that are not there yet, in one execution; rows of each."""
        wanted = [s for s in splits if s not in self._refs]
        files = [f for s in wanted for f in self._version.files if f.split == s]
        if files:
            self._reads += 1
            blocks = _blocks(FilesSource(self._decoder, files), concurrency=2)
            for split, arrays in _arrays(files, wanted, blocks, self._decoder.preprocessor):
                self._rows_decoded += len(arrays[0])
                self._refs[split] = ray.put(arrays)
        return {s: self._version.split_rows.get(s, 0) for s in splits}

    def ref(self, split: str) -> list[Any]:
        """The reference to a split's arrays, in a list so that it travels as a reference."""
        self.load([split])
        return [self._refs[split]]

    def counters(self) -> dict[str, int]:
        """What was read so far by this life of the owner."""
        return {"rows_decoded": self._rows_decoded, "reads": self._reads}


def _arrays(
    files: Sequence[FileEntry], splits: Sequence[str], blocks: Iterator[pa.Table], preprocessor: Preprocessor
) -> Iterator[tuple[str, Arrays]]:
    """Each split as arrays, from blocks that come in the order of the files."""
    stream = _Rows(blocks)
    for split in splits:
        yield split, stream.take(sum(f.num_rows for f in files if f.split == split), preprocessor)


def _read_here(version: DatasetVersion, decoder: Decoder, splits: Iterable[str]) -> Iterator[tuple[str, Arrays]]:
    """Each split as arrays, read by this process."""
    wanted = list(splits)
    files = [f for s in wanted for f in version.files if f.split == s]
    with ThreadPoolExecutor(READ_AT_ONCE, "tiltyard-sharing") as pool:
        yield from _arrays(files, wanted, pool.map(decoder, [f.path for f in files]), decoder.preprocessor)


class _Rows:
    """A stream of blocks from which runs of rows are taken."""

    def __init__(self, blocks: Iterator[pa.Table]) -> None:
        self._blocks, self._left = blocks, None

    def take(self, num_rows: int, preprocessor: Preprocessor) -> Arrays:
        """The next rows as arrays in canonical order."""
        x = np.empty((num_rows, preprocessor.num_features_out), np.float32)
        is_class = preprocessor.task.is_classification and len(preprocessor.labels) == 1
        is_class = is_class and preprocessor.task in ("binary", "multiclass")
        y: Any = (
            np.empty(num_rows, np.int64) if is_class else np.empty((num_rows, len(preprocessor.labels)), np.float32)
        )
        hashes = np.empty(num_rows, np.int64)
        done = 0
        while done < num_rows:
            block = self._left if self._left is not None else next(self._blocks)
            part = block.slice(0, num_rows - done)
            self._left = block.slice(part.num_rows) if part.num_rows < block.num_rows else None
            to = slice(done, done + part.num_rows)
            x[to], y[to], hashes[to] = narrow(part[X]), narrow(part[Y]), narrow(part[rows.ROW])
            done += part.num_rows
        if not (hashes[1:] >= hashes[:-1]).all():
            by_hash = np.argsort(hashes, kind="stable")
            x, y, hashes = x[by_hash], y[by_hash], hashes[by_hash]
        return x, y, hashes


def share(
    version: DatasetVersion,
    store: DatasetStore,
    *,
    preprocessor: Preprocessor | None = None,
    features: Sequence[str] | None = None,
    splits: Sequence[str] = ("train", "validation"),
    memory_share: float = 0.5,
    mode: str = "auto",
    whole: Mapping[str, str] = MappingProxyType({"validation": "by scoring"}),
    consumers: int | None = None,
    consumer_cpus: float = 1.0,
    reader_cpus: float = 0.0,
) -> Shared:
    """Makes a version ready for trials and returns what they need to open their feeds.

    Args:
        version: What to share.
        store: Where it is.
        preprocessor: Already fitted; where None, one is fitted on the training split.
        features: The features, where the preprocessor is to be fitted here.
        splits: Read now; others are read when a feed first asks for them.
        memory_share: Part of the cluster's object store that resident splits may take together, 0 to 1.
        mode: ``auto``, or ``resident`` (in an owner's hands, however small) or ``streamed`` for all splits.
        whole: Of ``splits``, those of which trials need all rows at once (``Feed.all``), so that they must not be streamed,
            and who needs them, for the message.
        consumers: Trials that may stream at a time; where None, as many as the cluster has CPUs for.
        consumer_cpus: CPU slots that a trial holds.
        reader_cpus: CPU slots that each reader of a stream holds; 0 lets readers share what there is.

    Raises:
        DataError: If a split is empty or there is nothing to learn from.
        PreflightError: If ``resident`` is demanded and does not fit, a split of ``whole`` would have to be streamed, or
            the streams of all trials would deadlock or not fit; with the arithmetic.
    """
    fitted = preprocessor or fit_preprocessor(store, version, features=features)
    resources: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    smallest, total = store_sizes([n["Resources"] for n in ray.nodes() if n["Alive"]], groups_of(os.environ))  # type: ignore[no-untyped-call]
    allowed = int(smallest * memory_share)  # resident splits are pulled whole by every node that trains
    plans = plan_splits(version, fitted, allowed_bytes=allowed, mode=mode)
    for split in splits:
        if plans[split].num_rows == 0:
            raise DataError(
                f"Split {split!r} of {version.ref} has no rows (train, validation, test: "
                f"{[version.split_rows.get(s, 0) for s in SPLITS]}). Give it a share, or commit more rows."
            )
    if mode == "auto":
        check_whole(version, plans, {s: w for s, w in whole.items() if s in splits}, allowed)
    decoder = Decoder(Place.of(version.uri, store.storage_options), fitted)
    if mode == "auto" and sum(p.num_bytes for p in plans.values()) <= min(SMALL_BYTES, allowed):
        return Shared(
            version=version,
            preprocessor=fitted,
            plans=plans,
            owner=None,
            kept={split: [ray.put(arrays)] for split, arrays in _read_here(version, decoder, splits)},
            storage_options=store.storage_options,
        )
    streamed = [s for s in splits if plans[s].mode == "streamed"]
    streams = readers = None
    if streamed:
        cpus = float(resources.get("CPU", 1))
        held = sum(p.num_bytes for p in plans.values() if p.mode == "resident")
        streams = plan_streams(
            what=f"{' and '.join(streamed)} of {version.ref}",
            window_bytes=max(window_bytes(version, decoder.row_bytes, s) for s in streamed),
            consumers=consumers or _per(cpus, consumer_cpus),
            store_bytes=int(total * STREAM_SHARE) - held,
            cluster_cpus=cpus,
            consumer_cpus=consumer_cpus,
            reader_cpus=reader_cpus,
        )
        readers = Readers(version, decoder, streams)
    owner = _Owner.remote(version, fitted, store.storage_options)  # type: ignore[attr-defined]
    if resident := [s for s in splits if plans[s].mode == "resident"]:
        ray.get(owner.load.remote(resident))
    if readers is not None and streams is not None:
        readers.warm(streamed, min(streams.consumers, _per(os.cpu_count() or 1, consumer_cpus)))
    return Shared(
        version=version,
        preprocessor=fitted,
        plans=plans,
        owner=owner,
        streams=streams,
        readers=readers,
        storage_options=store.storage_options,
    )


def _per(cpus: float, each: float) -> int:
    """How many fit, at least one."""
    return max(1, int(cpus / max(each, 1e-9)))


def fetch(handle: Shared, split: str, *, attempts: int = 5) -> Arrays:
    """The arrays of a resident split, mapped and not copied; asks the owner again where it died meanwhile.

    A split of a small version that was not shared is read by this process.

    Raises:
        DataError: If the owner could not bring them back.
    """
    if handle.owner is None and split not in handle.kept:
        decoder = Decoder(Place.of(handle.version.uri, handle.storage_options), handle.preprocessor)
        return next(arrays for _, arrays in _read_here(handle.version, decoder, [split]))
    last: Exception | None = None
    for _ in range(attempts):
        try:
            (ref,) = handle.kept[split] if handle.owner is None else ray.get(handle.owner.ref.remote(split))
            arrays: Arrays = ray.get(ref)
        except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError) as error:
            last = error
        else:
            return arrays
    raise DataError(
        f"Split {split!r} of {handle.version.ref} could not be fetched from its owner in {attempts} attempts; the nodes "
        "that hold it may be going away. Share the dataset again."
    ) from last


def open_feed(
    handle: Shared,
    *,
    split: str,
    batch_size: int,
    data_seed: int,
    device: str | torch.device = "cpu",
    drop_last: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Feed:
    """The batches of a split for one consumer; call it where they are consumed.

    Args:
        handle: What `share` returned.
        split: ``train``, ``validation`` or ``test``.
        batch_size: Rows per batch.
        data_seed: Decides the order, with the content digest, the split and the epoch.
        device: Where the batches go.
        drop_last: Leave out a last batch that is not full.
        rank: This consumer's number among ``world`` distributed ones, which get disjoint shards of equal size.
        world: How many there are.

    Raises:
        SpecError: If the batch size or shard makes no sense.
        DataError: If the split does not exist or cannot be fetched.
    """
    check_split(handle.version, split)
    take = Take(
        split=split,
        batch_size=batch_size,
        data_seed=data_seed,
        device=device,
        drop_last=drop_last,
        rank=rank,
        world=world,
    )
    if handle.plans[split].mode == "streamed":
        if handle.readers is None:
            raise PreflightError(
                f"Split {split!r} of {handle.version.ref} does not fit in memory and was not planned to be streamed; "
                f"name it when sharing: share(..., splits=(..., {split!r}))."
            )
        return StreamedFeed(handle.readers, take)
    arrays, version = fetch(handle, split), handle.version
    return ArrayFeed(arrays, take, content_digest=version.content_digest, window_rows=version.window_rows)
