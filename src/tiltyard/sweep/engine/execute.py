"""Does one assignment: trains the members of a pack over its epochs and says how each did. No Ray, no journal.

The worker under Ray Tune and `tiltyard trial rerun` both call `execute`, so a rerun trains exactly what the sweep
trained. Two ways behind it: members that share a pack step together (`tiltyard.training`); members that cannot (the
LightGBM baseline) are a queue, trained one after another.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.errors import TiltyardError, TrainingError
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.layout import Storage
from tiltyard.sweep.engine.packing import is_queued
from tiltyard.telemetry.logs import bound
from tiltyard.types import OWN_TRAINING

if TYPE_CHECKING:
    import torch

    from tiltyard.training import Pack

CURVES = "curves.parquet"


class Feed(Protocol):
    """What training needs of a split (`tiltyard.data.stream` has the real ones)."""

    num_rows: int
    steps_per_epoch: int

    def epoch(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of an epoch, in the order that belongs to it."""

    def all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Every row, in canonical order."""


@dataclass(slots=True)
class Outcome:
    """How an assignment went: scores at its last epoch, failures with reasons, curves, seconds waited for data."""

    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    curve: dict[str, list[Any]] = field(default_factory=dict)
    data_wait_s: float = 0.0
    rows: int = 0
    """Rows that training steps took, once for all members."""
    num_bytes: int = 0
    """Of those rows, as the model takes them, labels in them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By cell, where members ran one after another; members that step together share the pack's."""
    withdrawn: set[str] = field(default_factory=set)
    """Members that were not trained to the end because a person stopped them."""
    saved: bool = False
    """The sweep ends: the pack was left whole at an epoch before its last, with its curves up to there."""

    def add_point(self, cell: str, epoch: int, train_loss: float, metrics: Mapping[str, float]) -> None:
        """Appends one row of the curves; ``epoch`` counts finished epochs, so the first is 1."""
        for name, value in {"cell": cell, "epoch": epoch, "train_loss": train_loss, **metrics}.items():
            self.curve.setdefault(name, []).append(value)

    def join(self, other: Outcome) -> None:
        """Takes over what is in another one, of other cells."""
        self.scores |= other.scores
        self.failed |= other.failed
        self.seconds |= other.seconds
        self.withdrawn |= other.withdrawn
        self.data_wait_s += other.data_wait_s
        self.rows += other.rows
        self.num_bytes += other.num_bytes
        for name, values in other.curve.items():
            self.curve.setdefault(name, []).extend(values)

    def write_curves(self, folder: Path) -> None:
        """Leaves the curves in a folder, as `CURVES`."""
        pq.write_table(pa.table(self.curve or {"cell": [], "epoch": []}), folder / CURVES)


OnEpoch = Callable[[int], None]
Withdrawn = Callable[[], Collection[str]]
"""Which cells a person has stopped; asked often, so it is to look seldom."""
Keep = Callable[[str, Outcome], AbstractContextManager[Path]]
"""A folder for one member of a queue; when the block ends without an error, what is in the folder and how the member did
(the outcome, filled by then) are kept."""
Member = Callable[[str], AbstractContextManager[tuple[Outcome, Path]]]
"""One member of a queue: where it says how it did, and where it leaves its files."""


def batch_size_of(assignment: Assignment) -> int:
    """The batch size that every member of the pack shares."""
    return int(assignment.seats[0].config.get("batch_size", 64))


def execute(
    assignment: Assignment,
    *,
    train: Feed,
    validation: Feed,
    storage: Storage,
    folder: Path,
    device: str = "cpu",
    on_epoch: OnEpoch = lambda _: None,
    withdrawn: Withdrawn = tuple,
    go_on: Callable[[], bool] = lambda: True,
    trial_s: float | None = None,
    chunk: int | None = None,
    keep: Keep | None = None,
    saving: Callable[[], bool] = lambda: False,
    saved: str | None = None,
) -> Outcome:
    """Trains the assignment's members and leaves checkpoint and curves in ``folder``.

    Args:
        assignment: What to do.
        train: Batches of the training split, in the order of the assignment's ``data_seed``.
        validation: The validation split.
        storage: Where the parameters at ``from_epoch`` are found.
        folder: Empty local folder for the checkpoint and `CURVES`.
        device: A torch device.
        on_epoch: Told the number of finished epochs after each.
        withdrawn: Cells that a person has stopped: a pack of nothing else ends, a queue leaves them out.
        go_on: Asked before each member of a queue begins, and may wait: False ends the queue with what it has done.
        trial_s: The most seconds that a trial of a user's own training may take.
        chunk: Most members of a pack that step together in memory; None chooses.
        keep: Keeps each member of a queue as it ends, in a folder of its own; where None, all of them are left in ``folder``.
        saving: Whether a pack is to save what it has and end; asked after each epoch.
        saved: Where an earlier attempt did so: the pack goes on from there.

    Raises:
        TrainingError: If the assignment cannot be trained at all; a member that diverges is an entry in ``failed``.
    """
    if train.num_rows == 0 or validation.num_rows == 0:
        raise TrainingError(
            f"{assignment.dataset} has {train.num_rows} training and {validation.num_rows} validation rows; "
            "both are wanted. Change the split's fractions, or commit more rows."
        )
    if not is_queued(assignment.model):
        outcome = Outcome()
        pack = _open_saved(saved, assignment, storage, device, chunk, outcome) if saved is not None else None
        if pack is None:
            pack = _open_pack(assignment, storage, device, chunk)
        _pack(assignment, pack, train, validation, folder, on_epoch, withdrawn, saving, outcome)
        outcome.write_curves(folder)
        return outcome
    outcome = Outcome()

    @contextmanager
    def member(cell: str) -> Iterator[tuple[Outcome, Path]]:
        began, part = time.perf_counter(), Outcome()
        with nullcontext(folder) if keep is None else keep(cell, part) as place:
            with bound(trial=cell[:12]):
                yield part, place
            part.seconds[cell] = time.perf_counter() - began
            if keep is not None:
                part.write_curves(place)
        outcome.join(part)

    if assignment.model.startswith(OWN_TRAINING):
        from tiltyard.sweep.engine.own import run_own

        run_own(assignment, train, validation, member, on_epoch, withdrawn=withdrawn, go_on=go_on, trial_s=trial_s)
    else:
        _queue(assignment, train, validation, storage, member, on_epoch, withdrawn, go_on)
    if keep is None:
        outcome.write_curves(folder)
    return outcome


def _pack(
    assignment: Assignment,
    pack: Pack,
    train: Feed,
    validation: Feed,
    folder: Path,
    on_epoch: OnEpoch,
    withdrawn: Withdrawn,
    saving: Callable[[], bool],
    outcome: Outcome,
) -> None:
    """Members that step together, from where the pack stands; the checkpoint is written while the last epoch is scored."""
    x, y = validation.all()
    x, y = x.to(pack.device), y.to(pack.device)
    with ExitStack() as beside:  # whatever happens, the checkpoint is whole, or its error is told, before this ends
        for epoch in range(pack.epoch, assignment.to_epoch):
            batches = _Timed(train.epoch(epoch))
            losses = pack.train_epoch(batches, steps_per_epoch=train.steps_per_epoch)
            if epoch + 1 == assignment.to_epoch:
                beside.callback(pack.save_later(folder).wait)
            outcome.data_wait_s += batches.waited_s
            outcome.rows += batches.rows
            outcome.num_bytes += batches.num_bytes
            scores = pack.score(x, y, assignment.metrics)
            for i, member in enumerate(pack.members):
                values = {name: float(found[i]) for name, found in scores.items()}
                outcome.add_point(member.name, epoch + 1, float(losses[i]), values)
            on_epoch(epoch + 1)
            if set(assignment.cells) <= set(withdrawn()):
                outcome.withdrawn |= set(assignment.cells)
                return
            if epoch + 1 < assignment.to_epoch and saving():
                pack.save(folder)
                outcome.saved = True
                return
        failed = pack.failures()
        for i, member in enumerate(pack.members):
            metrics = {name: float(found[i]) for name, found in scores.items()}
            _judge(outcome, member.name, metrics, failed.get(member.name))


def _open_saved(
    uri: str, assignment: Assignment, storage: Storage, device: str, chunk: int | None, outcome: Outcome
) -> Pack | None:
    """The pack as an earlier attempt left it in the middle of the rung; its curves up to there go into ``outcome``.

    None where it is not there any more: the rung then begins anew.
    """
    from tiltyard.training import Pack

    try:
        with storage.reading(uri) as folder:
            pack = Pack.load(folder, names=assignment.cells, device=device, chunk=chunk)
            points = pq.read_table(folder / CURVES).to_pylist()
    except (OSError, TiltyardError, pa.ArrowException):
        return None
    cells = set(assignment.cells)
    for point in points:
        if point["cell"] in cells:
            for name, value in point.items():
                outcome.curve.setdefault(name, []).append(value)
    return pack


def _open_pack(assignment: Assignment, storage: Storage, device: str, chunk: int | None) -> Pack:
    from tiltyard.training import Pack

    if assignment.from_epoch == 0:
        spec, members = pack_parts(assignment)
        return Pack.create(spec, members, device=device, chunk=chunk)
    sources: dict[str, list[str]] = {}
    for seat in assignment.seats:
        sources.setdefault(_source(seat, assignment), []).append(seat.cell)
    with ExitStack() as stack:
        parts = [
            Pack.load(stack.enter_context(storage.reading(uri)), names=cells, device=device, chunk=chunk)
            for uri, cells in sources.items()
        ]
        pack = Pack.merge(parts) if len(parts) > 1 else parts[0]
    return pack.keep(assignment.cells)


def pack_parts(assignment: Assignment) -> tuple[Any, list[Any]]:
    """The `PackSpec` and the `Member` values of an assignment."""
    from tiltyard.training import PackSpec, members_of, split_config

    shared, _ = split_config(assignment.seats[0].config)
    optimizer = str(shared.pop("optimizer", "adamw"))
    batch_size = int(shared.pop("batch_size", 64))
    spec = PackSpec(
        model=assignment.model,
        model_args=shared,
        task=assignment.task,
        input_shape=assignment.input_shape,
        num_outputs=assignment.num_outputs,
        optimizer=optimizer,
        batch_size=batch_size,
        total_epochs=assignment.total_epochs,
    )
    seats = assignment.seats
    members = members_of({s.cell: s.config for s in seats}, {s.cell: s.seed for s in seats})
    return spec, members


def _source(seat: Seat, assignment: Assignment) -> str:
    if seat.source is None:
        raise TrainingError(
            f"Trial {seat.cell[:12]} is to go on from epoch {assignment.from_epoch}, but no checkpoint is recorded. "
            "Wanted: the folder of its last rung. Run the experiment again; the trial begins anew."
        )
    return seat.source


def _queue(
    assignment: Assignment,
    train: Feed,
    validation: Feed,
    storage: Storage,
    member: Member,
    on_epoch: OnEpoch,
    withdrawn: Withdrawn,
    go_on: Callable[[], bool],
) -> None:
    """Members that cannot share a step: one after another, each with its own files."""
    from tiltyard.models.lightgbm import LightGBMTrial

    x, y = (t.numpy() for t in train.all())
    x_val, y_val = (t.numpy() for t in validation.all())
    for done, seat in enumerate(assignment.seats, start=1):
        if not go_on():
            return
        with member(seat.cell) as (outcome, folder):
            if seat.cell in withdrawn():
                outcome.withdrawn.add(seat.cell)
                continue
            try:
                if assignment.from_epoch == 0:
                    trial = LightGBMTrial(
                        seat.config, task=assignment.task, num_outputs=assignment.num_outputs, seed=seat.seed
                    )
                else:
                    with storage.reading(_source(seat, assignment)) as source:
                        trial = LightGBMTrial.load(source / seat.cell)
                for point in trial.train(x, y, x_val, y_val, to_epoch=assignment.to_epoch, metrics=assignment.metrics):
                    outcome.add_point(seat.cell, point.epoch, point.train_loss, point.metrics)
                trial.save(folder / seat.cell)
                _judge(outcome, seat.cell, dict(point.metrics), None)
            except TrainingError as error:
                outcome.failed[seat.cell] = str(error)
        on_epoch(assignment.from_epoch + (assignment.to_epoch - assignment.from_epoch) * done // len(assignment.seats))


def _judge(outcome: Outcome, cell: str, metrics: dict[str, float], reason: str | None) -> None:
    """A score that is not a number is a failure with a reason, whatever the member said."""
    if reason is None and not all(math.isfinite(v) for v in metrics.values()):
        bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        reason = f"diverged: {', '.join(bad)} is not a finite number"
    if reason is None:
        outcome.scores[cell] = metrics
    else:
        outcome.failed[cell] = reason


class _Timed:
    """Counts the seconds that the consumer of an iterator waits for it, and the rows and bytes it gets."""

    def __init__(self, batches: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> None:
        self._batches = iter(batches)
        self.waited_s = 0.0
        self.rows, self.num_bytes = 0, 0

    def __iter__(self) -> _Timed:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        start = time.perf_counter()
        try:
            batch = next(self._batches)
            self.rows += len(batch[0])
            self.num_bytes += batch[0].nbytes + batch[1].nbytes
            return batch
        finally:
            self.waited_s += time.perf_counter() - start


def read_curves(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The curves as columns: cell, epoch, train_loss and one column a metric."""
    table = pq.read_table(path)
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
