"""What is up on this machine: the record that ``tiltyard up`` writes and ``tiltyard down`` obeys.

One JSON file of mode 0600 in `Settings.cluster_state`. It is written before the first process starts, with the **mark**
that every process of the cluster carries in its environment (`MARK_ENV`), so that a start that was cut short can still
be ended exactly. It names the file of the token, never the token.

This module reads and writes that file; it starts and ends nothing.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tiltyard.errors import MachineError

SCHEMA = 1
MARK_ENV = "TILTYARD_CLUSTER"
"""Environment variable that every process of a cluster inherits; its value is the cluster's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """One process for certain: numbers are used again, a number together with its start time is not."""

    pid: int
    started: float
    """Start time, seconds since 1970."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One server of the cluster: what it is called, where it answers, and its first process."""

    name: str
    url: str
    process: ProcessId
    log: str
    ports: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Everything that one ``tiltyard up`` started."""

    id: str
    home: str
    ready: bool
    """False from the first write until every service has answered."""
    started_at: str
    """ISO 8601, UTC."""
    token_path: str
    temp_dir: str
    """Ray's own folder. Short, because a UNIX socket's path has at most 107 characters."""
    services: tuple[Service, ...] = ()

    def service(self, name: str) -> Service | None:
        """The service of that name, where it runs."""
        return next((s for s in self.services if s.name == name), None)


def state_file(folder: Path) -> Path:
    """Where the state of a cluster is kept, given `Settings.cluster_state`."""
    return folder / "cluster.json"


def write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all.

    It is created with mode 0600 under another name and moved into place: no moment at which others can read it or a
    reader meets half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as out:
        out.write(text)
    os.replace(part, path)


def write(folder: Path, cluster: Cluster) -> None:
    """Puts the state in place of the one before."""
    write_private(state_file(folder), json.dumps({"schema": SCHEMA, **asdict(cluster)}, indent=1))


def read(folder: Path) -> Cluster | None:
    """The state as it was last written; None where nothing was started.

    Raises:
        MachineError: If the file is not one that this version of Tiltyard wrote.
    """
    path = state_file(folder)
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        return _parse(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise MachineError(
            f"{path} is not a state file that this Tiltyard can read ({error}). Wanted: schema {SCHEMA} as written by "
            f"`tiltyard up`. If nothing of it runs any more (tiltyard doctor), remove the file."
        ) from error


def _parse(data: dict[str, Any]) -> Cluster:
    if data.pop("schema") != SCHEMA:
        raise ValueError("another schema")
    services = tuple(Service(**{**s, "process": ProcessId(**s["process"])}) for s in data.pop("services"))
    return Cluster(**data, services=services)


def remove(folder: Path) -> None:
    """Forgets the cluster."""
    state_file(folder).unlink(missing_ok=True)
