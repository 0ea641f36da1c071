"""What all tests share: a home of their own, one thread, one Ray and one PostgreSQL per session."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tiltyard.serving.environment import SERVE_ENV

STARTS_ITS_OWN = {"test_up_down.py"}
"""Files of `local_ray/` that do not use the session's Ray."""

settings.register_profile("tiltyard", deadline=None)  # two cores are shared: how long an example takes says nothing
settings.load_profile("tiltyard")
os.environ.pop("COLUMNS", None)  # what a test sees printed does not depend on the terminal it is started from
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # by itself 15: whatever else the machine does would go first
for _name, _value in SERVE_ENV.items():
    os.environ.setdefault(_name, _value)  # as the Ray of `tiltyard serve` and `tiltyard up`
os.environ.setdefault("RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")  # Serve's 10 s are for clusters
os.environ.setdefault("RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "1")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where processes share the tests by file, all on the session's Ray go to one of them, so that there is one Ray."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class OneRay(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            on_the_sessions = "/local_ray/" in file and Path(file).name not in STARTS_ITS_OWN
            return "ray" if on_the_sessions else file

    return OneRay(config, log)


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
def interrupts_reach_children() -> None:
    """A shell starts what it puts into the background with SIGINT ignored, and every child would inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two cores are shared by all tests."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def ray_session(home_of_its_own: Path) -> Iterator[None]:
    """The session's one local Ray: two CPUs, 1 GiB object store."""
    import ray

    from tiltyard.ray_address import port_of_its_own

    with port_of_its_own():
        ray.init(
            address="local",  # not one that somebody else started on this machine
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=1 << 30,
            logging_level=logging.ERROR,
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """A PostgreSQL of this session's own, on a unix socket; the address of its ``postgres`` database.

    Skips where Debian's PostgreSQL is missing (apt-get install postgresql); fails there under TILTYARD_PARTS_REQUIRED=1.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        missing = "Debian's PostgreSQL is not installed: apt-get install postgresql"
        if os.environ.get("TILTYARD_PARTS_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    programs, home = found[-1].parent, Path(tempfile.mkdtemp(prefix="tiltyard-pg-", dir="/tmp"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        names = {entry.pw_name for entry in pwd.getpwall()}
        name = "postgres" if "postgres" in names else "nobody"
        user = {"user": name, "group": pwd.getpwnam(name).pw_gid, "extra_groups": []}
        shutil.chown(home, name)
    common: dict[str, Any] = {"cwd": home, "env": {"LC_ALL": "C", "HOME": str(home)}, **user}
    init = [
        str(programs / "initdb"),
        "-D",
        str(home / "data"),
        "-U",
        "postgres",
        "-A",
        "trust",
        "-N",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    subprocess.run(init, check=True, capture_output=True, timeout=60, **common)
    options = [f"-cunix_socket_directories={home}", "-clisten_addresses=", "-cfsync=off", "-cshared_buffers=16MB"]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", home / "data", *options], stderr=log, stdout=log, **common
        )
    try:
        deadline = time.monotonic() + 30
        ready = [str(programs / "pg_isready"), "-q", "-h", str(home), "-U", "postgres"]
        while subprocess.run(ready, check=False, timeout=10, **common).returncode != 0:
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"PostgreSQL did not start: {(home / 'log').read_text()[-2000:]}")
            time.sleep(0.05)
        yield f"postgresql://postgres@/postgres?host={home}"
    finally:
        server.send_signal(signal.SIGINT)  # "fast": ends sessions, leaves no shared memory behind
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=10)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def postgres_uri(postgres_server: str) -> Iterator[str]:
    """An empty database of this test's own; a SQLAlchemy URL."""
    import psycopg

    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    yield postgres_server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgres_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
