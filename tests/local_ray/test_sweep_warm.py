"""Processes that load what packs need before there are packs: Ray Tune's actors take them, and nobody else does."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import psutil
import pytest
import ray
from ray.tune.execution import class_cache

from tiltyard.sweep.engine.warm import Warm

pytestmark = pytest.mark.ray
DEADLINE_S = 120.0


class _Actor:
    """What Ray Tune makes of a trainable, as far as starting it goes."""

    def seen(self) -> tuple[int, bool]:
        return os.getpid(), "torch" in sys.modules


def _started(actor_class: Any) -> Any:
    return actor_class.remote()


def _as_ray_tune_has_it() -> Any:
    cache: Any = class_cache._ActorClassCache()  # type: ignore[no-untyped-call]
    return cache.get(_Actor)


def _warm_pids(*, loaded: bool = True) -> set[int]:
    """Processes of this session's Ray that were told to load; by itself those that are idle and came as far as torch."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            told = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR" in process.environ()
            idle = "ray::IDLE" in " ".join(process.cmdline())
            if told and (not loaded or (idle and any("libtorch" in m.path for m in process.memory_maps()))):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def test_warm_process_is_taken_by_the_actor_of_ray_tune_and_by_no_other(ray_session: None) -> None:
    before, defaults = _warm_pids(), dict(class_cache.DEFAULT_ENV_VARS)
    warm = Warm(1, {"CPU": 1.0})
    deadline = time.monotonic() + DEADLINE_S
    while not (pids := _warm_pids() - before):
        assert time.monotonic() < deadline, "no process was warmed"
        time.sleep(0.1)
    other = _started(ray.remote(num_cpus=0)(_Actor))
    assert ray.get(other.seen.remote())[0] not in before | pids
    with warm.taken():
        actor = _started(_as_ray_tune_has_it())
        pid, had_torch = ray.get(actor.seen.remote(), timeout=DEADLINE_S)
    assert pid in before | pids  # or one that a sweep of this session left
    assert had_torch
    assert defaults == class_cache.DEFAULT_ENV_VARS
    for handle in (actor, other):
        ray.kill(handle)


def test_warm_for_packs_that_no_node_holds_starts_none_and_actors_start_as_ever(ray_session: None) -> None:
    before = _warm_pids(loaded=False)
    with Warm(2, {"CPU": 1e6}).taken():
        actor = _started(_as_ray_tune_has_it())
        pid, _ = ray.get(actor.seen.remote(), timeout=DEADLINE_S)
    assert _warm_pids(loaded=False) <= before | {pid}
    ray.kill(actor)
