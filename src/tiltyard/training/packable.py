"""Can trials of a model step together? Found out on two rows, before anything of a pack is allocated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tiltyard.errors import ModelError, UnpackableError
from tiltyard.training import dense
from tiltyard.training.spec import PackSpec
from tiltyard.training.vmapped import explain_unpackable, returns


def check_model(spec: PackSpec, module: nn.Module) -> None:
    """Sends two rows through the model, in evaluation and in training, and looks for what a pack cannot do.

    Args:
        spec: What it is to be trained as.
        module: Built for it; not changed, and no random state is.

    Raises:
        ModelError: If its forward fails, or gives anything but ``(rows, num_outputs)`` float32.
        UnpackableError: If its trials cannot step together; every reason is in the message.
    """
    stack = dense.plan(module) is not None
    if not stack:
        _refuse(spec, explain_unpackable(module))
    for training in (False, True):
        try:
            out = returns(module, spec.input_shape, training=training)
        except Exception as error:  # a user's forward may fail in any way
            raise ModelError(
                f"Model {spec.model!r} fails on rows of shape {spec.input_shape}: {type(error).__name__}: {error}"
            ) from error
        where = " in training" if training else ""
        if not isinstance(out, Tensor):
            raise ModelError(
                f"Model {spec.model!r} returns a {type(out).__name__}{where}; a tensor of shape (rows, "
                f"{spec.num_outputs}) is wanted. Return the outputs alone."
            )
        wanted = (2, spec.num_outputs)
        if tuple(out.shape) != wanted or out.dtype is not torch.float32:
            raise ModelError(
                f"Model {spec.model!r} gives {out.dtype} outputs of shape {tuple(out.shape)} for 2 rows{where}; float32 "
                f"of shape {wanted} is wanted."
            )
    if not stack:
        _refuse(spec, explain_unpackable(module, spec.input_shape))


def _refuse(spec: PackSpec, reasons: Sequence[str]) -> None:
    if reasons:
        raise UnpackableError(
            f"Model {spec.model!r} cannot be packed: {'; '.join(reasons)}. Change the model, or train its trials one at a "
            'time: model="train:package.module:function", a training function of your own.'
        )
