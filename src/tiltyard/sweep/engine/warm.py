"""Processes that have loaded what packs need before there are packs for them.

A pack's actor starts in a process that must first load Ray, Ray Tune and torch: some 3 s on two cores, 6 s where two load
at once. Ray starts such processes ahead of their actors where it is asked to (its ``PrestartWorkers`` call), and gives one
to the first actor that wants the very same runtime environment. Ray Tune's actors always have one of their own, so nobody
else takes these. They are asked for as soon as Ray is up, and load while the driver shares the data.

Each says in the cluster's key-value store that it began to load and that it has loaded; the first packs wait for that.
They hold no CPU of Ray's and belong to this job: what no pack took within `KEPT_S` is Ray's to end as any idle process.
Where a node cannot be asked, its packs start as they would without this.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray._private.runtime_env.setup_hook import decode_function_key
from ray._private.utils import get_runtime_env_info
from ray._private.worker import global_worker
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc
from ray.experimental import internal_kv
from ray.runtime_env import RuntimeEnv
from ray.runtime_env.runtime_env import _merge_runtime_env
from ray.tune.execution import class_cache

from tiltyard.placement import fit

KEPT_S = 120
"""Sharing large data takes longer than starting processes."""
ANSWER_S = 10.0
BEGUN_S = 5.0
"""A process that will start has begun to load by then, after 1.2 to 2 s on two busy cores. An actor that comes before its
raylet knows the process gets another one, and twice as many load at once."""
READY_S = 10.0
"""For one that has begun to load it is worth to wait so long: an actor that starts meanwhile takes the same cores."""
LOOK_EVERY_S = 0.05
LOADED = (
    "torch",
    "torch.func",
    "ray.tune",
    "ray.data",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.fs",
    "sqlalchemy.dialects.sqlite",
    "safetensors.torch",
    "psutil",
)
"""What a pack needs of other people's packages. None of ours: where Ray finds those is settled by a process's first work."""
_BEGUN, _LOADED = "begun", "loaded"
_LOG = logging.getLogger(__name__)


class Warm:
    """Asks for warm processes and has Ray Tune's actors take them.

    Args:
        packs: How many packs will start at first.
        ask: Ray resources of a pack.
    """

    def __init__(self, packs: int, ask: Mapping[str, float]) -> None:
        self._hook: dict[str, str] = {}
        try:
            wanted = spread(packs, ask, _alive())
            job = global_worker.current_job_id.binary()
            self._told = f"tiltyard-warm/{job.hex()}/"
            loader = _loader(LOADED, self._told)
            key = global_worker.function_actor_manager.export_setup_func(loader, timeout=int(ANSWER_S))
            hook = {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: decode_function_key(key)}
            environment = _environment_of_actors(hook)
            self._left = _said(self._told)
        except Exception as error:  # of what is Ray's own and may change
            _LOG.info("no process is warmed for packs: %s: %s", type(error).__name__, error)
            return
        self._hook, self._asked = hook, time.monotonic()
        self._wanted = sum(wanted.values())
        for address, count in wanted.items():
            threading.Thread(target=_prestart, args=(address, count, environment, job), daemon=True).start()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Actors that Ray Tune starts within the block take warm processes while there are some.

        Their runtime environment names what loads the packages; Ray Tune 2.60 takes it from ``DEFAULT_ENV_VARS``.
        """
        if self._hook:
            self._wait()
        before = dict(class_cache.DEFAULT_ENV_VARS)
        class_cache.DEFAULT_ENV_VARS.update(self._hook)
        try:
            yield
        finally:
            class_cache.DEFAULT_ENV_VARS.clear()
            class_cache.DEFAULT_ENV_VARS.update(before)

    def _wait(self) -> None:
        """Until every process that began to load has loaded, and no more of them are to come."""
        while (waited := time.monotonic() - self._asked) < READY_S:
            said = _said(self._told) - self._left
            begun, loaded = (sum(key.endswith(word) for key in said) for word in (_BEGUN, _LOADED))
            if loaded >= begun and (begun >= self._wanted or waited >= BEGUN_S):
                break
            time.sleep(LOOK_EVERY_S)
        self._wanted = 0  # nobody waits for them twice
        _forget(self._told)


def spread(packs: int, ask: Mapping[str, float], nodes: Sequence[tuple[str, Mapping[str, float]]]) -> dict[str, int]:
    """How many processes each node is to start.

    Args:
        packs: How many are wanted.
        ask: Ray resources of each.
        nodes: Address and Ray resources of those that are there.

    >>> spread(3, {"CPU": 1}, [("a:1", {"CPU": 2}), ("b:1", {"CPU": 2}), ("c:1", {"GPU": 1})])
    {'a:1': 2, 'b:1': 1}
    """
    found: dict[str, int] = {}
    room = {address: fit(ask, has) for address, has in nodes}
    while packs > sum(found.values()):
        free = [a for a in room if found.get(a, 0) < room[a]]
        if not free:
            break
        least = min(free, key=lambda a: found.get(a, 0))
        found[least] = found.get(least, 0) + 1
    return found


def _alive() -> list[tuple[str, Mapping[str, float]]]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [(f"{n['NodeManagerAddress']}:{n['NodeManagerPort']}", n["Resources"]) for n in nodes if n["Alive"]]


def _loader(names: Sequence[str], prefix: str) -> Callable[[], None]:
    """A function that travels whole, so that a process runs it before it can find our package."""
    begun, loaded = _BEGUN, _LOADED

    def load() -> None:
        import contextlib
        import importlib
        import os
        import socket

        from ray.experimental import internal_kv

        def say(word: str) -> None:
            with contextlib.suppress(Exception):
                internal_kv._internal_kv_put(f"{prefix}{socket.gethostname()}/{os.getpid()}/{word}", b"")

        say(begun)
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        say(loaded)

    return load


def _said(prefix: str) -> set[str]:
    """What processes of this job said, in any of its sweeps."""
    return {key.decode() for key in internal_kv._internal_kv_list(prefix)}


def _forget(prefix: str) -> None:
    """A cluster outlives its jobs by months, and so would what their processes said."""
    internal_kv._internal_kv_del(prefix, del_by_prefix=True)


def _environment_of_actors(hook: Mapping[str, str]) -> Any:
    """The runtime environment that Ray Tune's actors of this job will have, as Ray's protocol has it."""
    cache: Any = class_cache._ActorClassCache()  # type: ignore[no-untyped-call]
    actors = cache.get(type("Any", (), {}))  # asked, so that it is the same whatever Ray adds to it
    env_vars = {**actors._default_options["runtime_env"]["env_vars"], **hook}
    own, of_job = RuntimeEnv(env_vars=env_vars), ray.get_runtime_context().runtime_env
    if not of_job:
        return get_runtime_env_info(own)
    merged = RuntimeEnv(**(_merge_runtime_env(of_job, own, override=True) or {}))
    info = get_runtime_env_info(merged)
    # as Ray's core writes what it merges: a process is given to actors whose text is the same
    info.serialized_runtime_env = json.dumps(merged.to_dict(), sort_keys=True, separators=(",", ":"))
    return info


def _prestart(address: str, count: int, environment: Any, job: bytes) -> None:
    try:
        messages: Any = node_manager_pb2
        services: Any = node_manager_pb2_grpc
        languages: Any = common_pb2
        request = messages.PrestartWorkersRequest(
            language=languages.PYTHON, job_id=job, num_workers=count, keep_alive_duration_secs=KEPT_S
        )
        request.runtime_env_info.CopyFrom(environment)
        with init_grpc_channel(address) as channel:
            services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=ANSWER_S)
    except Exception as error:
        _LOG.info("%s starts no process ahead of its packs: %s: %s", address, type(error).__name__, error)
