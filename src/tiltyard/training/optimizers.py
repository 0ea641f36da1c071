"""How do gradients change parameters, with every rate a member's own? One update for all members of a chunk.

No optimiser of ``torch.optim`` takes a learning rate per member, so the update step is ours. Definitions are those of
``torch.optim`` (SGD, Adam: Kingma & Ba 2015; AdamW: Loshchilov & Hutter 2019), and tests hold each against it, member by
member. Three ways, chosen by the size of one member, never by how many there are, so that a member's numbers do not
depend on its neighbours:

* Adam of small members takes one pass over the flat buffers of all: the fused kernel of torch runs with rate 1 and decay 1
  *on the gradient's own buffer*, which turns the gradient into the step ``-m / (sqrt(v) + eps)``; that is then added times
  each member's rate. Its betas and eps are one number a call, so members are grouped by them. Measured on one core: 3 to 4
  times faster than elementwise operations.
* SGD of small members is two or three elementwise operations on segments.
* Members of `DIRECT` parameters and more are limited by memory, not by calls: each goes through torch's own fused kernel
  by itself, once over its parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiltyard.training.layout import LINE, Buffer, lines
from tiltyard.training.spec import Member

Floats = npt.NDArray[np.float64]
MOMENTS = {"sgd": (), "momentum": ("momentum",), "nesterov": ("momentum",), "adam": ("m", "v"), "adamw": ("m", "v")}
"""What each optimiser remembers, per parameter."""
DIRECT = 65_536
"""Parameters of a member from which each is updated by itself."""


def rates(members: Sequence[Member], steps: npt.NDArray[np.int64], steps_per_epoch: int, total_epochs: int) -> Floats:
    """Learning rates by schedule.

    Args:
        members: Whose.
        steps: Steps counted from the start of training, from 0.
        steps_per_epoch: Steps in an epoch.
        total_epochs: Length of the schedules.

    Returns:
        ``(steps, members)``. Warm-up rises linearly to the full rate; a schedule then falls towards 0 at the end.
    """
    total = total_epochs * steps_per_epoch
    at = steps.astype(np.float64)[:, None]
    warmup = np.array([m.warmup_epochs * steps_per_epoch for m in members])[None, :]
    rise = np.minimum(1.0, (at + 1.0) / np.maximum(warmup, 1.0))
    done = np.clip((at - warmup) / np.maximum(total - warmup, 1.0), 0.0, 1.0)
    fall = np.ones_like(done)
    schedules = np.array([m.schedule for m in members])
    for name in sorted({*schedules.tolist()} - {"constant"}):
        own = schedules == name
        fall[:, own] = 0.5 * (1.0 + np.cos(math.pi * done[:, own])) if name == "cosine" else 1.0 - done[:, own]
    found: Floats = np.array([m.lr for m in members])[None, :] * rise * fall
    return found


@dataclass(frozen=True, slots=True)
class Rates:
    """Rates of a chunk's members for some steps.

    Args:
        lr: ``(members, 1)`` float32 on the device, one a step.
        minus_lr: ``-lr``.
        shrink: ``1 - lr * weight_decay``.
        exact: ``(steps, members)`` float64 on the host.
    """

    lr: Sequence[Tensor]
    minus_lr: Sequence[Tensor]
    shrink: Sequence[Tensor]
    exact: Floats

    @classmethod
    def of(cls, members: Sequence[Member], lr: Floats, device: torch.device) -> Rates:
        """``lr``: from `rates`, ``(steps, members)``."""
        decay = np.array([m.weight_decay for m in members])[None, :]

        def tensor(values: Floats) -> Sequence[Tensor]:
            return torch.from_numpy(values.astype(np.float32)[..., None]).to(device).unbind()

        return cls(tensor(lr), tensor(-lr), tensor(1.0 - lr * decay), lr)


class Optimizer:
    """The update of one chunk; changes its parameters and moments in place.

    Args:
        kind: One of ``OPTIMIZERS``.
        members: The chunk's.
        params: Their parameters.
        grads: Their gradients; used up by a step.
        moments: Buffers by the names of `MOMENTS`.
        step: Steps done so far.
    """

    def __init__(
        self,
        kind: str,
        members: Sequence[Member],
        params: Buffer,
        grads: Buffer,
        moments: Mapping[str, Buffer],
        step: int,
    ) -> None:
        self._kind, self._members = kind, tuple(members)
        self._params, self._grads, self._moments = params, grads, moments
        device = params.flat.device

        def column(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device).unsqueeze(1)

        self._decay = column([m.weight_decay for m in members])
        self._decays = any(m.weight_decay for m in members)
        self._momentum = column([m.momentum for m in members])
        clipped = any(m.clip_norm is not None for m in members)
        self._clip = column([math.inf if m.clip_norm is None else m.clip_norm for m in members]) if clipped else None
        self._step = torch.tensor(float(step), device=device)
        self._adam = kind in {"adam", "adamw"}
        self._direct = params.layout.num_params >= DIRECT
        if self._adam and not self._direct:
            self._groups = _groups(members, grads, moments["m"], moments["v"])

    def step(self, rates: Rates, at: int) -> None:
        """One update from the gradients now in the buffer.

        Args:
            rates: Of the members.
            at: Which of its steps.
        """
        self._step.add_(1)
        if self._clip is not None:
            _clip_each(self._grads.segments, self._clip)
        if self._direct:
            self._each_by_itself(rates.exact[at])
            return
        if self._decays and self._kind != "adamw":
            for p, g in zip(self._params.segments, self._grads.segments, strict=True):
                g.addcmul_(p, self._decay)
        if self._adam:
            self._adam_together(rates.lr[at], rates.shrink[at])
        else:
            self._sgd_together(rates.minus_lr[at])

    def _adam_together(self, lr: Tensor, shrink: Tensor) -> None:
        for group in self._groups:
            group.step(self._step)
        decoupled = self._kind == "adamw" and self._decays
        for p, g in zip(self._params.segments, self._grads.segments, strict=True):
            if decoupled:
                p.mul_(shrink)
            p.addcmul_(g, lr)

    def _sgd_together(self, minus_lr: Tensor) -> None:
        steps = self._grads.segments
        if self._kind != "sgd":
            memory = self._moments["momentum"].segments
            for g, b in zip(steps, memory, strict=True):
                b.mul_(self._momentum).add_(g)
                if self._kind == "nesterov":
                    g.addcmul_(b, self._momentum)
            steps = steps if self._kind == "nesterov" else memory
        for p, s in zip(self._params.segments, steps, strict=True):
            p.addcmul_(s, minus_lr)

    def _each_by_itself(self, lr: Floats) -> None:
        for i, member in enumerate(self._members):
            params, grads = _row(self._params, i), _row(self._grads, i)
            if self._adam:
                fused = torch._fused_adamw_ if self._kind == "adamw" else torch._fused_adam_
                m, v = _row(self._moments["m"], i), _row(self._moments["v"], i)
                fused(
                    params, grads, m, v, [], [self._step] * len(params), amsgrad=False, maximize=False,
                    lr=float(lr[i]), beta1=member.beta1, beta2=member.beta2, weight_decay=member.weight_decay,
                    eps=member.eps,
                )  # fmt: skip
                continue
            momentum = 0.0 if self._kind == "sgd" else member.momentum
            memory = _row(self._moments["momentum"], i) if momentum else []
            torch._fused_sgd_(
                params, grads, memory, weight_decay=member.weight_decay, momentum=momentum, lr=float(lr[i]),
                dampening=0.0, nesterov=self._kind == "nesterov" and momentum > 0, maximize=False, is_first_step=False,
            )  # fmt: skip


def _row(buffer: Buffer, i: int) -> list[Tensor]:
    return [segment[i] for segment in buffer.segments]


def _clip_each(grads: Sequence[Tensor], most: Tensor) -> None:
    norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in grads], dim=1)
    # along the last dimension, where the order of the sum does not depend on the number of members
    scale = (most / (torch.linalg.vector_norm(norms, dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0)
    for g in grads:
        g.mul_(scale)


class _Together:
    """Members that share betas and eps; turns their gradients into steps of rate 1.

    The kernel computes the numbers past the last whole cache line by other instructions, so what it is given always ends
    on one: rows that do not are moved through memory that does.
    """

    def __init__(
        self, betas: tuple[float, float, float], whole: list[list[Tensor]], ragged: list[list[Tensor]]
    ) -> None:
        self._betas = betas
        self._lists = whole  # of gradients, m, v
        self._ragged = ragged
        self._padded: list[list[Tensor]] = []
        if ragged[0]:
            self._padded = [[row.new_zeros(lines(len(row))) for row in rows] for rows in ragged]
            self._lists = [a + b for a, b in zip(whole, self._padded, strict=True)]
            self._inner = [
                [p[: len(row)] for p, row in zip(padded, rows, strict=True)]
                for padded, rows in zip(self._padded, ragged, strict=True)
            ]

    def step(self, step: Tensor) -> None:
        if self._padded:
            for inner, rows in zip(self._inner, self._ragged, strict=True):
                torch._foreach_copy_(inner, rows)
        grads, m, v = self._lists
        beta1, beta2, eps = self._betas
        torch._fused_adamw_(
            grads, grads, m, v, [], [step] * len(grads),
            lr=1.0, beta1=beta1, beta2=beta2, weight_decay=1.0, eps=eps, amsgrad=False, maximize=False,
        )  # fmt: skip
        if self._padded:
            for inner, rows in zip(self._inner, self._ragged, strict=True):
                torch._foreach_copy_(rows, inner)


def _groups(members: Sequence[Member], grads: Buffer, m: Buffer, v: Buffer) -> list[_Together]:
    places: dict[tuple[float, float, float], list[int]] = {}
    for i, member in enumerate(members):
        places.setdefault((member.beta1, member.beta2, member.eps), []).append(i)
    if len(places) == 1:
        return [_Together(next(iter(places)), [[b.flat] for b in (grads, m, v)], [[], [], []])]
    groups = []
    for betas, rows in places.items():
        split = {
            whole: [
                [seg[i] for seg in buffer.segments for i in rows if (seg.shape[1] % LINE == 0) == whole]
                for buffer in (grads, m, v)
            ]
            for whole in (True, False)
        }
        groups.append(_Together(betas, split[True], split[False]))
    return groups
