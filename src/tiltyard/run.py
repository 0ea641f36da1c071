"""Runs a job file: data, sweep, champions, and what a person is told about it.

``python jobs/x.py``, ``tiltyard run jobs/x.py`` and ``ray job submit -- python jobs/x.py`` all come through `run_file`.
Exit codes: 0 done (also where the experiment's own budget ended it with a winner for each dataset), 1 refused or failed, 2
the options are wrong, 3 a budget ended it before that, 130 stopped with Ctrl-C. ``TILTYARD_DEBUG=1`` shows
tracebacks.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tiltyard.codedigest import code_digest
from tiltyard.errors import SpecError, TiltyardError
from tiltyard.experiment import Experiment
from tiltyard.jobfile import load_experiment
from tiltyard.ray_token import use_own_token
from tiltyard.report.progress import showing
from tiltyard.report.telling import Teller
from tiltyard.report.terminal import output
from tiltyard.settings import Settings, shows_tracebacks

if TYPE_CHECKING:
    from tiltyard.crown import Crowned, Served
    from tiltyard.data.versions import Commit
    from tiltyard.sweep.engine.outcome import Outcome

INTERRUPTED = 130
OUT_OF_BUDGET = 3


def main(path: str, argv: Sequence[str] | None = None) -> None:
    """What a job file calls at its end; reads the few options that vary from day to day, and exits."""
    parser = argparse.ArgumentParser(prog=f"python {Path(path).name}", description="Run this experiment.")
    parser.add_argument("--trials", type=int, help="trials per dataset instead of the experiment's")
    parser.add_argument("--datasets", help="only these, separated by commas; NAME or NAME@VERSION")
    parser.add_argument("--seed", type=int, help="another seed")
    options = parser.parse_args(argv)
    names = names_in(options.datasets)
    if names == []:
        parser.error("--datasets: name at least one dataset, e.g. --datasets wine,digits")
    try:
        with showing():
            code = run_file(path, trials=options.trials, datasets=names, seed=options.seed)
    except TiltyardError as error:
        if shows_tracebacks():
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise SystemExit(code)


def names_in(datasets: str | None) -> list[str] | None:
    """The names in the text of ``--datasets``; None where it was not given.

    >>> names_in(" wine, digits@2,")
    ['wine', 'digits@2']
    """
    return None if datasets is None else [name.strip() for name in datasets.split(",") if name.strip()]


def run_file(
    path: str | Path,
    *,
    trials: int | None = None,
    datasets: Sequence[str] | None = None,
    seed: int | None = None,
) -> int:
    """Runs the experiment of a job file; the exit code.

    Raises:
        TiltyardError: If it cannot be run as it stands, or failed.
    """
    experiment = load_experiment(path).with_options(trials=trials, datasets=datasets, seed=seed)
    return run(experiment, job_file=Path(path))


def run(experiment: Experiment, *, settings: Settings | None = None, job_file: Path | None = None) -> int:
    """Runs an experiment to its leaderboard and champions, telling how it goes; the exit code.

    Args:
        experiment: What to do.
        settings: Where things live; from the environment where None.
        job_file: The file it came from: its code is part of the experiment's key.

    Raises:
        TiltyardError: If it cannot be run as it stands, or failed.
    """
    started = time.monotonic()
    settings = settings or Settings.from_env()
    settings.ensure_home()
    use_own_token(settings)
    tell = Teller(experiment, output())
    digest = code_digest(job_file, [v.model for v in experiment.variants])
    tell.committed(commit_missing_samples(settings, experiment))

    from tiltyard.sweep.engine.ahead import start_ahead

    begun = start_ahead(settings, experiment, code_digest=digest)

    from tiltyard.report.html import drawing_at_end
    from tiltyard.sweep.engine.launch import launch
    from tiltyard.sweep.engine.ray_runtime import submitted_job
    from tiltyard.telemetry import logs
    from tiltyard.telemetry.sweeps import exporting
    from tiltyard.telemetry.traces import span

    try:
        logs.setup(level=logging.WARNING)
        job, name = submitted_job(), experiment.name
        with (
            logs.bound(experiment=name, job=job),
            span("sweep", experiment=name, job=job),
            exporting(settings, experiment, tell, job=job) as watch,
        ):
            outcome = launch(
                settings,
                experiment,
                code_digest=digest,
                watch=watch,
                job=job,
                page=drawing_at_end(settings),
                begun=begun,
            )
    finally:
        tell.close()
    tell.result(outcome)
    if outcome.state == "stopped":
        return INTERRUPTED if outcome.by_person else OUT_OF_BUDGET
    crowned, served = _crown(settings, experiment, outcome, digest, job_file, tell)
    tell.end(settings, outcome, crowned, time.monotonic() - started)
    without = [d for d in outcome.leaderboard.tables if outcome.leaderboard.best(d) is None]
    tell.without_winner(without)
    return 0 if all(s.equal for s in served) and not without else 1


def commit_missing_samples(settings: Settings, experiment: Experiment) -> list[Commit]:
    """Commits the sample datasets that the experiment names, where they do not exist yet.

    Raises:
        SpecError: If one of them is no sample.
    """
    wanted = [d.name for d in experiment.datasets if d.name in experiment.samples]
    if not wanted:
        return []
    from tiltyard.data.store import DatasetStore

    store = DatasetStore(settings.data_uri)
    there = set(store.names())
    missing = [name for name in wanted if name not in there]
    if not missing:
        return []
    from tiltyard.data.samples import NAMES, commit_samples

    unknown = sorted(set(missing) - set(NAMES))
    if unknown:
        raise SpecError(
            f"{unknown[0]!r} is no sample dataset; there are: {', '.join(NAMES)}. Commit it: tiltyard data commit"
        )
    return commit_samples(store, missing)


def _crown(
    settings: Settings,
    experiment: Experiment,
    outcome: Outcome,
    digest: str,
    job_file: Path | None,
    tell: Teller,
) -> tuple[list[Crowned], list[Served]]:
    if experiment.champion is None:
        return [], []
    from tiltyard.crown import check_served, crown, served_before

    crowned = crown(settings, experiment, outcome, code_digest=digest, job_file=job_file)
    tell.crowned(crowned)
    if not experiment.champion.serve or not crowned or served_before(settings, outcome.plan.key, crowned):
        return crowned, []
    served = check_served(settings, experiment, outcome, crowned)
    tell.served(served)
    return crowned, served


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
