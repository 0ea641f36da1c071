"""``tiltyard leaderboard | runs | trial``: what was found, from the record."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from tiltyard.errors import SpecError
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.journal import Launch, TrialRow

app = typer.Typer()
trial = typer.Typer(
    help="Look at one trial, or train it again alone; stop one or add some while a sweep runs.", no_args_is_help=True
)


@app.command()
def leaderboard(
    experiment: str | None = typer.Argument(None, help="Name of an experiment, or the beginning of a key; the newest."),
    dataset: list[str] = typer.Option([], help="Only this dataset; may be given more than once."),
    top: int = typer.Option(10, min=1, help="Rows of each table."),
    show_all: bool = typer.Option(False, "--all", help="Every trial."),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Show the ranked trials of an experiment, dataset by dataset."""
    from tiltyard.report import record
    from tiltyard.report.boards import leaderboard_view
    from tiltyard.report.terminal import output

    settings = Settings.from_env()
    with record.reading(settings) as journal:
        launch = record.pick_launch(journal, experiment)
        board = record.board_of(settings, journal, launch)
    unknown = sorted(set(dataset) - set(board.tables))
    if unknown:
        raise SpecError(f"{board.experiment} has no dataset {unknown[0]!r}; it has: {', '.join(board.tables)}.")
    if as_json:
        typer.echo(json.dumps(board.to_json(), indent=1))
        return
    console = output()
    console.print(Text.assemble((board.experiment, "bold"), f"  key {board.key[:12]}  ", _state(launch.state)))
    console.print(leaderboard_view(board, limit=None if show_all else top, datasets=dataset))


@app.command()
def runs(
    experiment: str | None = typer.Argument(None, help="Only launches of this experiment."),
    as_json: bool = typer.Option(False, "--json", help="Print them as JSON."),
) -> None:
    """Show every launch that is recorded, newest first."""
    from tiltyard.report import record
    from tiltyard.report.terminal import output

    with record.reading(Settings.from_env()) as journal:
        launches = journal.launches(experiment)
        found = [(launch, _counts(journal.trials(launch.key)), journal.spend(launch.key)) for launch in launches]
    if as_json:
        told = [{**asdict(launch), "trials": counts, "spend": asdict(spent)} for launch, counts, spent in found]
        typer.echo(json.dumps(told, indent=1, default=dict))
        return
    if not found:
        raise SpecError(f"No launch of {experiment!r} is recorded. See all: tiltyard runs")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("experiment", "key", "state", "started", "took", "trials", "CPU-s", "MLflow run"):
        table.add_column(name, no_wrap=True)
    for launch, counts, spent in found:
        table.add_row(
            launch.experiment,
            launch.key[:12],
            _state(launch.state),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(launch.started)),
            _took(launch),
            ", ".join(f"{n} {state}" for state, n in counts.items()),
            f"{spent.cpu_s:.0f}",
            (launch.parent_run_id or "")[:12],
        )
    output().print(table)


@trial.command()
def show(
    name: str = typer.Argument(help="A name like mlp@digits/017, or the beginning of a cell."),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Show what is recorded of one trial: its configuration, seeds, scores and curve."""
    from tiltyard.report import record
    from tiltyard.report.terminal import output

    with record.reading(Settings.from_env()) as journal:
        row = record.find_trial(journal, name)
        scores = journal.cell_scores([row.cell])
        packs = [a for a in journal.attempts(row.key) if row.cell in a.cells]
    curve = record.curve_of(scores, row.cell)
    rungs = {epoch: dict(s.metrics) for (_, epoch), s in sorted(scores.items())}
    if as_json:
        told = {**asdict(row), "name": record.name_of(row), "scores": rungs, "curve": curve}
        typer.echo(json.dumps(told, indent=1, default=dict))
        return
    console = output()
    console.print(_facts(row, record.name_of(row)))
    console.print(_table("Parameters", [{"parameter": k, "value": v} for k, v in sorted(row.config.items())]))
    console.print(_table("Scores by epoch", curve or [{"epoch": e, **m} for e, m in rungs.items()]))
    attempts = [
        {"pack": a.pack_id, "attempt": a.number, "state": a.state, "seconds": a.metered_s, "reason": a.reason or ""}
        for a in packs
    ]
    console.print(_table("Packs it trained in", attempts))
    console.print(f"\nTrain it again, alone, in this process: tiltyard trial rerun {record.name_of(row)}")


def _facts(row: TrialRow, name: str) -> Table:
    from tiltyard.report.terminal import score

    facts = Table.grid(padding=(0, 2))
    for what, value in (
        ("trial", Text(name, "bold")),
        ("cell", row.cell),
        ("dataset", f"{row.dataset}@{row.dataset_version}"),
        ("model", row.model),
        ("seeds", f"{row.seed} (model), {row.data_seed} (order of the data)"),
        (
            "state",
            Text.assemble(_state(row.state), f" after {row.epoch} epochs", f": {row.reason}" if row.reason else ""),
        ),
        ("score", score(row.score)),
    ):
        facts.add_row(Text(what, "dim"), value)
    return facts


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    for name in rows[0] if rows else ("nothing recorded",):
        table.add_column(name, header_style="dim")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    return table


def _cell(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _counts(rows: list[TrialRow]) -> dict[str, int]:
    states = [row.state for row in rows]
    return {state: states.count(state) for state in sorted(set(states))}


def _took(launch: Launch) -> str:
    from tiltyard.report.terminal import clock_time

    return clock_time((launch.ended or time.time()) - launch.started)


_STATE_STYLES: Mapping[str, str] = {
    "finished": "green",
    "done": "green",
    "failed": "red",
    "stopped": "yellow",
    "interrupted": "yellow",
    "running": "cyan",
}


def _state(state: str) -> Text:
    return Text(state, _STATE_STYLES.get(state, ""))


@trial.command()
def rerun(name: str = typer.Argument(help="A name like mlp@digits/017, or the beginning of a cell.")) -> None:
    """Train one trial again, alone, in this process (breakpoints work), and compare it with the record."""
    from tiltyard.report import record
    from tiltyard.report.terminal import output
    from tiltyard.sweep.rerun import rerun_trial

    settings = Settings.from_env()
    with record.reading(settings) as journal:
        row = record.find_trial(journal, name)
    result = rerun_trial(settings, row.cell)
    rows = [
        {
            "metric": metric,
            "recorded": was,
            "again": result.again[metric],
            "difference": result.again[metric] - was,
            "allowed": result.allowed[metric],
        }
        for metric, was in result.recorded.items()
        if metric in result.again
    ]
    console = output()
    console.print(_table(f"{record.name_of(row)}, trained again to epoch {result.epoch}", rows))
    for what, failure in (("The record", result.recorded_failure), ("This time", result.failure)):
        if failure is not None:
            console.print(Text(f"{what}: failed: {failure}", "yellow"))
    if result.agree:
        console.print(f"They agree within {result.tolerance:g}.")
        return
    console.print(Text(f"They differ by more than {result.tolerance:g}.", "bold red"))
    raise typer.Exit(1)
