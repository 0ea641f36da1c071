"""The order of an epoch: windows by hash, a permutation of every row, a function of digest, seed and epoch alone."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import order
from tiltyard.data.feed import ArrayFeed, batched, local_feed
from tiltyard.errors import DataError, SpecError


def feed(num_rows: int, *, window_rows: int = 64, **more: object) -> ArrayFeed:
    rng = np.random.default_rng(num_rows)
    hashes = np.sort(rng.integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, num_rows))
    options: dict[str, object] = {"content_digest": "d", "split": "train", "batch_size": 16, "data_seed": 0, **more}
    x = np.arange(num_rows, dtype=np.float32)[:, None]
    return local_feed(x, np.arange(num_rows), row_hash=hashes, window_rows=window_rows, **options)  # type: ignore[arg-type]


def epoch(feed: ArrayFeed, e: int) -> list[float]:
    return [value for x, _ in feed.epoch(e) for value in x[:, 0].tolist()]


@given(num_rows=st.integers(1, 900), batch=st.integers(1, 70), seed=st.integers(0, 3), e=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_epoch_of_any_size_visits_every_row_once(num_rows: int, batch: int, seed: int, e: int) -> None:
    found = feed(num_rows, batch_size=batch, data_seed=seed)
    batches = list(found.epoch(e))
    assert sorted(v for x, _ in batches for v in x[:, 0].tolist()) == list(range(num_rows))
    assert len(batches) == found.steps_per_epoch
    assert all(len(x) == batch for x, _ in batches[:-1])
    assert all(torch.equal(x[:, 0].long(), y) for x, y in batches)


def test_order_with_the_same_names_is_equal_and_with_any_other_differs() -> None:
    first = epoch(feed(500), 3)
    assert epoch(feed(500), 3) == first
    for changed in ({"data_seed": 1}, {"content_digest": "e"}, {"split": "test"}):
        assert epoch(feed(500, **changed), 3) != first
    assert epoch(feed(500), 4) != first


def test_epoch_keeps_the_rows_of_a_window_together() -> None:
    found = feed(1_000)
    bits = order.window_bits(1_000, 64)
    hashes = np.sort(np.random.default_rng(1_000).integers(np.iinfo(np.int64).min, np.iinfo(np.int64).max, 1_000))
    offsets = order.window_offsets(hashes, bits)
    window = np.searchsorted(offsets, found.order(0), side="right")
    assert bits == 4
    assert (np.diff(window) != 0).sum() == 2**bits - 1
    assert not np.array_equal(np.sort(window), window)


@given(num_rows=st.integers(8, 600), world=st.integers(1, 7), e=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_shards_of_an_epoch_are_disjoint_and_of_equal_size(num_rows: int, world: int, e: int) -> None:
    shards = [feed(num_rows, rank=rank, world=world, batch_size=5) for rank in range(world)]
    seen = [epoch(shard, e) for shard in shards]
    assert {len(s) for s in seen} == {num_rows // world}
    together = [v for s in seen for v in s]
    assert len(set(together)) == len(together) == num_rows // world * world
    assert together == epoch(feed(num_rows), e)[: len(together)]  # each is one run of the epoch


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 7))
def test_shards_read_few_windows_that_others_read_too(sizes: list[int], world: int) -> None:
    parts = [list(order.shard_parts(sizes, rank, world)) for rank in range(world)]
    assert sum(map(len, parts)) <= len(sizes) + world - 1
    assert [sum(take for _, _, take in p) for p in parts] == [sum(sizes) // world] * world
    assert all(skip >= 0 and take > 0 and skip + take <= sizes[i] for p in parts for i, skip, take in p)


def test_drop_last_leaves_out_the_batch_that_is_not_full() -> None:
    found = feed(100, batch_size=16, drop_last=True)
    assert found.steps_per_epoch == 6
    assert [len(x) for x, _ in found.epoch(0)] == [16] * 6
    assert epoch(feed(100, batch_size=16), 0)[:96] == epoch(found, 0)


@given(st.lists(st.integers(0, 20), max_size=8), st.integers(1, 9))
@settings(deadline=None)
def test_batched_with_parts_of_any_length_keeps_every_value(lengths: list[int], size: int) -> None:
    bounds = np.cumsum([0, *lengths])
    parts = [(np.arange(a, b), np.arange(a, b) + 1) for a, b in itertools.pairwise(bounds)]
    both = list(batched(iter(parts), size))
    cut = [one for one, _ in both]
    assert all(np.array_equal(one + 1, other) for one, other in both)
    assert np.concatenate([np.empty(0, np.int64), *cut]).tolist() == list(range(int(bounds[-1])))
    assert all(len(c) == size for c in cut[:-1])
    assert not cut or 0 < len(cut[-1]) <= size


@pytest.mark.parametrize(("rows", "bits"), [(1, 0), (65_536, 0), (92_000, 0), (93_000, 1), (2_000_000, 5)])
def test_window_bits_of_a_number_of_rows_is_the_nearest_power(rows: int, bits: int) -> None:
    assert order.window_bits(rows) == bits


@given(st.integers(1, 10**7))
def test_window_rows_of_any_width_stay_within_the_bytes_or_the_least(row_bytes: int) -> None:
    rows = order.window_rows(row_bytes)
    assert rows == order.MIN_WINDOW_ROWS or rows * row_bytes <= order.WINDOW_BYTES
    assert order.MIN_WINDOW_ROWS <= rows <= order.WINDOW_ROWS


def test_window_offsets_of_all_hashes_count_every_row() -> None:
    hashes = np.array([np.iinfo(np.int64).min, -1, 0, 5, np.iinfo(np.int64).max])
    assert order.window_offsets(hashes, 1).tolist() == [0, 2, 5]
    assert order.window_offsets(hashes, 0).tolist() == [0, 5]


def test_feed_of_several_windows_without_hashes_is_refused() -> None:
    x = np.zeros((1_000, 1), np.float32)
    with pytest.raises(DataError, match="give row_hash"):
        local_feed(x, np.zeros(1_000), content_digest="d", split="train", batch_size=1, data_seed=0, window_rows=64)
    with pytest.raises(DataError, match="1000 rows and y 3"):
        local_feed(x, np.zeros(3), content_digest="d", split="train", batch_size=1, data_seed=0)


@pytest.mark.parametrize(
    ("options", "told"), [({"batch_size": 0}, "Batch size 0"), ({"rank": 2, "world": 2}, "Shard 2 of 2")]
)
def test_feed_with_a_batch_or_shard_that_makes_no_sense_is_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        feed(10, **options)
