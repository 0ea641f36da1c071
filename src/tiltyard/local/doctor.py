"""Is this machine fit for Tiltyard, and what mends it where it is not?

`judge` decides on a `Machine`, a plain value that `tiltyard.local.probe` fills by looking. Nothing is looked at here
and nothing is ever changed: every remedy is a command or a sentence for the user.

A verdict is OK, NOTE (works, but know this; or an optional part is absent) or MEND (something will fail).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum

from packaging.requirements import Requirement
from packaging.version import Version

from tiltyard.local import ports

GIB = 2**30
_NETWORK_FILESYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "afs"}


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    NOTE = "note"
    MEND = "mend"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the doctor's table."""

    subject: str
    verdict: Verdict
    found: str
    wanted: str = ""
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """For ``--json``."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Import:
    """Whether an engine imports, in a process of its own."""

    version: str | None
    error: str = ""
    gpus: int | None = None
    """Accelerators torch sees; only for torch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package Tiltyard needs."""

    name: str
    installed: str | None
    pinned: str | None
    """From constraints.txt, where there is one."""
    allowed: str
    """Range, from Tiltyard's own metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the state file tells, and what is true."""

    running: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    unreadable: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Everything that `judge` needs to know. Sizes in bytes; None means that it could not be found out."""

    python: tuple[int, int, int]
    cores: int
    memory: int
    memory_available: int
    shm: int | None
    home: str
    home_error: str
    home_filesystem: str
    disk_free: int
    temp_dir: str
    temp_dir_short: bool
    open_files: int
    pins: tuple[Pin, ...]
    imports: dict[str, Import]
    has_nvidia_driver: bool
    ports_error: str
    loose_tokens: tuple[tuple[str, int], ...]
    """Token files that others can read, with their modes."""
    cluster: Cluster
    leftovers: tuple[tuple[int, str, str], ...]
    """(number, name, home) of processes that an ``up`` started and no state file knows."""
    other_rays: int
    parts: dict[str, str | None] = field(default_factory=dict)
    """Debian's optional parts and where they are."""
    packages_folder: str = ""
    compiles_anew: bool = False
    """True where every process compiles the engines' Python anew: none is kept compiled, and none may be."""
    embedded: bool = True
    """True where a store is SQLite."""


def judge(machine: Machine) -> list[Finding]:
    """Every finding, good ones too, in the order in which one would mend them."""
    return [
        _python(machine),
        *_packages(machine),
        *_imports(machine),
        *_bytecode(machine),
        _at_least("CPU cores", machine.cores, 2, str, "Sweeps will be slow, and Serve needs a core beside the sweep."),
        _memory(machine),
        _shm(machine),
        *_home(machine),
        _temp(machine),
        _open_files(machine),
        _ports(machine),
        *_tokens(machine),
        *_cluster(machine),
        _gpu(machine),
        *_parts(machine),
    ]


def _ok(subject: str, found: str) -> Finding:
    return Finding(subject=subject, verdict=Verdict.OK, found=found)


def _python(machine: Machine) -> Finding:
    found = ".".join(map(str, machine.python))
    if machine.python >= (3, 11, 0):
        return _ok("Python", found)
    return Finding(
        subject="Python",
        verdict=Verdict.MEND,
        found=found,
        wanted="3.11 or newer",
        remedy="Make the environment anew with python3.11 or newer.",
    )


def _packages(machine: Machine) -> Iterator[Finding]:
    wrong = list(_wrong_packages(machine.pins))
    yield from wrong
    if not wrong:
        pinned = sum(p.pinned is not None for p in machine.pins)
        yield _ok("Packages", f"{len(machine.pins)} needed, all as {'pinned' if pinned else 'allowed'}")


def _wrong_packages(pins: Iterable[Pin]) -> Iterator[Finding]:
    for pin in pins:
        install = f'pip install -c constraints.txt "{pin.name}{pin.allowed}"'
        if pin.installed is None:
            yield Finding(
                subject=pin.name,
                verdict=Verdict.MEND,
                found="not installed",
                wanted=pin.allowed or "any",
                remedy=install,
            )
            continue
        public = Version(pin.installed).public
        if public not in Requirement(f"x{pin.allowed}").specifier:
            yield Finding(
                subject=pin.name, verdict=Verdict.MEND, found=pin.installed, wanted=pin.allowed, remedy=install
            )
        elif pin.pinned is not None and public != Version(pin.pinned).public:
            yield Finding(
                subject=pin.name,
                verdict=Verdict.NOTE,
                found=pin.installed,
                wanted=pin.pinned,
                remedy=f"Allowed, but not what Tiltyard is tested with: {install}",
            )


def _imports(machine: Machine) -> Iterator[Finding]:
    for name, result in machine.imports.items():
        if result.version is not None:
            yield _ok(f"import {name}", result.version)
        else:
            yield Finding(
                subject=f"import {name}",
                verdict=Verdict.MEND,
                found=result.error,
                wanted="it imports",
                remedy=f"pip install --force-reinstall -c constraints.txt {name}",
            )


def _bytecode(machine: Machine) -> Iterator[Finding]:
    if machine.compiles_anew:
        yield Finding(
            subject="Bytecode",
            verdict=Verdict.NOTE,
            found="PYTHONDONTWRITEBYTECODE is set, and the packages were installed without compiled code",
            wanted="compiled once: each process otherwise compiles Ray, MLflow and torch anew, 2 to 6 s each",
            remedy="unset PYTHONDONTWRITEBYTECODE, or once: python -m compileall -q " + machine.packages_folder,
        )


def _at_least(subject: str, found: int, wanted: int, show: object, remedy: str) -> Finding:
    text = show(found) if callable(show) else str(found)
    if found >= wanted:
        return _ok(subject, text)
    floor = show(wanted) if callable(show) else str(wanted)
    return Finding(subject=subject, verdict=Verdict.NOTE, found=text, wanted=f"{floor} or more", remedy=remedy)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _memory(machine: Machine) -> Finding:
    found = f"{_gib(machine.memory_available)} available of {_gib(machine.memory)}"
    if machine.memory_available >= 4 * GIB:
        return _ok("Memory", found)
    return Finding(
        subject="Memory",
        verdict=Verdict.NOTE if machine.memory_available >= 2 * GIB else Verdict.MEND,
        found=found,
        wanted="4 GiB available",
        remedy="End what holds memory, or give the cluster less: tiltyard up --cpus 1 --object-store-gib 0.5",
    )


def _shm(machine: Machine) -> Finding:
    subject = "/dev/shm"  # noqa: S108 - its name only
    if machine.shm is None:
        return Finding(
            subject=subject,
            verdict=Verdict.NOTE,
            found="none",
            wanted="2 GiB or more",
            remedy="Ray keeps its objects in files under the temporary folder instead, which is slower.",
        )
    if machine.shm >= 2 * GIB:
        return _ok(subject, _gib(machine.shm))
    return Finding(
        subject=subject,
        verdict=Verdict.NOTE,
        found=_gib(machine.shm),
        wanted="2 GiB or more",
        remedy="Beyond it Ray uses slow files. In Docker: --shm-size=2g; in a pod: an emptyDir with medium Memory.",
    )


def _home(machine: Machine) -> Iterator[Finding]:
    subject = "TILTYARD_HOME"
    if machine.home_error:
        yield Finding(
            subject=subject,
            verdict=Verdict.MEND,
            found=f"{machine.home}: {machine.home_error}",
            wanted="a folder that can be written and locked",
            remedy="Set TILTYARD_HOME to a folder of yours, or mend its permissions.",
        )
    elif machine.embedded and machine.home_filesystem in _NETWORK_FILESYSTEMS:
        yield Finding(
            subject=subject,
            verdict=Verdict.MEND,
            found=f"{machine.home} on {machine.home_filesystem}",
            wanted="a local disk: SQLite's locks do not hold on a network filesystem (sqlite.org, 'How to corrupt')",
            remedy="Set TILTYARD_HOME to a local folder, or the URIs of journal and tracking to PostgreSQL.",
        )
    else:
        yield _ok(subject, f"{machine.home} ({machine.home_filesystem or 'unknown filesystem'})")
    if machine.disk_free >= 5 * GIB:
        yield _ok("Disk", f"{_gib(machine.disk_free)} free")
    else:
        yield Finding(
            subject="Disk",
            verdict=Verdict.NOTE if machine.disk_free >= GIB else Verdict.MEND,
            found=f"{_gib(machine.disk_free)} free where {machine.home} lies",
            wanted="5 GiB free",
            remedy="Free some, or set TILTYARD_HOME to another disk. Ray stops working at 95% full.",
        )


def _temp(machine: Machine) -> Finding:
    if machine.temp_dir_short:
        return _ok("Temporary folder", machine.temp_dir)
    return Finding(
        subject="Temporary folder",
        verdict=Verdict.MEND,
        found=f"{machine.temp_dir} ({len(machine.temp_dir)} characters)",
        wanted="a short path: a UNIX socket's path has at most 107 bytes",
        remedy="export TMPDIR=/tmp",
    )


def _open_files(machine: Machine) -> Finding:
    if machine.open_files >= 4096:
        return _ok("Open files", f"{machine.open_files} allowed")
    return Finding(
        subject="Open files",
        verdict=Verdict.NOTE,
        found=f"{machine.open_files} allowed",
        wanted="4096 or more",
        remedy="ulimit -n 4096 before you start Tiltyard; Ray opens a connection to every worker.",
    )


def _ports(machine: Machine) -> Finding:
    if not machine.ports_error:
        return _ok("Ports", f"enough free on 127.0.0.1 between {ports.FIRST} and {ports.LAST}")
    return Finding(
        subject="Ports", verdict=Verdict.MEND, found=machine.ports_error, wanted="12 free ports on 127.0.0.1"
    )


def _tokens(machine: Machine) -> Iterator[Finding]:
    for path, mode in machine.loose_tokens:
        yield Finding(
            subject="Token file",
            verdict=Verdict.MEND,
            found=f"{path} has mode {mode:04o}",
            wanted="0600: who reads it can run anything on your Ray",
            remedy=f"chmod 600 {path}",
        )
    if not machine.loose_tokens:
        yield _ok("Token files", "none that others can read")


def _cluster(machine: Machine) -> Iterator[Finding]:
    cluster = machine.cluster
    if cluster.unreadable:
        yield Finding(
            subject="tiltyard up",
            verdict=Verdict.MEND,
            found=cluster.unreadable,
            wanted="a state file that this version wrote",
            remedy="End what runs of it by hand, then remove the file.",
        )
    elif cluster.ended:
        yield Finding(
            subject="tiltyard up",
            verdict=Verdict.MEND,
            found=f"the record says up, but {', '.join(cluster.ended)} ended",
            wanted="all of it or nothing",
            remedy="tiltyard down, then tiltyard up",
        )
    else:
        yield _ok("tiltyard up", f"{' and '.join(cluster.running)} running" if cluster.running else "nothing is up")
    for pid, name, home in machine.leftovers:
        yield Finding(
            subject="Left over",
            verdict=Verdict.MEND,
            found=f"process {pid} ({name}) of a tiltyard up for {home or 'an unknown home'}, in no record",
            wanted="every process recorded",
            remedy=f"kill {pid}",
        )
    if machine.other_rays:
        yield Finding(
            subject="Other Rays",
            verdict=Verdict.NOTE,
            found=f"{machine.other_rays} Ray head(s) on this machine that tiltyard did not start",
            remedy="Harmless: ports and folders are apart. Do not type `ray stop`, it ends all of them.",
        )


def _gpu(machine: Machine) -> Finding:
    torch = machine.imports.get("torch")
    if torch is not None and torch.gpus:
        return _ok("GPU", f"{torch.gpus} visible to torch")
    if machine.has_nvidia_driver:
        return Finding(
            subject="GPU",
            verdict=Verdict.NOTE,
            found="nvidia-smi is here, but torch sees no GPU",
            wanted="torch sees it",
            remedy="Install torch's CUDA build (pytorch.org/get-started) and check `nvidia-smi` itself.",
        )
    return Finding(subject="GPU", verdict=Verdict.NOTE, found="none", remedy="Everything runs on CPU, only slower.")


_PART_USES = {
    "prometheus": "metrics and alerts kept over time",
    "postgresql": "a journal and an MLflow for several machines; the tests of both",
    "chromium": "tests of web pages",
}


def _parts(machine: Machine) -> Iterator[Finding]:
    for name, path in machine.parts.items():
        if path is not None:
            yield _ok(name, path)
        else:
            yield Finding(
                subject=name,
                verdict=Verdict.NOTE,
                found="not installed (optional)",
                wanted=_PART_USES.get(name, ""),
                remedy=f"sudo apt-get install {name}",
            )
