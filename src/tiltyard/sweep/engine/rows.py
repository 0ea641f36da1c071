"""A trial as the journal, the tracker and the leaderboard have it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from tiltyard.journal import CellScore, Journal, TrialRow
from tiltyard.sweep.engine.curves import Curves
from tiltyard.sweep.engine.driver import ENDED
from tiltyard.sweep.halving import FATES, TrialState
from tiltyard.sweep.leaderboard import Result, beside
from tiltyard.sweep.plan import Trial, replicate_number
from tiltyard.tracking import TrialRecord


def trial_row(key: str, trial: Trial) -> TrialRow:
    """A trial of a plan, to be recorded."""
    return TrialRow(
        cell=trial.cell,
        key=key,
        group=trial.group,
        index=trial.index,
        variant=trial.variant,
        model=trial.model,
        dataset=trial.dataset,
        dataset_version=trial.dataset_version,
        config=trial.config,
        seed=trial.seed,
        data_seed=trial.data_seed,
    )


def trial_record(
    trial: Trial, state: TrialState, scores: Sequence[CellScore], curves: Curves, *, cpus: float
) -> TrialRecord:
    """A trial that ended, for MLflow: whole, with its curve."""
    now_ms = int(time.time() * 1000)
    seconds = sum(s.seconds for s in scores)
    number = replicate_number(trial.group)
    return TrialRecord(
        cell=trial.cell,
        name=trial.name,
        variant=trial.variant,
        dataset=trial.dataset,
        dataset_version=trial.dataset_version,
        dataset_digest=trial.dataset_digest,
        params={**trial.config, "model": trial.model, "seed": trial.seed, "data_seed": trial.data_seed},
        history=curves.of(trial.cell, scores),
        state=state.state,
        reason=state.reason,
        duration_s=seconds,
        cpu_s=seconds * cpus,
        start_ms=now_ms - int(seconds * 1000),
        end_ms=now_ms,
        tags={"tiltyard.replicate": str(number)} if number else {},
    )


def ended_outside(journal: Journal, key: str, cells: Sequence[str]) -> dict[str, TrialState]:
    """How trials that run outside of packs stand, of those that have ended: what they did is not done again."""
    wanted = set(cells)
    return {
        row.cell: TrialState(state=row.state, epoch=row.epoch, score=row.score, reason=row.reason)
        for row in journal.trials(key)
        if row.cell in wanted and row.state in FATES
    }


def results_of(
    rows: Sequence[TrialRow], scores: Mapping[tuple[str, int], CellScore], also: Sequence[str]
) -> list[Result]:
    """Recorded trials as lines to rank.

    Args:
        rows: Of one key.
        scores: Of their cells.
        also: Names of the scores beside the ranking one.
    """
    found = []
    for row in rows:
        known = scores.get((row.cell, row.epoch))
        found.append(
            Result(
                cell=row.cell,
                name=f"{row.group}/{row.index:03d}",
                variant=row.variant,
                dataset=row.dataset,
                index=row.index,
                state=row.state if row.state in ENDED else "interrupted",
                epoch=row.epoch,
                score=row.score if row.state != "failed" else None,
                reason=row.reason,
                config=dict(row.config),
                beside=beside(known.metrics if known is not None else {}, also),
            )
        )
    return found
