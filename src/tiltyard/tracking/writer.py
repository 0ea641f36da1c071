"""The one writer of MLflow runs: a process of its own, at low priority, fed by a spool on disk.

The driver appends one JSON line a record to the spool and never waits. The writer reads the spool and writes to MLflow,
with back-off where MLflow is slow or away, and notes how far it came. What it did not write in time is written by the
next start over the same spool; writing twice makes no second run.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from tiltyard.errors import MachineError
from tiltyard.settings import Settings
from tiltyard.tracking.records import LaunchRecord, TrialRecord

LOG_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerReport:
    """How the writer stood when it was left."""

    written: int
    pending: int
    parent_run_id: str | None
    error: str | None


class Tracker:
    """The driver's end of the spool. Start it early: importing MLflow and opening its store takes seconds."""

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self._folder = settings.home / "spool" / key[:16]
        self._spool: TextIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = 0

    def start(self) -> Tracker:
        """Starts the writer's process, or leaves the spool to one that still drains it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spool = (self._folder / "spool.jsonl").open("a", encoding="utf-8")
        self._sent = sum(1 for _ in (self._folder / "spool.jsonl").open("rb"))
        environment = os.environ | {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "OMP_NUM_THREADS": "1",
        }
        root = self._settings.artifact_root if self._settings.tracking_uri.startswith("sqlite") else ""
        with (self._folder / "writer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tiltyard.tracking.drain", str(self._folder), self._settings.tracking_uri, root],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # Ctrl-C at the terminal ends the sweep, not the record of it
            )
        return self

    def open_launch(self, record: LaunchRecord) -> None:
        """Asks for the parent run."""
        self._send("launch", asdict(record))

    def trial(self, record: TrialRecord) -> None:
        """Asks for a trial's run."""
        self._send("trial", asdict(record))

    def close_launch(self, *, status: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Asks for the end of the parent run."""
        self._send("close", {"status": status, "metrics": dict(metrics), "tags": dict(tags)})

    def parent_run_id(self, wait_s: float = 60.0) -> str | None:
        """The parent run's id, once the writer has it; None where it did not come in time."""
        deadline = time.monotonic() + wait_s
        while (state := self._state()).get("parent_run_id") is None and time.monotonic() < deadline and self._alive():
            time.sleep(0.05)
        return state.get("parent_run_id")

    def run_ids(self) -> dict[str, str]:
        """Run ids by cell, of what is written so far."""
        path = self._folder / "runs.jsonl"
        if not path.exists():
            return {}
        return dict(json.loads(line) for line in path.read_text().splitlines() if line.endswith("]"))

    def close(self, wait_s: float = 60.0) -> TrackerReport:
        """Lets the writer drain the spool, for at most ``wait_s``; what is left stays in the spool."""
        if self._spool is not None:
            self._send("end", {})
            self._spool.close()
            self._spool = None
        error = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._process.wait(timeout=wait_s) != 0:
                    error = self._log_tail()
        state = self._state()
        written = int(state.get("done", 0))
        if written < self._sent and error is None:
            error = state.get("error") or f"not drained after {wait_s:g} s"
        return TrackerReport(
            written=written,
            pending=max(0, self._sent - written),
            parent_run_id=state.get("parent_run_id"),
            error=error,
        )

    def _send(self, kind: str, body: Mapping[str, Any]) -> None:
        if self._spool is None:
            raise MachineError("The tracker is closed; nothing more can be recorded through it.")
        self._spool.write(json.dumps({"kind": kind, **body}) + "\n")
        self._spool.flush()
        self._sent += 1

    def _state(self) -> dict[str, Any]:
        try:
            state: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return state

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _log_tail(self) -> str:
        lines = (self._folder / "writer.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def spool_folder(settings: Settings, key: str) -> Path:
    """Where the spool of a key lies."""
    return settings.home / "spool" / key[:16]
