"""Many models of one shape over one batch: rows are prepared once and go through all of them in one forward pass.

Models are of one shape where family, arguments, sizes and preprocessing are equal, e.g. the finalists of a sweep or the
versions of one champion. Stacks of affine maps (`tiltyard.training.dense.plan` says which modules are) share one wide product
for their first layer, for all read the same rows, and a batched product for each later one. Of others the parameters are
stacked and the pass is mapped over the stack (``torch.func.vmap``). What cannot be stacked (LightGBM, a user's model that
``vmap`` refuses) is asked one by one, over the same prepared rows.

A stack computes in one thread at a time. No Ray.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.registry.bundle import Bundle
from tiltyard.registry.forward import packed_product
from tiltyard.training.dense import Affine, Norm, Part, Relu, Residual, plan, widths

CHUNK_VALUES = 1 << 19
"""Numbers of the widest layer in one stacked pass: 2 MiB of them stay in the cache (1024 rows of 16 models of 32 units)."""
CHUNK_ROWS = 512
"""Rows of one pass where the widths are not known."""
Array = npt.NDArray[Any]
Forward = Callable[[Any], Any]


class Stack:
    """Some models, asked together."""

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self._bundles = dict(bundles)
        groups: dict[str, list[str]] = {}
        for name, bundle in self._bundles.items():
            groups.setdefault(_shape(bundle, name), []).append(name)
        self._groups = [_Group([self._bundles[n] for n in names], names) for names in groups.values()]

    @property
    def groups(self) -> list[tuple[str, ...]]:
        """Which of the models go through one pass."""
        return [tuple(g.names) for g in self._groups]

    def predict_table(self, table: pa.Table, turn: AbstractContextManager[Any] | None = None) -> dict[str, Array]:
        """Raw outputs ``(rows, outputs)`` float32 of every model for raw rows.

        Args:
            table: The rows.
            turn: Held while the models compute, so that the rows of the next request are prepared meanwhile.

        Raises:
            DataError: If a column is missing or of the wrong type.
        """
        prepared: dict[str, Array] = {}
        found: dict[str, Array] = {}
        for group in self._groups:
            key = group.preprocessor_digest
            if key not in prepared:
                prepared[key] = group.bundles[0].preprocessor.transform(table)
        with turn or nullcontext():
            for group in self._groups:
                outputs = group.predict(prepared[group.preprocessor_digest])
                found |= dict(zip(group.names, outputs, strict=True))
        return {name: found[name] for name in self._bundles}


class _Group:
    def __init__(self, bundles: Sequence[Bundle], names: Sequence[str]) -> None:
        self.bundles, self.names = list(bundles), list(names)
        self.preprocessor_digest = bundles[0].preprocessor.digest
        self._forward, self._chunk_rows = _stacked(self.bundles) if len(bundles) > 1 else (None, CHUNK_ROWS)

    def predict(self, x: Array) -> Sequence[Array]:
        if self._forward is None:
            return [b.predict_matrix(x) for b in self.bundles]
        import torch

        rows = torch.from_numpy(np.ascontiguousarray(x))
        outputs = torch.empty((len(self.bundles), len(x), self.bundles[0].spec.num_outputs))
        with torch.inference_mode():
            for start in range(0, len(x), self._chunk_rows):
                stop = start + self._chunk_rows
                outputs[:, start:stop] = self._forward(rows[start:stop])
        return list(outputs.numpy())


def _shape(bundle: Bundle, name: str) -> str:
    """Equal for models that can share a pass."""
    spec = bundle.spec
    if spec.model == "lightgbm":
        return name
    own = bundle.code_digest
    told = [spec.model, dict(spec.model_args), spec.input_shape, spec.num_outputs, bundle.preprocessor.digest, own]
    return json.dumps(told, sort_keys=True, default=list)


def _stacked(bundles: Sequence[Bundle]) -> tuple[Forward | None, int]:
    """A function from rows to ``(models, rows, outputs)``, None where there is none; and the rows of one pass."""
    import torch

    modules = [b.trained for b in bundles]
    parts = plan(modules[0])
    rows = CHUNK_ROWS
    if parts is not None and all(plan(m) == parts for m in modules[1:]):
        rows = min(2048, max(64, CHUNK_VALUES // (len(modules) * max(widths(parts)))))
    else:
        parts = None
    try:
        with torch.inference_mode():
            forward = _mapped(modules) if parts is None else _wide(modules, parts, rows)
            probe = torch.linspace(-1, 1, 2 * math.prod(bundles[0].spec.input_shape))
            probe = probe.reshape(2, *bundles[0].spec.input_shape)
            together = forward(probe)
            alone = torch.stack([m(probe) for m in modules])
    except Exception:  # a user's model may do what vmap cannot map; asked one by one it is right
        return None, CHUNK_ROWS
    return (forward, rows) if torch.allclose(together, alone, atol=1e-4, rtol=1e-4) else (None, CHUNK_ROWS)


def _mapped(modules: Sequence[Any]) -> Forward:
    import copy

    from torch.func import functional_call, stack_module_state, vmap

    parameters, buffers = stack_module_state(list(modules))
    state = {k: v.detach() for k, v in {**parameters, **buffers}.items()}
    skeleton = copy.deepcopy(modules[0]).to("meta")

    def one(values: Any, rows: Any) -> Any:
        return functional_call(skeleton, values, (rows,))

    mapped = vmap(one, in_dims=(0, None))
    return lambda rows: mapped(state, rows)


def _wide(modules: Sequence[Any], parts: Sequence[Part], rows: int) -> Forward:
    """The pass of dense models: the first layers of all as one product of ``(rows, models * width)``, with its ReLU."""
    import torch

    states = [dict(m.named_parameters()) for m in modules]

    def every(name: str) -> Any:
        return torch.stack([s[name].detach() for s in states])

    first = parts[0]
    assert isinstance(first, Affine)
    bias = every(first.bias).flatten() if first.bias is not None else None
    relu = isinstance(parts[1], Relu) if len(parts) > 1 else False
    product = packed_product(every(first.weight).flatten(0, 1), bias, relu=relu, rows=rows)
    rest = [_step(part, every) for part in parts[2 if relu else 1 :]]

    def forward(x: Any) -> Any:
        h = product(x.flatten(1)).view(len(x), len(states), -1).transpose(0, 1)
        for step in rest:
            h = step(h)
        return h

    return forward


def _step(part: Part, every: Callable[[str], Any]) -> Callable[[Any], Any]:
    """One later part, from ``(models, rows, width)`` to the same."""
    import torch
    from torch.nn import functional

    if isinstance(part, Affine):
        weight = every(part.weight).transpose(1, 2).contiguous()
        bias = every(part.bias)[:, None] if part.bias is not None else torch.zeros(1)
        return lambda h: torch.baddbmm(bias, h, weight)
    if isinstance(part, Relu):
        return torch.relu
    if isinstance(part, Norm):
        scale = every(part.weight)[:, None]
        shift = every(part.bias)[:, None] if part.bias is not None else torch.zeros(1)
        return lambda h: functional.layer_norm(h, (part.width,), eps=part.eps) * scale + shift
    if isinstance(part, Residual):
        inner = [_step(p, every) for p in part.inner]

        def block(h: Any) -> Any:
            x = h
            for step in inner:
                x = step(x)
            return h + x

        return block
    return lambda h: h  # dropout drops nothing where nothing is trained
