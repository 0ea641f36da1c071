"""``tiltyard run``: runs a job file here, or on a Ray that is already up."""

from __future__ import annotations

import os

import typer

from tiltyard.settings import Settings

app = typer.Typer()


@app.command()
def run(
    file: str = typer.Argument(help="A job file: Python with one function experiment() -> Experiment."),
    trials: int | None = typer.Option(None, min=1, help="Trials per dataset, instead of the experiment's own."),
    datasets: str | None = typer.Option(None, help="Only these, separated by commas; name or name@version."),
    seed: int | None = typer.Option(None, min=0, help="Seed of the search and of the models."),
    address: str | None = typer.Option(
        None, help="A running Ray: its address, or 'up' for the one of tiltyard up. Without it one starts and ends."
    ),
) -> None:
    """Run an experiment: sweep, rank, register and serve what its file describes."""
    from tiltyard.run import names_in, run_file

    names = names_in(datasets)
    if names == []:
        raise typer.BadParameter("name at least one dataset, e.g. --datasets wine,digits", param_hint="--datasets")
    os.environ.update(address_env(address))
    raise typer.Exit(run_file(file, trials=trials, datasets=names, seed=seed))


def address_env(address: str | None) -> dict[str, str]:
    """The environment that makes a driver join the Ray of ``--address``."""
    if address is None:
        return {}
    if address == "up":
        from tiltyard.local.up import join

        return join(Settings.from_env())
    return {"RAY_ADDRESS": address}
