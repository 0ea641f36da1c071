"""The forward pass of a bundled network on a CPU: the same numbers as the module's own, in less time.

A stack of affine maps, ReLU, layer norms and residual blocks (`tiltyard.training.dense.plan` says which modules are) is run
with its matrices packed once for oneDNN and with ReLU inside the product, as ``torch.compile`` does it for inference; 1.25
times as fast as the module for 40-256-256-2 (measured: tests/benchmarks/bench_serving.py). What such a pass answers is held
against the module once, before it is used; anything else goes through the module itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiltyard.training.dense import Affine, Norm, Part, Relu, Residual, plan

PACKED_ROWS = 64
"""Rows from which a packed matrix is worth its call; fewer go through the module."""
CLOSE = 1e-5
Forward = Callable[[Any], Any]


def quick_forward(module: Any, *, input_shape: Sequence[int], rows: int) -> Forward:
    """A function from rows ``(n, *input_shape)`` float32 to what the module answers for them; the module where none is known.

    Args:
        module: In evaluation mode, on the CPU; its parameters do not change any more.
        input_shape: Of one row.
        rows: The usual ``n``, which the matrices are packed for.
    """
    import torch

    parts = plan(module)
    if parts is None:
        return module  # type: ignore[no-any-return]
    with torch.inference_mode():
        steps = _steps(parts, dict(module.named_parameters()), rows)
        probe = torch.linspace(-1, 1, PACKED_ROWS * math.prod(input_shape)).reshape(PACKED_ROWS, *input_shape)
        found, wanted = _run(steps, probe.flatten(1)), module(probe)
    if not torch.allclose(found, wanted, rtol=CLOSE, atol=CLOSE):
        return module  # type: ignore[no-any-return]
    return lambda x: module(x) if len(x) < PACKED_ROWS else _run(steps, x.flatten(1))


def _run(steps: Sequence[Forward], x: Any) -> Any:
    for step in steps:
        x = step(x)
    return x


def _steps(parts: Sequence[Part], params: Mapping[str, Any], rows: int) -> list[Forward]:
    import torch
    from torch.nn import functional

    steps: list[Forward] = []
    for before, part, following in zip([None, *parts[:-1]], parts, [*parts[1:], None], strict=True):
        if isinstance(part, Affine):
            bias = params[part.bias].detach() if part.bias is not None else None
            relu = isinstance(following, Relu)
            steps.append(packed_product(params[part.weight].detach(), bias, relu=relu, rows=rows))
        elif isinstance(part, Norm):
            scale = params[part.weight].detach()
            shift = params[part.bias].detach() if part.bias is not None else None
            steps.append(_norm(functional.layer_norm, (part.width,), scale, shift, part.eps))
        elif isinstance(part, Residual):
            steps.append(_block(_steps(part.inner, params, rows)))
        elif isinstance(part, Relu) and not isinstance(before, Affine):
            steps.append(torch.relu)
    return steps  # dropout drops nothing where nothing is trained


def packed_product(weight: Any, bias: Any, *, relu: bool, rows: int) -> Forward:
    """``x @ weight.T + bias``, with ReLU where wanted, for many ``x`` of about ``rows`` rows and one ``(out, in)`` matrix."""
    import torch
    from torch.nn import functional

    try:
        packed, multiply = torch.ops.mkldnn._reorder_linear_weight(weight, rows), torch.ops.mkldnn._linear_pointwise
        multiply(torch.zeros(rows, weight.shape[1]), packed, bias, "none", [], "")
    except (
        RuntimeError,
        AttributeError,
    ):  # a torch without oneDNN, or another CPU's; NotImplementedError is one of the first
        linear = functional.linear
        return (lambda x: linear(x, weight, bias).relu_()) if relu else (lambda x: linear(x, weight, bias))
    then = "relu" if relu else "none"
    return lambda x: multiply(x, packed, bias, then, [], "")


def _norm(layer_norm: Any, shape: tuple[int, ...], scale: Any, shift: Any, eps: float) -> Forward:
    return lambda x: layer_norm(x, shape, scale, shift, eps)


def _block(inner: Sequence[Forward]) -> Forward:
    return lambda x: x + _run(inner, x)
