"""A Ray to run on: the cluster that a job was submitted to, or one of this process's own.

Under ``ray job submit`` the environment names the cluster (``RAY_ADDRESS``); without it a local Ray starts with token
authentication, its token in a file of mode 0600 under the home of Tiltyard, and ends with this process.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

import ray

from tiltyard.settings import Settings

OBJECT_STORE_SHARE = 0.25
"""Share of the machine's memory for a local object store, at most; Ray's own default is 0.3."""
OBJECT_STORE_MAX_BYTES = 2 << 30


def ensure_ray(settings: Settings, *, cpus: int | None = None) -> bool:
    """Connects to the cluster of the environment or starts a local Ray; True where one was started here.

    Args:
        settings: Where the local token file goes.
        cpus: CPUs of a local Ray; None means all of the machine.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return False
    use_own_token(settings)
    ray.init(
        num_cpus=cpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=_object_store_bytes(),
        # idle workers that Ray starts in advance would import nothing of ours; two cores are better left to packs
        _system_config={"worker_register_timeout_seconds": 120},
    )
    return True


def use_own_token(settings: Settings) -> Path:
    """A token of this home's own, readable by nobody else: Ray would write one with mode 0644 to the user's home."""
    path = settings.ensure_home() / "ray-token"
    if not path.exists():
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    return path


def slots(cpus: float, gpus: float) -> int:
    """How many packs the cluster holds at once now."""
    have = ray.cluster_resources()
    by_cpu = int(have.get("CPU", 0) // cpus) if cpus else 1 << 16
    by_gpu = int(have.get("GPU", 0) // gpus) if gpus else 1 << 16
    return max(1, min(by_cpu, by_gpu))


def _object_store_bytes() -> int:
    import psutil

    return min(OBJECT_STORE_MAX_BYTES, int(psutil.virtual_memory().total * OBJECT_STORE_SHARE))
