"""From a dataset version to the batches of a trial, through Ray Data.

`share` decides once, for all trials, how a version's splits reach them:

* *resident*: the split fits the stated share of the object store. An owner actor reads its files once through Ray Data,
  preprocessed where they are decoded, and puts one float32 matrix, the labels and the row hashes into the object store in
  canonical order. Trials map that memory; none copies or decodes a row. Where the owner dies, Ray restarts it and it reads
  again when next asked; trials that have mapped the arrays keep them.
* *streamed*: each epoch is a Ray Data execution over windows in the epoch's order, with bounded memory.

`open_feed`, called inside a trial, gives the same batches either way. Reading takes no CPU slot from Ray
(``num_cpus=0`` with a bounded number of tasks), so trials that hold every CPU cannot starve the reader they wait for;
`plan_streams` says what that costs and refuses what could not run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from tiltyard.data import parquet, rows
from tiltyard.data.features import feature_columns, fit_preprocessor
from tiltyard.data.feed import ArrayFeed, Arrays, Feed
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import SPLITS, DatasetVersion, FileEntry
from tiltyard.errors import DataError, PreflightError
from tiltyard.preprocessing import Preprocessor

__all__ = ["Shared", "SplitPlan", "feature_columns", "fit_preprocessor", "open_feed", "plan_splits", "share"]

_X, _Y, _PLACE = "x", "y", "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How one split is shared: ``mode`` is ``resident`` or ``streamed``; bytes as arrays in memory."""

    split: str
    num_rows: int
    num_bytes: int
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """A version as trials get it: small, serialisable, passed to every trial as an argument.

    Args:
        version: The dataset version.
        preprocessor: What turned its columns into features.
        plans: Split name to plan.
        owner: The actor that owns the resident arrays.
        storage_options: How to reach the store.
    """

    version: DatasetVersion
    preprocessor: Preprocessor
    plans: Mapping[str, SplitPlan]
    owner: Any = field(repr=False)
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
        return dict(ray.get(self.owner.counters.remote()))

    def close(self) -> None:
        """Ends the owner; feeds that are open keep their arrays."""
        ray.kill(self.owner)


class _Decoder:
    """Turns one file (or some of its row groups) into features, labels and hashes; runs inside Ray Data's tasks."""

    def __init__(self, root: Place, preprocessor: Preprocessor) -> None:
        self.root, self.preprocessor = root, preprocessor
        self.columns = [*preprocessor.features, *preprocessor.labels, rows.ROW]

    def __call__(self, path: str, row_groups: Sequence[int] | None = None) -> pa.Table:
        raw = parquet.read_file(self.root / path, self.columns, row_groups)
        x = self.preprocessor.transform(raw)
        y = self.preprocessor.transform_label(raw)
        return pa.table({_X: _wide(x), _Y: _wide(y) if y.ndim == 2 else pa.array(y), rows.ROW: raw[rows.ROW]})


def _wide(matrix: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])


def _narrow(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """A column as an array, ``(rows, size)`` where it is of tensors; no copy where it is one chunk."""
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten().to_numpy()).reshape(len(array), array.type.list_size)
    return np.asarray(array.to_numpy())


class FilesSource(ray.data.Datasource):
    """Ray Data's source over the files of a version: one read task per file, decoded and preprocessed in the task."""

    def __init__(self, decoder: _Decoder, files: Sequence[FileEntry]) -> None:
        super().__init__()
        self._decoder, self._files = decoder, list(files)

    def estimate_inmemory_data_size(self) -> int | None:
        """Bytes of all blocks."""
        return sum(f.num_rows for f in self._files) * (4 * self._decoder.preprocessor.num_features_out + 16)

    def get_read_tasks(self, *_: Any, **__: Any) -> list[Any]:
        """One task per file; the parallelism asked for is not followed, files are of the right size already."""
        decoder = self._decoder
        width = 4 * decoder.preprocessor.num_features_out + 16

        def task(file: FileEntry) -> Any:
            meta = ray.data.block.BlockMetadata(
                num_rows=file.num_rows, size_bytes=file.num_rows * width, input_files=(file.path,), exec_stats=None
            )
            return ray.data.ReadTask(lambda: [decoder(file.path)], meta)

        return [task(f) for f in self._files]


def _quiet_context() -> Any:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return context


def _blocks(source: Any, *, concurrency: int) -> Iterator[pa.Table]:
    """Blocks of a source in the order of its tasks, without holding a CPU slot."""
    context = _quiet_context()
    context.execution_options.preserve_order = True
    dataset = ray.data.read_datasource(
        source, ray_remote_args={"num_cpus": 0}, concurrency=concurrency, override_num_blocks=None
    )
    for bundle in dataset.iter_internal_ref_bundles():
        for ref in bundle.block_refs:
            yield ray.get(ref)


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=3)
class _Owner:
    """Reads splits through Ray Data when first asked, and owns their arrays in the object store."""

    def __init__(self, version: DatasetVersion, preprocessor: Preprocessor, options: Mapping[str, str]) -> None:
        self._version = version
        self._decoder = _Decoder(Place.of(version.uri, options), preprocessor)
        self._refs: dict[str, Any] = {}
        self._rows_decoded = 0
        self._reads = 0

    def load(self, splits: Sequence[str]) -> dict[str, int]:
        """Reads the splits that are not there yet, in one execution; rows of each."""
        wanted = [s for s in splits if s not in self._refs]
        files = [f for s in wanted for f in self._version.files if f.split == s]
        if files:
            self._reads += 1
            parts: dict[str, list[Any]] = {s: [] for s in wanted}
            blocks = _blocks(FilesSource(self._decoder, files), concurrency=2)
            self._fill(files, blocks, parts)
        return {s: self._version.split_rows.get(s, 0) for s in splits}

    def _fill(self, files: Sequence[FileEntry], blocks: Iterator[pa.Table], parts: dict[str, list[Any]]) -> None:
        """Copies blocks, which come in the order of the files, into one array per split."""
        per_split = [(s, sum(f.num_rows for f in files if f.split == s)) for s in parts]
        stream = _Rows(blocks)
        for split, num_rows in per_split:
            arrays = stream.take(num_rows, self._decoder.preprocessor)
            self._rows_decoded += num_rows
            self._refs[split] = ray.put(arrays)

    def ref(self, split: str) -> list[Any]:
        """The reference to a split's arrays, in a list so that it travels as a reference."""
        self.load([split])
        return [self._refs[split]]

    def counters(self) -> dict[str, int]:
        """What was read so far by this life of the owner."""
        return {"rows_decoded": self._rows_decoded, "reads": self._reads}


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
            x[to], y[to], hashes[to] = _narrow(part[_X]), _narrow(part[_Y]), _narrow(part[rows.ROW])
            done += part.num_rows
        if not (hashes[1:] >= hashes[:-1]).all():
            by_hash = np.argsort(hashes, kind="stable")
            x, y, hashes = x[by_hash], y[by_hash], hashes[by_hash]
        return x, y, hashes


def array_bytes(num_rows: int, num_features: int, num_labels: int) -> int:
    """Bytes of a split as arrays: features, labels and hashes."""
    return num_rows * (4 * num_features + 8 * max(1, num_labels) + 8)


def share(
    version: DatasetVersion,
    store: DatasetStore,
    *,
    preprocessor: Preprocessor | None = None,
    features: Sequence[str] | None = None,
    splits: Sequence[str] = ("train", "validation"),
    memory_share: float = 0.5,
    mode: str = "auto",
) -> Shared:
    """Makes a version ready for trials and returns what they need to open their feeds.

    Args:
        version: What to share.
        store: Where it is.
        preprocessor: Already fitted; where None, one is fitted on the training split.
        features: The features, where the preprocessor is to be fitted here.
        splits: Read now; others are read when a feed first asks for them.
        memory_share: Part of the cluster's object store that resident splits may take together, 0 to 1.
        mode: ``auto``, or ``resident`` or ``streamed`` for all splits.

    Raises:
        DataError: If a split is empty or there is nothing to learn from.
        PreflightError: If ``resident`` is demanded and does not fit, with the arithmetic.
    """
    fitted = preprocessor or fit_preprocessor(store, version, features=features)
    allowed = int(ray.cluster_resources().get("object_store_memory", 0) * memory_share)
    plans = plan_splits(version, fitted, allowed_bytes=allowed, mode=mode)
    owner = _Owner.remote(version, fitted, store.storage_options)
    for split in splits:
        if plans[split].num_rows == 0:
            raise DataError(
                f"Split {split!r} of {version.ref} has no rows (train, validation, test: "
                f"{[version.split_rows.get(s, 0) for s in SPLITS]}). Give it a share, or commit more rows."
            )
    ray.get(owner.load.remote([s for s in splits if plans[s].mode == "resident"]))
    return Shared(version=version, preprocessor=fitted, plans=plans, owner=owner, storage_options=store.storage_options)


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


def fetch(handle: Shared, split: str, *, attempts: int = 5) -> Arrays:
    """The arrays of a resident split, mapped and not copied; asks the owner again where it died meanwhile.

    Raises:
        DataError: If the owner could not bring them back.
    """
    last: Exception | None = None
    for _ in range(attempts):
        try:
            arrays: Arrays = ray.get(ray.get(handle.owner.ref.remote(split))[0])
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
        DataError: If the split cannot be fetched.
    """
    return ArrayFeed(
        fetch(handle, split),
        content_digest=handle.content_digest,
        split=split,
        batch_size=batch_size,
        data_seed=data_seed,
        device=device,
        drop_last=drop_last,
        rank=rank,
        world=world,
    )
