"""Random numbers that belong to a member: a function of its seed, the step, the place of use and the element. Nothing else.

Counter-based (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): no state is carried, so a member draws
the same numbers whatever pack, chunk or device it is in, and after any restore. The mixer is a low-bias 32-bit finaliser
(Wellons 2018, "hash prospector"), applied twice, on int32: multiplication wraps, and a right shift is masked to be a
logical one. int32 and not int64: 0.8 against 6.6 ms for 32 x 6,144 numbers on one core.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _word(value: int) -> int:
    """A 32-bit constant as the int32 of the same bits."""
    return value - (1 << 32) if value >= 1 << 31 else value


_GOLDEN, _FIRST, _SECOND = _word(0x9E3779B9), _word(0x7FEB352D), _word(0x846CA68B)


def mix(x: Tensor) -> Tensor:
    """A bijection on int32, elementwise."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _FIRST
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _SECOND
    return x ^ ((x >> 16) & 0xFFFF)


def keys(seeds: Tensor, step: int, place: int) -> Tensor:
    """One key a member, int32, from its seed (int64), the step and the place of use."""
    low, high = (seeds & 0xFFFFFFFF).to(torch.int32), (seeds >> 32).to(torch.int32)
    key = mix(low ^ _GOLDEN)
    key = mix(key + high)
    key = mix(key + _word((step * 0x85EBCA77) & 0xFFFFFFFF))
    return mix(key + _word((place * 0xC2B2AE3D) & 0xFFFFFFFF))


def at_place(key: Tensor, place: int) -> Tensor:
    """The key of another place of use within the same step."""
    return mix(key + _word((place * 0xC2B2AE3D) & 0xFFFFFFFF))


def uniform(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform numbers in [0, 1), float32 with 24 bits.

    Args:
        key: A 0-dimensional int32 tensor (one member, under vmap), or ``(K,)``.
        shape: Of one member's numbers; the result is ``(*key.shape, *shape)``.
    """
    counter = torch.arange(math.prod(shape), device=key.device, dtype=torch.int32).view(shape) * _GOLDEN
    spread = key.view(*key.shape, *([1] * len(shape)))
    words = mix(mix(counter + spread) + spread)
    return ((words >> 8) & 0xFFFFFF).to(torch.float32) * (1.0 / (1 << 24))


def normal(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers (Box & Muller 1958), float32; shapes as `uniform`."""
    u = uniform(key, shape)
    v = uniform(mix(key ^ 0x5BD1E995), shape)
    return torch.sqrt(-2.0 * torch.log1p(-u)) * torch.cos(2.0 * torch.pi * v)
