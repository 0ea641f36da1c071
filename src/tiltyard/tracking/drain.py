"""The writer's process: reads a spool and writes MLflow runs until it reads "end". ``python -m tiltyard.tracking.drain``.

How far it came stands in ``state.json`` beside the spool; only one process drains a spool (a lock on it).
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NICE = 10
"""Training has the cores first."""
IDLE_S = 0.05
ORPHAN_S = 120.0
"""With nothing to read for this long and the driver gone, the process ends; the spool stays."""
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 30.0)


class _State:
    """How many lines are done, the parent run, the last error; rewritten whole each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "state.json"
        self.values: dict[str, Any] = {"done": 0, "parent_run_id": None, "experiment": None, "key": None, "error": None}
        if self._path.exists():
            self.values |= json.loads(self._path.read_text())

    def set(self, **values: Any) -> None:
        self.values |= values
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values))
        temporary.replace(self._path)


def _lines(folder: Path, done: int) -> Iterator[dict[str, Any]]:
    """Records from line ``done`` on, waiting for more; ends when the driver is gone and nothing comes."""
    parent = os.getppid()
    quiet_since = time.monotonic()
    with (folder / "spool.jsonl").open(encoding="utf-8") as spool:
        for _ in range(done):
            spool.readline()
        partial = ""
        while True:
            partial += spool.readline()
            if partial.endswith("\n"):
                quiet_since = time.monotonic()
                yield json.loads(partial)
                partial = ""
                continue
            orphan = os.getppid() != parent
            if orphan and time.monotonic() - quiet_since > (5.0 if not partial else ORPHAN_S):
                return
            time.sleep(IDLE_S)


def drain(folder: Path, tracking_uri: str, artifact_root: str | None) -> None:
    """Writes everything in the spool; returns at its end."""
    from tiltyard.tracking.mlflow_runs import MlflowRuns
    from tiltyard.tracking.records import LaunchRecord, TrialRecord

    state = _State(folder)
    runs = MlflowRuns(tracking_uri, artifact_root)
    parent = state.values["parent_run_id"]
    if parent is not None:  # a start over an old spool: learn what is there
        runs.open_launch(
            LaunchRecord(experiment=state.values["experiment"], key=state.values["key"], launch_id="", spec="")
        )

    def write(record: dict[str, Any]) -> None:
        kind = record.pop("kind")
        if kind == "launch":
            run_id = runs.open_launch(LaunchRecord(**record))
            state.values |= {"parent_run_id": run_id, "experiment": record["experiment"], "key": record["key"]}
        elif kind == "trial":
            cell = record["cell"]
            run_id = runs.trial(
                state.values["experiment"], state.values["key"], state.values["parent_run_id"], TrialRecord(**record)
            )
            with (folder / "runs.jsonl").open("a") as file:
                file.write(json.dumps([cell, run_id]) + "\n")
        elif kind == "close":
            runs.close_launch(state.values["parent_run_id"], record["status"], record["metrics"], record["tags"])

    spool = _lines(folder, state.values["done"])
    for record in spool:
        end = record["kind"] == "end"
        _with_backoff(write, record, state)
        state.set(done=state.values["done"] + 1, error=None)
        if end and state.values["done"] >= _count(folder):
            return


def _count(folder: Path) -> int:
    with (folder / "spool.jsonl").open("rb") as file:
        return sum(1 for _ in file)


def _with_backoff(write: Any, record: dict[str, Any], state: _State) -> None:
    for wait_s in (*BACKOFF_S, None):
        try:
            write(dict(record))
        except Exception as error:
            state.set(error=f"{type(error).__name__}: {error}"[:2000])
            if wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            return


def main() -> int:
    """Locks the spool and drains it."""
    folder, tracking_uri, artifact_root = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
    os.nice(NICE)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        drain(folder, tracking_uri, artifact_root)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
