"""A worker's death, however Ray words it, is one to Ray Tune's own actor manager, and no end of the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray import exceptions
from ray._private import worker
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask

from tiltyard.sweep.engine.tuners import message_of, set_up

KILLED = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: ab) where the task was running was 14.1GB / 15.0GB (0.94), which exceeds the memory \
usage threshold of 0.90. Ray killed this worker (ID: cd) because it was the most recently scheduled task.
To adjust the kill threshold, set the environment variable `RAY_memory_usage_threshold`.
"""


def told_of(error: Exception) -> list[Exception]:
    """What Ray Tune is told once a task of its only actor has failed so."""
    set_up()
    room: Any = SimpleNamespace(free_resources=lambda acquired_resource: None)  # a real one starts a Ray
    manager = RayActorManager(resource_manager=room)
    told: list[Exception] = []
    actor = TrackedActor(actor_id=1, on_error=lambda _, error: told.append(error), on_start=None, on_stop=None)
    live: dict[Any, Any] = manager._live_actors_to_ray_actors_resources
    live[actor] = None, None
    task = TrackedActorTask(tracked_actor=actor, on_result=None, on_error=None)
    manager._actor_task_failed(tracked_actor_task=task, exception=error)  # named, as Ray Tune does
    return told


OutOfMemoryError: Any = exceptions.OutOfMemoryError
NodeDiedError: Any = exceptions.NodeDiedError
RaySystemError: Any = exceptions.RaySystemError


@pytest.mark.parametrize(
    "error", [OutOfMemoryError(KILLED), exceptions.WorkerCrashedError(), NodeDiedError("n1 is gone")]
)
def test_workers_death_is_an_actors_death_to_ray_tune(error: Exception) -> None:
    assert [type(e) for e in told_of(error)] == [exceptions.RayActorError]


def test_workers_death_for_memory_says_so_in_one_line() -> None:
    (error,) = told_of(OutOfMemoryError(KILLED))
    assert str(error).startswith("out of memory: Ray ended the process, for its node ran low: Memory on the node")
    assert str(error).endswith("usage threshold of 0.90")


def test_error_that_is_nobodys_death_is_ray_tunes_to_judge_as_ever() -> None:
    with pytest.raises(RuntimeError, match="unexpected exception"):
        told_of(RaySystemError("no such thing"))


def test_set_up_twice_wraps_once() -> None:
    set_up()
    first: Any = RayActorManager._actor_task_failed
    set_up()
    assert RayActorManager._actor_task_failed is first


ENDED = """Failure # 1
Traceback (most recent call last):
  File "ray/worker.py", line 1055, in get_objects
    raise value
ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.
\tpid: 17
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: {detail}
"""
RAISED = """Traceback (most recent call last):
  File "ray/worker.py", line 1055, in get_objects
    raise value
ray.exceptions.RayTaskError(ValueError): ray::ImplicitFunc.train()
  File "mine.py", line 3, in train
    raise ValueError("two\\nlines")
ValueError: two
lines
"""


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("", "its process died before it could say why"),
        (RAISED, "ValueError: two\nlines"),
        (ENDED.format(detail="Worker exits with an exit code 2."), "its process exited with code 2 before it ended"),
        (
            ENDED.format(detail="A connection error. End of file. Some common causes include: (1) the OOM killer"),
            "its process died (A connection error. End of file); where nobody ended it, it crashed or memory ran out",
        ),
        ("Traceback\n  File x\nOther\nout of memory: it was full", "out of memory: it was full"),
        ("no traceback at all", "no traceback at all"),
    ],
)
def test_reason_of_a_trial_is_the_message_without_the_stack(told: str, message: str) -> None:
    assert message_of(told) == message


def test_what_ray_writes_of_a_workers_death_is_not_shown_and_all_else_is(capsys: pytest.CaptureFixture[str]) -> None:
    set_up()
    lines = [
        "A worker died or was killed while executing a task by an unexpected system error. To trouble",
        "disk is full",
    ]
    for line in lines:
        worker.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    told = capsys.readouterr().out
    assert "disk is full" in told
    assert "A worker died" not in told
