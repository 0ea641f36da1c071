"""A Ray to run on: the cluster that a job was submitted to, or one of this process's own.

Under ``ray job submit`` the environment names the cluster (``RAY_ADDRESS``); without it a local Ray starts and ends with
this process. Token authentication is on: `tiltyard.ray_token` sees to that before Ray is imported.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray._private.utils import get_num_cpus
from ray.dashboard.modules.job.common import JOB_ID_METADATA_KEY

from tiltyard.errors import MachineError
from tiltyard.sweep.preflight import Node

OBJECT_STORE_SHARE = 0.25
"""Share of the machine's memory for a local object store, at most; Ray's own default is 0.3."""
OBJECT_STORE_MAX_BYTES = 2 << 30
PROBE_S = 5.0
"""How long a Ray that is to be joined may take to accept a connection; Ray itself tries for minutes and says nothing."""
CLIENT_PORT = 10001
"""Where a Ray Client server listens unless told otherwise."""


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
        MachineError: As `probe`.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address and not ray.is_initialized():
        probe(address)


def probe(address: str) -> None:
    """Something accepts a connection at an address of Ray within `PROBE_S`.

    ``host:port`` is tried as it stands; ``auto`` stands for the Ray that is found on this machine, ``ray://host`` for a
    Ray Client server; ``local`` starts one, so nothing is tried.

    Raises:
        MachineError: If nothing answers there, no Ray is found, or the address is none that a driver can join.
    """
    if address == "local":
        return
    found = address
    if address == "auto":
        try:
            found = canonicalize_bootstrap_address_or_die("auto")
        except ConnectionError as error:
            raise MachineError(_no_ray("RAY_ADDRESS is 'auto', and no Ray was found on this machine")) from error
    scheme, _, rest = found.rpartition("://")
    if scheme in {"http", "https"}:
        raise MachineError(
            f"RAY_ADDRESS is {address!r}, which is where jobs are submitted; a driver cannot join there. Wanted: host:port "
            f"of the head (port 6379 unless set otherwise). Or submit the job: ray job submit --address {address} -- ..."
        )
    if scheme not in {"", "ray"}:  # a provider of clusters that Ray loads by that name: only it knows
        return
    host, port = _host_and_port(address, rest, CLIENT_PORT if scheme else None)
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError as error:
        raise MachineError(_no_ray(f"Nothing answers at RAY_ADDRESS {address} ({error})")) from error


def _host_and_port(address: str, rest: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise MachineError(
            f"RAY_ADDRESS is {address!r}. Wanted: host:port of the head of a running Ray, e.g. 10.0.0.5:6379, or "
            "ray://host:port, or auto."
        )
    return host, port


def _no_ray(found: str) -> str:
    return (
        f"{found}. Wanted: the head of a running Ray. Start one here and join it (tiltyard up, then tiltyard run "
        "--address up), correct the address (--address or RAY_ADDRESS), or run without one: a Ray then starts and ends "
        "with the job."
    )


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
