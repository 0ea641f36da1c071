"""The trainable under Ray Tune: one call is one pack for one rung.

Order of writes, so that a crash at any point costs at most one attempt: assignment (by the driver), attempt number
(journal), checkpoint and curves (storage), completion with every score (journal, one transaction). Ray Tune learns the
epoch and that the worker is alive, nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ray import tune

from tiltyard.data.stream import open_feed
from tiltyard.errors import ModelError, SpecError, TrainingError
from tiltyard.experiment import Resources
from tiltyard.journal import Attempt, AttemptRow, CellScore, Claim, Journal
from tiltyard.money.prices import noted
from tiltyard.sweep.engine import memory
from tiltyard.sweep.engine.assignment import Assignment
from tiltyard.sweep.engine.execute import Keep, Outcome, batch_size_of, execute
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.packing import is_queued
from tiltyard.sweep.engine.saving import GoOn, Saving, saved_by
from tiltyard.telemetry import logs
from tiltyard.telemetry.instruments import counter
from tiltyard.telemetry.traces import PARENT_ENV, adopt, span

LOOK_EVERY_S = 2.0
"""The journal is asked at most this often whether a person has stopped trials."""
REPORT_EVERY_S = 1.0
"""Epochs are reported to Ray Tune at most this often: a report costs its driver milliseconds, and packs are many."""
MOST_TOLD = 20
"""Failed members of a pack that have a log line each."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What a worker knows from the start; small, and the same for every pack of a launch.

    Args:
        claim: The launch's claim; its fence goes with every write.
        journal_uri: Where the journal is.
        storage_uri: Where files go.
        splits: Per dataset, the handle of its shared splits.
        device: Torch device kind that a pack trains on.
        threads: Threads of a pack's arithmetic.
        cpus: CPUs that a pack holds while its actor lives.
        gpus: GPUs likewise.
        since: When the sweep's packs began, in seconds of the epoch: an actor is metered from then at the earliest.
        trial_s: The most seconds that a trial of a user's own training may take.
        import_paths: Where the driver finds the user's modules; Ray hands on its working directory alone.
        sizes: What `tiltyard.training.calibrate` found for this kind of device; None takes what is shipped.
        trace: `tiltyard.telemetry.traces.environment` of the sweep; empty where traces are off.
        experiment: Its name, for log lines.
        job: The Ray job that it runs in, if any, for log lines.
        personal: Columns whose values log lines do not show.
    """

    claim: Claim
    journal_uri: str
    storage_uri: str
    splits: dict[str, Any]
    device: str
    threads: int
    cpus: float = 1.0
    gpus: float = 0.0
    since: float = 0.0
    trial_s: float | None = None
    import_paths: tuple[str, ...] = ()
    sizes: Mapping[str, Any] | None = None
    trace: Mapping[str, str] = field(default_factory=dict)
    experiment: str = ""
    job: str = ""
    personal: tuple[str, ...] = ()


def import_paths() -> tuple[str, ...]:
    """Where this process finds modules beside Python's own and those that are installed."""
    installed = (sys.prefix, sys.base_prefix, sys.exec_prefix)
    return tuple(os.path.abspath(path) for path in sys.path if not os.path.abspath(path).startswith(installed))


@lru_cache(maxsize=1)
def _journal(uri: str) -> Journal:
    """One connection a process: actors are reused for many packs."""
    return Journal.open(uri)


def train_pack(config: dict[str, Any], post: Post) -> None:
    """Trains the pack named in ``config["pack"]``; Ray Tune runs this in a reused actor."""
    logs.setup(level=logging.WARNING)
    logs.personal(post.personal)
    adopt(post.trace)
    about = {"experiment": post.experiment, "pack": config["pack"]}
    with logs.bound(**about, job=post.job), span("pack", parent=post.trace.get(PARENT_ENV, ""), **about):
        _train_assigned(config, post)


def _train_assigned(config: dict[str, Any], post: Post) -> None:
    import torch

    started = time.monotonic()
    torch.set_num_threads(post.threads)
    sys.path += [path for path in post.import_paths if path not in sys.path]
    journal = _journal(post.journal_uri)
    layout = Layout(Storage(post.storage_uri), post.claim.key)
    assignment = Assignment.from_dict(layout.storage.read_json(layout.assignment(config["pack"])))
    tried = journal.attempts(post.claim.key, assignment.pack_id)
    halved = memory.halvings(tried)
    try:
        chunk = memory.chunk_of(assignment, post.device, post.sizes, halved)
    except Exception:  # of a user's model: the attempt will meet it again and record it
        chunk = None
    queued = is_queued(assignment.model)
    saved = None if queued else saved_by(journal, post.claim.key, assignment.pack_id, assignment.cells)
    left = assignment
    if queued:  # its members are recorded one by one; what an earlier attempt did is done
        known = journal.cell_scores(assignment.cells, [assignment.to_epoch])
        left = replace(
            assignment, seats=tuple(s for s in assignment.seats if (s.cell, assignment.to_epoch) not in known)
        )
    attempt = journal.start_attempt(
        post.claim,
        assignment.pack_id,
        rung=assignment.rung,
        cells=assignment.cells,
        device_kind=post.device,
        layout={
            "members": len(assignment.seats),
            "chunk": chunk,
            "halved": halved,
            "goes_on_from": saved,
            **({"first": left.cells[0]} if queued and left.seats else {}),
            "pid": os.getpid(),
            **noted(os.environ, Resources(cpus=post.cpus, gpus=post.gpus)),
            "unpaid_since": _METER.unpaid_since(
                post, given=assignment.given
            ),  # whoever must charge for this process, should it die
        },
    )
    if attempt.number > 1:
        _METER.charge_lost(journal, post, assignment.pack_id, attempt.number - 1)
    report = _Reporter()
    uri = layout.attempt(assignment.pack_id, attempt.number)
    try:
        stopped = _Stopped(journal, post.claim.key)
        keep = _keeper(journal, attempt, assignment, layout.storage, uri) if queued else None
        why = died_twice([a for a in tried if a.started >= post.since], left.cells)
        if keep is not None and why is not None:
            lost = Outcome(failed={left.cells[0]: why})
            with keep(left.cells[0], lost) as folder:
                lost.write_curves(folder)
            left = replace(left, seats=left.seats[1:])
        outcome = _train(
            left, post, layout.storage, uri, report, stopped, chunk, keep, Saving(journal, post.claim), saved
        )
    except Exception as error:
        journal.fail_attempt(attempt, memory.reason(error), metered_s=time.monotonic() - started)
        _METER.charge(journal, post)
        if isinstance(error, (SpecError, ModelError, TrainingError)):
            return  # it would fail again as it did: the driver reads the reason from the journal and goes on
        raise
    if outcome.saved:
        journal.save_attempt(attempt, metered_s=time.monotonic() - started, storage_uri=uri)
        _METER.charge(journal, post)
        return
    journal.finish_attempt(
        attempt,
        scores=_cell_scores(assignment, outcome, uri, attempt.number, time.monotonic() - started)
        if keep is None
        else (),
        metered_s=time.monotonic() - started,
        storage_uri=uri,
    )
    _METER.charge(journal, post)
    _tell_failed(outcome)
    _count(assignment, outcome, time.monotonic() - started)
    tune.report({"epoch": assignment.to_epoch, "wait_s": outcome.data_wait_s})


def _tell_failed(outcome: Outcome) -> None:
    """A line for each member that failed, with its id; of very many the first `MOST_TOLD`, the rest as a number."""
    failed = list(outcome.failed.items())
    for cell, reason in failed[:MOST_TOLD]:
        with logs.bound(trial=cell[:12]):
            _LOG.warning("The trial failed: %s", reason)
    if (more := len(failed) - MOST_TOLD) > 0:
        _LOG.warning("%d more trials of the pack failed: tiltyard leaderboard --all", more)


def died_twice(tried: Sequence[AttemptRow], left: Sequence[str]) -> str | None:
    """Why the next member of a queue is not tried a third time: it trained when the last two attempts died.

    Args:
        tried: The attempts of this launch before this one; each notes the cell that it began with.
        left: Cells of the queue that are not recorded, in their order.
    """
    if len(tried) < 2 or not left or tried[-1].layout.get("first") != left[0]:
        return None
    return tried[-1].reason or "its worker process died twice while it trained; where nobody did that, memory ran out"


def _train(
    assignment: Assignment,
    post: Post,
    storage: Storage,
    uri: str,
    report: _Reporter,
    stopped: _Stopped,
    chunk: int | None,
    keep: Keep | None,
    saving: Saving,
    saved: str | None,
) -> Outcome:
    if not assignment.seats:
        return Outcome()
    handle = post.splits[assignment.dataset]
    common: dict[str, Any] = {
        "batch_size": batch_size_of(assignment),
        "data_seed": assignment.data_seed,
        "device": post.device,
    }
    with storage.writing(uri) as folder:
        return execute(
            assignment,
            train=open_feed(handle, split="train", **common),
            validation=open_feed(handle, split="validation", **common),
            storage=storage,
            folder=folder,
            device=post.device,
            on_epoch=report,
            withdrawn=stopped,
            go_on=GoOn(_journal(post.journal_uri), post.claim, saving),
            trial_s=post.trial_s,
            chunk=chunk,
            keep=keep,
            saving=saving,
            saved=saved,
        )


def _keeper(journal: Journal, attempt: Attempt, assignment: Assignment, storage: Storage, uri: str) -> Keep:
    """Keeps each member of a queue as it ends: its files in storage, then its completion in the journal."""

    @contextmanager
    def keep(cell: str, part: Outcome) -> Iterator[Path]:
        place, began = f"{uri}/{cell[:16]}", time.monotonic()
        with storage.writing(place) as folder:
            yield folder
        its = replace(assignment, seats=tuple(s for s in assignment.seats if s.cell == cell))
        journal.record_scores(attempt, _cell_scores(its, part, place, attempt.number, time.monotonic() - began))

    return keep


def _cell_scores(assignment: Assignment, outcome: Outcome, uri: str, attempt: int, pack_s: float) -> list[CellScore]:
    return [
        CellScore(
            cell=cell,
            epoch=assignment.to_epoch,
            metrics=outcome.scores.get(cell, {}),
            storage_uri=uri,
            pack_id=assignment.pack_id,
            attempt=attempt,
            seconds=outcome.seconds.get(cell, pack_s / len(assignment.cells)),
            failed=outcome.failed.get(cell),
        )
        for cell in assignment.cells
        if cell not in outcome.withdrawn
    ]


@lru_cache
def _counter(name: str) -> Any:
    return counter(f"tiltyard_training_{name}")


def _count(assignment: Assignment, outcome: Outcome, seconds: float) -> None:
    """Adds a pack to what this process exports of training."""
    labels = {"dataset": assignment.dataset}
    amounts = {
        "rows": outcome.rows,
        "bytes": outcome.num_bytes,
        "seconds": seconds,
        "data_wait_seconds": outcome.data_wait_s,
    }
    for name, amount in amounts.items():
        if amount > 0:  # a counter of Ray's takes no zero
            _counter(name).inc(amount, labels)


class _Meter:
    """Charges a key for what this process holds: from its start, over the waits between packs, to the end of each."""

    def __init__(self) -> None:
        self._claim: Claim | None = None
        self._until = 0.0
        """To when the launch of the claim has paid for this process."""

    def unpaid_since(self, post: Post, *, given: float = 0.0) -> float:
        """To when the launch has paid for this process: at first, to when it began, or was given its first pack if later."""
        import psutil

        if self._claim != post.claim:
            self._claim, self._until = post.claim, max(post.since, given, float(psutil.Process().create_time()))
        return self._until

    def charge(self, journal: Journal, post: Post) -> None:
        """Charges what was held since the last charge."""
        now = time.time()
        _meter(journal, post, "packs", now - self.unpaid_since(post))
        self._until = now

    def charge_lost(self, journal: Journal, post: Post, pack_id: str, number: int) -> None:
        """Charges what an attempt of this launch held whose process died before it could."""
        for lost in journal.attempts(post.claim.key):
            died = (lost.pack_id, lost.number, lost.state) == (pack_id, number, "fenced")
            if died and lost.started >= post.since:
                _meter(journal, post, "lost packs", time.time() - lost.layout.get("unpaid_since", lost.started))


_METER = _Meter()


def _meter(journal: Journal, post: Post, what: str, held_s: float) -> None:
    journal.meter(key=post.claim.key, what=what, wall_s=held_s, cpu_s=held_s * post.cpus, gpu_s=held_s * post.gpus)


class _Stopped:
    """Which cells a person has stopped, looked up at most every `LOOK_EVERY_S`."""

    def __init__(self, journal: Journal, key: str) -> None:
        self._journal, self._key = journal, key
        self._cells: frozenset[str] = frozenset()
        self._last = time.monotonic()

    def __call__(self) -> frozenset[str]:
        now = time.monotonic()
        if now - self._last >= LOOK_EVERY_S:
            self._last, self._cells = now, self._journal.requests.stopped(self._key)
        return self._cells


class _Reporter:
    """Tells Ray Tune the epoch, at most every `REPORT_EVERY_S`."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, epoch: int) -> None:
        now = time.monotonic()
        if now - self._last >= REPORT_EVERY_S:
            self._last = now
            tune.report({"epoch": epoch})
