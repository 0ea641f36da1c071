"""The process in which a user's own training runs: ``python -m tiltyard.sweep.engine.own_child FOLDER REPORTS_FD``.

One request a line on stdin (a trial), one answer a line on the descriptor: each report, then how it ended. A process of its
own, because a user's function may exit, be killed, fork, or use more memory than there is; none of that may take other
trials along.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt

from tiltyard.sweep.engine.assignment import as_tuples
from tiltyard.telemetry import logs

MEMORY_SHARE = 0.8
"""Of the machine's memory: past it a trial gets a MemoryError, before the kernel picks a process to end."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """What a user's ``train(config, data, report)`` gets beside its configuration. The arrays are shared: do not write.

    Args:
        x_train: ``(rows, *input_shape)`` float32, preprocessed, in canonical order.
        y_train: int64 ``(rows,)`` where there are classes, else float32 ``(rows, targets)``.
        x_validation: Likewise, of the validation split.
        y_validation: Likewise.
        task: ``binary``, ``multiclass``, ``regression`` or ``multilabel``.
        num_outputs: Classes or targets.
        epochs: How long a trial is to train.
        seed: Of the trial.
    """

    x_train: npt.NDArray[np.float32]
    y_train: npt.NDArray[Any]
    x_validation: npt.NDArray[np.float32]
    y_validation: npt.NDArray[Any]
    task: str
    num_outputs: int
    epochs: int
    seed: int


def main() -> int:
    """Trains what is asked for, one trial after another, until stdin ends."""
    folder, out = Path(sys.argv[1]), os.fdopen(int(sys.argv[2]), "w", buffering=1)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    limit = int(MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r")
        for name in ("x_train", "y_train", "x_validation", "y_validation")
    }
    logs.setup(level=logging.WARNING)
    for line in sys.stdin:
        _train(json.loads(line), arrays, out)
    return 0


def _train(asked: dict[str, Any], arrays: dict[str, Any], out: TextIO) -> None:
    module, _, function = asked["train"].partition(":")

    def report(epoch: int, **metrics: float) -> None:
        """Tells the scores at the end of an epoch, counted from 1."""
        try:
            out.write(json.dumps({"report": [_plain(epoch), {k: _plain(v) for k, v in metrics.items()}]}) + "\n")
        except TypeError as error:
            raise TypeError(f"report() takes numbers; found {metrics!r}") from error

    config = {name: as_tuples(value) for name, value in asked["config"].items()}
    data = Data(
        **arrays,
        task=asked["task"],
        num_outputs=asked["num_outputs"],
        epochs=asked["epochs"],
        seed=asked["seed"],
    )
    here = os.getpid()
    try:
        np.random.seed(asked["seed"])
        with logs.bound(**asked.get("ids", {})):
            getattr(importlib.import_module(module), function)(config, data, report)
        if os.getpid() != here:
            os._exit(0)  # a copy of this process that the function forked and let return
    except Exception as error:
        out.write(json.dumps({"end": _said(error)}) + "\n")
    else:
        out.write(json.dumps({"end": None}) + "\n")


def _said(error: Exception) -> str:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}:{last.lineno}"
    try:
        return f"{type(error).__name__}: {error} ({where})"
    except Exception:  # a user's error may not be able to say what it is
        return f"{type(error).__name__} ({where})"


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as a Python number; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


if __name__ == "__main__":
    raise SystemExit(main())
