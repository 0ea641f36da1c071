"""A Ray to run on: the cluster that a job was submitted to, or one of this process's own.

Under ``ray job submit`` the environment names the cluster (``RAY_ADDRESS``); without it a local Ray starts and ends with
this process. Token authentication is on: `tiltyard.ray_token` sees to that before Ray is imported.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.utils import get_num_cpus
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

from tiltyard.ray_address import probe
from tiltyard.sweep.preflight import Node

OBJECT_STORE_SHARE = 0.25
"""Share of the machine's memory for a local object store, at most; Ray's own default is 0.3."""
OBJECT_STORE_MAX_BYTES = 2 << 30


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


def ensure_ray(*, cpus: int | None = None) -> bool:
    """Connects to the cluster of the environment or starts a local Ray; True where one was started here.

    Args:
        cpus: CPUs of a local Ray; None means all of the machine.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return False
    ray.init(
        address="local",  # without it Ray joins whatever somebody started on this machine with `ray start`
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_object_store_bytes(),
    )
    return True


def nodes() -> list[Node] | None:
    """The nodes of the Ray that is up, or the one that `ensure_ray` would start; None before a cluster is joined."""
    if ray.is_initialized():
        found = [(n["NodeManagerAddress"], n["Resources"]) for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]
        return [Node(name=name, cpus=has.get("CPU", 0), gpus=has.get("GPU", 0)) for name, has in found]
    if os.environ.get("RAY_ADDRESS"):
        return None
    import torch

    return [Node(name="this machine", cpus=get_num_cpus(), gpus=torch.cuda.device_count())]


def slots(cpus: float, gpus: float) -> int:
    """How many packs the cluster holds at once now."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    by_cpu = int(have.get("CPU", 0) // cpus) if cpus else 1 << 16
    by_gpu = int(have.get("GPU", 0) // gpus) if gpus else 1 << 16
    return max(1, min(by_cpu, by_gpu))


def _object_store_bytes() -> int:
    import psutil

    return min(OBJECT_STORE_MAX_BYTES, int(psutil.virtual_memory().total * OBJECT_STORE_SHARE))
