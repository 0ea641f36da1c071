"""What all tests share: a home of their own, one thread, and one Ray per session."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session", autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray writes its token to the home folder; no test may write to the user's."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(home)
    yield home
    if before is not None:
        os.environ["HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared by all tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session(home_of_its_own: Path) -> Iterator[None]:
    """The session's one local Ray: two CPUs, 1 GiB object store."""
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=1 << 30,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
