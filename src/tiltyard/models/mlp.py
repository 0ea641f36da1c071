"""Linear models and multi-layer perceptrons on flat rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from tiltyard.errors import ModelError


def is_sizes(value: object) -> bool:
    """Whether this is a list of whole numbers of 1 or more, as widths and channels are."""
    return (
        isinstance(value, tuple | list)
        and len(value) > 0
        and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in value)
    )


def linear(*, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """One affine map: logistic regression where the task is classification, linear regression else."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_outputs))


def mlp(*, input_shape: tuple[int, ...], num_outputs: int, hidden: Sequence[int] = (64, 32)) -> nn.Module:
    """Affine maps with ReLU and dropout between them; ``hidden`` are the widths."""
    if not is_sizes(hidden):
        raise ModelError(f"hidden is {hidden!r}; widths above 0 are wanted, e.g. (64, 32).")
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for h in hidden:
        layers += [nn.Linear(width, h), nn.ReLU(), nn.Dropout(0.0)]
        width = h
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))


class ResidualBlock(nn.Module):
    """``x + drop(W2 relu(W1 norm(x)))``, a pre-norm residual block."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out."""
        out: Tensor = x + self.drop(self.outer(self.inner(self.norm(x)).relu()))
        return out

    def inside(self) -> list[tuple[str, nn.Module]]:
        """What is added to x, layer by layer, by the names that its parameters have here."""
        return [
            ("norm", self.norm),
            ("inner", self.inner),
            ("", nn.ReLU()),
            ("outer", self.outer),
            ("drop", self.drop),
        ]


def resmlp(*, input_shape: tuple[int, ...], num_outputs: int, width: int = 64, depth: int = 2) -> nn.Module:
    """A residual MLP: ``depth`` pre-norm blocks of ``width`` (as in Gorishniy et al. 2021, arXiv 2106.11959)."""
    if not is_sizes((width, depth)):
        raise ModelError(f"width {width!r} and depth {depth!r} must both be whole numbers of 1 or more.")
    blocks = [ResidualBlock(width) for _ in range(depth)]
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(input_shape), width),
        *blocks,
        nn.LayerNorm(width),
        nn.ReLU(),
        nn.Linear(width, num_outputs),
    )
