"""Models as a user writes them, outside tiltyard, found by import path: ``users_models:Net``."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn

WAIT_S = 90.0


class Net(nn.Module):
    """One hidden layer."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(input_shape[0], width), nn.Tanh(), nn.Linear(width, num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


class Gated(Net):
    """Waits in training while the file ``gate`` exists; says so with a file ``<gate>.<pid>``.

    ``steps``: how many training steps a process takes before it looks at the gate.
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, gate: str, steps: int = 0, width: int = 8
    ) -> None:
        super().__init__(input_shape, num_outputs, width)
        self.gate, self.left = Path(gate), steps

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0 and self.gate.exists():
                self._wait()
        return super().forward(x)

    def _wait(self) -> None:
        mark = Path(f"{self.gate}.{os.getpid()}")
        mark.touch()
        deadline = time.monotonic() + WAIT_S
        while self.gate.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        mark.unlink(missing_ok=True)


class TooNarrow(nn.Module):
    """Gives one output whatever is wanted."""

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = nn.Linear(input_shape[0], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]


class Hungry(Net):
    """Finds no memory in its first step of training, once: ``fed`` is left as a mark."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, fed: str) -> None:
        super().__init__(input_shape, num_outputs)
        self.fed = Path(fed)

    def forward(self, x: Tensor) -> Tensor:
        trains = self.training and torch.is_grad_enabled() and x.device.type != "meta"
        if trains and x.shape[0] > 2 and not self.fed.exists():  # looking at a model takes two rows
            self.fed.touch()
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().forward(x)
