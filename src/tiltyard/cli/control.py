"""``tiltyard pause | continue | trial stop | trial add``: what is asked of a sweep while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tiltyard.cli.results import trial
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.journal import Request

app = typer.Typer()
_REASON = typer.Option("", "--reason", help="Why; it stands in the record with your name.")
_EXPERIMENT = typer.Argument(help="Name of an experiment, or the beginning of a key.")

__all__ = ["app", "trial"]


@app.command()
def pause(experiment: str = _EXPERIMENT, reason: str = _REASON) -> None:
    """Start nothing new of a running sweep; what trains goes on to the end of its rung."""
    from tiltyard.control import pause

    _tell(pause(Settings.from_env(), experiment, reason=reason))


@app.command(name="continue")
def go_on(experiment: str = _EXPERIMENT, reason: str = _REASON) -> None:
    """Let a paused sweep go on."""
    from tiltyard.control import go_on

    _tell(go_on(Settings.from_env(), experiment, reason=reason))


@trial.command()
def stop(
    name: str = typer.Argument(help="A name like mlp@digits/017, or the beginning of a cell."), reason: str = _REASON
) -> None:
    """Stop one trial of a running sweep where it stands; it is ranked by what it has reached."""
    from tiltyard.control import stop_trial

    _tell(stop_trial(Settings.from_env(), name, reason=reason))


@trial.command()
def add(
    experiment: str = _EXPERIMENT,
    trials: int = typer.Argument(min=1, help="How many more, of each variant on each dataset."),
    variant: str | None = typer.Option(None, help="Only of this variant."),
    dataset: str | None = typer.Option(None, help="Only on this dataset."),
    reason: str = _REASON,
) -> None:
    """Add trials to a sweep while it runs: the next ones of the same draws."""
    from tiltyard.control import add_trials

    _tell(add_trials(Settings.from_env(), experiment, trials, variant=variant, dataset=dataset, reason=reason))


def _tell(request: Request) -> None:
    """Prints the answer; exit code 1 where it was refused."""
    if request.state == "asked":
        typer.echo(f"Asked (request {request.number}); it is taken up by whoever works on the sweep, now or next.")
        return
    typer.echo(f"{request.subject}: {request.state}: {request.answer['said']}")
    if request.state == "refused":
        raise typer.Exit(1)
