"""Starting, showing and ending a whole cluster on this machine.

`up` starts a Ray head and an MLflow server on the stores of `Settings`, and where Prometheus is installed also that, with
the exporter of the record; it waits until all answer, and records what it started; `down` ends exactly that. Everything
listens on 127.0.0.1, Ray asks for a token. Another server is one more entry in `_plan`.

What it never does: end a process it did not start, touch another Ray on this machine, put a token or a password in an
argument, a log or the state file.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from tiltyard.errors import MachineError
from tiltyard.local import commands, ports, processes, state
from tiltyard.local.state import Cluster, Service
from tiltyard.settings import Settings
from tiltyard.telemetry.alerts import rules_file, scrape_file

_SOCKET_PATH_LIMIT = 107
"""Bytes of a UNIX socket's path (sun_path, Linux unix(7)), less the closing zero."""
_SESSION_PATH_LENGTH = len("/session_2026-11-24_16-41-53_808391_4194304/sockets/plasma_store")
_TEMP_PREFIX = "ty-"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of the machine the Ray head may use; None leaves it to Ray."""

    cpus: int | None = None
    gpus: int | None = None
    object_store_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What `up` found or made."""

    cluster: Cluster
    started: bool
    """False where it was up already."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What `down` ended."""

    processes: int
    services: tuple[str, ...]
    logs: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """Whether a recorded server runs and answers."""

    service: Service
    running: bool
    answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    name: str
    url: str
    ports: dict[str, int]
    argv: list[str]
    env: dict[str, str]
    ready: Callable[[], bool]


def up(
    settings: Settings,
    *,
    size: Size = Size(),
    timeout_s: float = 90.0,
    prometheus: bool = True,
    say: Say = lambda _: None,
) -> Outcome:
    """Starts the cluster of this home, or finds it running.

    Args:
        settings: Which stores it stands on.
        size: What the Ray head may use.
        timeout_s: How long the servers may take to answer.
        prometheus: Also start Prometheus, where it is installed.
        say: Told in one line what is going on.

    Raises:
        MachineError: If a server ends or does not answer in time; what was started is ended again first.
    """
    begun = time.monotonic()
    settings.ensure_home()
    with _alone(settings.cluster_state):
        cluster = state.read(settings.cluster_state)
        if cluster is not None:
            if cluster.ready and all(s.running for s in status_of(cluster)):
                return Outcome(cluster=cluster, started=False, seconds=time.monotonic() - begun)
            say("The state file tells of a cluster that does not run as a whole any more; clearing what is left of it.")
            _end(settings, cluster)
        cluster = _start(settings, os.environ, size, timeout_s, prometheus)
        return Outcome(cluster=cluster, started=True, seconds=time.monotonic() - begun)


def down(settings: Settings) -> Ended | None:
    """Ends every process that `up` started for this home; None where nothing was up.

    Raises:
        MachineError: If a process would not end; the message names it.
    """
    if not settings.cluster_state.exists():
        return None
    with _alone(settings.cluster_state):
        cluster = state.read(settings.cluster_state)
        return None if cluster is None else _end(settings, cluster)


def status(settings: Settings) -> tuple[Cluster, list[ServiceStatus]] | None:
    """The cluster of this home and how its servers are; None where nothing was started."""
    cluster = state.read(settings.cluster_state)
    return None if cluster is None else (cluster, status_of(cluster))


def status_of(cluster: Cluster) -> list[ServiceStatus]:
    """Whether each server runs, and whether it answers."""
    found = []
    for service in cluster.services:
        running = processes.alive(service.process)
        found.append(ServiceStatus(service=service, running=running, answers=running and _answers(service.url)))
    return found


def submit_line(cluster: Cluster, job: str = "jobs/first_sweep.py") -> str:
    """The command that sends a job to this cluster, ready to paste."""
    ray = service_of(cluster, commands.RAY)
    env = " ".join(f"{name}={value}" for name, value in commands.client_env(cluster).items())
    return f"{env} {_ray_program()} job submit --address {ray.url} --working-dir . -- python {job}"


def join(settings: Settings) -> dict[str, str]:
    """The variables under which ``ray.init()`` in this process joins the cluster of this home.

    Raises:
        MachineError: If it is not up.
    """
    found = status(settings)
    if found is None or not all(s.running for s in found[1]):
        raise MachineError(f"Nothing is up for {settings.home}, or not all of it. Start it: tiltyard up")
    return commands.driver_env(found[0])


def service_of(cluster: Cluster, name: str) -> Service:
    """The recorded server of that name.

    Raises:
        MachineError: If the cluster has none.
    """
    service = cluster.service(name)
    if service is None:
        raise MachineError(f"The cluster of {cluster.home} has no {name} server. Start anew: tiltyard down, then up.")
    return service


def _ray_program() -> str:
    import sys

    beside = Path(sys.executable).parent / "ray"
    on_path = shutil.which("ray")
    if on_path and Path(on_path).resolve() == beside.resolve():
        return "ray"
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def _start(settings: Settings, env: Mapping[str, str], size: Size, timeout_s: float, prometheus: bool) -> Cluster:
    cluster = _fresh(settings)
    state.write(settings.cluster_state, cluster)
    try:
        plan = _plan(settings, env, cluster, size, prometheus=prometheus)
        for planned in plan:
            log = settings.cluster_state / "logs" / f"{planned.name}.log"
            process = processes.spawn(planned.argv, planned.env, log)
            service = Service(name=planned.name, url=planned.url, process=process, log=str(log), ports=planned.ports)
            cluster = replace(cluster, services=(*cluster.services, service))
            state.write(settings.cluster_state, cluster)
        _wait_until_ready(plan, cluster, timeout_s)
    except BaseException:  # Ctrl-C too: whatever cuts the start short, nothing of it stays
        _end(settings, cluster)
        raise
    cluster = replace(cluster, ready=True)
    state.write(settings.cluster_state, cluster)
    return cluster


def _fresh(settings: Settings) -> Cluster:
    token = settings.cluster_state / "token"
    state.write_private(token, secrets.token_hex(32))  # before anything that would make a world-readable one itself
    return Cluster(
        id=secrets.token_hex(8),
        home=str(settings.home),
        ready=False,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        token_path=str(token),
        temp_dir=_short_folder(),
    )


def fits_sockets(parent: str) -> bool:
    """True where Ray's sockets in a new folder under ``parent`` have paths that the system takes."""
    length = len(os.fsencode(parent)) + len(f"/{_TEMP_PREFIX}12345678") + _SESSION_PATH_LENGTH
    return Path(parent).is_dir() and length <= _SOCKET_PATH_LIMIT


def _short_folder() -> str:
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp: new, mode 0700, not to be guessed
        if fits_sockets(parent):
            return tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=parent)
    raise MachineError(
        f"Ray keeps UNIX sockets in its folder, whose paths may have {_SOCKET_PATH_LIMIT} bytes; neither "
        f"{tempfile.gettempdir()} nor /tmp will do. Set TMPDIR to a folder with a short path."
    )


def _plan(
    settings: Settings, env: Mapping[str, str], cluster: Cluster, size: Size, *, prometheus: bool
) -> list[_Planned]:
    """Every server to start."""
    program = commands.prometheus_program() if prometheus else None
    names = [f"ray_{p}" for p in commands.RAY_PORTS] + [commands.MLFLOW, commands.PROMETHEUS, commands.RECORD]
    chosen = ports.choose(names, seed=cluster.home)
    ray_ports = {name: chosen[f"ray_{name}"] for name in commands.RAY_PORTS}
    ray_url = f"http://127.0.0.1:{ray_ports['dashboard']}"
    token = Path(cluster.token_path).read_text()
    planned = [
        _Planned(
            name=commands.RAY,
            url=ray_url,
            ports=ray_ports,
            argv=commands.ray_argv(
                cluster,
                ray_ports,
                cpus=size.cpus,
                gpus=size.gpus,
                object_store_bytes=size.object_store_bytes,
            ),
            env=commands.ray_env(
                env,
                settings,
                cluster,
                ray_ports,
                prometheus=None if program is None else f"http://127.0.0.1:{chosen[commands.PROMETHEUS]}",
            ),
            # Answers once the job manager does, which is what a submission needs.
            ready=lambda: _answers(f"{ray_url}/api/jobs/", token=token),
        )
    ]
    mlflow = None
    if not commands.has_own_server(settings.tracking_uri):
        mlflow = url = f"http://127.0.0.1:{chosen[commands.MLFLOW]}"
        planned.append(
            _Planned(
                name=commands.MLFLOW,
                url=url,
                ports={"http": chosen[commands.MLFLOW]},
                argv=commands.mlflow_argv(chosen[commands.MLFLOW]),
                env=commands.mlflow_env(env, settings, cluster),
                ready=lambda: _answers(f"{url}/health"),
            )
        )
    if program is not None:
        planned += _watching(settings, env, cluster, program, chosen, mlflow)
    return planned


def _watching(
    settings: Settings,
    env: Mapping[str, str],
    cluster: Cluster,
    program: str,
    ports: Mapping[str, int],
    mlflow: str | None,
) -> list[_Planned]:
    """Prometheus, and the exporter of the record that it scrapes beside Ray."""
    port, record = ports[commands.PROMETHEUS], ports[commands.RECORD]
    folder = settings.cluster_state / "prometheus"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = str(Path(cluster.temp_dir) / "prom_metrics_service_discovery.json")
    rules = folder / "rules.yaml"
    rules.write_text(json.dumps(rules_file()))  # JSON is YAML
    config = scrape_file(ray=found, record=f"127.0.0.1:{record}", rules=str(rules))
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    url, metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{record}/metrics"
    return [
        _Planned(
            name=commands.PROMETHEUS,
            url=url,
            ports={"http": port},
            argv=commands.prometheus_argv(program, folder, port),
            env=commands.prometheus_env(env, settings, cluster),
            ready=lambda: _answers(f"{url}/-/ready"),
        ),
        _Planned(
            name=commands.RECORD,
            url=metrics,
            ports={"http": record},
            argv=commands.record_argv(record),
            env=commands.record_env(env, settings, cluster, mlflow),
            ready=lambda: _answers(metrics),
        ),
    ]


def _wait_until_ready(plan: list[_Planned], cluster: Cluster, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    waiting = {planned.name: planned for planned in plan}
    while waiting:
        for name, planned in list(waiting.items()):
            service = service_of(cluster, name)
            if processes.collect(service.process.pid) or not processes.alive(service.process):
                raise MachineError(
                    f"The {name} server ended while it started. The end of {service.log}:\n{_tail(Path(service.log))}"
                )
            if planned.ready():
                del waiting[name]
        if waiting and time.monotonic() > deadline:
            raise MachineError(
                f"No answer from {', '.join(sorted(waiting))} within {timeout_s:.0f} s; everything was ended again. "
                f"See {Path(cluster.token_path).parent / 'logs'}; give a busy machine longer: tiltyard up --timeout 300"
            )
        time.sleep(0.1)


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(f"  {line}" for line in log.read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"  (not readable: {error})"


def _answers(url: str, *, token: str | None = None) -> bool:
    request = urllib.request.Request(url)  # noqa: S310 - http on 127.0.0.1, built here
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy knows nothing of our loopback
    try:
        with opener.open(request, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end(settings: Settings, cluster: Cluster) -> Ended:
    ended, left = processes.end(cluster)
    if left:
        names = ", ".join(f"{p.pid} ({p.name()})" for p in left)
        raise MachineError(
            f"These processes would not end, not even by force: {names}. Look at them, then: tiltyard down"
        )
    logs = _keep_logs(settings, cluster)
    if Path(cluster.temp_dir).name.startswith(_TEMP_PREFIX):  # only what `_short_folder` made
        shutil.rmtree(cluster.temp_dir, ignore_errors=True)
    (settings.cluster_state / "token").unlink(missing_ok=True)
    state.remove(settings.cluster_state)
    return Ended(processes=ended, services=tuple(s.name for s in cluster.services), logs=logs)


def _keep_logs(settings: Settings, cluster: Cluster) -> Path | None:
    """Moves Ray's own logs beside ours, in place of those of the cluster before; the folder of sockets then goes."""
    sessions = Path(cluster.temp_dir).glob("session_*_*/logs") if cluster.temp_dir else iter(())
    found = next(sessions, None)
    kept = settings.cluster_state / "logs"
    if found is not None:
        shutil.rmtree(kept / "ray-session", ignore_errors=True)
        kept.mkdir(parents=True, exist_ok=True)
        shutil.move(str(found), kept / "ray-session")
    return kept if kept.exists() else None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock: two commands on one home do not work at once.

    Raises:
        MachineError: If another one holds it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise MachineError(
                f"Another `tiltyard up` or `down` is at work on {folder.parent}. Wait until it is done, then try again."
            ) from error
        yield
