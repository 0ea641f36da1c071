"""How many members fit a slot, and how many of a pack step together: as is shipped or was measured; half after memory ran out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tiltyard.journal import AttemptRow, storable
from tiltyard.settings import Settings
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.execute import pack_parts
from tiltyard.sweep.engine.packing import is_queued, shape_of
from tiltyard.sweep.plan import Trial
from tiltyard.types import Task

if TYPE_CHECKING:
    from tiltyard.training import PackSpec

OUT_OF_MEMORY = "out of memory"
"""How the reason of such an attempt begins, in the journal."""
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


def ran_out(error: BaseException) -> bool:
    """Whether this is an allocation that failed, on a GPU or in the machine's memory."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


def reason(error: BaseException) -> str:
    """Why an attempt failed, for the journal."""
    told = storable(f"{type(error).__name__}: {error}")
    return f"{OUT_OF_MEMORY}: {told}" if ran_out(error) else told


def halvings(attempts: Iterable[AttemptRow]) -> int:
    """How often memory ran out in these attempts at a pack."""
    return sum((a.reason or "").startswith(OUT_OF_MEMORY) for a in attempts)


def chunk_of(assignment: Assignment, device: str, sizes: Mapping[str, Any] | None, halved: int) -> int | None:
    """Members that step together: from shapes and the kind of device, halved as often as memory ran out.

    Args:
        assignment: Whose.
        device: A torch device.
        sizes: What `tiltyard.training.calibrate` found for this kind of device; None takes what is shipped.
        halved: How often memory ran out.

    Returns:
        None where members do not step together.
    """
    if is_queued(assignment.model):
        return None
    from tiltyard.training import build_module, sizing

    spec, members = pack_parts(assignment)
    shape = sizing.shape_of(spec, build_module(spec, seed=0))
    kind = device.partition(":")[0]
    chunk = sizing.chunk_for(shape, kind, sizing.Sizes(**sizes) if sizes else None)
    return max(1, min(chunk, len(members)) >> halved)


def fitting(slot_bytes: int | None, device: str, sizes: Mapping[str, Any] | None) -> Callable[[Trial], int]:
    """The most members of a trial's shape that a pack may have: from shapes, estimated before anything is allocated.

    Args:
        slot_bytes: Memory for one pack; None where it is not known, and packs are not bounded by it.
        device: Its kind.
        sizes: As `chunk_of`.

    Returns:
        A function; it gives 1 where not even one fits, which the worker then says with the arithmetic.
    """
    if slot_bytes is None:
        return lambda _: 1 << 30
    found: dict[str, int] = {}

    def fit(trial: Trial) -> int:
        key = shape_of(trial)
        if key not in found:
            try:
                found[key] = _fit(trial, slot_bytes, device, sizes)
            except Exception:  # of a user's model: the attempt will meet it and record it
                return 1 << 30
        return found[key]

    return fit


def _fit(trial: Trial, slot_bytes: int, device: str, sizes: Mapping[str, Any] | None) -> int:
    from tiltyard.training import build_module, sizing

    seat = Seat(cell=trial.cell, seed=trial.seed, config=trial.config, source=None)
    spec, _ = pack_parts(
        Assignment(
            pack_id="", group=trial.group, rung=0, from_epoch=0, to_epoch=1, total_epochs=1, model=trial.model,
            task=trial.task, input_shape=trial.input_shape, num_outputs=trial.num_outputs, metrics=(),
            dataset=trial.dataset, data_seed=trial.data_seed, seats=(seat,),
        )
    )  # fmt: skip
    shape = sizing.shape_of(spec, build_module(spec, seed=0))
    chunk = sizing.chunk_for(shape, device, sizing.Sizes(**sizes) if sizes else None)
    free = slot_bytes - sizing.kept_by_allocator(shape, device)
    return max(1, sizing.members_that_fit(shape, chunk, free, saved=device == "cpu", kind=device))


def usual_spec() -> PackSpec:
    """Packs as they are usual: what `measure_sizes` measures."""
    from tiltyard.training import PackSpec

    return PackSpec(
        model="mlp",
        model_args={"hidden": (64, 32)},
        task=Task.MULTICLASS,
        input_shape=(64,),
        num_outputs=10,
        batch_size=64,
        total_epochs=1,
    )


def measure_sizes(settings: Settings, device: str, *, seconds: float) -> None:
    """Calibrates this machine's device and keeps what was found, for launches to come."""
    from tiltyard.training import calibrate, sizing

    sizing.write_sizes(
        settings.sizes(device.partition(":")[0]), calibrate(usual_spec(), device=device, seconds=seconds)
    )


def sizes_of(settings: Settings, kind: str) -> dict[str, Any] | None:
    """What `measure_sizes` kept for a kind of device; None where nothing was measured.

    Raises:
        MachineError: If the file is none of ours.
    """
    from tiltyard.training import sizing

    path = settings.sizes(kind)
    return asdict(sizing.read_sizes(path)) if path.exists() else None


def usual_chunk(sizes: Mapping[str, Any] | None, kind: str) -> int:
    """Members of a usual pack that step together."""
    from tiltyard.training import build_module, sizing

    shape = sizing.shape_of(usual_spec(), build_module(usual_spec(), seed=0))
    return sizing.chunk_for(shape, kind, sizing.Sizes(**sizes) if sizes else None)
