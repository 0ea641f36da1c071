"""Looking at this machine for `tiltyard.local.doctor`: every fact it judges, and how each is found out.

Starts a few short Python processes to see whether the engines import. Changes nothing; a file that is written to try a
folder is removed at once.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from tiltyard.errors import MachineError
from tiltyard.local import ports, processes, state
from tiltyard.local.doctor import Cluster, Finding, Import, Machine, Pin, judge
from tiltyard.local.up import fits_sockets
from tiltyard.settings import Settings

_ENGINES = ("torch", "ray", "mlflow")


def examine(settings: Settings) -> list[Finding]:
    """Looks at this machine and judges it."""
    return judge(probe(settings))


def probe(settings: Settings) -> Machine:
    """Looks at this machine; takes some seconds, as long as the slowest engine takes to import."""
    memory = psutil.virtual_memory()
    place = _existing(settings.home)
    return Machine(
        python=sys.version_info[:3],
        cores=_cores(),
        memory=memory.total,
        memory_available=memory.available,
        shm=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108
        home=str(settings.home),
        home_error=_write_error(place),
        home_filesystem=_filesystem(place),
        disk_free=shutil.disk_usage(place).free,
        temp_dir=tempfile.gettempdir(),
        temp_dir_short=_temp_is_short(),
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        pins=tuple(_pins()),
        imports=_try_imports(_ENGINES),
        has_nvidia_driver=shutil.which("nvidia-smi") is not None,
        ports_error=_ports_error(settings),
        loose_tokens=tuple(_loose([settings.cluster_state / "token", Path("~/.ray/auth_token").expanduser()])),
        cluster=_recorded(settings),
        leftovers=tuple(_leftovers()),
        other_rays=_other_rays(),
        parts={
            "prometheus": shutil.which("prometheus"),
            "postgresql": _postgres(),
            "chromium": shutil.which("chromium") or shutil.which("google-chrome"),
        },
        packages_folder=_packages_folder(),
        compiles_anew=_compiles_anew(),
        embedded=settings.journal_uri.startswith("sqlite") or settings.tracking_uri.startswith("sqlite"),
    )


def _packages_folder() -> str:
    return sysconfig.get_paths()["purelib"]


def _compiles_anew() -> bool:
    ray = Path(_packages_folder()) / "ray"
    return sys.dont_write_bytecode and ray.is_dir() and not (ray / "__pycache__").exists()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


def _write_error(place: Path) -> str:
    """Why a file cannot be written and locked there; empty where it can."""
    import fcntl

    if not place.is_dir():
        return f"{place} is not a folder"
    try:
        with tempfile.TemporaryFile(dir=place) as probe_file:
            probe_file.write(b"tiltyard doctor")
            probe_file.flush()
            fcntl.flock(probe_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _filesystem(place: Path) -> str:
    mounts = [p for p in psutil.disk_partitions(all=True) if place.is_relative_to(p.mountpoint)]
    return max(mounts, key=lambda p: len(p.mountpoint)).fstype if mounts else ""


def _temp_is_short() -> bool:
    return fits_sockets(tempfile.gettempdir()) or fits_sockets("/tmp")  # noqa: S108


def _pins() -> Iterator[Pin]:
    pinned = dict(_constraints())
    for text in metadata.requires("tiltyard") or []:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            installed: str | None = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            installed = None
        yield Pin(name=need.name, installed=installed, pinned=pinned.get(need.name), allowed=str(need.specifier))


def _constraints() -> Iterator[tuple[str, str]]:
    """Pins of the checkout that Tiltyard runs from; none where it was installed as a package."""
    path = Path(__file__).parents[3] / "constraints.txt"
    if not path.exists():
        return
    for line in path.read_text().splitlines():
        name, equal, version = line.partition("#")[0].strip().partition("==")
        if equal:
            yield name.partition("[")[0], version.partition(";")[0].strip()


_IMPORT = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
gpus = module.cuda.device_count() if sys.argv[1] == "torch" else None
print(json.dumps({"version": module.__version__, "gpus": gpus}))
"""


def _try_imports(names: Iterable[str]) -> dict[str, Import]:
    """Imports each in a process of its own, all at once: a crash of one is a finding, not our end."""
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", _IMPORT, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for name in names
    }
    return {name: _import_result(process) for name, process in started.items()}


def _import_result(process: subprocess.Popen[str], timeout_s: float = 120.0) -> Import:
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Import(version=None, error=f"no end within {timeout_s:.0f} s")
    if process.returncode != 0:
        return Import(version=None, error=(err.strip().splitlines() or [f"exit code {process.returncode}"])[-1])
    return Import(**json.loads(out.splitlines()[-1]))


def _ports_error(settings: Settings) -> str:
    try:
        ports.choose([str(n) for n in range(12)], seed=str(settings.home))
    except MachineError as error:
        return str(error)
    return ""


def _loose(paths: Iterable[Path]) -> Iterator[tuple[str, int]]:
    for path in paths:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & 0o077:
            yield str(path), mode


def _recorded(settings: Settings) -> Cluster:
    try:
        cluster = state.read(settings.cluster_state)
    except MachineError as error:
        return Cluster(unreadable=str(error))
    if cluster is None:
        return Cluster()
    runs = {s.name: processes.alive(s.process) for s in cluster.services}
    ended = tuple(name for name, r in runs.items() if not r)
    if not cluster.ready and not ended:
        ended = ("the `tiltyard up` that was to finish it",)
    return Cluster(running=tuple(name for name, r in runs.items() if r), ended=ended)


def _leftovers() -> Iterator[tuple[int, str, str]]:
    """Marked processes whose home's state file does not know their mark."""
    known: dict[str, str | None] = {}
    for pid, (process, mark, home) in processes.marked().items():
        if home not in known:
            known[home] = _known_mark(home)
        if known[home] != mark:
            try:
                yield pid, process.name(), home
            except psutil.NoSuchProcess:
                continue


def _known_mark(home: str) -> str | None:
    try:
        cluster = state.read(Settings.from_env({"TILTYARD_HOME": home}).cluster_state) if home else None
    except MachineError:
        return None
    return cluster.id if cluster is not None else None


def _other_rays() -> int:
    ours = set(processes.marked())
    heads = [p for p in psutil.process_iter(["name"]) if p.info["name"] == "gcs_server"]
    return sum(p.pid not in ours for p in heads)


def _postgres() -> str | None:
    on_path = shutil.which("postgres")
    return on_path or next((str(p) for p in sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))), None)
