"""What one trained trial answers on rows: opens its checkpoint and runs it. No Ray.

The finalists' one look at the test split, the bundle of a winner and `tiltyard trial rerun` all go through here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.sweep.engine.layout import Storage

Array = npt.NDArray[Any]

ROWS_A_TIME = 65_536
"""Rows of one forward pass: bounds memory, and is far past where throughput stops rising."""


def open_trial(storage: Storage, *, model: str, folder_uri: str, cell: str) -> Any:
    """The trained model of a cell: a ``torch.nn.Module`` in eval mode, or a `LightGBMTrial`."""
    with storage.reading(folder_uri) as folder:
        if model == "lightgbm":
            from tiltyard.models.lightgbm import LightGBMTrial

            return LightGBMTrial.load(folder / cell)
        from tiltyard.training import Pack

        return Pack.load(folder, names=[cell]).extract(cell)


def predict(trained: Any, x: Array) -> Array:
    """Raw outputs ``(rows, outputs)`` float32: logits where the task is classification.

    Args:
        trained: From `open_trial`.
        x: ``(rows, *input_shape)`` float32.
    """
    if hasattr(trained, "predict_logits"):
        return np.asarray(trained.predict_logits(x), dtype=np.float32)
    import torch

    with torch.inference_mode():
        parts = [trained(torch.from_numpy(x[i : i + ROWS_A_TIME])).numpy() for i in range(0, len(x), ROWS_A_TIME)]
    return np.concatenate(parts) if parts else np.empty((0, 0), dtype=np.float32)
