"""What a launch that ended early has left, and how it goes on.

A launch is meant by its job file, by the name of its experiment or by the beginning of its key. Found by name, the
experiment is rebuilt from the record with its dataset versions pinned; it is the same work only if its code is the same,
which the key tells. Going on is `tiltyard.run.run`: a start over a record does what is left, there is no second way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tiltyard.codedigest import code_digest
from tiltyard.data.store import DatasetStore
from tiltyard.errors import SpecError
from tiltyard.experiment import Experiment
from tiltyard.jobfile import load_experiment
from tiltyard.journal import CellScore, Journal, Launch
from tiltyard.report.record import pick_launch, reading
from tiltyard.settings import Settings
from tiltyard.sweep.engine.control import replay
from tiltyard.sweep.engine.launch import growth_of
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.prepare import prepare
from tiltyard.sweep.engine.rows import ended_outside
from tiltyard.sweep.engine.saving import saved_epochs
from tiltyard.sweep.engine.stock_checkpoints import UNSAVED, saved_of
from tiltyard.sweep.halving import TrialState
from tiltyard.sweep.plan import Group, plan
from tiltyard.sweep.remaining import SKIP, Step, remaining


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumable:
    """A recorded launch and what is left of it.

    Args:
        launch: As recorded; its state is ``running`` where its process was killed, or lives.
        experiment: To run again: the same key.
        job_file: Where it came from, if it was named by its file.
        steps: One a trial, in the plan's order.
        later: Trials of a learning search that are not drawn yet.
        replicates: Replicates of finalists that are to come when these are known, at most.
    """

    launch: Launch
    experiment: Experiment
    job_file: Path | None
    steps: tuple[Step, ...]
    later: int
    replicates: int = 0

    def count(self, action: str) -> int:
        """How many trials have this step."""
        return sum(step.action == action for step in self.steps)

    @property
    def epochs(self) -> int:
        """Epochs that the trials which can start now will train to the next rung, all together."""
        return sum(step.to_epoch - step.from_epoch for step in self.steps)


def find(settings: Settings, wanted: str) -> Resumable:
    """The launch meant, and what is left of it; starts nothing.

    Args:
        settings: Where things live.
        wanted: Path of a job file, name of an experiment, or the beginning of a key.

    Raises:
        SpecError: If there is no such launch, or the code has changed since.
        JournalError: If nothing was ever recorded.
    """
    job_file = Path(wanted) if wanted.endswith(".py") else None
    with reading(settings) as journal:
        if job_file is not None:
            experiment = load_experiment(job_file)
            launch = None
        else:
            launch = pick_launch(journal, wanted)
            experiment = _recorded(journal, launch)
        digest = _code_digest(job_file, experiment)
        _, facts = prepare(experiment, DatasetStore(settings.data_uri))
        the_plan = plan(experiment, facts, code_digest=digest)
        found = journal.launch(the_plan.key)
        if found is None or (launch is not None and found.key != launch.key):
            raise SpecError(_not_the_same(experiment, the_plan.key, launch))
        known: dict[tuple[str, int], CellScore] = {}
        growth = growth_of(experiment, the_plan, facts, code_digest=digest, known=known)

        ended: dict[str, TrialState] = {}

        def load(groups: Sequence[Group]) -> None:
            rungs = {rung for group in groups for rung in group.rungs}
            known.update(journal.cell_scores([t.cell for g in groups for t in g.trials], rungs))
            outside = [t.cell for g in groups if g.scheduler for t in g.trials]
            ended.update(ended_outside(journal, the_plan.key, outside) if outside else {})

        withdrawn = replay(journal, the_plan.key, growth)
        load(the_plan.groups)
        objective = experiment.objective
        steps = remaining(
            the_plan.groups,
            metric=objective.metric,
            mode=objective.direction,
            also=objective.also,
            known=known,
            refused=growth.refused,
            withdrawn=withdrawn,
            ended=ended,
            saved=_saved(Layout(Storage(settings.storage_uri), the_plan.key), the_plan.groups)
            | saved_epochs(journal, Storage(settings.storage_uri), the_plan.key),
            grow=lambda machine: growth.grow(machine, load),
        )
    if found.state == "finished":  # by its budget, with trials left
        why = f"the sweep is finished: {found.summary.get('reason') or 'nothing is left'}"
        steps = tuple(s if s.action == SKIP else replace(s, action=SKIP, why=why) for s in steps)
    return Resumable(
        launch=found,
        experiment=experiment,
        job_file=job_file,
        steps=steps,
        later=sum(growth.plan.later.values()),
        replicates=growth.plan.replicates,
    )


def _code_digest(job_file: Path | None, experiment: Experiment) -> str:
    """Of the experiment's code; where that is not found by name alone, the job file is asked for."""
    try:
        return code_digest(job_file, [v.model for v in experiment.variants])
    except SpecError as error:
        if job_file is not None:
            raise
        raise SpecError(
            f"{error} The record does not say where the job file of {experiment.name} lies: name it, tiltyard resume "
            "JOB_FILE --plan, from where it was run."
        ) from error


def _saved(layout: Layout, groups: Sequence[Group]) -> dict[str, int]:
    """Epochs of the checkpoints that trials outside of packs go on from, by cell."""
    outside = (t for g in groups if g.scheduler and g.scheduler not in UNSAVED for t in g.trials)
    return {t.cell: found.epoch for t in outside if (found := saved_of(layout, t)) is not None}


def _recorded(journal: Journal, launch: Launch) -> Experiment:
    """The experiment of a launch, each dataset at the version that was swept."""
    experiment = Experiment.from_json(launch.spec)
    versions = {row.dataset: row.dataset_version for row in journal.trials(launch.key)}
    return experiment.with_options(
        datasets=[f"{d.name}@{versions[d.name]}" if d.name in versions else str(d) for d in experiment.datasets]
    )


def _not_the_same(experiment: Experiment, key: str, launch: Launch | None) -> str:
    if launch is None:
        return (
            f"No launch of {experiment.name} with this code and data is recorded (its key would be {key[:16]}). Nothing "
            "is left to go on with; start it: tiltyard run JOB_FILE. See what is recorded: tiltyard runs"
        )
    return (
        f"The code of {experiment.name} is not what it was when key {launch.key[:16]} was swept (now it would be "
        f"{key[:16]}): a model or a package has changed, or the job file imports modules of its own, which its name alone "
        "does not tell. Wanted: the same code. Name the job file instead: tiltyard resume JOB_FILE --plan"
    )
