"""Several p-values at once: what is left of each when all of them had a chance. Pure.

`holm` bounds the chance of one false alarm or more among all (Holm 1979), whatever the dependence between the tests.
`cauchy` makes one p-value of several tests of one thing (Liu and Xie 2020, JASA 115): nearly the smallest where one of them
is small, nearly their common value where they agree; it holds under dependence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_LEAST, _MOST = 1e-300, 0.99
"""A p-value of 1, which tests on counts give, would outweigh any small one; so the largest is taken as `_MOST`."""


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: those at most ``alpha`` are found with a chance of any false one of at most ``alpha``.

    >>> holm({"a": 0.01, "b": 0.5, "c": 0.02})
    {'a': 0.03, 'c': 0.04, 'b': 0.5}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for i, name in enumerate(sorted(p, key=lambda n: p[n])):
        highest = max(highest, min(1.0, p[name] * (len(p) - i)))
        adjusted[name] = highest
    return adjusted


def cauchy(p: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """One p-value of several that ask about the same thing; 1 where there are none.

    Args:
        p: The p-values.
        weights: How much each is believed to find, fixed before they were seen; equal ones where None.

    >>> round(cauchy([0.01, 0.01]), 6)
    0.01
    """
    if not p:
        return 1.0
    if len(p) == 1:
        return p[0]
    # below 1e-15 the tangent loses its digits; 1 / (p pi) is its limit
    terms = [1 / (max(v, _LEAST) * math.pi) if v < 1e-15 else math.tan((0.5 - min(v, _MOST)) * math.pi) for v in p]
    shares = weights or [1.0] * len(p)
    mean = sum(w * t for w, t in zip(shares, terms, strict=True)) / sum(shares)
    return 1 / (mean * math.pi) if mean > 1e15 else max(0.0, 0.5 - math.atan(mean) / math.pi)
