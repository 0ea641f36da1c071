"""What every ``Tuner`` of ours needs of Ray Tune 2.60: that it is silent, and that a worker's death is its trial's alone.

Ray kills a worker whose node runs low on memory, and says so by an error that is none of an actor's death. Ray Tune takes
that for a fault of its own: the whole run would end. It is told of an actor's death instead, which it knows how to try again.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from pathlib import Path
from typing import Any

from ray._private import worker
from ray.air._internal import usage
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

from tiltyard.journal import storable
from tiltyard.sweep.engine.memory import OUT_OF_MEMORY

_DEATHS = (OutOfMemoryError, NodeDiedError, WorkerCrashedError)
_LONGEST = 2000
_TOLD_OF_A_DEATH = "A worker died or was killed while executing a task"


def set_up() -> None:
    """Before a ``Tuner`` is made: the journal, the curves and our progress say what Ray Tune would print and write."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a report without the metric ends its trial, not the sweep
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "10")  # an actor that does not obey is killed
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new one prints a box at the start; the old one leaves all to `Unheard`
    if (
        os.environ.get("RAY_USAGE_STATS_ENABLED") != "1"
    ):  # to count callbacks for the statistics loads MLflow: 1 s of fit()
        usage.tag_callbacks = _uncounted
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not hasattr(worker.print_to_stdstream, "__wrapped__"):
        worker.print_to_stdstream = _without_deaths(worker.print_to_stdstream)
    if not hasattr(RayActorManager._actor_task_failed, "__wrapped__"):
        RayActorManager._actor_task_failed = _with_all_deaths(RayActorManager._actor_task_failed)  # type: ignore[method-assign]


def death(error: Exception) -> Exception:
    r"""The error as Ray Tune knows it: of a process that is gone, an actor's death; any other as it is.

    >>> from ray.exceptions import OutOfMemoryError
    >>> str(death(OutOfMemoryError("Killed, for memory.\nUsed: 14 of 15 GB (0.96). Wanted: more.")))
    'out of memory: Ray ended the process, for its node ran low: Used: 14 of 15 GB (0.96)'
    """
    if not isinstance(error, _DEATHS):
        return error
    told = str(error)
    if isinstance(error, OutOfMemoryError):
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        why = (lines[1:] or lines or [""])[0].partition(". ")[0].rstrip(".")
        told = f"{OUT_OF_MEMORY}: Ray ended the process, for its node ran low: {why}"
    return RayActorError(error_msg=told)


def last_error(tune_trial: Any) -> str:
    """What Ray Tune wrote of a trial's error, here, without its stack: it reaches the storage later."""
    try:
        told = Path(tune_trial.error_file).read_text(errors="backslashreplace")
    except (OSError, TypeError):
        told = ""
    return storable(message_of(told)[:_LONGEST])


def message_of(told: str) -> str:
    r"""The message at the end of a traceback; of a process that is gone, how it went.

    >>> message_of('Traceback:\n  File "x.py", line 1\n    f()\nValueError: two\nlines')
    'ValueError: two\nlines'
    """
    lines = [line.rstrip() for line in told.splitlines() if line.strip()]
    if not lines:
        return "its process died before it could say why"
    if lines[-1].strip().startswith(OUT_OF_MEMORY):
        return lines[-1].strip()
    died = told.partition("Worker exit detail: ")[2].partition(" Some common causes")[0].strip()
    if (code := re.search(r"exit code (\d+)", died)) is not None:
        return f"its process exited with code {code[1]} before it ended"
    if died:
        return f"its process died ({died.rstrip('.')}); where nobody ended it, it crashed or memory ran out"
    after = 1 + max((i for i, line in enumerate(lines) if line.startswith("  File")), default=-1)
    begins = (i for i in range(after, len(lines)) if not lines[i][0].isspace())
    return "\n".join(line.strip() for line in lines[next(begins, len(lines) - 1) :])


def _with_all_deaths(failed: Any) -> Any:
    @functools.wraps(failed)
    def task_failed(manager: RayActorManager, tracked_actor_task: Any, exception: Exception) -> None:
        failed(manager, tracked_actor_task=tracked_actor_task, exception=death(exception))

    return task_failed


def _without_deaths(shows: Any) -> Any:
    """Of a worker's death Ray writes a page to the driver's stdout; the reason stands on its trials."""

    @functools.wraps(shows)
    def show(data: dict[str, Any], ignore_prefix: bool) -> None:
        left = [line for line in data["lines"] if not line.startswith(_TOLD_OF_A_DEATH)]
        if left:
            shows({**data, "lines": left}, ignore_prefix)

    return show


def _uncounted(callbacks: object) -> bool:
    """In place of Ray Tune's count of callbacks."""
    del callbacks
    return False
