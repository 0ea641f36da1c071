"""``tiltyard resume``: what is left of a sweep that ended early, and going on with it."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import typer

from tiltyard.cli.run import address_env
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.resume import Resumable

app = typer.Typer()


@app.command()
def resume(
    experiment: str = typer.Argument(help="A job file, the name of an experiment, or the beginning of a key."),
    plan: bool = typer.Option(False, "--plan", help="Only show what would be done, trial by trial."),
    show_all: bool = typer.Option(False, "--all", help="With --plan: the trials that have ended too."),
    as_json: bool = typer.Option(False, "--json", help="With --plan: print it as JSON."),
    address: str | None = typer.Option(None, help="A running Ray: its address, or 'up' for the one of tiltyard up."),
) -> None:
    """Go on with a sweep that ended early, or show what is left of it."""
    from tiltyard.resume import find

    settings = Settings.from_env()
    found = find(settings, experiment)
    if not plan:
        from tiltyard.run import run

        os.environ.update(address_env(address))
        raise typer.Exit(run(found.experiment, settings=settings, job_file=found.job_file))
    if as_json:
        typer.echo(json.dumps(_told(found), indent=1))
        return
    _print(found, show_all=show_all)


def _told(found: Resumable) -> dict[str, object]:
    steps = [
        {
            "trial": s.trial.name,
            "cell": s.trial.cell,
            "action": s.action,
            "from_epoch": s.from_epoch,
            "to_epoch": s.to_epoch,
            "why": s.why,
        }
        for s in found.steps
    ]
    return {
        "key": found.launch.key,
        "state": found.launch.state,
        "later": found.later,
        "replicates": found.replicates,
        "steps": steps,
    }


def _print(found: Resumable, *, show_all: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from tiltyard.report.terminal import output
    from tiltyard.sweep.remaining import CONTINUE, RUN, SKIP, WAIT

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", "what", "why"):
        table.add_column(name)
    words = {
        SKIP: "skip",
        CONTINUE: "continue from epoch {0} to {1}",
        WAIT: "wait at epoch {0}",
        RUN: "run to epoch {1}",
    }
    styles = {SKIP: "dim", CONTINUE: "cyan", WAIT: "", RUN: "bold"}
    for step in found.steps:
        if step.action != SKIP or show_all:
            what = words[step.action].format(step.from_epoch, step.to_epoch)
            table.add_row(step.trial.name, Text(what, styles[step.action]), Text(step.why, "dim"))
    console = output()
    launch = found.launch
    console.print(Text.assemble((launch.experiment, "bold"), f"  key {launch.key[:12]}  {launch.state}"))
    if table.row_count:
        console.print(table)
    counts = ", ".join(f"{found.count(a)} {a}" for a in (SKIP, CONTINUE, WAIT, RUN) if found.count(a))
    later = f"; {found.later} more are drawn as the search learns" if found.later else ""
    later += f"; then {found.replicates} replicates of finalists" if found.replicates else ""
    console.print(f"{len(found.steps)} trials: {counts}{later}. To the next rung: {found.epochs} epochs of training.")
