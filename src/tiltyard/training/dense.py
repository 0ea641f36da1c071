"""Stacks of affine maps, ReLU, dropout, layer norm and residual blocks, forward and backward, written out for a chunk of members.

The linear, MLP and residual MLP families and any user's ``nn.Sequential`` of the same layers go this way (`plan` says
whether a module can); everything else goes by `tiltyard.training.vmapped`. Activations lie as ``(members, width, rows)``:
a layer is one batched product of contiguous matrices, and its gradients land in the flat buffer that the optimiser reads.
Nothing is allocated in a step.

Each member's matrices are multiplied by themselves, never as part of a wider product, so on a CPU a member's numbers are
the same to the last bit in any pack. (A first layer as one wide product was measured: no faster where it matters, and its
last bits depend on how many members there are.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tiltyard.models.mlp import ResidualBlock
from tiltyard.training.layout import Buffer, Layout
from tiltyard.training.randomness import Draws
from tiltyard.training.vmapped import trained


@dataclass(frozen=True, slots=True)
class Affine:
    """``W x + b``."""

    weight: str
    bias: str | None
    width: int
    features: int


@dataclass(frozen=True, slots=True)
class Relu:
    """``max(x, 0)``."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Dropout; ``place`` is its number in the model, from 1."""

    place: int


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm over the width."""

    weight: str
    bias: str | None
    eps: float
    width: int


@dataclass(frozen=True, slots=True)
class Residual:
    """``x + inner(x)``."""

    inner: tuple[Part, ...]


Part = Affine | Relu | Drop | Norm | Residual


def plan(module: nn.Module) -> tuple[Part, ...] | None:
    """The module as parts, or None where it has anything else in it.

    Only the exact classes count: a subclass may do something of its own. Hooks and parametrisations rule a module out, as
    do parameters that do not train or are used twice.
    """
    if type(module) is not nn.Sequential or not len(module):
        return None
    seen: set[int] = set()
    for part in module.modules():
        if any(getattr(part, hooks) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")):
            return None
        for value in part.parameters(recurse=False):
            if not value.requires_grad or id(value) in seen or value.dtype is not torch.float32:
                return None
            seen.add(id(value))
    layers = list(module._modules.items())  # named_children leaves out what comes twice
    if len({id(layer) for _, layer in layers}) < len(layers):
        return None
    if type(layers[0][1]) is nn.Flatten and layers[0][1].start_dim == 1 and layers[0][1].end_dim == -1:
        layers = layers[1:]
    parts = _parts(layers, "", [0])
    # what comes first must leave the batch as it is, for all members read the same one
    return parts if parts and isinstance(parts[0], Affine) else None


def _parts(layers: Sequence[tuple[str, nn.Module]], prefix: str, drops: list[int]) -> tuple[Part, ...] | None:
    parts: list[Part] = []
    for name, layer in layers:
        where = f"{prefix}{name}"
        kind = type(layer)
        if isinstance(layer, nn.Linear) and kind is nn.Linear:
            bias = f"{where}.bias" if layer.bias is not None else None
            parts.append(Affine(f"{where}.weight", bias, layer.out_features, layer.in_features))
        elif kind is nn.ReLU:
            parts.append(Relu())
        elif kind is nn.Dropout:
            drops[0] += 1
            parts.append(Drop(drops[0]))
        elif isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
            if len(layer.normalized_shape) != 1 or not layer.elementwise_affine:
                return None
            bias = f"{where}.bias" if layer.bias is not None else None
            parts.append(Norm(f"{where}.weight", bias, layer.eps, layer.normalized_shape[0]))
        elif isinstance(layer, ResidualBlock) and kind is ResidualBlock:
            inner = _parts(layer.inside(), f"{where}.", drops)
            if inner is None:
                return None
            parts.append(Residual(inner))
        else:
            return None
    return tuple(parts)


def widths(parts: Sequence[Part]) -> list[int]:
    """Widths of the activations that a step keeps, in order; residual blocks included. For the estimate of memory."""
    found: list[int] = []
    for part in parts:
        if isinstance(part, Affine | Norm):
            found.append(part.width)
        elif isinstance(part, Residual):
            found += widths(part.inner)
    return found


TURNED_FROM = 16
"""Outputs from which a layer's matrix lies transposed."""


def layout_of(module: nn.Module, parts: Sequence[Part] | None) -> Layout:
    """How the parameters of a module lie, given what `plan` says of it.

    The matrix of a layer with fewer outputs than inputs lies transposed: of the three products of a step, that of its
    gradient takes a fifth less so, and the others no more (measured for 64 to 32; not for 32 to 10, nor in a first layer,
    which reads the batch both ways).
    """
    return Layout(trained(module), _turned(parts[1:] if parts else ()))


def _turned(parts: Sequence[Part]) -> set[str]:
    found: set[str] = set()
    for part in parts:
        if isinstance(part, Affine) and TURNED_FROM <= part.width < part.features:
            found.add(part.weight)
        elif isinstance(part, Residual):
            found |= _turned(part.inner)
    return found


@dataclass(slots=True)
class Step:
    """What a step brings.

    Args:
        keys: ``(members,)`` by place of dropout; empty where nothing is dropped.
        turned: The batch as ``(1, rows, features)``, contiguous, where all members read the same one.
    """

    keys: Mapping[int, Tensor]
    turned: Tensor | None = None


class _Chain:
    """Parts bound to the parameters and gradients of a chunk, with memory for batches of one size."""

    def __init__(self, parts: Sequence[Part], net: Network, rows: int) -> None:
        self._bound = [_bind(part, net, rows) for part in parts]

    def forward(self, h: Tensor, step: Step | None) -> Tensor:
        for part in self._bound:
            h = part.forward(h, step)
        return h

    def backward(self, d: Tensor, *, need_input: bool) -> Tensor:
        for i, part in reversed(list(enumerate(self._bound))):
            d = part.backward(d, need_input or i > 0)
        return d


class Network:
    """A stack for one chunk.

    Args:
        parts: From `plan`.
        params: Parameters of the chunk.
        grads: Where gradients go.
        most: ``(members, 1, 1)`` int32 of `most_dropped`, None where no member drops.
        scale: ``(members, 1, 1)``, ``1 / (1 - rate)``.
    """

    def __init__(
        self, parts: Sequence[Part], params: Buffer, grads: Buffer, most: Tensor | None, scale: Tensor | None
    ) -> None:
        self.parts, self.params, self.grads, self.most, self.scale = tuple(parts), params, grads, most, scale
        self.members, self.device = params.members, params.flat.device
        self._chains: dict[int, _Chain] = {}

    @property
    def places(self) -> list[int]:
        """Places of dropout whose keys a step needs."""
        return _places(self.parts) if self.most is not None else []

    def forward(self, x: Tensor, step: Step) -> Tensor:
        """Outputs ``(members, outputs, rows)`` of training inputs ``(members or 1, features, rows)``."""
        rows = x.shape[2]
        if rows not in self._chains:
            self._chains[rows] = _Chain(self.parts, self, rows)
        return self._chains[rows].forward(x, step)

    def backward(self, d: Tensor) -> None:
        """Fills the gradients from those of the outputs of the last `forward`; ``d`` is used up."""
        self._chains[d.shape[2]].backward(d, need_input=False)

    def predict(self, x: Tensor) -> Tensor:
        """Outputs ``(members, outputs, rows)`` without dropout, in the memory that steps of as many rows use."""
        rows = x.shape[2]
        if rows not in self._chains:
            self._chains[rows] = _Chain(self.parts, self, rows)
        return self._chains[rows].forward(x, None)


def _places(parts: Sequence[Part]) -> list[int]:
    found: list[int] = []
    for part in parts:
        if isinstance(part, Drop):
            found.append(part.place)
        elif isinstance(part, Residual):
            found += _places(part.inner)
    return found


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """``torch.bmm`` into ``out``."""
    return torch.bmm(a, b, out=out)


def lone_product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """`product` of one member by one with a vector in it, which torch would send another way than it sends many.

    Sent twice, it goes the way of many, so its sums have the same order.
    """
    return out.copy_(torch.bmm(a.expand(2, -1, -1), b.expand(2, -1, -1))[:1])


class _BoundAffine:
    def __init__(self, part: Affine, net: Network, rows: int) -> None:
        self._reads_batch = part is net.parts[0]
        self._w = net.params.view(part.weight)
        self._wt = self._w.transpose(1, 2)
        self._b = net.params.view(part.bias).unsqueeze(2) if part.bias else None
        self._out = torch.empty((net.members, part.width, rows), device=net.device)
        lone = net.members == 1 and 1 in (part.width, part.features, rows)
        self._product = lone_product if lone else product
        self._gw = net.grads.view(part.weight)
        self._gwt = self._gw.transpose(1, 2) if net.grads.layout.slots[part.weight].turned else None
        self._gb = net.grads.view(part.bias) if part.bias else None
        self._shape = (net.members, part.features, rows)
        self._d_in: Tensor | None = None
        self._seen = self._x = self._xt = self._out
        self._turned: Tensor | None = None

    def forward(self, x: Tensor, step: Step | None) -> Tensor:
        self._turned = step.turned if step is not None else None
        if x is not self._seen:  # a layer below gives the same tensor at every step
            self._seen, members = x, self._out.shape[0]
            self._x = x if x.shape[0] == members else x.expand(members, -1, -1)
            self._xt = self._x.transpose(1, 2)
        out = self._product(self._w, self._x, self._out)
        return out if self._b is None else out.add_(self._b)

    def backward(self, d: Tensor, need_input: bool) -> Tensor:
        if self._gb is not None:
            torch.sum(d, 2, out=self._gb)
        xt = self._xt
        if self._reads_batch:  # contiguous, the product takes a quarter less
            turned = self._seen.transpose(1, 2).contiguous() if self._turned is None else self._turned
            xt = turned.expand_as(xt)
        if self._gwt is not None:
            self._product(self._x, d.transpose(1, 2), self._gwt)
        else:
            self._product(d, xt, self._gw)
        if not need_input:
            return d
        if self._d_in is None:
            self._d_in = torch.empty(self._shape, device=d.device)
        return self._product(self._wt, d, self._d_in)


class _BoundRelu:
    def __init__(self) -> None:
        self._y = torch.empty(0)

    def forward(self, x: Tensor, step: Step | None) -> Tensor:  # noqa: ARG002
        self._y = x.clamp_min_(0)
        return self._y

    def backward(self, d: Tensor, need_input: bool) -> Tensor:
        if not need_input:
            return d
        torch.ops.aten.threshold_backward.grad_input(d, self._y, 0, grad_input=d)
        return d


class _BoundDrop:
    def __init__(self, part: Drop, net: Network) -> None:
        self._place, self._most, self._scale = part.place, net.most, net.scale
        self._draws: Draws | None = None
        self._kept = torch.empty(0)

    def forward(self, x: Tensor, step: Step | None) -> Tensor:
        if step is None or self._most is None or self._scale is None:
            return x
        if self._draws is None:
            self._draws = Draws(x.shape[0], (x.shape[2], x.shape[1]), x.device)
        self._kept = self._draws.kept(step.keys[self._place], self._most)
        x.view(torch.int32).bitwise_and_(self._kept)
        return x.mul_(self._scale)

    def backward(self, d: Tensor, need_input: bool) -> Tensor:
        if self._scale is None or not need_input:
            return d
        d.view(torch.int32).bitwise_and_(self._kept)
        return d.mul_(self._scale)


class _BoundNorm:
    def __init__(self, part: Norm, net: Network, rows: int) -> None:
        self._w = net.params.view(part.weight).unsqueeze(2)
        self._b = net.params.view(part.bias).unsqueeze(2) if part.bias else None
        self._eps, shape = part.eps, (net.members, part.width, rows)
        self._hat, self._out = torch.empty(shape, device=net.device), torch.empty(shape, device=net.device)
        self._scale = torch.empty(0)
        self._gw = net.grads.view(part.weight)
        self._gb = net.grads.view(part.bias) if part.bias else None

    def forward(self, x: Tensor, step: Step | None) -> Tensor:  # noqa: ARG002
        torch.sub(x, x.mean(1, keepdim=True), out=self._hat)
        variance = torch.mul(self._hat, self._hat, out=self._out).mean(1, keepdim=True)
        self._scale = variance.add_(self._eps).rsqrt_()
        self._hat.mul_(self._scale)
        torch.mul(self._hat, self._w, out=self._out)
        return self._out if self._b is None else self._out.add_(self._b)

    def backward(self, d: Tensor, need_input: bool) -> Tensor:
        if self._gb is not None:
            torch.sum(d, 2, out=self._gb)
        product = torch.mul(d, self._hat, out=self._out)
        torch.sum(product, 2, out=self._gw)
        if not need_input:
            return d
        d.mul_(self._w)
        along = torch.mul(d, self._hat, out=self._out).mean(1, keepdim=True)
        d.sub_(d.mean(1, keepdim=True)).sub_(self._hat.mul_(along))
        return d.mul_(self._scale)


class _BoundResidual:
    def __init__(self, part: Residual, net: Network, rows: int) -> None:
        self._inner = _Chain(part.inner, net, rows)
        self._d = torch.empty(0)

    def forward(self, x: Tensor, step: Step | None) -> Tensor:
        return self._inner.forward(x, step).add_(x)

    def backward(self, d: Tensor, need_input: bool) -> Tensor:  # noqa: ARG002 - a block never comes first
        if self._d.shape != d.shape:
            self._d = torch.empty_like(d)
        self._d.copy_(d)
        return self._inner.backward(self._d, need_input=True).add_(d)


_Bound = _BoundAffine | _BoundRelu | _BoundDrop | _BoundNorm | _BoundResidual


def _bind(part: Part, net: Network, rows: int) -> _Bound:
    match part:
        case Affine():
            return _BoundAffine(part, net, rows)
        case Relu():
            return _BoundRelu()
        case Drop():
            return _BoundDrop(part, net)
        case Norm():
            return _BoundNorm(part, net, rows)
        case Residual():
            return _BoundResidual(part, net, rows)
