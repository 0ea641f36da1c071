"""Any module, for a chunk of members, by ``torch.func.vmap``; and why some modules cannot be.

The module itself is a template that holds no numbers of its own: parameters, and whatever else it keeps (the running
statistics of batch norm, frozen parameters), are stacked tensors with one row a member.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from tiltyard.errors import ModelError
from tiltyard.training.layout import Buffer
from tiltyard.training.randomness import at_place, uniform

Stacked = dict[str, Tensor]
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_dropout: contextvars.ContextVar[tuple[Tensor, Tensor] | None] = contextvars.ContextVar("dropout", default=None)


class MemberDropout(nn.Module):
    """Dropout whose rate and mask are the member's own: the mask is drawn from its key and this layer's place."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        """Same shape; identity outside training."""
        state = _dropout.get()
        if state is None:
            return x
        key, rate = state
        u = uniform(at_place(key, self.place), tuple(x.shape))
        return x * (u >= rate).to(x.dtype) / (1.0 - rate)


def template(module: nn.Module) -> nn.Module:
    """A copy of the module in which each ``nn.Dropout`` draws from the member's own numbers."""
    module = copy.deepcopy(module)
    place = 0
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout:
                place += 1
                setattr(parent, name, MemberDropout(place))
    return module


def trained(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that train, by name."""
    return {n: tuple(p.shape) for n, p in module.named_parameters() if p.requires_grad}


def carried(module: nn.Module) -> Stacked:
    """What else a member has: buffers, and parameters that do not train."""
    frozen = {n: p.detach() for n, p in module.named_parameters() if not p.requires_grad}
    return frozen | {n: b.detach() for n, b in module.named_buffers()}


class VmappedNetwork:
    """A module for one chunk.

    Args:
        module: From `template`.
        params: Parameters of the chunk.
        grads: Where gradients go.
        extra: `carried`, with one row a member; changed in place by training.
        rates: ``(members,)`` of dropout, None where no member drops.
    """

    def __init__(self, module: nn.Module, params: Buffer, grads: Buffer, extra: Stacked, rates: Tensor | None) -> None:
        self._module, self._extra, self._rates = module, extra, rates
        self._names = list(params.layout.order)
        with torch.inference_mode(False):
            self._leaves = {n: params.view(n).detach().requires_grad_() for n in self._names}
        self._params = {n: params.view(n).detach() for n in self._names}
        self._grads = {n: grads.view(n) for n in self._names}
        self._outputs = torch.empty(0)
        self.members = params.members

    def forward(self, x: Tensor, keys: Tensor | None, *, own: bool) -> Tensor:
        """Outputs ``(members, outputs, rows)`` of training inputs ``(rows, ...)``, or ``(members, rows, ...)`` if own."""
        rates = self._rates

        def one(params: Stacked, extra: Stacked, x: Tensor, key: Tensor | None, rate: Tensor | None) -> Tensor:
            token = _dropout.set((key, rate)) if key is not None and rate is not None else None
            try:
                out: Tensor = functional_call(self._module, {**params, **extra}, (x,))
            finally:
                if token is not None:
                    _dropout.reset(token)
            return out

        drops = rates is not None
        self._module.train()
        with torch.inference_mode(False), torch.enable_grad(), _told(self._module, x, own=own):
            self._outputs = vmap(one, in_dims=(0, 0, 0 if own else None, 0 if drops else None, 0 if drops else None))(
                self._leaves, self._extra, x, keys if drops else None, rates
            )
        return self._outputs.detach().transpose(1, 2)

    def backward(self, d: Tensor) -> None:
        """Fills the gradients from those of the outputs of the last `forward`."""
        with torch.inference_mode(False):
            found: Sequence[Tensor | None] = torch.autograd.grad(
                self._outputs, list(self._leaves.values()), d.transpose(1, 2), allow_unused=True
            )
        self._outputs = torch.empty(0)
        for into, grad in zip(self._grads.values(), found, strict=True):
            if grad is None:
                into.zero_()
            else:
                into.copy_(grad)

    def predict(self, x: Tensor, *, own: bool) -> Tensor:
        """Outputs ``(members, rows, outputs)`` in eval mode."""
        self._module.eval()

        def one(params: Stacked, extra: Stacked, x: Tensor) -> Tensor:
            out: Tensor = functional_call(self._module, {**params, **extra}, (x,))
            return out

        with torch.inference_mode(False), torch.no_grad(), _told(self._module, x, own=own):
            outputs: Tensor = vmap(one, in_dims=(0, 0, 0 if own else None))(self._params, self._extra, x)
        return outputs


def explain_unpackable(module: nn.Module, input_shape: Sequence[int] | None = None) -> list[str]:
    """Why a model's trials cannot step together; empty where they can.

    Args:
        module: The model; not changed, and no random state is.
        input_shape: Of a row. Given, two members are stepped once on zeros and ones, which finds what looking at layers
            cannot: control flow that depends on data, random numbers drawn in ``forward``, operations that have no batched
            form.
    """
    reasons: list[str] = []
    for name, layer in module.named_modules():
        where, kind = name or "the model", type(layer).__name__
        if isinstance(layer, _RECURRENT):
            reasons.append(f"{where}: {kind} has no batched form under vmap")
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.momentum is None:
            reasons.append(f"{where}: {kind} with momentum=None counts batches on the host; give momentum a number")
        if isinstance(layer, nn.modules.dropout._DropoutNd) and type(layer) is not nn.Dropout:
            reasons.append(
                f"{where}: {kind} draws its own random numbers; nn.Dropout is what a pack can draw per member"
            )
        reasons += [
            f"{name + '.' if name else ''}{own}: a tensor that is neither parameter nor buffer, so that a member's own would be "
            f"lost; register it: self.register_buffer({own!r}, ...)"
            for own in _loose(layer)
            if not isinstance(layer, _RECURRENT)
        ]
    for name, value in module.named_parameters():
        if isinstance(value, nn.UninitializedParameter):
            reasons.append(
                f"{name}: a lazy parameter, whose shape is not known before a first batch; give the layer its sizes"
            )
        elif value.dtype is not torch.float32:
            reasons.append(f"{name}: a parameter of type {value.dtype}; float32 is wanted")
    if not any(p.requires_grad for p in module.parameters()):
        reasons.append("the model: it has no parameters that train")
    if not reasons and input_shape is not None:
        reasons += _probe(module, tuple(input_shape))
    return reasons


def _loose(layer: nn.Module) -> list[str]:
    """Names of a layer's tensors that torch does not know as its own."""
    found = []
    for name, value in vars(layer).items():
        held = value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else [value]
        if name not in _OF_EVERY_MODULE and any(type(one) is Tensor for one in held):
            found.append(name)
    return found


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


def _probe(module: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Two members step once on rows that they share, and pass over rows of their own and over rows in evaluation."""
    own = template(module)
    params = {n: torch.stack([p.detach()] * 2).requires_grad_() for n, p in own.named_parameters() if p.requires_grad}
    shared = torch.ones((2, *input_shape), device=next(iter(params.values())).device)
    shared[0] = 0
    untouched = shared._version

    def passed(x: Tensor) -> Tensor:
        extra = {n: torch.stack([t.clone()] * 2) for n, t in carried(own).items()}

        def one(params: Stacked, extra: Stacked, x: Tensor) -> Any:
            return functional_call(own, {**params, **extra}, (x,))

        out: Tensor = vmap(one, in_dims=(0, 0, None if x is shared else 0))(params, extra, x)
        return out

    token = _dropout.set(None)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for training in (True, False):
                own.train(training)
                first, second = passed(shared), passed(shared)
                if shared._version != untouched:
                    return ["the model: it changes its inputs in place, and members read the same ones; change a copy"]
                if not torch.equal(first.nan_to_num(), second.nan_to_num()):
                    return [_OTHERWISE]
            own.train()
            passed(torch.stack([shared, 1 - shared]))
            with torch.enable_grad():
                passed(shared).sum().backward()  # type: ignore[no-untyped-call]
    except Exception as error:  # a user's forward may fail in any way
        return [_why(error)]
    finally:
        _dropout.reset(token)
    return []


_OTHERWISE = (
    "the model: a second pass over the same rows gives other numbers, so it draws random numbers other than torch's, or counts "
    "outside of its buffers"
)


_REASONS: tuple[tuple[str, str], ...] = (
    (r"random", "it draws random numbers in forward other than by nn.Dropout, which would be its neighbours' too"),
    (
        r"data-dependent control flow|\.item\(\)",
        "its control flow depends on the data (an if, float() or .item() on a tensor), and members' data differ",
    ),
    (
        r"does not require grad",
        "its outputs do not depend on its parameters in a way that has a gradient (detach, no_grad)",
    ),
    (r"dynamic shape|nonzero", "the shape of a tensor in it depends on the data"),
    (r"[Bb]atching rule not implemented for ([\w:.]+)", "an operation in it has no batched form under vmap"),
)


def _why(error: Exception) -> str:
    text = " ".join(str(error).split())
    for pattern, reason in _REASONS:
        if re.search(pattern, text):
            return f"the model: {reason} (torch: {text[:160]})"
    return f"the model: stepping two members at once failed: {type(error).__name__}: {text[:300]}"


def returns(module: nn.Module, input_shape: Sequence[int], *, training: bool) -> Any:
    """What the model gives for two rows of zeros; no random state is changed."""
    own = copy.deepcopy(module).train(training)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return own(torch.zeros((2, *input_shape)))


@contextlib.contextmanager
def _told(module: nn.Module, x: Tensor, *, own: bool) -> Iterator[None]:
    """What a user's forward raises, as a `ModelError`; torch's own errors, memory that ran out among them, fly as they are."""
    try:
        yield
    except (RuntimeError, MemoryError, ModelError):
        raise
    except Exception as error:
        raise ModelError(
            f"The model {type(module).__name__} fails on a batch of {x.shape[1 if own else 0]} rows: "
            f"{type(error).__name__}: {error}"
        ) from error
