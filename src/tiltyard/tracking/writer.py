"""The one writer of MLflow runs: a process of its own, at low priority, fed by a spool on disk.

The driver appends one JSON line a record to the spool and never waits. The writer (`tiltyard.tracking.drain`) reads the
spool and writes to MLflow, with back-off where MLflow is slow or away, and notes how far it came. What it did not write
in time is written by the next start over the same spool; writing twice makes no second run and no second point.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from tiltyard.errors import MachineError
from tiltyard.settings import TRACKING_ENV, Settings
from tiltyard.tracking.drain import ARTIFACTS, SPOOL, STATE, written
from tiltyard.tracking.records import LaunchRecord, TrialRecord

LOG_LINES = 20
PATIENCE_S = 30.0
"""The writer is left when it has written nothing for this long."""
AWAY_S = 5.0
"""And for this long where MLflow never answered in this launch: the spool is kept, the next start writes it."""
RETURN_S = 60.0
"""And for this long where it did and refuses now: it may be started again just then."""
_POLL_S = 0.02
_TELL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerReport:
    """How the writer stood when it was left."""

    written: int
    pending: int
    parent_run_id: str | None
    error: str | None


class Tracker:
    """The driver's end of the spool. Start it early: importing MLflow and opening its store takes seconds.

    As a context manager it is closed at the end; after an error the parent run says so.
    """

    def __init__(self, settings: Settings, key: str) -> None:
        self._settings = settings
        self._folder = spool_folder(settings, key)
        self._spool: TextIO | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._sent = 0
        self._report: TrackerReport | None = None
        self._progress = 0, 0.0
        """Lines that were written when somebody last looked, and since when."""
        self._at_start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._spool is not None:
            status = "KILLED" if issubclass(kind, (KeyboardInterrupt, SystemExit)) else "FAILED"
            self.close_launch(status=status, metrics={}, tags={"tiltyard.reason": f"{kind.__name__}: {error}"[:5000]})
        self.close(return_s=RETURN_S if kind is None else AWAY_S)

    def start(self) -> Tracker:
        """Starts the writer's process; where an earlier one still drains the spool, it waits for that one."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._folder / SPOOL
        self._sent, whole = _count_lines(path)
        if self._state().get("done", 0) > self._sent:
            (self._folder / STATE).unlink()  # somebody removed the spool: how far it was read means nothing now
        self._spool = path.open("a", encoding="utf-8")
        if not whole:  # a driver died in the middle of a line: nobody reads that one
            self._spool.write("\n")
            self._spool.flush()
            self._sent += 1
        root = self._settings.artifact_root if self._settings.tracking_uri.startswith("sqlite") else ""
        arguments = [self._folder, root, os.getpid(), self._sent]
        with (self._folder / "writer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tiltyard.tracking.drain", *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | _ENVIRONMENT
                | {TRACKING_ENV: self._settings.tracking_uri},  # argv is anybody's to read
                start_new_session=True,  # Ctrl-C at the terminal ends the sweep, not the record of it
            )
        self._progress, self._at_start = (-1, time.monotonic()), int(self._state().get("done", 0))
        return self

    def open_launch(self, record: LaunchRecord) -> None:
        """Asks for the parent run."""
        self._send("launch", asdict(record))

    def trial(self, record: TrialRecord) -> None:
        """Asks for a trial's run."""
        self._send("trial", asdict(record))

    def artifact(self, name: str, data: bytes) -> None:
        """Asks for a file of the parent run."""
        folder = self._folder / ARTIFACTS
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        self._send("artifact", {"name": name})

    def close_launch(self, *, status: str, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Asks for the end of the parent run."""
        self._send("close", {"status": status, "metrics": dict(metrics), "tags": dict(tags)})

    def parent_run_id(self, *, wait: bool = True) -> str | None:
        """The parent run's id, once the writer has it; None where MLflow does not answer, or has not yet and nobody waits."""
        if wait:
            self._wait(lambda: self._state().get("parent_run_id") is not None)
        found = self._state().get("parent_run_id")
        return None if found is None else str(found)

    def run_ids(self) -> dict[str, str]:
        """Run ids by cell, of what is written so far."""
        return {cell: run_id for cell, (run_id, _) in written(self._folder).items()}

    def close(self, *, return_s: float = RETURN_S, say: Callable[[str], None] = lambda _: None) -> TrackerReport:
        """Lets the writer drain the spool and ends it where it cannot; what is left stays in the spool.

        Args:
            return_s: How long to wait for an MLflow that answered in this launch and refuses now.
            say: Told that it is waited for.
        """
        if self._report is not None:
            return self._report
        error = None
        if self._spool is not None:
            self._send("end", {})
            self._spool.close()
            self._spool = None
        if self._process is not None:
            if self._answered():  # long ago, maybe: what came between is no reason to leave at once
                self._progress = self._progress[0], time.monotonic()
            self._wait(lambda: False, return_s, say)
            if self._process.poll() is None:
                self._process.terminate()
                self._process.wait()
            elif self._process.returncode != 0:
                error = self._log_tail()
        state = self._state()
        done = int(state.get("done", 0))
        if done < self._sent and error is None:
            error = state.get("error") or "the writer came no further"
        self._report = TrackerReport(
            written=done, pending=max(0, self._sent - done), parent_run_id=state.get("parent_run_id"), error=error
        )
        return self._report

    def _send(self, kind: str, body: Mapping[str, Any]) -> None:
        if self._spool is None:
            raise MachineError("The tracker is closed; nothing more can be recorded through it.")
        self._spool.write(json.dumps({"kind": kind, **body}) + "\n")
        self._spool.flush()
        self._sent += 1

    def _wait(
        self, condition: Callable[[], bool], return_s: float = AWAY_S, say: Callable[[str], None] = lambda _: None
    ) -> None:
        """Until the condition holds, the writer has ended, or it comes no further."""
        told = False
        while not condition() and self._process is not None and self._process.poll() is None:
            state = self._state()
            if (done := state.get("done", 0)) != self._progress[0]:
                self._progress = done, time.monotonic()
            refused = state.get("error") and state.get("pid") == self._process.pid  # not what an earlier writer left
            returns = refused and self._answered() and return_s > AWAY_S
            waited_s = time.monotonic() - self._progress[1]
            if waited_s > (return_s if returns else AWAY_S if refused else PATIENCE_S):
                return
            if returns and not told and waited_s > _TELL_S:
                told = True
                say(f"MLflow does not answer; waiting up to {return_s:g} s for it")
            time.sleep(_POLL_S)

    def _answered(self) -> bool:
        """MLflow took something in this launch."""
        return int(self._state().get("done", 0)) > self._at_start

    def _state(self) -> dict[str, Any]:
        return read_state(self._folder)

    def _log_tail(self) -> str:
        lines = (self._folder / "writer.log").read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_LINES:])


def drain_leftover(settings: Settings, key: str) -> TrackerReport | None:
    """Writes what an earlier launch of the key could not; None where there is nothing of the kind."""
    folder = spool_folder(settings, key)
    sent, _ = _count_lines(folder / SPOOL)
    if sent == 0 or read_state(folder).get("done", 0) >= sent:
        return None
    return Tracker(settings, key).start().close()


_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # we try again ourselves, and say meanwhile what is wrong
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "OMP_NUM_THREADS": "1",
}


def read_state(folder: Path) -> dict[str, Any]:
    """How far a spool is written; empty where nobody has begun."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text())
    except FileNotFoundError:
        return {}
    return state


def spool_folder(settings: Settings, key: str) -> Path:
    """Where the spool of a key lies."""
    return settings.home / "spool" / key[:16]


def _count_lines(path: Path) -> tuple[int, bool]:
    """Lines of a file, and whether the last one is whole."""
    if not path.exists():
        return 0, True
    count, last = 0, b"\n"
    with path.open("rb") as file:
        for last in file:
            count += last.endswith(b"\n")
    return count, last.endswith(b"\n")
