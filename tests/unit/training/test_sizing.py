"""How many members, how much memory, how many threads: from shapes alone, and true to what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import MachineError, TrainingError
from tiltyard.training import Member, Pack, PackSpec, build_module, calibrate, sizing
from tiltyard.types import Task

MEASURE = """
import ctypes, json, os, sys, tempfile, torch
from pathlib import Path
torch.set_num_threads(1)
from tiltyard.training import Member, Pack, PackSpec, build_module, sizing
from tiltyard.types import Task

def trained(spec, batches, count, chunk, saved):
    pack = Pack.create(spec, [Member(name=str(i), seed=i) for i in range(count)], chunk=min(chunk, count))
    pack.train_epoch(batches)
    pack.train_epoch(batches)
    if saved:
        with tempfile.TemporaryDirectory() as folder:
            pack.save(Path(folder))
    return pack

def now():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

found = []
for model, args, shape, rows, optimizer, count, chunk, *saved in json.loads(sys.argv[1]):
    spec = PackSpec(model=model, model_args=args, task=Task.MULTICLASS, input_shape=tuple(shape), num_outputs=10,
                    batch_size=rows, total_epochs=2, optimizer=optimizer)
    draw = torch.Generator().manual_seed(0)
    batches = [(torch.randn(rows, *shape, generator=draw), torch.randint(0, 10, (rows,), generator=draw))]
    trained(spec, batches, 1, 1, saved)
    shape = sizing.shape_of(spec, build_module(spec, seed=0))
    estimate = sizing.estimate_bytes(shape, count, chunk, saved=bool(saved), kind=os.environ.get("KIND", "cpu"))
    ctypes.CDLL(None).malloc_trim(0)  # what the case before gave back
    open("/proc/self/clear_refs", "w").write("5")
    before = now()
    pack = trained(spec, batches, count, chunk, saved)
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
    found.append([estimate, peak - before])
    del pack
print(json.dumps(found))
"""
STACKS: list[list[Any]] = [
    ["mlp", {"hidden": [64, 32]}, [64], 64, "adamw", 24, 24],
    ["mlp", {"hidden": [256, 128]}, [128], 64, "adamw", 64, 32],
    ["mlp", {"hidden": [512, 512]}, [256], 64, "sgd", 32, 3],
    ["resmlp", {"width": 128, "depth": 3}, [64], 128, "adam", 32, 16],
]
SAVED = [*STACKS[2], "saved"]
SMALL = ["cnn", {"image": [1, 16, 16], "channels": [16, 32]}, [256], 64, "adamw", 12, 12]
LARGE = ["cnn", {"image": [1, 16, 16], "channels": [16, 32]}, [256], 64, "sgd", 36, 36]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_estimate_of_memory_is_within_a_fifth_of_what_is_measured() -> None:
    for cases, environment in (
        ([*STACKS, SAVED, LARGE], {}),
        ([SMALL], {"MALLOC_MMAP_THRESHOLD_": "65536", "KIND": "any without holes"}),  # all that is given back goes back
    ):
        for case, (estimate, measured) in zip(cases, _measured(cases, **environment), strict=True):
            assert estimate == pytest.approx(measured, rel=0.2), case


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_pack_whose_memory_is_given_back_with_holes_holds_no_more_than_what_fits_is_decided_with() -> None:
    """How large the holes are differs from run to run, so this is all that can be said of a single one."""
    many = ["cnn", {"image": [1, 16, 16], "channels": [16, 32]}, [256], 64, "adamw", 24, 1]
    wide = ["cnn", {"image": [1, 12, 12], "channels": [32]}, [144], 128, "momentum", 10, 10]
    few = ["cnn", {"image": [1, 8, 8], "channels": [16, 32]}, [64], 64, "adamw", 4, 4]
    for case, (estimate, measured) in zip((many, wide, few), _measured([many, wide, few]), strict=True):
        assert 0.5 * estimate <= measured <= estimate + sizing.ALLOCATOR_KEEPS, case


@given(st.integers(1, 1 << 32), st.integers(1, 500))
def test_holes_are_bounded_and_an_estimate_with_them_never_falls(passing: int, chunks: int) -> None:
    assert 0 < sizing.holes(passing, chunks) <= 106 << 20
    more = passing + (1 << 20)
    assert more + sizing.holes(more, chunks) >= passing + sizing.holes(passing, chunks)
    assert sizing.holes(passing, chunks + 1) >= sizing.holes(passing, chunks)


def _measured(cases: list[list[Any]], **environment: str) -> list[tuple[int, int]]:
    """Bytes estimated and measured at the peak of each, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(cases)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
    )
    return [(estimate, measured) for estimate, measured in json.loads(done.stdout)]


@given(st.integers(1, 5000))
def test_ladder_holds_any_number_and_wastes_a_third_at_most(count: int) -> None:
    rung = sizing.ladder(count)
    assert count <= rung <= max(count * 1.5, 1)
    assert sizing.ladder(rung) == rung


def shape(**changes: int) -> sizing.Shape:
    plain: dict[str, Any] = {
        "params": 26_000,
        "states": 3,
        "extra": 0,
        "kept": 54_000,
        "flops": 2_000_000,
        "graph": False,
    }
    return sizing.Shape(**(plain | changes))


@given(st.integers(1, 10**9), st.integers(0, 10**9))
def test_chunk_of_any_shape_stays_within_its_bytes_or_is_one_member(params: int, kept: int) -> None:
    own = shape(params=params, kept=kept)
    chunk = sizing.chunk_for(own, "cpu")
    likes = sizing.DEFAULTS["cpu"]
    assert 1 <= chunk <= likes.most
    assert chunk == 1 or chunk * own.bytes <= likes.chunk_bytes
    assert sizing.ladder(chunk) == chunk


def test_chunk_of_a_kind_of_device_that_is_not_known_is_that_of_a_cpu() -> None:
    assert sizing.chunk_for(shape(), "mps") == sizing.chunk_for(shape(), "cpu")
    assert sizing.chunk_for(shape(), "cuda") > sizing.chunk_for(shape(), "cpu")


@given(st.integers(0, 10**10))
def test_members_that_fit_are_the_most_whose_estimate_fits(free: int) -> None:
    own = shape()
    most = sizing.members_that_fit(own, 64, free)
    assert most == 0 or sizing.estimate_bytes(own, most, 64) <= free
    assert sizing.estimate_bytes(own, most + 1, 64) > free


def test_pack_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch, worlds: Any) -> None:
    spec = worlds["multiclass"].spec("mlp")
    one = sizing.estimate_bytes(sizing.shape_of(spec, build_module(spec, seed=0)), 1, 1)
    monkeypatch.setattr(sizing, "available_bytes", lambda device: 3 * one)
    with pytest.raises(MachineError, match=r"pack of 9 members.*3 members fit: set pack=3"):
        Pack.create(spec, [Member(name=str(i), seed=i) for i in range(9)])
    monkeypatch.setattr(sizing, "available_bytes", lambda device: one // 2)
    with pytest.raises(MachineError, match=r"Not even one fits"):
        Pack.create(spec, [Member(name="a", seed=0)])


def test_memory_that_can_be_had_is_some_of_the_machine() -> None:
    assert 1 << 20 < sizing.available_bytes(torch.device("cpu")) < 1 << 50


def test_threads_of_small_products_are_one_and_the_callers_are_put_back(worlds: Any) -> None:
    before = torch.get_num_threads()
    with sizing.threads(2):
        assert torch.get_num_threads() == 2
        assert sizing.threads_for(shape(flops=2_000_000), 64) == 1
        assert sizing.threads_for(shape(flops=10**10), 4) == 2
    assert torch.get_num_threads() == before
    world = worlds["multiclass"]
    pack = Pack.create(world.spec("mlp"), [Member(name="a", seed=0)], threads=2)
    pack.train_epoch(world.batches())
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
@pytest.mark.parametrize("name", ["chunk", "threads"])
def test_chunk_or_threads_that_are_no_number_of_them_are_refused(name: str, value: Any, worlds: Any) -> None:
    with pytest.raises(TrainingError, match=rf"{name} is {value!r}; a whole number"):
        Pack.create(worlds["binary"].spec("mlp"), [Member(name="a", seed=0)], **{name: value})


@pytest.mark.parametrize("device", ["nope", "cuda:99", "meta", 7.5])
def test_device_that_is_not_there_is_refused_with_those_that_are(device: Any, worlds: Any) -> None:
    spec = worlds["binary"].spec("mlp")
    for ask in (
        lambda: Pack.create(spec, [Member(name="a", seed=0)], device=device),
        lambda: calibrate(spec, device=device),
    ):
        with pytest.raises(MachineError, match=rf"No device {device!r}.*It has: cpu"):
            ask()


def test_calibration_of_nothing_is_refused(worlds: Any) -> None:
    spec = worlds["binary"].spec("mlp")
    with pytest.raises(TrainingError, match="largest chunk of 0"):
        calibrate(spec, most=0)
    for seconds in (0.0, float("nan")):
        with pytest.raises(TrainingError, match=rf"seconds is {seconds}"):
            calibrate(spec, seconds=seconds)


def test_calibration_stops_where_members_per_second_stop_rising() -> None:
    tried: list[int] = []

    def device(chunk: int) -> float:
        tried.append(chunk)
        return 1000.0 * min(chunk, 16)

    found = sizing.calibrate(device, shape(), "cuda", told="a clock that is exact")
    assert found.chunk_bytes == 16 * shape().bytes
    assert max(tried) <= 64
    assert sizing.chunk_for(shape(), "cuda", found) == 16


def test_calibration_of_this_machine_is_read_back_and_used(tmp_path: Path) -> None:
    spec = PackSpec(
        model="logistic", model_args={}, task=Task.BINARY, input_shape=(4,), num_outputs=2, batch_size=8, total_epochs=1
    )
    found = calibrate(spec, most=8, seconds=0.01)
    sizing.write_sizes(tmp_path / "cpu.json", found)
    assert sizing.read_sizes(tmp_path / "cpu.json") == found
    assert found.kind == "cpu"
    assert found.measured_on
    pack = Pack.create(spec, [Member(name=str(i), seed=i) for i in range(50)], sizes=found)
    assert pack.chunk <= 8
    with pytest.raises(MachineError, match=r"nowhere.*Calibrate"):
        sizing.read_sizes(tmp_path / "nowhere.json")


def test_numbers_too_small_count_as_zero_in_training_and_only_there(worlds: Any) -> None:
    def product_of_small() -> float:
        return float(torch.full((1,), 1e-30) * 1e-10)

    assert product_of_small() > 0
    with sizing.tiny_as_zero():
        with sizing.tiny_as_zero():
            assert product_of_small() == 0
        assert product_of_small() == 0, "the inner one leaves it as it was"
    assert product_of_small() > 0
    world = worlds["multiclass"]
    pack = Pack.create(world.spec("mlp"), [Member(name="a", seed=0)])
    with pytest.raises(TrainingError):
        pack.train_epoch([])
    pack.train_epoch(world.batches())
    assert product_of_small() > 0
