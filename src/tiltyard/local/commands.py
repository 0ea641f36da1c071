"""What exactly is started: the command line and the environment of every server of a local cluster.

Pure: paths and numbers in, arguments and variables out. No secret stands in an argument: stores whose URI may hold a
password travel in the environment, the token in a file of mode 0600.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tiltyard.local.state import MARK_ENV, Cluster
from tiltyard.serving.environment import SERVE_ENV
from tiltyard.settings import Settings

RAY, MLFLOW, PROMETHEUS, RECORD = "ray", "mlflow", "prometheus", "record"
RAY_PORTS = (
    "gcs",
    "dashboard",
    "agent_http",
    "agent_grpc",
    "runtime_env_agent",
    "metrics",
    "autoscaler_metrics",
    "dashboard_metrics",
    "client",
    "node_manager",
    "object_manager",
)
"""Every port that a Ray head listens on. All are given: the defaults are those of any other Ray on this machine."""

LOOPBACK_ENV = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray takes 127.0.0.1 for "the address by which others reach me" unless this, its multi-node mode, is 0. With it on, GCS,
raylet, agents and metrics listened on every interface (seen with Ray 2.60: ``[::]`` and ``0.0.0.0``)."""


def store_env(settings: Settings) -> dict[str, str]:
    """Variables under which `Settings.from_env` finds the same stores in another process, whatever its folder."""
    return {
        "TILTYARD_HOME": str(settings.home),
        "TILTYARD_JOURNAL_URI": settings.journal_uri,
        "TILTYARD_TRACKING_URI": settings.tracking_uri,
        "TILTYARD_DATA_URI": settings.data_uri,
        "TILTYARD_STORAGE_URI": settings.storage_uri,
    }


def client_env(cluster: Cluster) -> dict[str, str]:
    """What a client of the Ray head needs; a token without the mode is not sent."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster.token_path}


def driver_env(cluster: Cluster) -> dict[str, str]:
    """What a driver on this machine needs so that ``ray.init()`` joins the cluster."""
    ray = next(s for s in cluster.services if s.name == RAY)
    return {**client_env(cluster), "RAY_ADDRESS": f"127.0.0.1:{ray.ports['gcs']}", LOOPBACK_ENV: "0"}


def _shared_env(env: Mapping[str, str], cluster: Cluster) -> dict[str, str]:
    # PYTHONDONTWRITEBYTECODE makes every process compile Ray, MLflow and torch anew where the installer did not: `up` took
    # 21 s with it and 8 s without (two cores), and each worker of a job 3 s more.
    dropped = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONDONTWRITEBYTECODE"}
    bin_folder = str(Path(sys.executable).parent)  # so that `python` in a job is this Python
    return {
        **{k: v for k, v in env.items() if k not in dropped},
        MARK_ENV: cluster.id,
        "PATH": f"{bin_folder}:{env.get('PATH', '')}".rstrip(":"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONUNBUFFERED": "1",
    }


def ray_env(
    env: Mapping[str, str],
    settings: Settings,
    cluster: Cluster,
    ports: Mapping[str, int],
    *,
    prometheus: str | None = None,
) -> dict[str, str]:
    """Environment of the Ray head; every job and worker inherits it, and so finds the stores.

    ``prometheus`` is the address of the one that is started beside it: Ray's dashboard asks it for its graphs.
    """
    asks = {} if prometheus is None else {"RAY_PROMETHEUS_HOST": prometheus, "RAY_PROMETHEUS_NAME": "Prometheus"}
    return {
        **_shared_env(env, cluster),
        **store_env(settings),
        **client_env(cluster),
        **{name: env.get(name, value) for name, value in SERVE_ENV.items()},
        "RAY_USAGE_STATS_ENABLED": "0",
        LOOPBACK_ENV: "0",
        # One node has nowhere to move its work to: with Ray's 30 s `down` waited 10 s, then ended it by force.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "AUTOSCALER_METRIC_PORT": str(ports["autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(ports["dashboard_metrics"]),
        "RAY_GRAFANA_HOST": env.get("RAY_GRAFANA_HOST", "DISABLED"),
        **asks,
    }


def ray_argv(
    cluster: Cluster, ports: Mapping[str, int], *, cpus: int | None, gpus: int | None, object_store_bytes: int | None
) -> list[str]:
    """Starts the head and stays, so that its end ends all of it."""
    flags: dict[str, object] = {
        "node-ip-address": "127.0.0.1",
        "port": ports["gcs"],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports["dashboard"],
        "dashboard-agent-listen-port": ports["agent_http"],
        "dashboard-agent-grpc-port": ports["agent_grpc"],
        "runtime-env-agent-port": ports["runtime_env_agent"],
        "metrics-export-port": ports["metrics"],
        "ray-client-server-port": ports["client"],
        "node-manager-port": ports["node_manager"],
        "object-manager-port": ports["object_manager"],
        "min-worker-port": 0,  # 0: each worker takes a port of the system's choice; the default range is everybody's
        "max-worker-port": 0,
        "temp-dir": cluster.temp_dir,
        "log-style": "record",
        "num-cpus": cpus,
        "num-gpus": gpus,
        "object-store-memory": object_store_bytes,
    }
    given = [f"--{name}={value}" for name, value in flags.items() if value is not None]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *given]


def mlflow_env(env: Mapping[str, str], settings: Settings, cluster: Cluster) -> dict[str, str]:
    """Environment of the MLflow server: the same stores as a sweep that runs without a server."""
    return {
        **_shared_env(env, cluster),
        "TILTYARD_HOME": str(settings.home),
        "MLFLOW_BACKEND_STORE_URI": settings.tracking_uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": settings.artifact_root,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def mlflow_argv(port: int) -> list[str]:
    """One worker: SQLite has one writer anyway, and each further worker is another 200 MiB."""
    hosts = f"localhost:{port},127.0.0.1:{port}"
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--allowed-hosts", hosts, "--cors-allowed-origins", f"http://localhost:{port},http://127.0.0.1:{port}"),
    ]


def prometheus_program() -> str | None:
    """Where Prometheus is installed (Debian: ``apt-get install prometheus``); None where it is not."""
    return shutil.which("prometheus")


def prometheus_argv(program: str, folder: Path, port: int) -> list[str]:
    """Prometheus on loopback, with its data in ``folder``: two weeks of them, 1 GB at most."""
    return [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=15d",
        "--storage.tsdb.retention.size=1GB",
        f"--web.listen-address=127.0.0.1:{port}",
    ]


def prometheus_env(env: Mapping[str, str], settings: Settings, cluster: Cluster) -> dict[str, str]:
    """Environment of Prometheus: nothing but what it needs and the mark."""
    kept = {k: v for k, v in env.items() if k in {"PATH", "HOME", "LANG", "TZ", "TMPDIR"}}
    return {**kept, MARK_ENV: cluster.id, "TILTYARD_HOME": str(settings.home)}


def record_argv(port: int) -> list[str]:
    """The exporter of what stands in the record."""
    return [sys.executable, "-m", "tiltyard.telemetry.exporter", "--port", str(port)]


def record_env(env: Mapping[str, str], settings: Settings, cluster: Cluster, mlflow: str | None) -> dict[str, str]:
    """Environment of the exporter: the same stores, but the registry through the MLflow server that starts beside it.

    Two processes that open a new SQLite store of MLflow at once both make its tables, and one of them fails.
    """
    found = {**_shared_env(env, cluster), **store_env(settings)}
    return found if mlflow is None else {**found, "TILTYARD_TRACKING_URI": mlflow}


def has_own_server(tracking_uri: str) -> bool:
    """True where tracking already goes to a server, so that none is to be started."""
    return tracking_uri.startswith(("http://", "https://"))
