"""What a reader is asked for and how it works ahead: slices from any row on, memory that is used again and never shared."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import order
from tiltyard.data.features import fit_preprocessor
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.data.windows import (
    Buffers,
    Decoder,
    Reader,
    Request,
    Slice,
    Window,
    epoch_slices,
    narrow,
    stream_slices,
    windows_of,
)
from tiltyard.types import Task

PLACE = ("digest", "train", 3)


def windows(sizes: list[int]) -> list[Window]:
    return [Window(number=i, num_rows=n, groups={}, first=0, last=0) for i, n in enumerate(sizes)]


def rows_of(slices: list[Slice]) -> list[tuple[int, int, int]]:
    return [(s.epoch, s.window, at) for s in slices for at in range(s.skip, s.skip + s.take)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5), st.integers(1, 3), st.data())
def test_slices_from_any_row_on_are_the_rest_of_those_from_the_start(
    sizes: list[int], world: int, data: st.DataObject
) -> None:
    rank, per_epoch = data.draw(st.integers(0, world - 1)), order.shard_rows(sum(sizes), world)
    done = data.draw(st.integers(0, per_epoch))
    every = [s for e in (5, 6) for s in epoch_slices(windows(sizes), PLACE, rank, world, e)]
    found = itertools.takewhile(lambda s: s.epoch < 7, stream_slices(windows(sizes), PLACE, rank, world, 5, done))
    assert rows_of(list(found)) == rows_of(every)[done:]


@given(st.lists(st.tuples(st.integers(1, 40), st.booleans()), max_size=30))
def test_buffers_in_any_use_never_give_out_memory_that_somebody_refers_to(uses: list[tuple[int, bool]]) -> None:
    buffers, held = Buffers(), []
    for number, (num_rows, keep) in enumerate(uses):
        matrix = buffers.matrix(num_rows, 3)
        assert matrix.shape == (num_rows, 3)
        matrix[:] = number
        if keep:
            held.append((number, matrix[1:]))  # a view of it, as an Arrow table would be
        del matrix
    assert all((view == number).all() for number, view in held)


def test_buffers_that_nobody_refers_to_are_used_again_and_given_back() -> None:
    buffers = Buffers()
    first = buffers.matrix(100, 4)
    at = first.ctypes.data
    assert buffers.matrix(100, 4).ctypes.data != at
    del first
    assert buffers.matrix(90, 4).ctypes.data == at
    buffers.clear()
    assert buffers._made == []


@settings(max_examples=10)
@given(st.integers(0, 400))
def test_request_as_a_table_comes_back_equal(done: int) -> None:
    asked = Request(data_seed=-1, epoch=2, done=done, rank=1, world=3, num_windows=9, lease="/a", holder="1 b")
    assert Request.of_table(asked.to_table()) == [asked]


def test_reader_ahead_gives_the_blocks_of_the_slices_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "WINDOW_ROWS", 256)
    rng = np.random.default_rng(0)
    store = DatasetStore(str(tmp_path))
    source = {"x": rng.normal(size=3_000), "y": rng.integers(0, 2, 3_000)}
    version = store.commit("toy", source, spec=DatasetSpec(task=Task.BINARY, label="y")).version
    found = windows_of(version, Place.of(version.uri), "train")
    decoder = Decoder(Place.of(version.uri), fit_preprocessor(store, version))
    reader = Reader(decoder, (version.content_digest, "train"), found)
    asked = Request(data_seed=0, epoch=0, done=700, rank=0, world=1, num_windows=30)
    alone = [narrow(reader.read(s)["x"]).copy() for s in reader.slices(asked)]
    blocks = list(reader.ahead(reader.slices(asked)))  # held all at once: none may be written over
    assert len(alone) == len(blocks) == 30
    for one, block in zip(alone, blocks, strict=True):
        np.testing.assert_array_equal(one, narrow(block["x"]))
        assert block.nbytes == block.num_rows * decoder.block_row_bytes
