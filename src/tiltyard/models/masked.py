"""A model that does not see some of its inputs."""

from __future__ import annotations

from torch import Tensor, nn


class MaskedInput(nn.Module):
    """Another model behind a mask on its inputs, which goes with its ``state_dict``.

    Args:
        model: The other.
        mask: ``(*input_shape)`` of 0 and 1.
    """

    BUFFER = "feature_mask"
    feature_mask: Tensor

    def __init__(self, model: nn.Module, mask: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer(self.BUFFER, mask)

    def forward(self, x: Tensor) -> Tensor:
        """What the model gives for ``x`` with the hidden inputs at 0."""
        out: Tensor = self.model(x * self.feature_mask)
        return out
