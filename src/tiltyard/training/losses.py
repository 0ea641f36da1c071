"""The loss of many members on one batch, and its gradient with respect to their outputs, written out by hand.

Outputs lie as ``(members, outputs, rows)``. Where no member smooths labels or weights classes, the target is shared and
the short way is taken; its arithmetic is the long way's with factors of exactly 1, so a member's numbers do not depend on
whether a neighbour has weights. Members of other losses are computed all by each loss, and each takes its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tiltyard.training.spec import Member
from tiltyard.types import Task

_LEAST = -87.0
"""Logarithms below count as this: a probability of 1.6e-38 is as good as any smaller one, and for what is smaller than
float32's full precision ``torch.exp`` takes 30 to 180 times as long a number (measured; confident members have many)."""


@dataclass(frozen=True, slots=True)
class Target:
    """The labels of a batch as a loss wants them.

    Args:
        values: ``(outputs, rows)`` float32: one-hot classes, labels, or values to meet.
        counts: ``(outputs,)`` rows of each class; empty where there are no classes.
    """

    values: Tensor
    counts: Tensor

    @classmethod
    def of(cls, task: Task, y: Tensor, num_outputs: int) -> Target:
        """``y``: as `tiltyard.types.Task` says."""
        if task in {Task.BINARY, Task.MULTICLASS}:
            values = torch.zeros(num_outputs, len(y), device=y.device)
            values.scatter_(0, y.unsqueeze(0), 1.0)
            return cls(values, values.double().sum(1))
        return cls(y.t().contiguous(), torch.empty(0, device=y.device))


class Loss:
    """Mean loss of a batch for each member of a chunk.

    Cross-entropy as ``torch.nn.CrossEntropyLoss`` (rows of a class count as much as its weight; smoothing spreads a share
    of the target over all classes; a batch whose rows all weigh nothing has loss 0 and no gradient, where torch has NaN);
    the focal loss (Lin et al. 2017), weighted in the same way; binary cross-entropy per label as
    ``torch.nn.BCEWithLogitsLoss``; squared error, absolute error (``L1Loss``) or ``torch.nn.HuberLoss``.

    Args:
        task: Decides which there are.
        members: Whose losses, smoothing and class weights.
        num_outputs: Logits or values.
        device: Of the outputs.
    """

    def __init__(self, task: Task, members: Sequence[Member], num_outputs: int, device: torch.device) -> None:
        self._task = task
        self._plain = all(m.class_weights is None and m.label_smoothing == 0 for m in members)
        ones = (1.0,) * num_outputs
        self._weights = torch.tensor([m.class_weights or ones for m in members], device=device).unsqueeze(2)
        self._smoothing = torch.tensor([m.label_smoothing for m in members], device=device).view(-1, 1, 1)
        self._on = (1.0 - self._smoothing) * self._weights
        self._everywhere = self._smoothing * self._weights / num_outputs
        self._gamma = torch.tensor([m.focal_gamma for m in members], device=device).view(-1, 1, 1)
        self._delta = torch.tensor([m.huber_delta for m in members], device=device).view(-1, 1, 1)
        losses = [m.loss_of(task) for m in members]
        self._names = sorted(set(losses))
        self._whose = {n: torch.tensor([loss == n for loss in losses], device=device) for n in self._names}
        self._spare = torch.empty(0, device=device)
        self._log_p: dict[int, Tensor] = {}

    def __call__(self, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        """The losses, ``(members,)``; writes their gradient.

        Args:
            outputs: ``(members, outputs, rows)``.
            target: From `Target.of`.
            gradient: Like outputs, written.
        """
        if len(self._names) == 1:
            return self._by_name(self._names[0], outputs, target, gradient)
        if self._spare.shape != gradient.shape:
            self._spare = torch.empty_like(gradient)
        losses = torch.zeros(len(outputs), device=outputs.device)
        for name in self._names:
            whose = self._whose[name]
            found = self._by_name(name, outputs, target, self._spare)
            torch.where(whose, found, losses, out=losses)
            torch.where(whose.view(-1, 1, 1), self._spare, gradient, out=gradient)
        return losses

    def _by_name(self, name: str, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        match name:
            case "cross_entropy":
                return self._cross_entropy(outputs, target, gradient)
            case "focal":
                return self._focal(outputs, target, gradient)
            case "binary_cross_entropy":
                return self._binary(outputs, target, gradient)
            case "squared":
                return _squared(outputs, target, gradient)
            case "absolute":
                return _absolute(outputs, target, gradient)
            case _:
                return self._huber(outputs, target, gradient)

    def _cross_entropy(self, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        log_p = self._log_softmax(outputs)
        torch.clamp_min(log_p, _LEAST, out=gradient).exp_()
        if self._plain:
            share = 1.0 / outputs.shape[2]
            gradient.sub_(target.values).mul_(share)
            return log_p.mul_(target.values).sum((1, 2)).mul_(-share)
        wanted = target.values * self._on + self._everywhere
        shares = self._shares(target)
        gradient.mul_(wanted.sum(1, keepdim=True)).sub_(wanted).mul_(shares.view(-1, 1, 1))
        return log_p.mul_(wanted).sum((1, 2)).mul_(-shares)

    def _shares(self, target: Target) -> Tensor:
        """What one unit of weight counts; 0 where a batch has none, which torch divides by: such a batch teaches nothing."""
        total = (self._weights.squeeze(2).double() * target.counts).sum(1)
        return torch.where(total > 0, 1.0 / total, 0.0).float()

    def _log_softmax(self, outputs: Tensor) -> Tensor:
        """Into the same memory at every step: taken from the system anew, it costs four times as much as it computes."""
        rows = outputs.shape[2]
        if rows not in self._log_p:
            self._log_p[rows] = torch.empty(tuple(outputs.shape), device=outputs.device)
        return torch.log_softmax(outputs, 1, out=self._log_p[rows])

    def _focal(self, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        log_p = self._log_softmax(outputs)
        torch.clamp_min(log_p, _LEAST, out=gradient).exp_()
        log_right = (log_p * target.values).sum(1, keepdim=True)  # of the class that is right
        right = torch.exp(log_right)
        wrong = (1.0 - right).clamp_(min=1e-7)
        # d(-(1-p)^g log p)/dz_j = (onehot_j - p_j) * (g p (1-p)^(g-1) log p - (1-p)^g)
        less = wrong**self._gamma
        steep = self._gamma * right * wrong ** (self._gamma - 1.0) * log_right - less
        weight = (target.values * self._weights).sum(1, keepdim=True)  # of each row
        shares = self._shares(target)
        gradient.sub_(target.values).mul_(-steep).mul_(weight).mul_(shares.view(-1, 1, 1))
        return (less * log_right * weight).sum((1, 2)).mul_(-shares)

    def _huber(self, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        share = 1.0 / (outputs.shape[1] * outputs.shape[2])
        torch.sub(outputs, target.values, out=gradient)
        size = gradient.abs()
        near = torch.minimum(size, self._delta)
        losses = (near * (size - 0.5 * near)).sum((1, 2)).mul_(share)
        torch.clamp(gradient, -self._delta, self._delta, out=gradient)
        gradient.mul_(share)
        return losses

    def _binary(self, outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
        share = 1.0 / (outputs.shape[1] * outputs.shape[2])
        small = torch.exp(
            outputs.abs().neg_().clamp_(min=_LEAST)
        )  # exp and log1p alone: their results do not depend on where a number lies
        torch.exp(outputs.clamp(_LEAST, 0), out=gradient).div_(1.0 + small)
        wanted = target.values if self._plain else target.values * (1.0 - self._smoothing) + 0.5 * self._smoothing
        loss = outputs.clamp(min=0).sub_(outputs * wanted).add_(torch.log1p(small))
        gradient.sub_(wanted)
        if not self._plain:
            gradient.mul_(self._weights)
            loss.mul_(self._weights)
        gradient.mul_(share)
        return loss.sum((1, 2)).mul_(share)


def _squared(outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
    share = 1.0 / (outputs.shape[1] * outputs.shape[2])
    torch.sub(outputs, target.values, out=gradient)
    losses = (gradient * gradient).sum((1, 2)).mul_(share)
    gradient.mul_(2.0 * share)
    return losses


def _absolute(outputs: Tensor, target: Target, gradient: Tensor) -> Tensor:
    share = 1.0 / (outputs.shape[1] * outputs.shape[2])
    torch.sub(outputs, target.values, out=gradient)
    losses = gradient.abs().sum((1, 2)).mul_(share)
    gradient.sign_().mul_(share)
    return losses
