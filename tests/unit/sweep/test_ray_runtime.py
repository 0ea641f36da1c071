"""Which Ray a driver may join, and which submitted job it drives; no Ray is started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiltyard.errors import MachineError
from tiltyard.ray_address import probe
from tiltyard.sweep.engine.ray_runtime import submitted_job

ROOT = Path(__file__).parents[3]


@pytest.fixture
def listening() -> Iterator[int]:
    """A port on loopback where connections are accepted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed() -> Iterator[int]:
    """A port on loopback that is held by nobody who listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "localhost:{}", "ray://127.0.0.1:{}"])
def test_probe_of_an_address_that_accepts_connections_is_content(listening: int, address: str) -> None:
    probe(address.format(listening))


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_probe_of_an_address_where_nothing_listens_says_what_to_do(closed: int, address: str) -> None:
    begun = time.monotonic()
    with pytest.raises(MachineError) as refused:
        probe(address.format(closed))
    assert time.monotonic() - begun < 10
    told = str(refused.value)
    assert address.format(closed) in told
    assert "tiltyard up" in told
    assert "RAY_ADDRESS" in told


@pytest.mark.parametrize("address", ["10.0.0.5", "10.0.0.5:many", ":6379", "10.0.0.5:99999", "ray://"])
def test_probe_of_what_is_no_address_says_the_form(address: str) -> None:
    with pytest.raises(MachineError, match="Wanted: host:port") as refused:
        probe(address)
    assert repr(address) in str(refused.value)


def test_probe_of_a_dashboard_names_the_command_that_submits_there() -> None:
    with pytest.raises(MachineError, match=r"ray job submit --address http://127\.0\.0\.1:8265"):
        probe("http://127.0.0.1:8265")


@pytest.mark.parametrize("address", ["local", "provider://cluster"])
def test_probe_of_what_ray_itself_starts_or_finds_tries_nothing(address: str) -> None:
    probe(address)


@pytest.mark.slow
def test_run_at_an_address_where_nothing_listens_ends_soon_and_claims_nothing(closed: int, tmp_path: Path) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TILTYARD_"))}
    words = f"-m tiltyard.cli run jobs/first_sweep.py --datasets wine --address 127.0.0.1:{closed}"
    done = subprocess.run(
        [sys.executable, *words.split()],
        cwd=ROOT,
        env={**env, "TILTYARD_HOME": str(tmp_path / "home"), "COLUMNS": "300"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"Nothing answers at RAY_ADDRESS 127.0.0.1:{closed}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "home" / "journal.db").exists(), "a key was claimed"


SUBMITTED = {  # as Ray 2.60's job supervisor writes it for `ray job submit --working-dir .`
    "runtime_env": {
        "env_vars": {"TILTYARD_HOME": "/home/me/.tiltyard"},
        "working_dir": "gcs://_ray_pkg_d6ff6e41a05d5a3f.zip",
        "_ray_commit": "0000000000000000000000000000000000000000",
    },
    "metadata": {"job_submission_id": "raysubmit_3b7Qm1yXvXqXrXuW", "job_name": "raysubmit_3b7Qm1yXvXqXrXuW"},
}


def test_submitted_job_is_read_from_the_job_configuration() -> None:
    assert submitted_job({"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(SUBMITTED)}) == "raysubmit_3b7Qm1yXvXqXrXuW"


@pytest.mark.parametrize("value", [None, "", "{", "[]", "{}", '{"metadata": null}', '{"metadata": {"job_name": "x"}}'])
def test_submitted_job_of_a_driver_that_was_not_submitted_is_empty(value: str | None) -> None:
    assert submitted_job({} if value is None else {"RAY_JOB_CONFIG_JSON_ENV_VAR": value}) == ""
