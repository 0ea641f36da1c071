"""Scores of all members at once, by scikit-learn's definitions.

``outputs`` is ``(members, rows, outputs)`` raw; every score comes back as ``(members,)`` float64. A member whose outputs
are not finite scores NaN, and no other member's score changes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiltyard.errors import TrainingError
from tiltyard.types import METRICS, Task

Array = npt.NDArray[np.float64]
_FEW = 64
"""Classes up to which the largest is found class by class."""
_LEAST = math.log(np.finfo(np.float64).eps)
"""scikit-learn takes no probability as smaller than this, so that one confident error does not make a loss infinite."""


def scores(task: Task, outputs: Tensor, y: Tensor, metrics: Sequence[str]) -> dict[str, Array]:
    """The named scores.

    Args:
        task: Of the labels.
        outputs: ``(K, N, C)`` logits, or ``(K, N, T)`` values for regression.
        y: Labels as `tiltyard.types.Task` says.
        metrics: Names in `tiltyard.types.METRICS`.

    Raises:
        TrainingError: If a metric is unknown or is not one of the task's, or there are no rows.
    """
    if outputs.shape[1] == 0:
        raise TrainingError("There are no rows to score; the split is empty. Give it a share of the rows.")
    for name in metrics:
        if name not in METRICS or task not in METRICS[name].tasks:
            known = sorted(n for n, m in METRICS.items() if task in m.tasks)
            raise TrainingError(f"A {task} task has no metric {name!r}; it has: {', '.join(known)}.")
    finite = ((outputs * 0).sum((1, 2)) == 0).cpu().numpy()
    found = {name: _SCORES[name](outputs, y, task).double().cpu().numpy() for name in metrics}
    return {name: np.where(finite, value, np.nan) for name, value in found.items()}


def per_row(task: Task, outputs: Tensor, y: Tensor, metric: str) -> Array:
    """One model's score of each row, for a metric that is the mean of its rows; ``(N,)``.

    Args:
        task: Of the labels.
        outputs: ``(N, C)``, raw.
        y: Labels as `tiltyard.types.Task` says.
        metric: One of `ROW_METRICS`.

    Raises:
        TrainingError: If the metric is no mean of rows.
    """
    if metric not in _ROWS:
        raise TrainingError(f"{metric!r} is no mean over rows; those that are: {', '.join(sorted(_ROWS))}.")
    value: Array = _ROWS[metric](outputs[None], y, task)[0].double().cpu().numpy()
    return value


def _predicted(outputs: Tensor) -> Tensor:
    """The class of the largest output, the first of equals, ``(K, N)``.

    ``argmax`` over a few classes is slow where rows lie last in memory (12 ns a number, measured); comparing class by class
    is several times faster.
    """
    classes = outputs.shape[-1]
    if classes > _FEW or outputs.stride(-1) == 1:
        return outputs.argmax(-1)
    most = outputs[..., 0].clone()
    found = torch.zeros(most.shape, dtype=torch.int64, device=most.device)
    for c in range(1, classes):
        found.masked_fill_(outputs[..., c] > most, c)
        torch.maximum(most, outputs[..., c], out=most)
    return found


def _accuracy(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """Without finding the class: does the label's output equal the largest? Where outputs tie, the first counts."""
    del task
    across = outputs.transpose(1, 2)
    most = across.amax(1, keepdim=True)
    tied = (across - most).ge_(0).sum((1, 2)) > outputs.shape[
        1
    ]  # counted as floats: several times faster than as bools
    own = across.gather(1, y.expand(len(outputs), 1, -1))
    found = (own == most).double().mean((1, 2))
    if bool(tied.any()):
        found[tied] = (outputs[tied].argmax(-1) == y).double().mean(-1)
    return found


def _per_class(outputs: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """True positives, predicted and actual counts: ``(K, C)``, ``(K, C)``, ``(C,)``."""
    members, _, classes = outputs.shape
    predicted = _predicted(outputs)
    ones = torch.ones((), dtype=torch.float64, device=y.device).expand(predicted.shape)
    zeros = torch.zeros((members, classes), dtype=torch.float64, device=y.device)
    hit = zeros.scatter_add(1, predicted, (predicted == y).double())
    return hit, zeros.scatter_add(1, predicted, ones), zeros[0].scatter_add(0, y, ones[0])


def _balanced_accuracy(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    hit, _, actual = _per_class(outputs, y)
    present = actual > 0
    return (hit[:, present] / actual[present]).mean(-1)


def _f1_macro(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    if task is Task.MULTILABEL:
        on = (outputs > 0).double()
        hit, predicted, actual = (on * y).sum(1), on.sum(1), y.double().sum(0)
    else:
        hit, predicted, actual = _per_class(outputs, y)
    both = predicted + actual
    f1 = torch.where(both > 0, 2 * hit / both.clamp(min=1), torch.zeros_like(both))
    if task is Task.MULTILABEL:
        return f1.mean(-1)
    seen = both > 0  # scikit-learn leaves out classes that are neither there nor predicted
    return (f1 * seen).sum(-1) / seen.sum(-1)


def _log_loss(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    return _log_losses(outputs, y, task).mean((-1, -2) if task is Task.MULTILABEL else -1)


def _log_losses(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """``(K, N)``, for several labels ``(K, N, C)``."""
    if task is Task.MULTILABEL:
        bce = torch.nn.functional.binary_cross_entropy_with_logits(
            outputs.double(), y.double().expand_as(outputs), reduction="none"
        )
        return bce.clamp(max=-_LEAST)
    log_p = torch.log_softmax(outputs, -1).gather(-1, y.expand(len(outputs), -1).unsqueeze(-1)).squeeze(-1)
    return -log_p.double().clamp(min=_LEAST)


def _roc_auc(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """The rank statistic of Mann and Whitney, ties counting half."""
    del task
    margin = outputs[..., 1].double() - outputs[..., 0].double()
    positive = y == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if n_pos == 0 or n_neg == 0:
        return torch.full((len(outputs),), torch.nan, dtype=torch.float64)
    ranks = torch.stack([_mean_ranks(m) for m in margin])
    return (ranks[:, positive].sum(-1) - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def _mean_ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts - 1) / 2)[inverse]
    return ranks


def _brier(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """Mean squared error of the probability of class 1, or, for more classes, summed over them (Brier 1950)."""
    return _briers(outputs, y, task).mean(-1)


def _briers(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    """``(K, N)``."""
    p = torch.softmax(outputs.double(), -1)
    if task is Task.BINARY:
        return (p[..., 1] - y.double()) ** 2
    return ((p - torch.nn.functional.one_hot(y, p.shape[-1])) ** 2).sum(-1)


def _subset_accuracy(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    return ((outputs > 0) == (y > 0.5)).all(-1).double().mean(-1)


def _mse(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    return ((outputs.double() - y) ** 2).mean((-1, -2))


def _rmse(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    return ((outputs.double() - y) ** 2).mean(-2).sqrt().mean(-1)


def _mae(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    return (outputs.double() - y).abs().mean((-1, -2))


def _r2(outputs: Tensor, y: Tensor, task: Task) -> Tensor:
    del task
    total = ((y.double() - y.double().mean(0)) ** 2).sum(0)
    left = ((outputs.double() - y) ** 2).sum(-2)
    # as scikit-learn: a target that never changes scores 1 where it is met exactly and 0 else
    constant = (left == 0).double()
    share: Tensor = left / torch.where(total == 0, 1.0, total)
    return torch.where(total == 0, constant, 1 - share).mean(-1)


_SCORES: dict[str, Callable[[Tensor, Tensor, Task], Tensor]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1_macro": _f1_macro,
    "log_loss": _log_loss,
    "roc_auc": _roc_auc,
    "brier": _brier,
    "subset_accuracy": _subset_accuracy,
    "mse": _mse,
    "rmse": _rmse,
    "mae": _mae,
    "r2": _r2,
}

_ROWS: dict[str, Callable[[Tensor, Tensor, Task], Tensor]] = {
    "accuracy": lambda outputs, y, _: outputs.argmax(-1) == y,
    "subset_accuracy": lambda outputs, y, _: ((outputs > 0) == (y > 0.5)).all(-1),
    "log_loss": lambda outputs, y, task: (
        _log_losses(outputs, y, task).mean(-1) if task is Task.MULTILABEL else _log_losses(outputs, y, task)
    ),
    "brier": _briers,
    "mse": lambda outputs, y, _: ((outputs.double() - y) ** 2).mean(-1),
    "mae": lambda outputs, y, _: (outputs.double() - y).abs().mean(-1),
}
ROW_METRICS = frozenset(_ROWS)
"""Metrics that are the mean of a value a row."""
