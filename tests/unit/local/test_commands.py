"""What is started: on loopback, with a token, on the same stores, and no secret in an argument."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiltyard.local import commands
from tiltyard.local.state import MARK_ENV, Cluster
from tiltyard.settings import Settings

CLUSTER = Cluster(id="c0ffee", home="/h", ready=False, started_at="", token_path="/h/up/token", temp_dir="/tmp/ty-x")
PORTS = {name: 20_000 + i for i, name in enumerate(commands.RAY_PORTS)}
SECRET = "s3cret"
SETTINGS = Settings.from_env(
    {
        "TILTYARD_HOME": "/h",
        "TILTYARD_JOURNAL_URI": f"postgresql://me:{SECRET}@db/journal",
        "TILTYARD_TRACKING_URI": f"postgresql://me:{SECRET}@db/mlflow",
        "TILTYARD_DATA_URI": "s3://bucket/data",
    }
)


def _ray_argv() -> list[str]:
    return commands.ray_argv(CLUSTER, PORTS, cpus=2, gpus=None, object_store_bytes=None)


def test_ray_argv_names_every_port_or_its_environment_does() -> None:
    in_argv = " ".join(_ray_argv())
    env = commands.ray_env({}, SETTINGS, CLUSTER, PORTS)
    for name, port in PORTS.items():
        assert f"={port}" in in_argv or str(port) in env.values(), name


def test_ray_argv_binds_loopback_and_leaves_out_what_was_not_given() -> None:
    argv = _ray_argv()
    assert "--node-ip-address=127.0.0.1" in argv
    assert "--dashboard-host=127.0.0.1" in argv
    assert "--num-cpus=2" in argv
    assert not [a for a in argv if a.startswith(("--num-gpus", "--object-store-memory"))]


def test_argv_of_every_server_holds_no_secret() -> None:
    assert SECRET not in " ".join([*_ray_argv(), *commands.mlflow_argv(25_000)])


def test_ray_env_finds_the_same_stores_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env = commands.ray_env({"PATH": "/bin"}, SETTINGS, CLUSTER, PORTS)
    monkeypatch.chdir(tmp_path)
    assert Settings.from_env(env) == SETTINGS


def test_ray_env_asks_for_the_token_and_drops_another_clusters() -> None:
    env = commands.ray_env({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_TOKEN": SECRET}, SETTINGS, CLUSTER, PORTS)
    assert (env["RAY_AUTH_MODE"], env["RAY_AUTH_TOKEN_PATH"]) == ("token", "/h/up/token")
    assert "RAY_ADDRESS" not in env
    assert "RAY_AUTH_TOKEN" not in env


def test_every_environment_carries_the_mark_and_the_closed_pickle_switch() -> None:
    for env in (
        commands.ray_env({}, SETTINGS, CLUSTER, PORTS),
        commands.mlflow_env({}, SETTINGS, CLUSTER),
    ):
        assert env[MARK_ENV] == CLUSTER.id
        assert env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_mlflow_env_stands_on_the_tracking_store() -> None:
    env = commands.mlflow_env({}, SETTINGS, CLUSTER)
    assert env["MLFLOW_BACKEND_STORE_URI"] == SETTINGS.tracking_uri
    assert env["MLFLOW_DEFAULT_ARTIFACT_ROOT"] == SETTINGS.artifact_root


@pytest.mark.parametrize(
    ("uri", "own"), [("http://mlflow:5000", True), ("https://m", True), ("sqlite:////h/m.db", False)]
)
def test_has_own_server_tells_a_server_from_a_store(uri: str, own: bool) -> None:
    assert commands.has_own_server(uri) is own
