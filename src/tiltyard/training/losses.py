"""The loss of one member on one batch, for each task; written to run under ``torch.func.vmap``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tiltyard.types import Task


def loss(task: Task, outputs: Tensor, y: Tensor, smoothing: Tensor, weights: Tensor) -> Tensor:
    """Mean loss of a batch, 0-dimensional.

    Args:
        task: Which loss: cross-entropy, binary cross-entropy per label, or squared error.
        outputs: ``(rows, outputs)``.
        y: As `tiltyard.types.Task` says.
        smoothing: Label smoothing, 0-dimensional.
        weights: ``(outputs,)``; rows of a class count as much as its weight, normalised as in ``torch.nn.CrossEntropyLoss``.
    """
    if task in {Task.BINARY, Task.MULTICLASS}:
        return _cross_entropy(outputs, y, smoothing, weights)
    if task is Task.MULTILABEL:
        target = y * (1.0 - smoothing) + 0.5 * smoothing
        return (F.binary_cross_entropy_with_logits(outputs, target, reduction="none") * weights).mean()
    return ((outputs - y) ** 2).mean()


def _cross_entropy(outputs: Tensor, y: Tensor, smoothing: Tensor, weights: Tensor) -> Tensor:
    log_p = torch.log_softmax(outputs, dim=-1)
    weight = weights[y]
    hit = -(log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1) * weight)
    spread = -(log_p * weights).sum(-1) / outputs.shape[-1]
    return ((1.0 - smoothing) * hit + smoothing * spread).sum() / weight.sum()
