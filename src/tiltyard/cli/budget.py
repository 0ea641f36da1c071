"""``tiltyard budget set | show``: what teams may use, over all their sweeps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from tiltyard.errors import SpecError
from tiltyard.settings import Settings
from tiltyard.types import check_name
from tiltyard.who import person

if TYPE_CHECKING:
    from tiltyard.money import Budget

app = typer.Typer(help="Set or show the budgets of teams, which outlive sweeps.", no_args_is_help=True)
HOUR_S = 3600.0


@app.command("set")
def set_budget(
    team: str = typer.Argument(help="The team, as budget.team of an experiment names it."),
    cpu_hours: float | None = typer.Option(
        None, min=0, help="CPU-hours over all sweeps; without it there is no limit."
    ),
    gpu_hours: float | None = typer.Option(
        None, min=0, help="GPU-hours over all sweeps; without it there is no limit."
    ),
    reason: str = typer.Option("", help="Why, for the record of decisions."),
) -> None:
    """Set what a team may use over all its sweeps; what it has spent stays spent."""
    from tiltyard.journal import Journal
    from tiltyard.report.terminal import output

    check_name(team, "Team")
    if cpu_hours is None and gpu_hours is None:
        raise SpecError("A budget without a limit is none. Give --cpu-hours, --gpu-hours or both.")
    settings = Settings.from_env()
    settings.ensure_home()
    limits = {"cpu_s": _seconds(cpu_hours), "gpu_s": _seconds(gpu_hours)}
    with Journal.open(settings.journal_uri) as journal:
        budget = journal.budgets.set(team, limit_cpu_s=limits["cpu_s"], limit_gpu_s=limits["gpu_s"])
        journal.decide(
            kind="budget",
            subject=team,
            actor=person(),
            evidence=limits,
            reasons=[reason or "by hand, no reason given"],
            outcome="set",
        )
    output().print(_table({team: budget}))


@app.command()
def show(
    team: str | None = typer.Argument(None, help="Only this team."),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Show what teams may use, have spent, and hold for packs that run."""
    from tiltyard.report import record
    from tiltyard.report.terminal import output

    with record.reading(Settings.from_env()) as journal:
        budgets = journal.budgets.all() if team is None else {team: journal.budgets.get(team)}
    if as_json:
        typer.echo(json.dumps({name: _told(b) for name, b in budgets.items()}, indent=1))
        return
    if not budgets:
        output().print("No team has a budget. Give one: tiltyard budget set vision --cpu-hours 10")
        return
    output().print(_table(budgets))


def _seconds(hours: float | None) -> float | None:
    return None if hours is None else hours * HOUR_S


def _told(budget: Budget) -> dict[str, Any]:
    return {
        "limit_cpu_s": budget.limit_cpu_s,
        "spent_cpu_s": budget.spent.cpu_s,
        "reserved_cpu_s": budget.reserved.cpu_s,
        "free_cpu_s": budget.free_cpu_s,
        "limit_gpu_s": budget.limit_gpu_s,
        "spent_gpu_s": budget.spent.gpu_s,
        "reserved_gpu_s": budget.reserved.gpu_s,
        "free_gpu_s": budget.free_gpu_s,
    }


def _table(budgets: dict[str, Budget]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("team", "hours of", "limit", "spent", "reserved", "free"):
        table.add_column(name, justify="left" if name in {"team", "hours of"} else "right")
    for team, b in budgets.items():
        for what, limit, spent, reserved, free in (
            ("CPU", b.limit_cpu_s, b.spent.cpu_s, b.reserved.cpu_s, b.free_cpu_s),
            ("GPU", b.limit_gpu_s, b.spent.gpu_s, b.reserved.gpu_s, b.free_gpu_s),
        ):
            if limit is not None or spent or reserved:
                table.add_row(team, what, _hours(limit), _hours(spent), _hours(reserved), _hours(free))
    return table


def _hours(seconds: float | None) -> str:
    return "no limit" if seconds is None else f"{seconds / HOUR_S:.3f}"
