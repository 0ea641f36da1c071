"""A small convolutional network for small images."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from tiltyard.errors import ModelError
from tiltyard.models.mlp import is_sizes


def cnn(
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    image: Sequence[int] | None = None,
    channels: Sequence[int] = (16, 32),
) -> nn.Module:
    """3x3 convolutions with ReLU, each but the first followed by 2x2 pooling, then one affine map.

    Args:
        input_shape: Of a row; flat rows need ``image``.
        num_outputs: Logits.
        image: ``(channels, height, width)`` that a flat row is read as, e.g. ``(1, 8, 8)``.
        channels: Of the convolutions.
    """
    if not is_sizes(channels):
        raise ModelError(f"channels is {channels!r}; numbers of channels of 1 or more are wanted, e.g. (16, 32).")
    if image is not None and not is_sizes(image):
        raise ModelError(f"image is {image!r}; channels, height and width are wanted, e.g. (1, 8, 8).")
    shape = tuple(image) if image is not None else tuple(input_shape)
    if len(shape) != 3 or math.prod(shape) != math.prod(input_shape):
        raise ModelError(
            f"A cnn reads a row as an image (channels, height, width); rows have shape {tuple(input_shape)} and image is "
            f"{shape}. Set image, e.g. (1, 8, 8) for 64 features."
        )
    layers: list[nn.Module] = [nn.Flatten(), nn.Unflatten(1, shape)]
    width, height, breadth = shape
    for i, c in enumerate(channels):
        layers += [nn.Conv2d(width, c, 3, padding=1), nn.ReLU()]
        if i and min(height, breadth) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, breadth = height // 2, breadth // 2
        width = c
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.0), nn.Linear(width * height * breadth, num_outputs))
