"""Random numbers that belong to a member: a function of its seed, the step, the place of use and the element. Nothing else.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): no state is carried, so a member draws
the same numbers whatever pack, chunk or device it is in, and after any restore. The mixer is a low-bias 32-bit finaliser
(Wellons 2018, "hash prospector"), applied twice, on int32: multiplication wraps, and a right shift is masked to be a
logical one. int32 and not int64: 0.8 against 6.6 ms for 32 x 6,144 numbers on one core.

An element is its place in a row-major ``(rows, ...)`` array, however the caller lays its numbers out: `counters` gives the
same elements transposed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NOISE_PLACE = 1_000_003
"""The place of use of noise on inputs; layers of dropout are counted from 1."""


def _word(value: int) -> int:
    """A 32-bit constant as the int32 of the same bits."""
    return value - (1 << 32) if value >= 1 << 31 else value


_GOLDEN, _FIRST, _SECOND = _word(0x9E3779B9), _word(0x7FEB352D), _word(0x846CA68B)
_STEP, _PLACE = 0x85EBCA77, 0xC2B2AE3D


def mix(x: Tensor) -> Tensor:
    """A bijection on int32, elementwise."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _SECOND
    return x ^ ((x >> 16) & 0xFFFF)


def _mix_(x: Tensor, scratch: Tensor) -> Tensor:
    """`mix` in place; scratch is like x."""
    for shift, mask, factor in ((16, 0xFFFF, _FIRST), (15, 0x1FFFF, _SECOND), (16, 0xFFFF, None)):
        torch.bitwise_right_shift(x, shift, out=scratch)
        x.bitwise_xor_(scratch.bitwise_and_(mask))
        if factor is not None:
            x.mul_(factor)
    return x


def keys(seeds: Tensor, step: int | Tensor, place: int) -> Tensor:
    """One key a member, int32, from its seed (int64), the step and the place of use.

    Args:
        seeds: int64, any shape.
        step: Counted from 1; an int64 tensor broadcasts with the seeds.
        place: Of use.
    """
    low, high = (seeds & 0xFFFFFFFF).to(torch.int32), (seeds >> 32).to(torch.int32)
    key = mix(low ^ _GOLDEN)
    key = mix(key + high)
    turned = (step * _STEP) & 0xFFFFFFFF
    key = mix(key + (turned.to(torch.int32) if isinstance(turned, Tensor) else _word(turned)))
    return mix(key + _word((place * _PLACE) & 0xFFFFFFFF))


def at_place(key: Tensor, place: int) -> Tensor:
    """The key of another place of use within the same step."""
    return mix(key + _word((place * _PLACE) & 0xFFFFFFFF))


def counters(shape: tuple[int, ...], device: torch.device, *, transposed: bool = False) -> Tensor:
    """The elements of ``shape``, int32; transposed: of ``(rows, width)``, laid out as ``(width, rows)``."""
    counter = torch.arange(math.prod(shape), device=device, dtype=torch.int32).view(shape) * _GOLDEN
    return counter.t().contiguous() if transposed else counter


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1), float32 with 24 bits.

    Args:
        key: A 0-dimensional int32 tensor (one member, under vmap), or ``(K,)``.
        shape: Of one member's numbers; the result is ``(*key.shape, *shape)``.
    """
    counter = counters(shape, key.device)
    spread = key.view(*key.shape, *([1] * len(shape)))
    words = mix(mix(counter + spread) + spread)
    return _float(words)


def _float(words: Tensor) -> Tensor:
    return ((words >> 8) & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (Box & Muller 1958), float32; shapes as `uniform`."""
    return _gauss(uniform(key, shape), uniform(_second(key), shape))


def _second(key: Tensor) -> Tensor:
    return mix(key ^ 0x5BD1E995)


def _gauss(u: Tensor, v: Tensor) -> Tensor:
    return torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2.0 * torch.pi * v)


class Draws:
    """The numbers of many members for one place of use, drawn into the same memory at every step.

    Args:
        members: How many.
        shape: ``(rows, width)`` of one member's; they come as ``(members, width, rows)``.
        device: Where.
    """

    def __init__(self, members: int, shape: tuple[int, int], device: torch.device) -> None:
        self._counters = counters(shape, device, transposed=True).unsqueeze(0)
        self._words = torch.empty((members, shape[1], shape[0]), dtype=torch.int32, device=device)
        self._scratch = torch.empty_like(self._words)

    def _draw(self, key: Tensor) -> Tensor:
        spread = key.view(-1, 1, 1)
        torch.add(self._counters, spread, out=self._words)
        _mix_(self._words, self._scratch).add_(spread)
        return _mix_(self._words, self._scratch)

    def kept(self, key: Tensor, most: Tensor) -> Tensor:
        """Which elements dropout keeps: those whose uniform number is at or above the rate.

        Args:
            key: ``(members,)``.
            most: ``(members, 1, 1)`` int32 from `most_dropped`.

        Returns:
            int32 ``(members, width, rows)``: all bits set where kept, none where dropped, to be combined with the bits of a
            float by *and*; valid until the next call. (A float mask would cost a conversion a step.)
        """
        words = self._draw(key)
        words.bitwise_right_shift_(8).bitwise_and_(0xFFFFFF)
        return torch.sub(most, words, out=words).bitwise_right_shift_(31)

    def normal(self, key: Tensor) -> Tensor:
        """What `normal` gives, transposed."""
        first = _float(self._draw(key))
        return _gauss(first, _float(self._draw(_second(key))))


def most_dropped(rate: Tensor) -> Tensor:
    """The largest 24-bit word that stands for a uniform number below ``rate`` (float32, in [0, 1)); -1 where none does."""
    return torch.ceil(rate.double() * (1 << 24)).to(torch.int32) - 1
