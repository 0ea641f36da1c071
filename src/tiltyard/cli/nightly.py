"""``tiltyard nightly``: what is done every night, once a logical date."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer
from rich.table import Table

from tiltyard.settings import Settings
from tiltyard.who import person

if TYPE_CHECKING:
    from tiltyard.journal import Journal

app = typer.Typer(help="Run a night, look at past ones, hold or resume them.", no_args_is_help=True)

NAME = typer.Argument(help="The night's name.")
REASON = typer.Option("", help="Why, for the record of decisions.")
JSON = typer.Option(False, "--json", help="Print it as JSON.")


@app.command("run-now")
def run_now(
    file: str = typer.Argument(help="JSON, or Python with one function night() -> Night."),
    date: str | None = typer.Option(None, help="Logical date, YYYY-MM-DD; without it today's, in UTC."),
) -> None:
    """Do the work of one logical date, once; a second start is answered from the record."""
    from tiltyard.nightly import load_night, start_night
    from tiltyard.report.terminal import output

    console = output()
    start_night(load_night(file), date=date, say=lambda text: console.print(text, markup=False))


@app.command("list")
def list_() -> None:
    """Show every night by name, with its newest date."""
    from tiltyard.nightly import history
    from tiltyard.report.terminal import output

    with _journal() as journal:
        newest = {n.name: n for n in history(journal)}
    console = output()
    if not newest:
        console.print("No night was run yet. Run one: tiltyard nightly run-now FILE")
    for n in newest.values():
        console.print(f"{n.name}  {n.date}  {n.outcome}", markup=False)


@app.command("history")
def history_(name: str = NAME, as_json: bool = JSON) -> None:
    """Show what became of every night, oldest first."""
    from dataclasses import asdict

    from tiltyard.nightly import history
    from tiltyard.report.terminal import output

    with _journal() as journal:
        found = history(journal, name)
    if as_json:
        typer.echo(json.dumps([asdict(n) for n in found], indent=1))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("date", "version", "outcome", "last step"):
        table.add_column(column, overflow="fold")
    for n in found:
        table.add_row(n.date, str(n.version or ""), n.outcome, n.steps[-1] if n.steps else "")
    output().print(table)


@app.command()
def hold(name: str = NAME, reason: str = REASON) -> None:
    """Let no night of this name begin."""
    from tiltyard import actions
    from tiltyard.report.terminal import output

    with _journal() as journal:
        actions.hold(journal, f"night/{name}", by=person(), reason=reason)
    output().print(f"{name} is on hold. End it: tiltyard nightly resume {name}")


@app.command()
def resume(name: str = NAME, reason: str = REASON) -> None:
    """End a hold; nights that were missed meanwhile are not replayed."""
    from tiltyard import actions
    from tiltyard.report.terminal import output

    with _journal() as journal:
        actions.resume(journal, f"night/{name}", by=person(), reason=reason)
    output().print(f"{name} may begin again.")


def _journal() -> Journal:
    from tiltyard.journal import Journal

    return Journal.open(Settings.from_env().journal_uri)
