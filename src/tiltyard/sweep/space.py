"""Draws configurations from a variant's search space. Pure: the same arguments give the same configurations.

Random and Sobol are sequences: the first ``m`` of ``n`` draws are the ``m`` draws, so that asking for more trials later
keeps those already done. In a random search each parameter of each draw has its own stream, keyed by (seed, parameter,
draw): adding a parameter to a space moves no other parameter's values. (Sobol's points fill the space together.)
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.distributions import Choice, Distribution, IntUniform, LogUniform, Uniform
from tiltyard.errors import SpecError
from tiltyard.experiment import Variant

Config = dict[str, Any]
LARGEST_GRID = 100_000


def draw(
    variant: Variant, *, algorithm: str, n: int, seed: int, points: Sequence[Mapping[str, Any]] = ()
) -> list[Config]:
    """Configurations for ``n`` trials, fixed points first.

    Args:
        variant: Whose space and fixed values.
        algorithm: ``random``, ``sobol`` or ``grid``; a grid is every combination, at most ``n`` of them, without those
            that are points.
        n: How many.
        seed: Another seed, other draws.
        points: Tried first, as they are, over the fixed values.

    Raises:
        SpecError: If a point names a parameter that the variant has not, or a grid is too large to be written out.
    """
    first = [_point(variant, p) for p in points][:n]
    rest = n - len(first)
    if rest <= 0:
        return first
    if algorithm == "grid":
        tried = {_words(c) for c in first}
        return first + [c for c in grid(variant) if _words(c) not in tried][:rest]
    uniform = _sobol if algorithm == "sobol" else _random
    return first + [_resolve(variant, _map(variant, row)) for row in uniform(variant, rest, seed)]


def _point(variant: Variant, point: Mapping[str, Any]) -> Config:
    unknown = sorted(set(point) - set(variant.space) - set(variant.fixed))
    if unknown:
        raise SpecError(
            f"A point of variant {variant.name!r} sets {unknown[0]!r}, which is neither fixed nor in its space "
            f"({', '.join(sorted({*variant.fixed, *variant.space}))})."
        )
    return {**variant.fixed, **point}


def _random(variant: Variant, n: int, seed: int) -> list[dict[str, float]]:
    return [{name: _uniform(seed, variant.name, name, i) for name in variant.space} for i in range(n)]


def _uniform(*key: object) -> float:
    """A number in [0, 1) that is a function of the key: 53 bits of SHA-256."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53)


def _sobol(variant: Variant, n: int, seed: int) -> list[dict[str, float]]:
    """Scrambled Sobol points (Owen 1998), one dimension a parameter."""
    from scipy.stats import qmc

    if not variant.space:
        return [{} for _ in range(n)]
    names = list(variant.space)
    engine = qmc.Sobol(d=len(names), scramble=True, seed=int(_uniform(seed, variant.name) * 2**31))
    rows = engine.random_base2(max(0, math.ceil(math.log2(n))))[:n]
    return [dict(zip(names, map(float, row), strict=True)) for row in rows]


def _map(variant: Variant, unit: Mapping[str, float]) -> Config:
    return {name: value_at(dist, unit[name]) for name, dist in variant.space.items()}


def value_at(dist: Distribution, u: float) -> Any:
    """The value of a distribution at quantile ``u`` in [0, 1)."""
    if isinstance(dist, Uniform):
        return min(dist.high, dist.low + u * (dist.high - dist.low))
    if isinstance(dist, LogUniform):
        drawn = math.exp(math.log(dist.low) + u * (math.log(dist.high) - math.log(dist.low)))
        return min(dist.high, max(dist.low, drawn))  # exp(log(x)) may miss x by a rounding
    if isinstance(dist, IntUniform):
        if dist.log:
            low, high = math.log(dist.low - 0.5), math.log(dist.high + 0.5)
            return min(dist.high, max(dist.low, round(math.exp(low + u * (high - low)))))
        return min(dist.high, dist.low + int(u * (dist.high - dist.low + 1)))
    if isinstance(dist, Choice):
        return dist.values[min(len(dist.values) - 1, int(u * len(dist.values)))]
    raise SpecError(f"{type(dist).__name__} is not a distribution that can be drawn from.")


def _words(config: Config) -> str:
    """A configuration as text: True and 1 are two values, and a tuple of tuples is one."""
    return repr(sorted(config.items()))


def grid(variant: Variant) -> list[Config]:
    """Every combination of the choices, each once: where conditions fail, combinations that differ in nothing are one."""
    axes = [(name, dist.values) for name, dist in variant.space.items() if isinstance(dist, Choice)]
    names = [name for name, _ in axes]
    size = math.prod(len(values) for _, values in axes)
    if size > LARGEST_GRID:
        raise SpecError(
            f"The grid of variant {variant.name!r} has {size:,} combinations; at most {LARGEST_GRID:,} are written out. "
            "Take choices away, or search it with algorithm='random' and a number of trials."
        )
    found: dict[str, Config] = {}
    for values in itertools.product(*(values for _, values in axes)):
        config = _resolve(variant, dict(zip(names, values, strict=True)))
        found.setdefault(_words(config), config)
    return list(found.values())


def _resolve(variant: Variant, drawn: Config) -> Config:
    """Fixed and drawn values together, without the parameters whose conditions fail."""
    full = {**variant.fixed, **drawn}
    keep = dict(full)
    changed = True
    while changed:  # a condition may hang on a parameter that is itself conditional
        changed = False
        for name, dist in variant.space.items():
            if name in keep and dist.only_if and any(keep.get(o) not in v for o, v in dist.only_if.items()):
                del keep[name]
                changed = True
    return keep
