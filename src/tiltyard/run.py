"""Runs a job file: data, sweep, champions, and what a person is told about it.

``python jobs/x.py``, ``tiltyard run jobs/x.py`` and ``ray job submit -- python jobs/x.py`` all come through `run_file`.
Exit codes: 0 done, 1 refused or failed, 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tiltyard.codedigest import code_digest
from tiltyard.errors import SpecError, TiltyardError
from tiltyard.experiment import Experiment
from tiltyard.jobfile import load_experiment
from tiltyard.ray_token import use_own_token
from tiltyard.report.terminal import Best, Snapshot, SteadyConsole, SweepProgress, closing
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.crown import Crowned, Served
    from tiltyard.sweep.engine.driver import Tick
    from tiltyard.sweep.engine.launch import Outcome
    from tiltyard.sweep.leaderboard import Leaderboard
    from tiltyard.sweep.plan import Plan

INTERRUPTED = 130
SHOWN_ROWS = 8
"""Rows of a leaderboard that are printed; all of them: ``tiltyard leaderboard``."""


def main(path: str, argv: Sequence[str] | None = None) -> None:
    """What a job file calls at its end; reads the few options that vary from day to day, and exits."""
    parser = argparse.ArgumentParser(prog=f"python {Path(path).name}", description="Run this experiment.")
    parser.add_argument("--trials", type=int, help="trials per dataset instead of the experiment's")
    parser.add_argument("--datasets", help="only these, separated by commas; NAME or NAME@VERSION")
    parser.add_argument("--seed", type=int, help="another seed")
    options = parser.parse_args(argv)
    names = options.datasets.split(",") if options.datasets else None
    try:
        code = run_file(path, trials=options.trials, datasets=names, seed=options.seed)
    except TiltyardError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        code = 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    raise SystemExit(code)


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
    console = SteadyConsole(highlight=False)
    use_own_token(settings)
    commit_missing_samples(settings, experiment, console)
    digest = code_digest(job_file, [v.model for v in experiment.variants])

    from tiltyard.sweep.engine.launch import launch

    progress = _Progress(experiment, console)
    try:
        outcome = launch(
            settings, experiment, code_digest=digest, watch=progress, job=os.environ.get("RAY_JOB_SUBMISSION_ID", "")
        )
    finally:
        progress.close()
    _show_leaderboard(console, outcome)
    if outcome.state == "stopped":
        console.print(f"Stopped: {outcome.reason}. All that was finished is kept; the next start goes on from there.")
        return INTERRUPTED if outcome.reason and "Ctrl-C" in outcome.reason else 1
    crowned, served = _crown(settings, experiment, outcome, digest, job_file, console)
    _tell_tracker(outcome, console)
    console.print(closing(_places(settings, outcome, crowned), _commands(experiment, crowned)))
    console.print(f"\n{_verdict(outcome)} in {time.monotonic() - started:.0f} s.")
    return 0 if all(s.equal for s in served) else 1


def commit_missing_samples(settings: Settings, experiment: Experiment, console: Console) -> None:
    """Commits the sample datasets that the experiment names, where they do not exist yet."""
    wanted = [d.name for d in experiment.datasets if d.name in experiment.samples]
    if not wanted:
        return
    from tiltyard.data.store import DatasetStore

    store = DatasetStore(settings.data_uri)
    there = set(store.names())
    missing = [name for name in wanted if name not in there]
    if not missing:
        return
    from tiltyard.data.samples import NAMES, commit_samples

    unknown = sorted(set(missing) - set(NAMES))
    if unknown:
        raise SpecError(
            f"{unknown[0]!r} is no sample dataset; there are: {', '.join(NAMES)}. Commit it: tiltyard data commit"
        )
    for commit in commit_samples(store, missing):
        v = commit.version
        rows = ", ".join(f"{n} {split}" for split, n in v.split_rows.items())
        console.print(f"committed {v.ref}: {v.num_rows} rows ({rows}), digest {v.content_digest[:12]}")


class _Progress:
    """A launch's `Watch`, at the terminal."""

    def __init__(self, experiment: Experiment, console: SteadyConsole) -> None:
        self._experiment, self._console = experiment, console
        self._shown: SweepProgress | None = None
        self._total = 0
        self._first_work: float | None = None

    def planned(self, plan: Plan, known: int) -> None:
        """Prints what will be done."""
        self._total = len(plan.trials)
        console, search = self._console, self._experiment.search
        console.print(
            f"[bold]{self._experiment.name}[/bold]  key {plan.key[:12]}  {self._total} trials: "
            f"{len(self._experiment.variants)} variants x {len(self._experiment.datasets)} datasets, "
            f"{search.algorithm} search, up to {search.max_epochs} epochs"
        )
        if known:
            console.print(f"{known} of {self._total} trials stand in the record already and are not run again")
        if known < self._total:
            self._shown = SweepProgress(
                title=self._experiment.name,
                total=self._total,
                datasets=[d.name for d in self._experiment.datasets],
                metric=self._experiment.objective.metric,
                console=console,
            )
            self._shown.__enter__()

    def tick(self, tick: Tick) -> None:
        """Shows how it goes."""
        if self._shown is None:
            return
        s = tick.states
        if tick.packs_running and self._first_work is None:
            self._first_work = tick.elapsed_s
        self._shown.update(
            Snapshot(
                total=self._total,
                done=s.get("done", 0),
                running=s.get("running", 0),
                stopped=s.get("stopped", 0),
                failed=s.get("failed", 0),
                elapsed_s=tick.elapsed_s,
                eta_s=self._time_left(tick),
                best={d: Best(value=value, trial=trial) for d, (value, trial) in tick.best.items()},
            )
        )

    def close(self) -> None:
        """Ends the display."""
        if self._shown is not None:
            self._shown.__exit__(None, None, None)
            self._shown = None

    def _time_left(self, tick: Tick) -> float | None:
        """From the share of epochs that is done; the start-up of Ray is not extrapolated."""
        if self._first_work is None or tick.work_done < 0.02:
            return None
        return (tick.elapsed_s - self._first_work) * (1 - tick.work_done) / tick.work_done


def _crown(
    settings: Settings,
    experiment: Experiment,
    outcome: Outcome,
    digest: str,
    job_file: Path | None,
    console: Console,
) -> tuple[list[Crowned], list[Served]]:
    if experiment.champion is None:
        return [], []
    from tiltyard.crown import check_served, crown

    crowned = crown(settings, experiment, outcome, code_digest=digest, job_file=job_file)
    for c in crowned:
        what = "registered" if c.is_new else "is"
        console.print(f"{c.trial} {what} {c.model.name} version {c.model.version}, @{experiment.champion.alias}")
    if not experiment.champion.serve or outcome.state == "reused" or not crowned:
        return crowned, []
    served = check_served(settings, experiment, outcome, crowned)
    table = Table(title="Champions on Ray Serve, held-out rows in batches", title_justify="left")
    for column, justify in (
        ("model", "left"),
        ("rows", "right"),
        ("served", "right"),
        ("offline", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for s in served:
        verdict = "[green]equal[/green]" if s.equal else f"[red]differs by {s.largest_difference:.2g}[/red]"
        table.add_row(s.model, str(s.rows), f"{s.served:.4f}", f"{s.offline:.4f}", verdict)
    console.print(table)
    return crowned, served


def _show_leaderboard(console: Console, outcome: Outcome) -> None:
    if outcome.state == "reused":
        console.print(
            "This experiment is finished and nothing it is made of has changed: the answer is from the record."
        )
    for table in leaderboard_tables(outcome.leaderboard, rows=SHOWN_ROWS):
        console.print(table)
    failed = [r for r in outcome.results if r.state == "failed"]
    if failed:
        console.print(f"{len(failed)} trials failed; the first: {failed[0].name}: {failed[0].reason}", style="yellow")
    if outcome.leaderboard.test_looks > 1:
        console.print(
            f"The test split was looked at {outcome.leaderboard.test_looks} times for this key.", style="yellow"
        )


def leaderboard_tables(board: Leaderboard, *, rows: int | None = None) -> list[Table]:
    """One table a dataset, best first."""
    tables = []
    for dataset, ranked in board.tables.items():
        states: dict[str, int] = {}
        for row in ranked:
            states[row.state] = states.get(row.state, 0) + 1
        counts = ", ".join(f"{n} {state}" for state, n in sorted(states.items()))
        table = Table(title=f"\n[bold]{dataset}[/bold]: {len(ranked)} trials ({counts})", title_justify="left")
        for column, justify in (
            ("rank", "right"),
            ("trial", "left"),
            (f"validation {board.metric}", "right"),
            ("test, 95% interval", "left"),
            ("epochs", "right"),
            ("state", "left"),
        ):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in ranked[:rows]:
            test = "" if row.test is None else f"{row.test.value:.4f}  [{row.test.low:.4f}, {row.test.high:.4f}]"
            if row.tied_with_best:
                test += "  not told apart from 1"
            score = "" if row.validation is None else f"{row.validation:.4f}"
            table.add_row(str(row.rank), row.name, score, test.replace("[", r"\["), str(row.epoch), row.state)
        tables.append(table)
    return tables


def _tell_tracker(outcome: Outcome, console: Console) -> None:
    report = outcome.tracker
    if report is not None and report.pending:
        console.print(
            f"{report.pending} records did not reach MLflow yet ({report.error}); nothing is lost: they are in the "
            "spool, and the next start writes them.",
            style="yellow",
        )


def _places(settings: Settings, outcome: Outcome, crowned: Sequence[Crowned]) -> list[tuple[str, str]]:
    places = [
        ("journal", settings.journal_uri),
        ("MLflow", settings.tracking_uri),
        ("datasets", settings.data_uri),
        ("checkpoints, curves", outcome.layout.home),
    ]
    if crowned:
        places.append(("champions", ", ".join(f"{c.model.name}@champion" for c in crowned)))
    return places


def _commands(experiment: Experiment, crowned: Sequence[Crowned]) -> list[tuple[str, str]]:
    del crowned
    return [
        (f"tiltyard leaderboard {experiment.name}", "every trial, ranked"),
        ("tiltyard up", "a cluster to look at: Ray dashboard, MLflow with these runs"),
        ("tiltyard models", "champions and where they came from"),
    ]


def _verdict(outcome: Outcome) -> str:
    trials = len(outcome.plan.trials)
    return f"{trials} trials answered from the record" if outcome.state == "reused" else f"{trials} trials"


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
