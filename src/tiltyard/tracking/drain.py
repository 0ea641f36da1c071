"""The writer's process: reads a spool and writes MLflow runs until its driver has said "end".

``python -m tiltyard.tracking.drain FOLDER ARTIFACT_ROOT DRIVER_PID FIRST_LINE``, with the address of MLflow, which may
hold a password, in the environment (TILTYARD_TRACKING_URI). How far it came stands in
``state.json`` beside the spool, what is written of which trial in ``runs.jsonl``; one process at a time drains a spool
(a lock on it). A later driver's process waits for an earlier one's and goes on where that one ended.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tiltyard.settings import TRACKING_ENV, shown
from tiltyard.tracking.records import LaunchRecord, TrialRecord

SPOOL, STATE, RUNS, ARTIFACTS = "spool.jsonl", "state.json", "runs.jsonl", "artifacts"
NICE = 10
"""Training has the cores first."""
IDLE_S = 0.05
ORPHAN_S = 2.0
"""With nothing to read for this long and the driver gone, the process ends; the spool stays."""
BACKOFF_S = (0.5, 1.0, 2.0, *(5.0,) * 20)
"""A driver that waits for MLflow gives it a minute, so none of these may be long."""

Record = dict[str, Any]


class _State:
    """How many lines are done, the parent run, the last error; rewritten whole each time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE
        self.values: Record = {"done": 0, "parent_run_id": None, "launch": None, "error": None}
        if self._path.exists():
            self.values |= json.loads(self._path.read_text())

    def set(self, **values: Any) -> None:
        self.values |= {**values, "pid": os.getpid()}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values))
        temporary.replace(self._path)


def lines(folder: Path, *, done: int, first: int, driver: int) -> Iterator[Record | None]:
    """Records from line ``done`` on, waiting for more; None for a line that a dying driver left half written.

    Ends where the file ends after an "end" of this driver (a line from ``first`` on), or where the driver is gone and
    nothing has come for `ORPHAN_S`.
    """
    quiet_since = time.monotonic()
    ended = False
    with (folder / SPOOL).open(encoding="utf-8") as spool:
        number, partial = 0, ""
        while True:
            partial += spool.readline()
            if partial.endswith("\n"):
                record, partial = _parse(partial), ""
                ended = number >= first and record is not None and record["kind"] == "end"
                if number >= done:
                    yield record
                number += 1
                quiet_since = time.monotonic()
            elif ended or (os.getppid() != driver and time.monotonic() - quiet_since > ORPHAN_S):
                return
            else:
                time.sleep(IDLE_S)


def _parse(line: str) -> Any:
    """What stands in a line; None where its writer died in the middle of it."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


class _Writer:
    """Writes records one by one; knows what is written already."""

    def __init__(self, folder: Path, tracking_uri: str, artifact_root: str | None, state: _State) -> None:
        from tiltyard.tracking.mlflow_runs import MlflowRuns

        self._folder, self._state = folder, state
        self._runs = MlflowRuns(tracking_uri, artifact_root)
        self._parent: str | None = None
        self._written = written(folder)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one record; doing it twice changes nothing."""
        body = {name: value for name, value in record.items() if name != "kind"}
        if record["kind"] == "launch":
            self._open(LaunchRecord(**body))
        elif record["kind"] == "trial":
            self._trial(TrialRecord(**body))
        elif record["kind"] == "artifact":
            self._runs.artifact(self._parent_run, self._folder / ARTIFACTS / body["name"])
        elif record["kind"] == "close":
            self._runs.close_launch(self._parent_run, body["status"], body["metrics"], body["tags"])

    @property
    def _parent_run(self) -> str:
        """The parent run; a process that goes on with an old spool first learns what is there."""
        if self._parent is None:
            self._open(LaunchRecord(**self._state.values["launch"]))
        assert self._parent is not None
        return self._parent

    def _open(self, launch: LaunchRecord) -> None:
        self._parent = self._runs.open_launch(launch)
        kept = {"experiment": launch.experiment, "key": launch.key, "launch_id": launch.launch_id, "spec": launch.spec}
        self._state.values |= {"parent_run_id": self._parent, "launch": {**kept, "tags": dict(launch.tags)}}

    def _trial(self, trial: TrialRecord) -> None:
        parent, launch = self._parent_run, self._state.values["launch"]
        run_id, mark = self._written.get(trial.cell, ("", ()))
        if mark == trial.mark and self._runs.has(trial.cell, run_id):
            return
        run_id = self._runs.trial(launch["experiment"], launch["key"], parent, trial)
        self._written[trial.cell] = (run_id, trial.mark)
        with (self._folder / RUNS).open("a") as file:
            file.write(json.dumps([trial.cell, run_id, list(trial.mark)]) + "\n")


def written(folder: Path) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Of each cell that is written: its run, and the mark of what was written of it last."""
    path = folder / RUNS
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        if (entry := _parse(line)) is not None:
            cell, run_id, mark = entry
            found[cell] = (run_id, tuple(mark))
    return found


def drain(folder: Path, tracking_uri: str, artifact_root: str | None, *, driver: int, first: int) -> None:
    """Writes everything in the spool; returns at its end.

    Raises:
        Exception: MLflow's own, where it does not answer for minutes and the driver is gone; the spool stays.
    """
    state = _State(folder)
    writer: list[_Writer] = []

    def write(record: Record) -> None:
        if not writer:  # opening MLflow may fail as writing may
            writer.append(_Writer(folder, tracking_uri, artifact_root, state))
        writer[0].write(record)

    for record in lines(folder, done=state.values["done"], first=first, driver=driver):
        if record is not None and record["kind"] != "end":
            _with_backoff(write, record, state, driver)
        state.set(done=state.values["done"] + 1, error=None)


def _with_backoff(write: Callable[[Record], None], record: Record, state: _State, driver: int) -> None:
    """Tries as long as the driver lives, for a sweep may be longer than any outage; then for a while."""
    for wait_s in chain(BACKOFF_S, repeat(None)):
        try:
            write(record)
        except Exception as error:
            state.set(error=shown(f"{type(error).__name__}: {error}")[:2000])
            if wait_s is None and os.getppid() != driver:
                raise
            time.sleep(BACKOFF_S[-1] if wait_s is None else wait_s)
        else:
            return


def main() -> int:
    """Locks the spool and drains it."""
    folder, artifact_root, tracking_uri = Path(sys.argv[1]), sys.argv[2] or None, os.environ[TRACKING_ENV]
    os.nice(NICE)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            drain(folder, tracking_uri, artifact_root, driver=int(sys.argv[3]), first=int(sys.argv[4]))
        except Exception:  # it ends here: what is left to do is to log it, without a password that it may quote
            sys.stderr.write(shown(traceback.format_exc()))
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
