"""How many members of a pack step together, and what happens when memory runs out: half as many at the next attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tiltyard.journal import AttemptRow
from tiltyard.sweep.engine.assignment import Assignment
from tiltyard.sweep.engine.execute import pack_parts
from tiltyard.sweep.engine.packing import is_queued

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
    told = f"{type(error).__name__}: {error}"
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
