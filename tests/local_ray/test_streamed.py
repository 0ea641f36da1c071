"""A split streamed through Ray Data: the batches of the resident way, bounded ahead, read again where a reader dies."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from tiltyard.data.feed import Feed, Take
from tiltyard.data.places import Place
from tiltyard.data.preflight import READING, plan_streams, window_bytes
from tiltyard.data.readers import Readers
from tiltyard.data.store import DatasetStore
from tiltyard.data.stream import Shared, open_feed, share
from tiltyard.data.streamed import StreamedFeed
from tiltyard.data.versions import DatasetSpec, DatasetVersion, SplitSpec
from tiltyard.data.windows import Decoder
from tiltyard.errors import DataError, PreflightError
from tiltyard.types import Task

pytestmark = pytest.mark.ray
ROWS = 210_000  # four windows of training rows


class CountingDecoder(Decoder):
    """Leaves a file per window it reads, which says by which process."""

    folder: Path

    def raw(self, path: str, row_groups: object = None) -> object:
        (self.folder / f"{time.monotonic_ns()}-{os.getpid()}").touch()
        return super().raw(path, row_groups)  # type: ignore[arg-type]


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]  # workers cannot import a test file


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return DatasetStore(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def version(store: DatasetStore) -> DatasetVersion:
    rng = np.random.default_rng(0)
    columns = {f"x{i}": rng.standard_normal(ROWS, dtype=np.float32) for i in range(3)}
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", split=SplitSpec(train=0.95, validation=0.03, test=0.02))
    return store.commit("large", {**columns, "y": rng.integers(0, 3, ROWS)}, spec=spec).version


@pytest.fixture(scope="module")
def resident(ray_session: None, store: DatasetStore, version: DatasetVersion) -> Iterator[Shared]:
    handle = share(version, store, mode="resident")
    yield handle
    handle.close()


@pytest.fixture(scope="module")
def streamed(store: DatasetStore, version: DatasetVersion, resident: Shared) -> Iterator[Shared]:
    handle = share(version, store, preprocessor=resident.preprocessor, mode="streamed")
    yield handle
    handle.close()


def counting(
    version: DatasetVersion, handle: Shared, folder: Path, ahead: int = 4, rank: int = 0, world: int = 1
) -> StreamedFeed:
    decoder = CountingDecoder(Place.of(version.uri), handle.preprocessor)
    decoder.folder = folder
    size = window_bytes(version, decoder.row_bytes, "train")
    plan = plan_streams(
        what="it", window_bytes=size, consumers=1, store_bytes=ahead * size, cluster_cpus=2, ahead=ahead
    )
    readers = Readers(version, decoder, plan)
    return StreamedFeed(readers, Take(split="train", batch_size=1_000, data_seed=0, rank=rank, world=world))


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def settled(folder: Path) -> int:
    """Windows read, once no more are read for a while."""
    count, since = -1, time.monotonic()
    while time.monotonic() - since < 1.0:
        now = len(list(folder.iterdir()))
        if now != count:
            count, since = now, time.monotonic()
        time.sleep(0.05)
    return count


def same(one: Feed, other: Feed, epochs: range) -> None:
    for e in epochs:
        for (a, b), (c, d) in itertools.zip_longest(one.epoch(e), other.epoch(e)):
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def executors() -> list[str]:
    gc.collect()
    return [t.name for t in threading.enumerate() if t.name.startswith("StreamingExecutor")]


def test_streamed_feed_gives_the_batches_of_the_resident_one(resident: Shared, streamed: Shared) -> None:
    one, other = (open_feed(h, split="train", batch_size=999, data_seed=7) for h in (resident, streamed))
    assert isinstance(other, StreamedFeed)
    assert (one.num_rows, one.steps_per_epoch) == (other.num_rows, other.steps_per_epoch)
    same(one, other, range(2))
    same(one, other, range(5, 6))  # not the next one: the stream begins anew
    other.close()


def test_streamed_shards_and_dropped_batches_are_those_of_the_resident_way(resident: Shared, streamed: Shared) -> None:
    for rank in range(2):
        one, other = (
            open_feed(h, split="train", batch_size=4_096, data_seed=1, rank=rank, world=2, drop_last=True)
            for h in (resident, streamed)
        )
        same(one, other, range(1))
        assert isinstance(other, StreamedFeed)
        other.close()


def test_stream_with_a_slow_consumer_reads_no_more_than_was_planned(
    resident: Shared, version: DatasetVersion, tmp_path: Path
) -> None:
    feed = counting(version, resident, tmp_path, ahead=4)
    batches = feed.epoch(0)
    next(batches)
    ahead = settled(tmp_path)
    most = 4 + READING + 1  # in the object store as planned; besides, what the reader's threads have done and do
    assert 1 <= ahead <= most, f"{ahead} windows were read for one that is consumed"
    for _ in batches:
        pass
    done = settled(tmp_path)
    assert 4 <= done <= 4 + most  # an epoch has four; the next one is ready
    feed.close()
    feed.readers.close()
    wait_for(lambda: not executors())


def test_reader_killed_in_mid_epoch_is_replaced_and_the_batches_stay(
    resident: Shared, version: DatasetVersion, tmp_path: Path
) -> None:
    feed = counting(version, resident, tmp_path)
    expected = open_feed(resident, split="train", batch_size=1_000, data_seed=0)
    batches = feed.epoch(0)
    found = [next(batches)]
    reader = int(next(tmp_path.iterdir()).name.split("-")[1])
    os.kill(reader, signal.SIGKILL)
    found += list(batches)
    again = list(feed.epoch(1))
    for got, wanted in ((found, expected.epoch(0)), (again, expected.epoch(1))):
        for (a, b), (c, d) in itertools.zip_longest(got, wanted):
            assert torch.equal(a, c)
            assert torch.equal(b, d)
    feed.close()
    feed.readers.close()


def test_stream_given_up_in_mid_epoch_ends_its_execution(streamed: Shared) -> None:
    feed = open_feed(streamed, split="train", batch_size=100, data_seed=0)
    for _ in itertools.islice(feed.epoch(0), 3):
        pass
    del feed, _
    wait_for(lambda: not executors())


def test_streams_one_after_another_are_read_by_the_same_readers_and_two_at_once_by_others(
    resident: Shared, version: DatasetVersion, tmp_path: Path
) -> None:
    def readers() -> set[str]:
        named = ray.util.list_named_actors(all_namespaces=True)
        return {a["name"] for a in named if a["name"].startswith(feed.readers.name)}

    feed = counting(version, resident, tmp_path)
    batches = feed.epoch(0)
    next(batches)
    del batches  # given up in the middle; its readers serve the next stream
    first = readers()
    other = StreamedFeed(feed.readers, Take(split="train", batch_size=1_000, data_seed=5))
    assert len(list(other.epoch(3))) == other.steps_per_epoch
    assert readers() == first
    assert len({file.name.split("-")[1] for file in tmp_path.iterdir()}) <= len(first) == 1  # nor was one replaced
    batches, beside = other.epoch(4), feed.epoch(2)
    for _ in range(3):
        next(batches), next(beside)
    assert len(readers() - first) == 1
    del batches, beside
    feed.readers.close()


def test_each_of_two_shards_decodes_its_half_of_the_windows(
    resident: Shared, version: DatasetVersion, tmp_path: Path
) -> None:
    feed = counting(version, resident, tmp_path, rank=1, world=2)
    windows = {s.window for s in feed.slices(0)}
    assert len(windows) <= 3  # of four: half of them, and one that both need
    assert sum(len(x) for x, _ in feed.epoch(0)) == version.split_rows["train"] // 2
    feed.close()
    feed.readers.close()


def test_stream_when_trials_hold_every_cpu_still_flows(streamed: Shared) -> None:
    @ray.remote(num_cpus=1)
    def trial(handle: Shared, seed: int) -> int:
        from tiltyard.data.stream import open_feed

        feed = open_feed(handle, split="train", batch_size=5_000, data_seed=seed)
        return sum(len(x) for x, _ in feed.epoch(0))

    told = ray.get([trial.remote(streamed, seed) for seed in range(2)], timeout=120)  # both CPUs are theirs
    assert told == [streamed.version.split_rows["train"]] * 2


def test_trial_killed_in_mid_stream_leaves_its_readers_to_the_next(streamed: Shared) -> None:
    @ray.remote(num_cpus=0)
    class Trial:
        def begin(self, handle: Shared) -> None:
            from tiltyard.data.stream import open_feed

            self.batches = open_feed(handle, split="train", batch_size=1_000, data_seed=3).epoch(0)
            next(self.batches)

        def rows(self, handle: Shared) -> int:
            self.begin(handle)
            return 1_000 + sum(len(x) for x, _ in self.batches)

    killed, after = Trial.remote(), Trial.remote()  # type: ignore[attr-defined]
    ray.get(killed.begin.remote(streamed), timeout=120)
    ray.kill(killed)
    assert ray.get(after.rows.remote(streamed), timeout=120) == streamed.version.split_rows["train"]
    ray.kill(after)


def test_stream_whose_file_is_gone_tells_which_and_what_to_do(
    resident: Shared, store: DatasetStore, version: DatasetVersion, tmp_path: Path
) -> None:
    twin = DatasetStore(str(tmp_path)).commit("large", store.read(version), spec=version.spec).version
    decoder = Decoder(Place.of(twin.uri), resident.preprocessor)
    size = window_bytes(twin, decoder.row_bytes, "train")
    plan = plan_streams(what="it", window_bytes=size, consumers=1, store_bytes=8 * size, cluster_cpus=2)
    readers = Readers(twin, decoder, plan)
    feed = StreamedFeed(readers, Take(split="train", batch_size=1_000, data_seed=0))
    for file in twin.files:
        Path(twin.uri, file.path).unlink()
    with pytest.raises(DataError, match=r"could not be read.*Restore them, or commit"):
        next(feed.epoch(0))
    with pytest.raises(DataError, match=r"A file of large@1 cannot be read.*Restore"):
        StreamedFeed(Readers(twin, decoder, plan), Take(split="train", batch_size=1_000, data_seed=0))
    readers.close()


def test_all_rows_of_a_streamed_split_are_refused_with_the_arithmetic(streamed: Shared) -> None:
    with pytest.raises(PreflightError, match=r"Split 'train' of large@1 is streamed: [\d,]+ bytes"):
        open_feed(streamed, split="train", batch_size=1, data_seed=0).all()


def test_share_whose_streams_would_deadlock_or_not_fit_is_refused_before_it_starts(
    store: DatasetStore, version: DatasetVersion, resident: Shared
) -> None:
    with pytest.raises(PreflightError, match=r"would deadlock: 2 trials x 1 CPUs = 2, and 2 readers x 1 CPUs = 2"):
        share(version, store, preprocessor=resident.preprocessor, mode="streamed", consumers=2, reader_cpus=1.0)
    with pytest.raises(PreflightError, match="does not fit: 10000 streams"):
        share(version, store, preprocessor=resident.preprocessor, mode="streamed", consumers=10_000)
    with pytest.raises(PreflightError, match=r"'validation' of large@1.*needed at once"):
        share(version, store, preprocessor=resident.preprocessor, memory_share=1e-6)
