"""What one pack is to do for one rung: a value that the driver writes to storage and a worker reads.

Everything a worker needs beside data and addresses stands here, so that Ray Tune's own state carries pack ids only, a
retry finds the same assignment, and a person can read what a pack did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.types import Task

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """One trial's place in a pack.

    Args:
        cell: The trial's cell; its member name too.
        seed: Seed of initialisation and noise.
        config: The whole configuration of the trial, fixed and drawn.
        source: Storage folder with the trial's parameters at the assignment's first epoch; None at epoch 0.
    """

    cell: str
    seed: int
    config: Mapping[str, Any]
    source: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """A pack for a rung: train ``seats`` from the end of ``from_epoch`` to the end of ``to_epoch`` (counted from 0).

    ``given``: when it was handed out, in seconds of the epoch; a process that was there before is paid for from then.
    """

    pack_id: str
    group: str
    rung: int
    from_epoch: int
    to_epoch: int
    total_epochs: int
    model: str
    task: Task
    input_shape: tuple[int, ...]
    num_outputs: int
    metrics: tuple[str, ...]
    dataset: str
    data_seed: int
    seats: tuple[Seat, ...]
    given: float = 0.0

    @property
    def cells(self) -> tuple[str, ...]:
        """The cells, in the order of the seats."""
        return tuple(seat.cell for seat in self.seats)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            **{name: getattr(self, name) for name in self.__slots__ if name not in {"seats", "task"}},
            "task": str(self.task),
            "seats": [
                {"cell": s.cell, "seed": s.seed, "config": dict(s.config), "source": s.source} for s in self.seats
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Assignment:
        """Reads what `to_dict` gave."""
        fields = {k: v for k, v in data.items() if k not in {"schema_version", "seats"}}
        fields["task"] = Task(fields["task"])
        for name in ("input_shape", "metrics"):
            fields[name] = tuple(fields[name])
        seats = tuple(Seat(**{**s, "config": {k: as_tuples(v) for k, v in s["config"].items()}}) for s in data["seats"])
        return cls(**fields, seats=seats)


def as_tuples(value: Any) -> Any:
    """JSON lists as the tuples they were."""
    return tuple(as_tuples(v) for v in value) if isinstance(value, list) else value
