"""The command line: which command was meant, and how its errors and exit codes reach the shell.

Exit codes: 0 done; 1 a `TiltyardError`, told in one message on stderr; 2 the command line itself was wrong; 3 a budget
ended a sweep before each dataset had a winner; 130 stopped with Ctrl-C. ``--debug`` or ``TILTYARD_DEBUG=1`` shows tracebacks.

`COMMANDS` says what exists; the module of a command is imported when that command runs, so that ``tiltyard --help``
imports neither torch nor Ray nor MLflow. Nothing here computes, reads a store or starts anything.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from tiltyard.errors import TiltyardError
from tiltyard.progress import Lazily, Listener, told_to
from tiltyard.settings import DEBUG_ENV, shows_tracebacks


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """One line of ``tiltyard --help`` and where its command lives."""

    name: str
    summary: str
    """What the help shows; a test holds it equal to the command's own first line."""
    module: str
    app: str = "app"
    """Name of a ``typer.Typer`` in the module."""
    command: str | None = None
    """Which command of ``app``; None means that ``app`` itself is the command, with subcommands of its own."""
    panel: str = "Commands"


_SWEEP, _DATA, _RESULTS, _MACHINE, _SERVING = "Sweeps", "Data", "Results", "This machine", "Serving"
_CLUSTERS = "Clusters"

COMMANDS: dict[str, CommandEntry] = {
    entry.name: entry
    for entry in (
        CommandEntry(
            name="run",
            summary="Run an experiment: sweep, rank, register and serve what its file describes.",
            module="tiltyard.cli.run",
            command="run",
            panel=_SWEEP,
        ),
        CommandEntry(
            name="data",
            summary="Commit datasets, look at them, and compare their versions.",
            module="tiltyard.cli.data",
            panel=_DATA,
        ),
        CommandEntry(
            name="resume",
            summary="Go on with a sweep that ended early, or show what is left of it.",
            module="tiltyard.cli.resume",
            command="resume",
            panel=_SWEEP,
        ),
        CommandEntry(
            name="submit",
            summary="Send a job to a cluster, once: the same again finds it and shows its log.",
            module="tiltyard.cli.submit",
            command="submit",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="jobs",
            summary="List the jobs of a cluster, newest first.",
            module="tiltyard.cli.submit",
            command="jobs",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="logs",
            summary="Print what a job has written; with -f also what it writes, until it ends.",
            module="tiltyard.cli.submit",
            command="logs",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="cancel",
            summary="End a job in order: recorded first, then told to stop; what is finished is kept.",
            module="tiltyard.cli.submit",
            command="cancel",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="pause",
            summary="Start nothing new of a running sweep; what trains goes on to the end of its rung.",
            module="tiltyard.cli.control",
            command="pause",
            panel=_SWEEP,
        ),
        CommandEntry(
            name="continue",
            summary="Let a paused sweep go on.",
            module="tiltyard.cli.control",
            command="continue",
            panel=_SWEEP,
        ),
        CommandEntry(
            name="cluster",
            summary="Render, check, apply, watch and delete a KubeRay cluster.",
            module="tiltyard.cli.cluster",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="dashboards",
            summary="Write Grafana's boards and Prometheus' rules, check that they are current, or push them.",
            module="tiltyard.cli.dashboards",
            panel=_CLUSTERS,
        ),
        CommandEntry(
            name="budget",
            summary="Set or show the budgets of teams, which outlive sweeps.",
            module="tiltyard.cli.budget",
            panel=_SWEEP,
        ),
        CommandEntry(
            name="leaderboard",
            summary="Show the ranked trials of an experiment, dataset by dataset.",
            module="tiltyard.cli.results",
            command="leaderboard",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="report",
            summary="Write a page about an experiment: its answer, curves, what mattered, where time went.",
            module="tiltyard.cli.report",
            command="report",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="compare",
            summary="Hold two experiments against each other: who is better where, by more than chance, and what differs.",
            module="tiltyard.cli.report",
            command="compare",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="roi",
            summary="Show what sweeps saved against the same trials by hand: hours of people and devices, time to an answer.",
            module="tiltyard.cli.report",
            command="roi",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="runs",
            summary="Show every launch that is recorded, newest first.",
            module="tiltyard.cli.results",
            command="runs",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="trial",
            summary="Look at one trial, or train it again alone; stop one or add some while a sweep runs.",
            module="tiltyard.cli.control",
            app="trial",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="models",
            summary="List registered models; show, compare, promote or roll one back.",
            module="tiltyard.cli.models",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="evaluate",
            summary="Test models on dataset versions that they have not met.",
            module="tiltyard.cli.evaluate",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="policy",
            summary="Check, apply and replay policies; hold one, or look at what was decided.",
            module="tiltyard.cli.policy",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="nightly",
            summary="Run a night, look at past ones, hold or resume them.",
            module="tiltyard.cli.nightly",
            panel=_RESULTS,
        ),
        CommandEntry(
            name="serve",
            summary="Serve champions by HTTP: on the Ray of tiltyard up, or here until Ctrl-C.",
            module="tiltyard.cli.serve",
            command="serve",
            panel=_SERVING,
        ),
        CommandEntry(
            name="token",
            summary="Make, list and revoke the bearer tokens that served models ask for.",
            module="tiltyard.cli.serve",
            app="token",
            panel=_SERVING,
        ),
        CommandEntry(
            name="up",
            summary="Start a Ray head and an MLflow server on this machine, on loopback and free ports.",
            module="tiltyard.cli.local",
            command="up",
            panel=_MACHINE,
        ),
        CommandEntry(
            name="status",
            summary="Show what tiltyard up started and whether it still runs.",
            module="tiltyard.cli.local",
            command="status",
            panel=_MACHINE,
        ),
        CommandEntry(
            name="down",
            summary="End exactly the processes that tiltyard up started.",
            module="tiltyard.cli.local",
            command="down",
            panel=_MACHINE,
        ),
        CommandEntry(
            name="calibrate",
            summary="Measure how many models step together fastest on this machine, for sweeps that begin later.",
            module="tiltyard.cli.calibrate",
            command="calibrate",
            panel=_MACHINE,
        ),
        CommandEntry(
            name="doctor",
            summary="Say what is wrong with this machine and how to mend it.",
            module="tiltyard.cli.local",
            command="doctor",
            panel=_MACHINE,
        ),
    )
}
"""Every command, in the order of the help."""


def load(entry: CommandEntry) -> Any:
    """The real command behind an entry: imports its module."""
    group = typer.main.get_group(getattr(importlib.import_module(entry.module), entry.app))
    if entry.command is not None:
        return group.commands[entry.command]
    group.name = entry.name
    return group


class LazyGroup(TyperGroup):
    """A group that lists commands from `COMMANDS` and imports only the one that is run."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class's signature
        """Names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The loaded command, or a stand-in with the name and the summary: enough for help and completion."""
        entry = COMMANDS.get(cmd_name)
        if entry is None or cmd_name in self.commands:
            return super().get_command(ctx, cmd_name)
        return TyperCommand(name=entry.name, help=entry.summary, rich_help_panel=entry.panel)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Imports the command that is about to run."""
        entry = COMMANDS.get(args[0])
        if entry is not None and entry.name not in self.commands:
            self.add_command(load(entry), entry.name)
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="tiltyard",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Where things live: one folder, TILTYARD_HOME (default .tiltyard in the working directory).",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tiltyard {version('tiltyard')}")
        raise typer.Exit


@app.callback()
def _root(
    debug: bool = typer.Option(False, "--debug", help=f"Show tracebacks of errors (also {DEBUG_ENV}=1)."),
    version: bool = typer.Option(  # noqa: ARG001 - its callback does the work
        False, "--version", callback=_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Sweep model variants over versioned datasets, rank them, serve the winner, and keep evaluating it."""
    if debug:
        os.environ[DEBUG_ENV] = "1"


def show_error(error: TiltyardError) -> None:
    """Prints the message, and what it came from under ``--debug``, on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text("error: ", style="bold red") + Text(str(error)))


def _display() -> Listener:
    """What shows long work; imported when there is some, so that help stays fast."""
    from tiltyard.report.progress import LongWorks

    return LongWorks()


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of ``tiltyard``; leaves by ``SystemExit`` with the codes of the module docstring."""
    command = typer.main.get_command(app)
    try:
        with told_to(Lazily(_display)):
            command(args=None if args is None else list(args), prog_name="tiltyard")
    except TiltyardError as error:
        if shows_tracebacks():
            raise
        show_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
