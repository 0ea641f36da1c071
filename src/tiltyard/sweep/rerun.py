"""Does a trial come out again as it was recorded? Trains it alone, in this process, and compares.

The trial goes through `tiltyard.sweep.engine.execute`, as every pack does, from epoch 0 to the last epoch that is
recorded of it, on the dataset version it was recorded on. No Ray is started and no process: a breakpoint in a model's
``forward`` stops where it stands. Nothing is written but a temporary folder.

On one kind of CPU the families of `tiltyard.models` come out equal to the last bit, alone or packed (measured over 27
epochs: no difference). A user's own module, another device or another count of threads may group float32 sums otherwise, so
scores agree within `TOLERANCE`; a score that counts rows may besides move by one validation row that lies on the edge.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tiltyard.data.feed import ArrayFeed, local_feed
from tiltyard.data.store import DatasetStore
from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Journal, TrialRow
from tiltyard.settings import Settings
from tiltyard.sweep.engine.assignment import Assignment, Seat, as_tuples
from tiltyard.sweep.engine.execute import Outcome, batch_size_of, execute
from tiltyard.sweep.engine.layout import Storage
from tiltyard.sweep.engine.prepare import Prepared, prepare
from tiltyard.sweep.plan import DatasetFacts
from tiltyard.types import TUNE_TRAINABLE, DatasetRef

TOLERANCE = 1e-3
"""Relative to the larger of 1 and the recorded score."""
COUNTING = frozenset({"accuracy", "balanced_accuracy", "f1_macro", "subset_accuracy"})
"""Scores that count rows: they move in steps of a row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerun:
    """A trial's record held against training it again.

    Args:
        epoch: The last recorded epoch; both stand at its end.
        recorded: Scores of the record; none where the trial failed.
        again: Scores of the rerun; none where it failed.
        recorded_failure: Why the recorded trial failed, if it did.
        failure: Why the rerun failed, if it did.
        allowed: By metric, the largest difference that counts as agreement.
    """

    epoch: int
    recorded: Mapping[str, float]
    again: Mapping[str, float]
    recorded_failure: str | None
    failure: str | None
    allowed: Mapping[str, float]

    @property
    def tolerance(self) -> float:
        """The largest difference that counts as agreement for any of the metrics."""
        return max(self.allowed.values(), default=TOLERANCE)

    @property
    def agree(self) -> bool:
        """Both failed, or every recorded score came out again."""
        if self.recorded_failure is not None or self.failure is not None:
            return self.recorded_failure is not None and self.failure is not None
        return set(self.recorded) == set(self.again) and all(
            abs(self.again[name] - value) <= self.allowed[name] for name, value in self.recorded.items()
        )


def rerun_trial(settings: Settings, cell: str) -> Rerun:
    """Trains the trial of a cell again, as far as it is recorded, and compares its scores.

    Raises:
        SpecError: If no such trial or no result of it is recorded.
        DatasetNotFoundError: If its dataset version is gone.
        ModelError: If its model cannot be imported or built any more.
    """
    with Journal.open(settings.journal_uri) as journal:
        row, experiment = _recorded_trial(journal, cell)
        _check_rerunnable(row)
        score = _last_score(journal, row)
    with _importable():
        prepared, facts = _dataset(settings, experiment, row)
        assignment = _assignment(row, experiment, facts, score.epoch)
        store = DatasetStore(settings.data_uri)
        validation = _feed(store, prepared, assignment, "validation")
        outcome = _train(assignment, _feed(store, prepared, assignment, "train"), validation, experiment)
    return Rerun(
        epoch=score.epoch,
        recorded=score.metrics if score.failed is None else {},
        again=outcome.scores.get(cell, {}),
        recorded_failure=score.failed,
        failure=outcome.failed.get(cell),
        allowed=_allowed(score.metrics, validation.all()[1].numpy()),
    )


def _recorded_trial(journal: Journal, cell: str) -> tuple[TrialRow, Experiment]:
    for row in journal.find_trials(cell):
        launch = journal.launch(row.key)
        if row.cell == cell and launch is not None:
            return row, Experiment.from_json(launch.spec)
    raise SpecError(f"No trial with cell {cell[:12]} is recorded. See the trials: tiltyard leaderboard --all")


def _check_rerunnable(row: TrialRow) -> None:
    if row.model.startswith(TUNE_TRAINABLE):
        raise SpecError(
            f"Trial {row.group}/{row.index:03d} is of a Ray Tune trainable, which only Ray Tune can run. Wanted: a trial of "
            "a model that Tiltyard trains. See them: tiltyard leaderboard --all"
        )


def _last_score(journal: Journal, row: TrialRow) -> CellScore:
    scores = journal.cell_scores([row.cell])
    if not scores:
        why = f": {row.reason}" if row.reason else ""
        raise SpecError(
            f"Trial {row.group}/{row.index:03d} is {row.state}{why}, and no result of it is recorded; there is nothing "
            "to compare with. Wanted: a trial that has passed a rung. See them: tiltyard leaderboard --all"
        )
    return max(scores.values(), key=lambda s: s.epoch)


def _dataset(settings: Settings, experiment: Experiment, row: TrialRow) -> tuple[Prepared, DatasetFacts]:
    """The trial's dataset version, pinned, with its preprocessing fitted anew: the same rows give the same numbers."""
    pinned = experiment.model_copy(update={"datasets": (DatasetRef(row.dataset, row.dataset_version),)})
    prepared, facts = prepare(pinned, DatasetStore(settings.data_uri))
    return prepared[row.dataset], facts[row.dataset]


def _assignment(row: TrialRow, experiment: Experiment, facts: DatasetFacts, epoch: int) -> Assignment:
    config = {name: as_tuples(value) for name, value in row.config.items()}
    return Assignment(
        pack_id=f"rerun/{row.cell[:12]}",
        group=row.group,
        rung=0,
        from_epoch=0,
        to_epoch=epoch,
        total_epochs=experiment.search.max_epochs,
        model=row.model,
        task=facts.task,
        input_shape=facts.input_shape,
        num_outputs=facts.num_outputs,
        metrics=experiment.objective.metrics,
        dataset=row.dataset,
        data_seed=row.data_seed,
        seats=(Seat(cell=row.cell, seed=row.seed, config=config),),
    )


def _feed(store: DatasetStore, prepared: Prepared, assignment: Assignment, split: str) -> ArrayFeed:
    version, preprocessor = prepared.version, prepared.preprocessor
    table = store.read(version, columns=[*preprocessor.features, *preprocessor.labels], split=split)
    return local_feed(
        preprocessor.transform(table),
        preprocessor.transform_label(table),
        row_hash=store.read_hashes(version, split),
        content_digest=version.content_digest,
        split=split,
        batch_size=batch_size_of(assignment),
        data_seed=assignment.data_seed,
    )


def _train(assignment: Assignment, train: ArrayFeed, validation: ArrayFeed, experiment: Experiment) -> Outcome:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(experiment.resources.cpus)))
    try:
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as folder:
            return execute(assignment, train=train, validation=validation, storage=Storage(folder), folder=Path(folder))
    finally:
        torch.set_num_threads(before)


def _allowed(recorded: Mapping[str, float], labels: npt.NDArray[np.generic]) -> dict[str, float]:
    """By metric: `TOLERANCE`, and one row where rows are counted (of the rarest class, where classes weigh the same)."""
    rows = len(labels)
    rarest = int(np.unique(labels, return_counts=True)[1].min()) if labels.ndim == 1 and rows else rows
    allowed = {}
    for name, value in recorded.items():
        step = 1 / max(1, rows if name in {"accuracy", "subset_accuracy"} else rarest) if name in COUNTING else 0.0
        allowed[name] = TOLERANCE * max(1.0, abs(value)) + step
    return allowed


@contextmanager
def _importable() -> Iterator[None]:
    """The working directory is importable, as it was when the job ran: a user's own model lies there."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
