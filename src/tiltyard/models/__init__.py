"""Model families in torch: how each is built, and what it is built with. A user's own module counts as one.

To add one: a function that takes ``input_shape``, ``num_outputs`` and its own keyword arguments and returns an
``nn.Module`` from ``(rows, *input_shape)`` float32 to ``(rows, num_outputs)``; add it to `FAMILIES`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tiltyard.errors import ModelError
from tiltyard.models.cnn import cnn
from tiltyard.models.masked import MaskedInput
from tiltyard.models.mlp import linear, mlp, resmlp
from tiltyard.types import Task

__all__ = ["FAMILIES", "Builder", "MaskedInput", "build", "builder", "validate_args"]

Builder = Callable[..., nn.Module]

FAMILIES: dict[str, Builder] = {"linear": linear, "logistic": linear, "mlp": mlp, "resmlp": resmlp, "cnn": cnn}


def builder(model: str) -> Builder:
    """The function or class that builds a model.

    Raises:
        ModelError: If it is no family and cannot be imported.
    """
    if not isinstance(model, str):
        raise ModelError(f"The model is {model!r}; the name of a family or 'package.module:Class' is wanted.")
    if model in FAMILIES:
        return FAMILIES[model]
    module_name, colon, name = model.partition(":")
    if not colon:
        if model == "lightgbm":
            raise ModelError(
                "lightgbm is no nn.Module: it is trained in rounds, one trial at a time. A sweep does that by itself; a pack "
                f"wants one of {', '.join(sorted(FAMILIES))} or 'package.module:Class'."
            )
        raise ModelError(
            f"No model family {model!r}; there are: {', '.join(sorted([*FAMILIES, 'lightgbm']))}. "
            "Your own goes by its import path: 'package.module:Class'."
        )
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way while it is imported, or be a script
        raise ModelError(
            f"The model {model!r} cannot be imported: {_told(error)}. Wanted: 'package.module:Class', "
            "importable from the working directory."
        ) from error
    if not callable(found):
        raise ModelError(
            f"{model!r} is a {type(found).__name__}; a class or function that makes an nn.Module is wanted."
        )
    return found  # type: ignore[no-any-return]


def build(model: str, args: Mapping[str, Any], *, input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """A model, freshly initialised from torch's global generator.

    A user's class is given ``input_shape`` and ``num_outputs`` if it has parameters of these names.

    Raises:
        ModelError: If an argument is unknown, or the model refuses it.
    """
    make = builder(model)
    try:
        names = inspect.signature(make).parameters
    except (TypeError, ValueError) as error:
        raise ModelError(f"Model {model!r} does not say which arguments it takes: {error}.") from error
    if isinstance(make, type) and getattr(make, "__init__", None) is nn.Module.__init__:
        raise ModelError(
            f"Model {model!r} has no __init__ of its own, so it has no layers to train. Wanted: def __init__(self, "
            "input_shape, num_outputs, ...) that calls super().__init__() and makes them."
        )
    any_name = any(p.kind is p.VAR_KEYWORD for p in names.values())
    given = {"input_shape": input_shape, "num_outputs": num_outputs}
    full = {k: v for k, v in given.items() if k in names or any_name} | dict(args)
    unknown = sorted(set(full) - set(names)) if not any_name else []
    if unknown:
        takes = sorted(set(names) - set(given))
        raise ModelError(f"Model {model!r} has no argument {unknown[0]!r}; it takes: {', '.join(takes) or 'none'}.")
    try:
        module = make(**full)
    except ModelError:
        raise
    except (Exception, SystemExit) as error:  # a user's constructor may fail in any way
        raise ModelError(f"Model {model!r} could not be built with {dict(args)}: {_told(error)}") from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"Model {model!r} gave a {type(module).__name__}; an nn.Module is wanted.")
    return module


def validate_args(
    model: str, args: Mapping[str, Any], task: Task, input_shape: tuple[int, ...], num_outputs: int = 2
) -> None:
    """Builds the model once and sends two rows through it.

    Raises:
        ModelError: If it cannot be built, or its output has the wrong shape; both shapes are said.
    """
    if model == "lightgbm":
        from tiltyard.models.lightgbm import check_config

        check_config(args)
        return
    del task
    with torch.random.fork_rng(devices=[]):
        module = build(model, args, input_shape=input_shape, num_outputs=num_outputs).eval()
        try:
            with torch.no_grad():
                out = module(torch.zeros((2, *input_shape)))
        except Exception as error:  # as may its forward
            raise ModelError(f"Model {model!r} fails on rows of shape {input_shape}: {_told(error)}") from error
    if not isinstance(out, Tensor):
        raise ModelError(
            f"Model {model!r} returns a {type(out).__name__}; a tensor of shape (rows, {num_outputs}) is wanted."
        )
    if tuple(out.shape) != (2, num_outputs):
        raise ModelError(
            f"Model {model!r} gives outputs of shape {tuple(out.shape)} for 2 rows; (2, {num_outputs}) is wanted."
        )


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
