"""A user's own training, ``Variant(model="train:package.module:function")``: one trial after another, each on its own.

The function is called as ``train(config, data, report)`` (`tiltyard.sweep.engine.own_child.Data`) and reports scores with
``report(epoch, accuracy=...)``. It runs in a process of its own; whatever it does, its trial ends in a named state with a
reason, and the next one starts. It leaves no model: such trials are ranked, but not tested, registered or served.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from tiltyard.errors import ModelError
from tiltyard.experiment import SILENT_S
from tiltyard.journal import storable
from tiltyard.models import builder
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.telemetry import logs
from tiltyard.types import OWN_TRAINING, TUNE_TRAINABLE

if TYPE_CHECKING:
    from tiltyard.sweep.engine.execute import Feed, Member, Outcome

PARAMETERS = ("config", "data", "report")
_POLL_S = 0.2
_MARK = "TILTYARD_TRAINING"
"""In the environment of the process, and so of all that it starts: what left its process group is found by it. Its value
names the worker whose training it is, so that what a killed worker left behind is found by the next one on the machine."""
_MOST_EPOCHS = 1 << 31


def check_own(model: str) -> None:
    """The function of ``train:package.module:function``, or what ``tune:`` names, can be imported and called.

    Raises:
        ModelError: If not.
    """
    import inspect

    if model.startswith(TUNE_TRAINABLE):
        builder(model.removeprefix(TUNE_TRAINABLE))
        return
    found = inspect.signature(builder(model.removeprefix(OWN_TRAINING))).parameters
    if len(found) < len(PARAMETERS):
        raise ModelError(
            f"{model!r} takes ({', '.join(found)}); a function train(config, data, report) is wanted. A model goes by its "
            "import path alone: 'package.module:Class'."
        )


class Child:
    """The process in which training of a user's own runs; started again after it died.

    Args:
        folder: With the splits as NumPy files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[str] | None = None
        self._reports = -1
        self._mark = f"{os.getpid()}-{_began(os.getpid())}-{uuid.uuid4().hex}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def train(
        self,
        asked: dict[str, Any],
        on_report: Callable[[Any, dict[str, Any]], str | None],
        why_end: Callable[[], str | None],
    ) -> str | None:
        """Trains one trial; why it failed, if it did.

        ``on_report`` is told each report, and says what is wrong with it, if anything; ``why_end`` is asked all the time,
        and says why to go no further, if so. The trial is then ended, whatever it is doing.
        """
        process = self._start()
        assert process.stdin is not None
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        for line in self._lines(process, why_end):
            told = _told(line)
            if "end" in told:
                return None if told["end"] is None else storable(str(told["end"]))
            wrong = on_report(*told["report"]) if "report" in told else f"it wrote {line[:80]!r} where reports go"
            if wrong is not None:
                self.end()
                return wrong
        if (why := why_end()) is not None:
            self.end()
            return why
        return self._why_dead()

    def end(self) -> None:
        """Ends the process and all that it started."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _kill_marked(f"{_MARK}={self._mark}".encode())
        os.close(self._reports)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process = None

    def _lines(self, process: subprocess.Popen[str], why_end: Callable[[], str | None]) -> Iterator[bytes]:
        """What the process tells, line by line, until it has ended or there is a reason to end it.

        Something that it forked may keep the pipe open.
        """
        rest = b""
        while why_end() is None:
            ended = process.poll() is not None
            if not select.select([self._reports], [], [], 0 if ended else _POLL_S)[0]:
                if ended:
                    return
                continue
            data = os.read(self._reports, 1 << 16)
            if not data:
                return
            *whole, rest = (rest + data).split(b"\n")
            yield from whole

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None:
            _kill_orphans()
            self._reports, write = os.pipe()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tiltyard.sweep.engine.own_child", str(self._folder), str(write)],
                stdin=subprocess.PIPE,
                pass_fds=(write,),
                text=True,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), _MARK: self._mark},
                start_new_session=True,
            )
            os.close(write)
        return self._process

    def _why_dead(self) -> str:
        assert self._process is not None
        code = self._process.wait()
        self.end()
        if code < 0:
            told = f"its process was ended by {signal.Signals(-code).name}"
            return told + ("; where nobody did that, memory ran out" if -code == signal.SIGKILL else "")
        return f"its process exited with code {code} before train() returned"


def run_own(
    assignment: Assignment,
    train: Feed,
    validation: Feed,
    member: Member,
    on_epoch: Callable[[int], None],
    *,
    withdrawn: Callable[[], Collection[str]] = tuple,
    go_on: Callable[[], bool] = lambda: True,
    trial_s: float | None = None,
    silent_s: float = SILENT_S,
) -> None:
    """Trains each seat from epoch 0; scores, failures and curves go into what ``member`` gives for it.

    One that a person stops, or that takes longer than ``trial_s``, is ended with all that it started; without a ``trial_s``,
    one that comes to no new epoch for ``silent_s``.
    ``go_on`` is asked before each, and may wait; False ends the queue with what it has done.
    """
    with tempfile.TemporaryDirectory(prefix="tiltyard-") as name:
        for split, feed in (("train", train), ("validation", validation)):
            for what, tensor in zip(("x", "y"), feed.all(), strict=True):
                np.save(Path(name) / f"{what}_{split}.npy", tensor.numpy())
        with Child(Path(name)) as child:
            for done, seat in enumerate(assignment.seats, start=1):
                if not go_on():
                    return
                with member(seat.cell) as (outcome, _):
                    _run_seat(child, assignment, seat, outcome, withdrawn, trial_s, silent_s)
                on_epoch(assignment.to_epoch * done // len(assignment.seats))


def _run_seat(
    child: Child,
    assignment: Assignment,
    seat: Seat,
    outcome: Outcome,
    withdrawn: Callable[[], Collection[str]],
    trial_s: float | None,
    silent_s: float,
) -> None:
    last: dict[str, float] = {}
    began = heard = time.monotonic()
    newest = 0

    def why_end() -> str | None:
        if seat.cell in withdrawn():
            return "stopped by a person"
        return too_long(trial_s, took_s=time.monotonic() - began, quiet_s=time.monotonic() - heard, silent_s=silent_s)

    def on_report(epoch: Any, metrics: dict[str, Any]) -> str | None:
        nonlocal heard, newest
        wrong = wrong_report(epoch, metrics, assignment.metrics)
        if wrong is None:
            scores = {m: float(metrics[m]) for m in assignment.metrics}
            outcome.add_point(seat.cell, epoch, number(metrics.get("train_loss")), scores)
            if epoch > newest:
                newest, heard = epoch, time.monotonic()
            last.clear()
            last.update(scores)
        return wrong

    asked = {
        "train": assignment.model.removeprefix(OWN_TRAINING),
        "config": dict(seat.config),
        "seed": seat.seed,
        "epochs": assignment.to_epoch,
        "task": str(assignment.task),
        "num_outputs": assignment.num_outputs,
        "ids": dict(logs.ids()),
    }
    if seat.cell in withdrawn():
        outcome.withdrawn.add(seat.cell)
        return
    reason = child.train(asked, on_report, why_end)
    if seat.cell in withdrawn():
        outcome.withdrawn.add(seat.cell)
        return
    if reason is None and not last:
        reason = f"train() returned without a report; report(epoch, {assignment.metrics[0]}=...) is wanted"
    if reason is None:
        outcome.scores[seat.cell] = last
    else:
        outcome.failed[seat.cell] = reason


def too_long(trial_s: float | None, *, took_s: float, quiet_s: float, silent_s: float = SILENT_S) -> str | None:
    """Why a trial that trains itself is to be ended for its time, if so.

    Args:
        trial_s: ``budget.trial_s``.
        took_s: Seconds since it began.
        quiet_s: Seconds since it began, or reported a new epoch.
        silent_s: How long it may come to none where there is no ``trial_s``.
    """
    if trial_s is not None:
        return f"it took longer than budget.trial_s allows ({trial_s:g} s)" if took_s > trial_s else None
    if quiet_s > silent_s:
        return f"it reported no new epoch for {silent_s:g} s; where an epoch takes longer, set budget.trial_s"
    return None


def wrong_report(epoch: Any, metrics: dict[str, Any], wanted: tuple[str, ...]) -> str | None:
    """What is wrong with a report, if anything."""
    if isinstance(epoch, bool) or not isinstance(epoch, int) or not 1 <= epoch < _MOST_EPOCHS:
        return f"report() was told epoch {epoch!r}; a whole number from 1 on is wanted"
    for name in wanted:
        if name not in metrics:
            return f"report() was not told {name}; it was told {', '.join(sorted(metrics)) or 'nothing'}"
        value = metrics[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return f"report() was told {name}={value!r}; a number is wanted"
        if not math.isfinite(number(value)):
            return f"diverged: {name} is not a finite number at epoch {epoch}"
    return None


def number(value: Any) -> float:
    """A reported number as float; NaN where it is none, infinite where it is larger than any."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _told(line: bytes) -> dict[str, Any]:
    """What a line says; empty where the user's function wrote it itself."""
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(told, dict):
        return {}
    if "report" in told:
        report = told["report"]
        if not isinstance(report, list) or len(report) != 2 or not isinstance(report[1], dict):
            return {}
    return told


def _kill_marked(mark: bytes) -> None:
    """Ends every process with the mark in its environment: what was forked may have left the group that was killed."""
    for pid, environ in _environments():
        if mark in environ:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _kill_orphans() -> None:
    """Ends what workers that are gone left behind of their training."""
    for pid, environ in _environments():
        found = re.search(rf"{_MARK}=(\d+)-(\d+)-".encode(), environ)
        if found is not None and _began(int(found[1])) != found[2].decode():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _environments() -> Iterator[tuple[int, bytes]]:
    """Of every process of this user: what it was started with."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield int(folder.name), (folder / "environ").read_bytes()


def _began(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
