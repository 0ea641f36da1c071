"""What the journal and the storage tell about launches and trials, found by the names people use.

A launch is named by its experiment (then the newest is meant) or by the beginning of its key; a trial by its name
(``mlp@digits/017``) or by the beginning of its cell. Reads; writes nothing, and makes no journal where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiltyard.errors import JournalError, MachineError, SpecError
from tiltyard.experiment import Experiment
from tiltyard.journal import CellScore, Journal, Launch, TrialRow
from tiltyard.settings import Settings
from tiltyard.sweep.leaderboard import Leaderboard, Result, beside, leaderboard
from tiltyard.sweep.plan import order_dependent

_SHORTEST_PREFIX = 4


@contextmanager
def reading(settings: Settings) -> Iterator[Journal]:
    """The journal of these settings, open.

    Raises:
        JournalError: If nothing was ever recorded there.
    """
    scheme, _, path = settings.journal_uri.partition(":///")
    if scheme.startswith("sqlite") and path and not Path(path).exists():
        raise JournalError(
            f"Nothing is recorded yet: there is no journal at {path}. Run a sweep first (tiltyard run "
            "jobs/first_sweep.py), or set TILTYARD_HOME to where one was run."
        )
    with Journal.open(settings.journal_uri) as journal:
        yield journal


def pick_launch(journal: Journal, wanted: str | None) -> Launch:
    """The launch meant by an experiment's name, by the beginning of a key, or by nothing: the newest.

    Raises:
        SpecError: If there is none such, with what there is.
    """
    launches = journal.launches()
    if not launches:
        raise SpecError("No sweep is recorded yet. Run one: tiltyard run jobs/first_sweep.py")
    if wanted is None:
        return launches[0]
    for launch in launches:
        if launch.experiment == wanted or (len(wanted) >= _SHORTEST_PREFIX and launch.key.startswith(wanted)):
            return launch
    known = ", ".join(dict.fromkeys(launch.experiment for launch in launches))
    raise SpecError(f"No experiment or key {wanted!r} is recorded. Recorded: {known}. See all launches: tiltyard runs")


def name_of(row: TrialRow) -> str:
    """A trial's name for people; `tiltyard.sweep.plan.Trial.name` makes the same."""
    return f"{row.group}/{row.index:03d}"


def find_trial(journal: Journal, wanted: str) -> TrialRow:
    """The trial meant by its name (in the newest launch that has it) or by the beginning of its cell.

    Raises:
        SpecError: If there is none such, or more than one cell begins so.
    """
    if "/" in wanted:
        for launch in journal.launches():
            for row in journal.trials(launch.key):
                if name_of(row) == wanted:
                    return row
        raise SpecError(f"No trial {wanted!r} is recorded. See the names: tiltyard leaderboard --all")
    if len(wanted) < _SHORTEST_PREFIX or not all(c in "0123456789abcdef" for c in wanted):
        raise SpecError(
            f"{wanted!r} names no trial. Wanted: a name like mlp@digits/017, or at least {_SHORTEST_PREFIX} characters "
            "of a cell (hexadecimal). See them: tiltyard leaderboard --all"
        )
    rows = {row.cell: row for row in reversed(journal.find_trials(wanted))}
    if not rows:
        raise SpecError(f"No cell that begins with {wanted} is recorded. See the trials: tiltyard leaderboard --all")
    if len(rows) > 1:
        several = ", ".join(f"{cell[:16]} ({name_of(row)})" for cell, row in sorted(rows.items())[:5])
        raise SpecError(f"{len(rows)} cells begin with {wanted}: {several}. Give more characters.")
    return next(iter(rows.values()))


def board_of(settings: Settings, journal: Journal, launch: Launch) -> Leaderboard:
    """The leaderboard that the launch wrote; of one that has not finished, the ranking so far, without test scores."""
    from tiltyard.sweep.engine.layout import Layout, Storage

    if launch.state == "finished":
        layout = Layout(Storage(settings.storage_uri), launch.key)
        try:
            return Leaderboard.from_json(layout.storage.read_json(layout.leaderboard))
        except MachineError:  # the journal is the record; the file is made from it and may be lost
            pass
    return board_so_far(journal, launch)


def board_so_far(journal: Journal, launch: Launch) -> Leaderboard:
    """The ranking of the trials as the journal has them now."""
    experiment = Experiment.from_json(launch.spec)
    objective = experiment.objective
    rows = journal.trials(launch.key)
    scores = journal.cell_scores([row.cell for row in rows]) if objective.also else {}

    def also(row: TrialRow) -> tuple[float, ...]:
        score = scores.get((row.cell, row.epoch))
        return beside(score.metrics if score is not None else {}, objective.also)

    results = [
        Result(
            cell=row.cell,
            name=name_of(row),
            variant=row.variant,
            dataset=row.dataset,
            index=row.index,
            state=row.state,
            epoch=row.epoch,
            score=row.score,
            reason=row.reason,
            config=row.config,
            beside=also(row),
        )
        for row in rows
    ]
    return leaderboard(
        experiment=launch.experiment,
        key=launch.key,
        metric=objective.metric,
        mode=objective.direction,
        results=results,
        tests={},
        tied=frozenset(),
        test_looks=0,
        order_dependent=order_dependent(experiment),
    )


def curve_of(scores: Mapping[tuple[str, int], CellScore], cell: str) -> list[dict[str, Any]]:
    """The epochs of a trial in order, each with ``epoch``, ``train_loss`` and the metrics, from the packs' curves.

    A pack whose files are gone is left out: the scores at its rung still stand in the journal.
    """
    import pyarrow.parquet as pq

    from tiltyard.sweep.engine.execute import CURVES
    from tiltyard.sweep.engine.layout import Storage

    points: dict[int, dict[str, Any]] = {}
    for score in sorted(scores.values(), key=lambda s: s.epoch):
        with Storage("").reading(score.storage_uri) as folder:
            if (folder / CURVES).exists():
                rows = pq.read_table(folder / CURVES, filters=[("cell", "=", cell)]).to_pylist()
                points.update((row["epoch"], {k: v for k, v in row.items() if k != "cell"}) for row in rows)
    return [points[epoch] for epoch in sorted(points)]
