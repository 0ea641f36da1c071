"""``tiltyard up | status | down | doctor``: a whole cluster on this machine, and whether the machine is fit for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.progress import work
from tiltyard.settings import Settings, shown

if TYPE_CHECKING:
    from tiltyard.local.doctor import Finding

app = typer.Typer()


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


@app.command()
def up(
    cpus: int | None = typer.Option(None, min=1, help="CPUs that Ray may use (default: all)."),
    gpus: int | None = typer.Option(None, min=0, help="GPUs that Ray may use (default: all)."),
    object_store_gib: float | None = typer.Option(
        None, min=0.1, help="Size of Ray's object store in GiB (default: 30% of memory)."
    ),
    timeout: float = typer.Option(90.0, min=1.0, help="Seconds that the servers may take to answer."),
    prometheus: bool = typer.Option(
        True, "--prometheus/--no-prometheus", help="Also start Prometheus, where it is installed."
    ),
) -> None:
    """Start a Ray head and an MLflow server on this machine, on loopback and free ports."""
    from tiltyard.local import up as cluster

    size = cluster.Size(
        cpus=cpus,
        gpus=gpus,
        object_store_bytes=None if object_store_gib is None else int(object_store_gib * 2**30),
    )
    console = _console()
    settings = Settings.from_env()
    with work("start Ray and MLflow"):
        outcome = cluster.up(settings, size=size, timeout_s=timeout, prometheus=prometheus, say=console.print)
    console.print(f"Up, in {outcome.seconds:.0f} s." if outcome.started else "It is up already.")
    _show(console, settings)


@app.command()
def status(
    experiment: str | None = typer.Argument(None, help="How this sweep stands: an experiment or a key."),
    watch: bool = typer.Option(False, "--watch", help="Follow a sweep, the newest if none is named, until it ends."),
    every: float = typer.Option(1.0, min=0.1, help="With --watch: seconds between looks at the record."),
    cluster: str | None = typer.Option(
        None, "--cluster", help="With --watch: a job of that cluster; no journal is needed."
    ),
    address: str | None = typer.Option(None, "--address", help="With --watch: URL of the cluster's dashboard instead."),
) -> None:
    """Show what tiltyard up started and whether it still runs."""
    if cluster or address:
        from tiltyard.cli.submit import watch_job

        raise typer.Exit(watch_job(experiment, cluster, address))
    if watch:
        from tiltyard.report.watch import follow

        follow(Settings.from_env(), experiment, every_s=every)
        return
    if experiment is not None:
        from tiltyard.report.watch import glance

        _console().print(glance(Settings.from_env(), experiment), soft_wrap=True)
        return
    console, settings = _console(), Settings.from_env()
    is_up = _show(console, settings)
    _show_sweeps(console, settings)
    if not is_up:
        raise typer.Exit(1)


@app.command()
def down() -> None:
    """End exactly the processes that tiltyard up started."""
    from tiltyard.local import up as cluster

    console = _console()
    settings = Settings.from_env()
    with work("end Ray and MLflow"):
        ended = cluster.down(settings)
    if ended is None:
        console.print(f"Nothing was up for {settings.home}.")
        return
    console.print(f"Down: {ended.processes} processes of {' and '.join(ended.services)} ended.")
    if ended.logs is not None:
        console.print(f"Their logs: {ended.logs}")


def _show_sweeps(console: Console, settings: Settings) -> None:
    """Sweeps that somebody works on, here or on a cluster."""
    from tiltyard.report.watch import running

    lines = running(settings)
    for line in lines:
        console.print(line, soft_wrap=True)
    if lines:
        console.print("Follow a sweep: tiltyard status NAME --watch")


def _show(console: Console, settings: Settings) -> bool:
    """Prints addresses and the submission line; False where something that should run does not."""
    from tiltyard.local import commands
    from tiltyard.local import up as cluster

    found = cluster.status(settings)
    if found is None:
        console.print(f"Nothing is up for {settings.home}. Start it: tiltyard up")
        return False
    what, services = found
    table = Table.grid(padding=(0, 2))
    for s in services:
        how = "runs" if s.answers else "runs, but does not answer" if s.running else "ended; see " + s.service.log
        table.add_row(_LABELS.get(s.service.name, s.service.name), s.service.url, Text(how, "" if s.answers else "red"))
    if what.service(commands.MLFLOW) is None:
        table.add_row(_LABELS[commands.MLFLOW], shown(settings.tracking_uri), "your own server, not started here")
    table.add_row("Token", what.token_path, "the dashboard asks for it; mode 0600")
    console.print(table)
    console.print("\nSubmit a job to it:\n")
    console.print(f"  {cluster.submit_line(what)}\n")
    console.print("End it: tiltyard down")
    return all(s.answers for s in services)


_LABELS = {"ray": "Ray dashboard", "mlflow": "MLflow", "prometheus": "Prometheus", "record": "Metrics of the record"}


@app.command()
def doctor(
    as_json: bool = typer.Option(False, "--json", help="Print the findings as JSON."),
) -> None:
    """Say what is wrong with this machine and how to mend it."""
    from tiltyard.local.doctor import Verdict
    from tiltyard.local.probe import examine

    findings = examine(Settings.from_env())
    if as_json:
        typer.echo(json.dumps([f.as_dict() for f in findings], indent=1))
    else:
        _show_findings(findings)
    if any(f.verdict is Verdict.MEND for f in findings):
        raise typer.Exit(1)


def _show_findings(findings: Sequence[Finding]) -> None:
    from tiltyard.report.terminal import output

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "what", "found", "to mend"):
        table.add_column(column, overflow="fold")
    for f in findings:
        word, style = _VERDICTS[f.verdict.value]
        remedy = f.remedy if not f.wanted else f"wanted: {f.wanted}\n{f.remedy}".rstrip()
        table.add_row(Text(word, style), f.subject, Text(f.found), Text("" if f.verdict == "ok" else remedy))
    console = output()
    console.print(table)
    mend = sum(f.verdict == "mend" for f in findings)
    console.print(f"\n{mend} to mend." if mend else "\nThis machine is fit for Tiltyard.")


_VERDICTS = {"ok": ("ok", "green"), "note": ("note", "yellow"), "mend": ("MEND", "bold red")}
