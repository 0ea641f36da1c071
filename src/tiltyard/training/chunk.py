"""Members that step together in memory: their numbers, their network, their loss and their update.

A pack is a row of chunks. Each does *all* the steps of a window of batches before the next one begins, so what it touches
stays in cache from step to step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tiltyard.training import dense
from tiltyard.training.layout import Buffer, Layout
from tiltyard.training.losses import Loss, Target
from tiltyard.training.optimizers import MOMENTS, Optimizer, Rates
from tiltyard.training.randomness import NOISE_PLACE, Draws, at_place, keys, most_dropped, normal
from tiltyard.training.spec import Member, PackSpec
from tiltyard.training.vmapped import Stacked, VmappedNetwork

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as chunks read it; one copy for all members.

    Args:
        x: ``(rows, *input_shape)``; for stacks ``(1, features, rows)``.
        turned: For stacks x as ``(1, rows, features)``: gradients of a first layer take a quarter less with it.
        target: Its labels.
        rows: How many.
    """

    x: Tensor
    turned: Tensor | None
    target: Target
    rows: int


@dataclass(frozen=True, slots=True)
class Model:
    """What all chunks of a pack share.

    Args:
        spec: The pack's.
        template: The module that `vmapped` steps.
        parts: The module's parts where it is a stack, else None.
        layout: Of its parameters.
    """

    spec: PackSpec
    template: nn.Module
    parts: tuple[dense.Part, ...] | None
    layout: Layout

    def batch(self, x: Tensor, y: Tensor) -> Batch:
        """A batch for the chunks, on the device of x and y."""
        target = Target.of(self.spec.task, y, self.spec.num_outputs)
        turned = (
            x.flatten(1).clone(memory_format=torch.contiguous_format).unsqueeze(0) if self.parts is not None else None
        )
        return Batch(self.inputs(x), turned, target, len(x))

    def inputs(self, x: Tensor) -> Tensor:
        """Rows as chunks read them: always a copy, for a product may add in another order where memory is aligned otherwise."""
        if self.parts is None:
            return x.clone(memory_format=torch.contiguous_format)
        return x.flatten(1).t().clone(memory_format=torch.contiguous_format).unsqueeze(0)


class Chunk:
    """Some members of a pack.

    Args:
        model: Of the pack.
        members: Whose.
        params: ``(members, num_params)``, copied.
        moments: The same for what the optimiser remembers.
        extra: What else a member carries, with one row a member; taken over.
        step: Steps done so far.
        device: Where they step.
    """

    def __init__(
        self,
        model: Model,
        members: Sequence[Member],
        params: Tensor,
        moments: Mapping[str, Tensor],
        extra: Stacked,
        step: int,
        device: torch.device,
    ) -> None:
        self.members, self._model, self._device = tuple(members), model, device
        count = len(members)
        self._params, grads = Buffer(model.layout, count, device), Buffer(model.layout, count, device)
        self._params.write(params)
        self._moments = {n: Buffer(model.layout, count, device) for n in MOMENTS[model.spec.optimizer]}
        for name, buffer in self._moments.items():
            if name in moments:
                buffer.write(moments[name])
        self._extra = extra
        self._loss = Loss(model.spec.task, members, model.spec.num_outputs, device)
        self._optimizer = Optimizer(model.spec.optimizer, members, self._params, grads, self._moments, step)
        self._seeds = torch.tensor([m.seed for m in members], dtype=torch.int64, device=device)
        self._noise = torch.tensor([m.input_noise for m in members], device=device)
        self._noisy = any(m.input_noise > 0 for m in members)
        self._mask = _mask_of(members, model.spec, device)
        rates = torch.tensor([m.dropout for m in members], device=device)
        self._drops = any(m.dropout > 0 for m in members)
        self._draws: dict[int, Draws] = {}
        self._gradients: dict[int, Tensor] = {}
        self._dense: dense.Network | None = None
        self._vmapped: VmappedNetwork | None = None
        if model.parts is not None:
            most = most_dropped(rates).view(-1, 1, 1) if self._drops else None
            scale = (1.0 / (1.0 - rates.double())).float().view(-1, 1, 1) if self._drops else None
            self._dense = dense.Network(model.parts, self._params, grads, most, scale)
        else:
            self._vmapped = VmappedNetwork(model.template, self._params, grads, extra, rates if self._drops else None)

    # -- training -----------------------------------------------------------------------------------------------------

    def run(self, batches: Sequence[Batch], lr: Floats, first_step: int) -> Tensor:
        """Steps through the batches.

        Args:
            batches: In order.
            lr: ``(batches, members)``.
            first_step: Number of the first of these steps, counted from 1.

        Returns:
            Training losses ``(batches, members)``, on the device.
        """
        rates = Rates.of(self.members, lr, self._device)
        numbers = torch.arange(first_step, first_step + len(batches), device=self._device).unsqueeze(1)
        drop_keys = keys(self._seeds, numbers, 0) if self._drops else None
        noise_keys = keys(self._seeds, numbers, NOISE_PLACE) if self._noisy else None
        places = (
            {p: at_place(drop_keys, p) for p in self._dense.places} if self._dense and drop_keys is not None else {}
        )
        losses: list[Tensor] = []
        for i, batch in enumerate(batches):
            noise_key = noise_keys[i] if noise_keys is not None else None
            if self._dense is not None:
                x = self._seen_by_stack(batch, noise_key)
                step = dense.Step({p: k[i] for p, k in places.items()}, batch.turned if x is batch.x else None)
                outputs = self._dense.forward(x, step)
                gradient = self._gradient(outputs)
                losses.append(self._loss(outputs, batch.target, gradient))
                self._dense.backward(gradient)
            elif self._vmapped is not None:
                x, own = self._seen(batch.x, noise_key)
                outputs = self._vmapped.forward(x, drop_keys[i] if drop_keys is not None else None, own=own)
                gradient = self._gradient(outputs)
                losses.append(self._loss(outputs, batch.target, gradient))
                self._vmapped.backward(gradient)
            self._optimizer.step(rates, i)
        return torch.stack(losses)

    def _gradient(self, outputs: Tensor) -> Tensor:
        rows = outputs.shape[2]
        if rows not in self._gradients:
            self._gradients[rows] = torch.empty(tuple(outputs.shape), device=self._device)
        return self._gradients[rows]

    def _seen_by_stack(self, batch: Batch, noise_key: Tensor | None) -> Tensor:
        """The batch as these members see it: ``(members or 1, features, rows)``."""
        x = batch.x
        if noise_key is not None:
            if batch.rows not in self._draws:
                self._draws[batch.rows] = Draws(len(self.members), (batch.rows, x.shape[1]), self._device)
            x = x + self._draws[batch.rows].normal(noise_key).mul_(self._noise.view(-1, 1, 1))
        return x if self._mask is None else x * self._mask.flatten(1).unsqueeze(2)

    def _seen(self, x: Tensor, noise_key: Tensor | None) -> tuple[Tensor, bool]:
        """The batch as these members see it, and whether each has its own."""
        ones = [1] * x.dim()
        if noise_key is not None:
            x = x + normal(noise_key, tuple(x.shape)) * self._noise.view(-1, *ones)
        if self._mask is not None:
            x = x * self._mask.unsqueeze(1)
        return x, noise_key is not None or self._mask is not None

    # -- asking -------------------------------------------------------------------------------------------------------

    def predict(self, x: Tensor, into: Tensor) -> None:
        """Outputs without dropout or noise.

        Args:
            x: From `Model.inputs`; may have rows more than are asked for.
            into: ``(members, outputs, rows)``, written.
        """
        if self._dense is not None:
            seen_by = x if self._mask is None else x * self._mask.flatten(1).unsqueeze(2)
            into.copy_(self._dense.predict(seen_by)[:, :, : into.shape[2]])
        elif self._vmapped is not None:
            seen, own = self._seen(x, None)
            into.copy_(self._vmapped.predict(seen, own=own).transpose(1, 2))

    @property
    def params(self) -> Buffer:
        """Parameters of all members."""
        return self._params

    @property
    def moments(self) -> Mapping[str, Buffer]:
        """What the optimiser remembers."""
        return self._moments

    def extra(self) -> Stacked:
        """What else a member carries, with one row a member; not copied."""
        return self._extra


def _mask_of(members: Sequence[Member], spec: PackSpec, device: torch.device) -> Tensor | None:
    """``(members, *input_shape)`` of 0 and 1, None where every member sees every feature."""
    if all(m.feature_mask is None for m in members):
        return None
    full = (True,) * spec.num_features
    masks = torch.tensor([m.feature_mask or full for m in members], dtype=torch.float32, device=device)
    return masks.view(len(members), *spec.input_shape)
