"""A worker's death, however Ray words it, is one to Ray Tune's own actor manager, and no end of the run."""

from __future__ import annotations

from typing import Any

import pytest
from ray import exceptions
from ray.air.execution import FixedResourceManager, ResourceRequest
from ray.air.execution._internal import RayActorManager
from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.air.execution._internal.tracked_actor_task import TrackedActorTask

from tiltyard.sweep.engine.tuners import set_up

KILLED = """Task was killed due to the node running low on memory.
Memory on the node (IP: 10.0.0.7, ID: ab) where the task was running was 14.1GB / 15.0GB (0.94), which exceeds the memory \
usage threshold of 0.90. Ray killed this worker (ID: cd) because it was the most recently scheduled task.
To adjust the kill threshold, set the environment variable `RAY_memory_usage_threshold`.
"""


def told_of(error: Exception) -> list[Exception]:
    """What Ray Tune is told once a task of its only actor has failed so."""
    set_up()
    resources = FixedResourceManager(total_resources={"CPU": 1})
    manager = RayActorManager(resource_manager=resources)
    wanted = ResourceRequest([{"CPU": 1}])
    resources.request_resources(wanted)
    told: list[Exception] = []
    actor = TrackedActor(actor_id=1, on_error=lambda _, error: told.append(error), on_start=None, on_stop=None)
    live: dict[Any, Any] = manager._live_actors_to_ray_actors_resources
    live[actor] = None, resources.acquire_resources(wanted)
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
