"""When has memory run out, and how many members step together then? Pure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from tiltyard.errors import MachineError, TrainingError
from tiltyard.experiment import Resources
from tiltyard.journal import AttemptRow
from tiltyard.settings import Settings
from tiltyard.sweep.engine import memory
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.execute import pack_parts
from tiltyard.sweep.engine.packing import pack_size_for
from tiltyard.sweep.plan import Group, Trial
from tiltyard.training import build_module, sizing
from tiltyard.training.sizing import Sizes
from tiltyard.types import Task


def attempt(number: int, reason: str | None) -> AttemptRow:
    return AttemptRow(
        key="k", pack_id="p", number=number, rung=0, state="failed" if reason else "fenced", started=0.0, ended=1.0,
        metered_s=1.0, reason=reason, storage_uri=None,
    )  # fmt: skip


def assignment(model: str, count: int, **config: object) -> Assignment:
    return Assignment(
        pack_id="p", group="g", rung=0, from_epoch=0, to_epoch=1, total_epochs=1, model=model, task=Task.MULTICLASS,
        input_shape=(64,), num_outputs=10, metrics=("accuracy",), dataset="digits@1", data_seed=0,
        seats=tuple(Seat(cell=f"c{i}", seed=i, config=dict(config), source=None) for i in range(count)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("error", "out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 8 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (TrainingError("out of range"), False),
    ],
)
def test_error_of_an_allocation_is_told_from_others(error: BaseException, out: bool) -> None:
    assert memory.ran_out(error) is out
    assert memory.reason(error).startswith("out of memory: ") is out


def test_allocation_that_torch_refuses_counts_as_memory_that_ran_out() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert memory.ran_out(refused.value)


def test_chunk_is_halved_as_often_as_memory_ran_out_and_never_below_one() -> None:
    of = assignment("mlp", 48, hidden=(64, 32), lr=0.1)
    whole = memory.chunk_of(of, "cpu", None, 0)
    assert whole == 48
    told = [attempt(1, memory.reason(MemoryError())), attempt(2, None), attempt(3, "ValueError: no")]
    assert memory.halvings(told) == 1
    assert memory.chunk_of(of, "cpu", None, memory.halvings(told)) == 24
    assert memory.chunk_of(of, "cpu", None, 9) == 1


def test_chunk_of_a_calibrated_kind_of_device_is_what_was_measured() -> None:
    small = Sizes(kind="cpu", chunk_bytes=1, most=1024, measured_on="here")
    assert memory.chunk_of(assignment("mlp", 48, hidden=(64, 32)), "cpu", asdict(small), 0) == 1


def test_chunk_of_trials_that_do_not_step_together_is_none() -> None:
    assert memory.chunk_of(assignment("lightgbm", 8), "cpu", None, 0) is None
    assert memory.chunk_of(assignment("train:package:function", 8), "cpu", None, 0) is None


def test_sizes_that_were_measured_are_found_again_and_change_what_steps_together(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    assert memory.sizes_of(settings, "cpu") is None
    memory.measure_sizes(settings, "cpu", seconds=0.01)
    sizes = memory.sizes_of(settings, "cpu")
    assert sizes is not None
    assert sizes["measured_on"].endswith(": mlp")
    assert 1 <= memory.usual_chunk(sizes, "cpu") <= 1024
    settings.sizes("cpu").write_text("{}")
    with pytest.raises(MachineError, match="Calibrate this kind of device again"):
        memory.sizes_of(settings, "cpu")


def trial(index: int = 0, **config: object) -> Trial:
    return Trial(
        cell=f"c{index}", index=index, group="mlp@d", variant="mlp", model="mlp", config={"lr": 0.1, **config}, dataset="d",
        dataset_version=1, dataset_digest="d" * 64, task=Task.MULTICLASS, input_shape=(64,), num_outputs=10, seed=index,
        data_seed=0,
    )  # fmt: skip


def test_pack_is_as_large_as_fits_its_slot_and_never_empty() -> None:
    trials = [trial(i, hidden=(1024, 1024)) for i in range(200)]
    group = Group(name="mlp@d", variant="mlp", model="mlp", dataset="d", rungs=(1,), keep=1.0, trials=tuple(trials))

    def size(slot_bytes: int | None, pack: int | str = "auto") -> int:
        resources = Resources.model_validate({"pack": pack})
        fit = memory.fitting(slot_bytes, "cpu", None)
        return pack_size_for(resources, slots=1, groups=1, device="cpu", fit=fit)(group, trials)

    assert size(None) == 200
    assert size(1 << 40) == 200
    fits = size(1 << 30)
    spec, _ = pack_parts(assignment("mlp", 1, hidden=(1024, 1024)))
    shape = sizing.shape_of(spec, build_module(spec, seed=0))
    chunk = sizing.chunk_for(shape, "cpu")
    assert 1 < fits < 200
    held = [sizing.estimate_bytes(shape, n, chunk, saved=True) for n in (fits, fits + 1)]
    assert held[0] <= 1 << 30 < held[1]
    assert size(1 << 20) == 1, "which its worker refuses with the arithmetic"
    assert size(1 << 20, pack=7) == 7, "a number that somebody wrote is not changed behind their back"


def test_pack_of_a_model_that_cannot_be_sized_is_left_to_its_worker() -> None:
    assert memory.fitting(1 << 20, "cpu", None)(trial(nothing=1)) > 1 << 20
