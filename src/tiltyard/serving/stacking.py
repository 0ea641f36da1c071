"""Many models of one shape over one batch: rows are prepared once and go through all of them in one forward pass.

Models are of one shape where family, arguments, sizes and preprocessing are equal, e.g. the finalists of a sweep or the
versions of one champion. Their parameters are stacked and the pass is mapped over the stack (``torch.func.vmap``), so that
a batch of 16 small networks costs a few large products instead of 16 times many small ones. What cannot be stacked
(LightGBM, a user's model that ``vmap`` refuses) is asked one by one, over the same prepared rows.

A stack is for one thread at a time. No Ray.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.registry.bundle import Bundle

CHUNK_ROWS = 512
"""Rows of one stacked pass: what 16 models of 64 hidden units need of them (2 MiB) stays in the cache."""
Array = npt.NDArray[Any]


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

    def predict_table(self, table: pa.Table) -> dict[str, Array]:
        """Raw outputs ``(rows, outputs)`` float32 of every model for raw rows.

        Raises:
            DataError: If a column is missing or of the wrong type.
        """
        prepared: dict[str, Array] = {}
        found: dict[str, Array] = {}
        for group in self._groups:
            key = group.preprocessor_digest
            if key not in prepared:
                prepared[key] = group.bundles[0].preprocessor.transform(table)
            found |= dict(zip(group.names, group.predict(prepared[key]), strict=True))
        return {name: found[name] for name in self._bundles}


class _Group:
    def __init__(self, bundles: Sequence[Bundle], names: Sequence[str]) -> None:
        self.bundles, self.names = list(bundles), list(names)
        self.preprocessor_digest = bundles[0].preprocessor.digest
        self._forward = _stacked(self.bundles) if len(bundles) > 1 else None

    def predict(self, x: Array) -> Sequence[Array]:
        if self._forward is None:
            return [b.predict_matrix(x) for b in self.bundles]
        import torch

        rows = torch.from_numpy(np.ascontiguousarray(x))
        outputs = torch.empty((len(self.bundles), len(x), self.bundles[0].spec.num_outputs))
        with torch.inference_mode():
            for start in range(0, len(x), CHUNK_ROWS):
                outputs[:, start : start + CHUNK_ROWS] = self._forward(rows[start : start + CHUNK_ROWS])
        return list(outputs.numpy())


def _shape(bundle: Bundle, name: str) -> str:
    """Equal for models that can share a pass."""
    spec = bundle.spec
    if spec.model == "lightgbm":
        return name
    own = bundle.code_digest
    told = [spec.model, dict(spec.model_args), spec.input_shape, spec.num_outputs, bundle.preprocessor.digest, own]
    return json.dumps(told, sort_keys=True, default=list)


def _stacked(bundles: Sequence[Bundle]) -> Any | None:
    """A function from rows to ``(models, rows, outputs)``, or None where ``vmap`` refuses the model."""
    import copy

    import torch
    from torch.func import functional_call, stack_module_state, vmap

    modules = [b.trained for b in bundles]
    parameters, buffers = stack_module_state(modules)
    state = {k: v.detach() for k, v in {**parameters, **buffers}.items()}
    skeleton = copy.deepcopy(modules[0]).to("meta")

    def one(values: Any, rows: Any) -> Any:
        return functional_call(skeleton, values, (rows,))

    mapped = vmap(one, in_dims=(0, None))

    def forward(rows: Any) -> Any:
        return mapped(state, rows)

    try:
        with torch.inference_mode():
            probe = torch.zeros((2, *bundles[0].spec.input_shape))
            together = forward(probe)
            alone = torch.stack([m(probe) for m in modules])
    except Exception:  # a user's model may do what vmap cannot map; asked one by one it is right
        return None
    return forward if torch.allclose(together, alone, atol=1e-4, rtol=1e-4) else None
