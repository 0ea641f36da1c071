"""From a dataset version to the batches of trials, on the session's Ray: rows decoded once, the owner killed, shards."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import ray
import torch

from tiltyard.data.feed import Feed, local_feed
from tiltyard.data.store import DatasetStore
from tiltyard.data.stream import Shared, fetch, open_feed, plan_splits, share
from tiltyard.data.versions import DatasetSpec, DatasetVersion
from tiltyard.errors import DataError, PreflightError, SpecError
from tiltyard.types import Task

pytestmark = pytest.mark.ray


def source(num_rows: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{i}": rng.normal(size=num_rows).astype(np.float32) for i in range(3)}
    columns["city"] = [("rom", "ulm", "bari")[i] for i in rng.integers(0, 3, num_rows)]
    return {"id": np.arange(num_rows), **columns, "y": rng.integers(0, 3, num_rows)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    return DatasetStore(str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def version(store: DatasetStore) -> DatasetVersion:
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")
    return store.commit("toy", source(3_000), spec=spec).version


@pytest.fixture(scope="module")
def shared(ray_session: None, store: DatasetStore, version: DatasetVersion) -> Any:
    handle = share(version, store, mode="resident")
    yield handle
    handle.close()


def batches(feed: Feed, e: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x.clone(), y.clone()) for x, y in feed.epoch(e)]


def equal(one: list[tuple[torch.Tensor, torch.Tensor]], other: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def test_resident_feed_gives_the_batches_of_a_feed_without_ray(
    shared: Shared, store: DatasetStore, version: DatasetVersion
) -> None:
    assert {s: p.mode for s, p in shared.plans.items()} == dict.fromkeys(("train", "validation", "test"), "resident")
    table = store.read(version, split="train")
    alone = local_feed(
        shared.preprocessor.transform(table),
        shared.preprocessor.transform_label(table),
        row_hash=store.read_hashes(version, "train"),
        content_digest=version.content_digest,
        split="train",
        batch_size=64,
        data_seed=5,
    )
    feed = open_feed(shared, split="train", batch_size=64, data_seed=5)
    assert feed.num_rows == version.split_rows["train"]
    assert feed.steps_per_epoch == len(batches(feed, 0))
    assert equal(batches(feed, 2), batches(alone, 2))
    assert not equal(batches(feed, 2), batches(feed, 3))
    assert [t.dtype for t in feed.all()] == [torch.float32, torch.int64]
    assert shared.num_features == feed.all()[0].shape[1] == 6


@ray.remote(num_cpus=1)  # so that two processes take all eight: each imports torch first
def _trial(handle: Shared, seed: int) -> tuple[int, float, bool]:
    """What a trial does: opens its feeds and goes through two epochs; says whether it copied the rows."""
    feed = open_feed(handle, split="train", batch_size=100, data_seed=seed)
    rows, total = 0, 0.0
    for e in range(2):
        for x, _ in feed.epoch(e):
            rows, total = rows + len(x), total + float(x.double().sum())
    open_feed(handle, split="validation", batch_size=100, data_seed=seed).all()
    owned = fetch(handle, "train")[0]
    return rows, total, bool(owned.flags.owndata or owned.flags.writeable)


def test_eight_trials_decode_each_row_once_and_copy_none(shared: Shared, version: DatasetVersion) -> None:
    told = ray.get([_trial.remote(shared, seed) for seed in range(8)])
    train = version.split_rows["train"]
    assert {rows for rows, _, _ in told} == {2 * train}
    np.testing.assert_allclose([total for _, total, _ in told], told[0][1], rtol=1e-6, atol=1e-3)
    assert not any(copied for _, _, copied in told)
    assert shared.counters() == {"rows_decoded": train + version.split_rows["validation"], "reads": 1}


def test_owner_killed_is_restarted_and_reads_again(
    ray_session: None, store: DatasetStore, version: DatasetVersion
) -> None:
    handle = share(version, store, mode="resident")
    feed = open_feed(handle, split="train", batch_size=64, data_seed=0)
    before = batches(feed, 1)
    ray.kill(handle.owner, no_restart=False)  # its process dies a little later; Ray starts another
    deadline = time.monotonic() + 60
    while handle.counters()["reads"]:  # the first life still answers
        assert time.monotonic() < deadline, "the owner was not started again"
        time.sleep(0.05)
    assert equal(batches(feed, 1), before)  # what is mapped stays
    again = open_feed(handle, split="train", batch_size=64, data_seed=0)
    assert equal(batches(again, 1), before)
    assert handle.counters()["reads"] == 1  # of its second life
    handle.close()


def test_small_version_is_read_by_who_shares_it_and_gives_the_same_batches(
    shared: Shared, store: DatasetStore, version: DatasetVersion
) -> None:
    small = share(version, store, preprocessor=shared.preprocessor)
    assert small.owner is None
    assert set(small.kept) == {"train", "validation"}
    for split in ("train", "validation", "test"):  # the last was not asked for, and is read when it is
        one, other = (open_feed(h, split=split, batch_size=64, data_seed=3) for h in (small, shared))
        assert one.num_rows == other.num_rows == version.split_rows[split]
        assert equal(batches(one, 1), batches(other, 1))
    assert ray.get(_trial.remote(small, 4)) == ray.get(_trial.remote(shared, 4))
    assert small.counters()["rows_decoded"] == version.split_rows["train"] + version.split_rows["validation"]
    small.close()


def test_shards_of_two_ranks_are_disjoint_and_together_the_epoch(shared: Shared) -> None:
    whole = torch.cat([x for x, _ in open_feed(shared, split="train", batch_size=50, data_seed=1).epoch(0)])
    parts = [
        torch.cat(
            [x for x, _ in open_feed(shared, split="train", batch_size=50, data_seed=1, rank=r, world=2).epoch(0)]
        )
        for r in range(2)
    ]
    assert len(parts[0]) == len(parts[1]) == len(whole) // 2
    together = torch.cat(parts)
    assert torch.equal(together, whole[: len(together)])


def test_feed_that_makes_no_sense_is_refused_in_the_callers_process(shared: Shared) -> None:
    with pytest.raises(SpecError, match="Batch size 0"):
        open_feed(shared, split="train", batch_size=0, data_seed=0)
    with pytest.raises(DataError, match="no split 'dev'"):
        open_feed(shared, split="dev", batch_size=1, data_seed=0)


def test_share_of_what_does_not_fit_as_resident_is_refused_with_the_arithmetic(
    ray_session: None, store: DatasetStore, version: DatasetVersion, shared: Shared
) -> None:
    with pytest.raises(PreflightError, match=r"Split 'train'.* takes [\d,]+ bytes as arrays; [\d,]+ of the allowed"):
        plan_splits(version, shared.preprocessor, allowed_bytes=50_000, mode="resident")
    plans = plan_splits(version, shared.preprocessor, allowed_bytes=50_000)
    assert {s: p.mode for s, p in plans.items()} == {"test": "resident", "validation": "resident", "train": "streamed"}
    with pytest.raises(PreflightError, match="none of auto, resident, streamed"):
        plan_splits(version, shared.preprocessor, allowed_bytes=1, mode="eager")


def test_share_of_an_empty_split_is_refused_before_anything_starts(ray_session: None, store: DatasetStore) -> None:
    spec = DatasetSpec(task=Task.MULTICLASS, label="y", key="id")
    tiny = store.commit("tiny", {**source(4), "y": [0, 1, 2, 0]}, spec=spec).version
    empty = next(s for s, n in tiny.split_rows.items() if n == 0)
    with pytest.raises(DataError, match=f"Split '{empty}' of tiny@1 has no rows"):
        share(tiny, store, splits=(empty,))
