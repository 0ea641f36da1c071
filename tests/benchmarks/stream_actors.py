"""What runs in worker processes while streaming is measured: a consumer, its rivals, and a reader that is watched."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
import torch

from tiltyard.data import order
from tiltyard.data.places import Place
from tiltyard.data.stream import Shared, open_feed
from tiltyard.data.streamed import StreamedFeed
from tiltyard.data.windows import Buffers, Decoder
from tiltyard.preprocessing import Preprocessor


class Watched(Decoder):
    """A decoder that tells, before its process reads for the first time, how much memory that has, and is limited from then on."""

    folder = ""
    group: Path | None = None
    _told_pid = 0
    _lock = threading.Lock()

    def raw(self, path: str, row_groups: Sequence[int] | None = None) -> pa.Table:
        """See `Decoder.raw`."""
        with Watched._lock:
            if Watched._told_pid != os.getpid():
                Watched._told_pid = os.getpid()
                part = Path(self.folder, f"{os.getpid()}.part")
                part.write_text(str(private_bytes()))
                part.rename(part.with_suffix(".idle"))
                join(self.group)
        return super().raw(path, row_groups)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_watched, (self.root, self.preprocessor, self.folder, self.group))


def _watched(root: Place, preprocessor: Preprocessor, folder: str, group: Path | None) -> Watched:
    made = Watched(root, preprocessor)
    made.folder, made.group = folder, group
    return made


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path | None]:
    """A control group whose processes may take so many bytes together, beyond which the kernel ends one; None where this
    process may make none."""
    name = f"tiltyard-bench-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    made = None
    for group, limit in ((v1 / name, "memory.limit_in_bytes"), (v2 / name, "memory.max")):
        with suppress(OSError):
            group.mkdir()
            made = group
            (group / limit).write_text(str(limit_bytes))
            break
        if made is not None:
            made.rmdir()
            made = None
    try:
        yield made
    finally:
        if made is not None:
            for pid in (made / "cgroup.procs").read_text().split():  # back to where all are
                with suppress(OSError):
                    (made.parent / "cgroup.procs").write_text(pid)
            with suppress(OSError):
                made.rmdir()


def join(group: Path | None) -> None:
    """Puts this process into a control group: what it takes from now on counts."""
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def private_bytes(pid: int | None = None) -> int:
    """Memory that a process has to itself: what is only its own, in RAM."""
    import psutil

    return int(psutil.Process(pid).memory_full_info().uss)


def _stacked(table: pa.Table, columns: Sequence[str]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(table[c].chunk(0).to_numpy()) for c in columns], dim=1)


class Consumer:
    """Takes batches as a trial does, and in the ways that Tiltyard is compared with; each returns seconds."""

    def __init__(self, batch_size: int) -> None:
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        self._batch = batch_size
        self._feed: Any = None
        self._files: dict[str, pq.ParquetFile] = {}

    def ready(self) -> int:
        """Its process."""
        return os.getpid()

    def ask(self, handle: Shared, seed: int) -> tuple[float, float, int]:
        """Opens a feed and takes an epoch: seconds to the first batch, to the last one, and rows."""
        start = time.perf_counter()
        self._feed = open_feed(handle, split="train", batch_size=self._batch, data_seed=seed)
        batches = self._feed.epoch(0)
        rows = len(next(batches)[0])
        first = time.perf_counter() - start
        rows += sum(len(x) for x, _ in batches)
        return first, time.perf_counter() - start, rows

    def epoch(self, e: int) -> float:
        """The next epoch of the feed that is open."""
        start = time.perf_counter()
        rows = sum(len(x) for x, _ in self._feed.epoch(e))
        assert rows == self._feed.num_rows
        return time.perf_counter() - start

    def later(self) -> list[float]:
        """Epochs 2 and 3, right after epoch 1, in which whatever was ready before is used up."""
        return [self.epoch(e) for e in (1, 2, 3)][1:]

    def prepare_memory(self) -> None:
        """Puts the open feed's rows into memory of this process, for `memory`."""
        torch.set_num_threads(1)
        self._x, self._y = (t.clone() for t in self._feed.all())

    def draw(self, e: int) -> float:
        """Draws the permutation of an epoch and does nothing with it."""
        start = time.perf_counter()
        self._feed.order(e)
        return time.perf_counter() - start

    def memory(self, e: int) -> float:
        """Gathers the permutation of an epoch, known beforehand, from tensors in memory."""
        places = torch.from_numpy(self._feed.order(e))
        start = time.perf_counter()
        rows = 0
        for at in range(0, len(places), self._batch):
            index = places[at : at + self._batch]
            x, _ = self._x.index_select(0, index), self._y.index_select(0, index)
            rows += len(x)
        assert rows == self._feed.num_rows
        return time.perf_counter() - start

    def equal(self, e: int, batches: int = 3) -> bool:
        """The first batches of an epoch are those of the permutation gathered from memory."""
        places = torch.from_numpy(self._feed.order(e))
        for i, (x, y) in zip(range(batches), self._feed.epoch(e), strict=False):
            index = places[i * self._batch : (i + 1) * self._batch]
            if not (torch.equal(x, self._x[index]) and torch.equal(y, self._y[index])):
                return False
        return True

    def bare(self, handle: Shared, seed: int, e: int, threads: int) -> float:
        """pyarrow into torch tensors: the same files, the same windowed shuffle, neither Ray nor preprocessing."""
        torch.set_num_threads(threads)
        assert handle.readers is not None
        windows, root = handle.readers.windows("train"), handle.readers.decoder.root
        columns, label = list(handle.preprocessor.features), handle.preprocessor.labels[0]
        place = (handle.content_digest, "train", seed)
        start = time.perf_counter()
        rows = 0
        for number in order.window_order(*place, e, len(windows)).tolist():
            ((path, groups),) = windows[number].groups.items()
            if path not in self._files:
                self._files[path] = pq.ParquetFile((root / path).path)
            table = self._files[path].read_row_groups(list(groups), columns=[*columns, label], use_threads=True)
            x, y = _stacked(table, columns), torch.from_numpy(table[label].chunk(0).to_numpy())
            places = torch.from_numpy(order.row_order(*place, e, number, len(x)))
            for at in range(0, len(x), self._batch):
                index = places[at : at + self._batch]
                batch, _ = x.index_select(0, index), y.index_select(0, index)
                rows += len(batch)
        assert rows == handle.plans["train"].num_rows
        torch.set_num_threads(1)
        return time.perf_counter() - start

    def parts(self, handle: Shared, num_windows: int = 8) -> dict[str, float]:
        """Seconds that a window takes a reader that works alone on one thread, by what it does."""
        assert handle.readers is not None
        decoder, buffers = handle.readers.decoder, Buffers()
        spent = dict.fromkeys(("read and decode", "scale and turn", "draw", "shuffle"), 0.0)
        for window in handle.readers.windows("train")[:num_windows]:
            times = [time.perf_counter()]
            ((path, groups),) = window.groups.items()
            raw = decoder.raw(path, groups)
            times.append(time.perf_counter())
            x = decoder.preprocessor.transform(
                raw, out=buffers.matrix(raw.num_rows, len(decoder.preprocessor.features))
            )
            times.append(time.perf_counter())
            places = order.row_order(handle.content_digest, "train", 0, 0, window.number, len(x))
            times.append(time.perf_counter())
            np.take(x, places, axis=0, out=buffers.matrix(*x.shape), mode="clip")
            times.append(time.perf_counter())
            for name, start, stop in zip(spent, times, times[1:], strict=False):
                spent[name] += (stop - start) / num_windows
        return spent

    def ray_default(self, files: Sequence[str]) -> tuple[float, float]:
        """Ray Data at its defaults; ``partitioning=None``, for the split's name in the path is a text that torch has not."""
        return self._iterate(lambda: ray.data.read_parquet(list(files), partitioning=None))

    def ray_tuned(self, files: Sequence[str], columns: Sequence[str], label: str) -> tuple[float, float]:
        """Ray Data as well as we can: only the columns, one matrix a block instead of 40 arrays, batches ahead."""

        def matrix(block: pa.Table) -> dict[str, Any]:
            return {"x": np.stack([block[c].to_numpy() for c in columns], axis=1), "y": block[label].to_numpy()}

        def dataset() -> Any:
            read = ray.data.read_parquet(list(files), columns=[*columns, label], partitioning=None)
            return read.map_batches(matrix, batch_size=None, batch_format="pyarrow", zero_copy_batch=True)

        return self._iterate(dataset, prefetch_batches=8)

    def ray_plain(self, files: Sequence[str], columns: Sequence[str]) -> tuple[float, float]:
        """Ray Data with only the columns, and batches ahead."""
        return self._iterate(
            lambda: ray.data.read_parquet(list(files), columns=list(columns), partitioning=None), prefetch_batches=8
        )

    def _iterate(self, dataset: Callable[[], Any], **options: Any) -> tuple[float, float]:
        ray.data.DataContext.get_current().enable_progress_bars = False
        start, first = time.perf_counter(), 0.0
        batches: Iterator[dict[str, torch.Tensor]] = iter(
            dataset().iter_torch_batches(batch_size=self._batch, **options)
        )
        for _ in batches:
            first = first or time.perf_counter() - start
        return first, time.perf_counter() - start

    def idle(self, group: Path | None) -> int:
        """Bytes of memory that this process has to itself now; what it takes from now on counts in a control group."""
        join(group)
        return private_bytes()

    def close(self) -> None:
        """Ends the feed."""
        if isinstance(self._feed, StreamedFeed):
            self._feed.close()
        self._feed = None
