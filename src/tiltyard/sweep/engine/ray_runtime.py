"""A Ray to run on: the cluster that a job was submitted to, or one of this process's own.

Under ``ray job submit`` the environment names the cluster (``RAY_ADDRESS``); without it a local Ray starts and ends with
this process. Token authentication is on: `tiltyard.ray_token` sees to that before Ray is imported.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.utils import get_num_cpus
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

from tiltyard.experiment import Resources
from tiltyard.placement import GPU_NODE_CPU, NodeGroup, asked, at_once, fit
from tiltyard.ray_address import port_of_its_own, probe
from tiltyard.sweep.preflight import SHARED_MEMORY, Node, check_placement, object_store_bytes


def submitted_job(environ: Mapping[str, str] = os.environ) -> str:
    """The submission id of the job that this process drives; empty where it was not started by ``ray job submit``.

    Ray 2.60 names it in the job configuration that its job supervisor puts into the driver's environment
    (``ray/dashboard/modules/job/job_supervisor.py``), beside the metadata of ``--metadata-json``.
    """
    try:
        found = json.loads(environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}"))["metadata"][JOB_ID_METADATA_KEY]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(found)


def check_address() -> None:
    """The Ray that the environment names (``RAY_ADDRESS``) is there; nothing to check without one, or once Ray is up.

    Raises:
        MachineError: As `tiltyard.ray_address.probe`.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address and not ray.is_initialized():
        probe(address)


def is_up() -> bool:
    """This process is connected to one."""
    return bool(ray.is_initialized())


def ensure_ray(*, cpus: int | None = None) -> bool:
    """Connects to the cluster of the environment or starts a local Ray; True where one was started here.

    Args:
        cpus: CPUs of a local Ray; None means all of the machine.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    with _sigterm_kept():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return False
        with port_of_its_own():
            ray.init(
                address="local",  # without it Ray joins whatever somebody started on this machine with `ray start`
                num_cpus=cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=_object_store_bytes(),
            )
        return True


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """What SIGTERM does stays as it was, where that was decided before.

    Ray 2.60 puts a handler that exits at once in place of any other (``Node._register_shutdown_hooks``), and a job that is
    stopped would leave its sweep as failed instead of ending it in order.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def nodes(groups: Sequence[NodeGroup] = ()) -> list[Node] | None:
    """The nodes that may come, or those of the Ray that is up, or the one that `ensure_ray` would start.

    Args:
        groups: What the cluster's description says (`tiltyard.placement.groups_of`).

    Returns:
        None before a cluster is joined that nothing is known of.
    """
    if groups:
        return [_node(f"{g.name}, at most {g.most}", g.offers) for g in groups]
    if ray.is_initialized():
        found = [(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        return [_node(name, has) for name, has in found]
    if os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    return [Node(name="this machine", cpus=get_num_cpus(), gpus=torch.cuda.device_count())]


def check_nodes(resources: Resources, groups: Sequence[NodeGroup] = ()) -> None:
    """Some node can hold a pack, as far as the nodes are known.

    Raises:
        PreflightError: With the arithmetic, if not.
    """
    found = nodes(groups)
    if found is not None:
        check_placement(resources, found)


def _node(name: str, has: Mapping[str, float]) -> Node:
    return Node(name=name, cpus=has.get("CPU", 0), gpus=has.get("GPU", 0), gpu_node_cpus=has.get(GPU_NODE_CPU, 0))


def slots(resources: Resources, groups: Sequence[NodeGroup] = ()) -> int:
    """How many packs the cluster holds at once: at its bounds where it is described, else now."""
    ask = asked(resources, groups)
    if groups:
        return max(1, at_once(ask, groups))
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, fit(ask, have))


def slot_bytes(resources: Resources, groups: Sequence[NodeGroup] = ()) -> int | None:
    """Memory for one pack where the most of them run beside each other; None where it is not known.

    Of a GPU, as this process sees one; else of the node that has the least for each pack that fits it, as Ray counts memory.
    """
    if resources.gpus:
        import torch

        if not torch.cuda.is_available():
            return None
        return int(torch.cuda.get_device_properties(0).total_memory * min(1.0, resources.gpus))
    ask, found = asked(resources, groups), []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        has = node["Resources"]
        packs = min(fit(ask, has), resources.max_concurrent or 1 << 30) if node["Alive"] else 0
        if packs and has.get("memory"):
            found.append(int(has["memory"] // packs))
    return min(found, default=None)


def _object_store_bytes() -> int:
    import psutil

    shared = os.statvfs(SHARED_MEMORY) if os.path.isdir(SHARED_MEMORY) else None
    return object_store_bytes(
        memory_bytes=psutil.virtual_memory().total,
        shared_bytes=None if shared is None else shared.f_bsize * shared.f_bavail,
    )
