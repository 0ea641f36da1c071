"""Where do the numbers of K same-shaped models lie? Side by side: a *segment* is ``(members, size)``, one flat buffer holds all.

A matrix (or larger) parameter has a segment of its own, so that the members' matrices are one contiguous ``(members, out,
in)`` tensor that a batched product reads as it is. Vectors (biases, scales) share one segment, so that an update is a few
wide operations and not one for each. Every segment starts on a cache line, so that a member's numbers are computed by the
same instructions wherever it lies.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LINE = 16
"""Floats of a cache line."""


def lines(size: int) -> int:
    """``size`` rounded up to whole cache lines."""
    return -(-size // LINE) * LINE


@dataclass(frozen=True, slots=True)
class Slot:
    """One parameter: its shape, its segment, where it begins there, and whether it lies transposed."""

    shape: tuple[int, ...]
    segment: int
    offset: int
    turned: bool = False

    @property
    def size(self) -> int:
        """Numbers of one member."""
        return math.prod(self.shape)


class Layout:
    """How the parameters of a model are laid out for any number of members.

    Args:
        shapes: Of one member's parameters by name, in the order of the model.
        turned: Names of matrices that lie transposed.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], turned: Collection[str] = ()) -> None:
        self.slots: dict[str, Slot] = {}
        self.widths: list[int] = []
        """Numbers of a member in each segment."""
        vectors = {n: tuple(s) for n, s in shapes.items() if len(s) <= 1}
        for name, shape in shapes.items():
            if name not in vectors:
                self.slots[name] = Slot(tuple(shape), len(self.widths), 0, name in turned)
                self.widths.append(math.prod(shape))
        if vectors:
            at = 0
            for name, shape in vectors.items():
                self.slots[name] = Slot(shape, len(self.widths), at)
                at += math.prod(shape)
            self.widths.append(lines(at))
        self.order = list(shapes)
        self.num_params = sum(math.prod(s) for s in shapes.values())

    def numel(self, members: int) -> int:
        """Numbers of a flat buffer, padding included."""
        return sum(lines(members * width) for width in self.widths)


class Buffer:
    """One flat float32 buffer of a layout: parameters, gradients or a moment of some members.

    Args:
        layout: Where things lie.
        members: How many.
        device: On which device; it begins as zeros.
    """

    def __init__(self, layout: Layout, members: int, device: torch.device) -> None:
        self.layout, self.members = layout, members
        self.flat = torch.zeros(layout.numel(members), device=device)
        self.segments: list[Tensor] = []
        at = 0
        for width in layout.widths:
            self.segments.append(self.flat[at : at + members * width].view(members, width))
            at += lines(members * width)

    def view(self, name: str) -> Tensor:
        """One parameter of all members, ``(members, *shape)``; contiguous unless it is a vector or lies transposed."""
        slot = self.layout.slots[name]
        part = self.segments[slot.segment].narrow(1, slot.offset, slot.size)
        if slot.turned:
            return part.view(self.members, *reversed(slot.shape)).transpose(1, 2)
        return part.view(self.members, *slot.shape)

    def write(self, rows: Tensor) -> None:
        """Fills the buffer from ``(members, num_params)``, parameters in the order of the model."""
        at = 0
        for name in self.layout.order:
            size = self.layout.slots[name].size
            self.view(name).copy_(rows[:, at : at + size].view(self.members, *self.layout.slots[name].shape))
            at += size

    def read(self, rows: Tensor) -> None:
        """Fills ``(members, num_params)``, on any device, with parameters in the order of the model."""
        at = 0
        for name in self.layout.order:
            size = self.layout.slots[name].size
            rows[:, at : at + size].view(self.members, *self.layout.slots[name].shape).copy_(self.view(name))
            at += size

    def rows(self) -> Tensor:
        """A copy as ``(members, num_params)``, parameters in the order of the model."""
        found = torch.empty((self.members, self.layout.num_params), device=self.flat.device)
        self.read(found)
        return found
