"""``tiltyard dashboards``: Grafana's boards and Prometheus' rules, as files and in a Grafana."""

from __future__ import annotations

from pathlib import Path

import typer

from tiltyard.errors import MachineError, SpecError

app = typer.Typer(
    help="Write Grafana's boards and Prometheus' rules, check that they are current, or push them.",
    no_args_is_help=True,
)
_FOLDER = typer.Option(Path("dashboards"), "--folder", help="Where they are.")


@app.command()
def render(folder: Path = _FOLDER) -> None:
    """Write the boards, the rules and the scrape configuration; says what changed."""
    _needs_sdk()
    from tiltyard.telemetry.dashboards import write

    changed = write(folder)
    typer.echo("\n".join(f"{folder / name}" for name in changed) if changed else f"{folder} is current.")


@app.command()
def check(folder: Path = _FOLDER) -> None:
    """Check that the files are what would be written now, and the rules with promtool where it is installed."""
    _needs_sdk()
    from tiltyard.telemetry.dashboards import differing

    wrong = differing(folder)
    if wrong:
        raise SpecError(f"{folder} is not current: {', '.join(wrong)}. Write it anew: tiltyard dashboards render")
    typer.echo(f"{folder} is current.")
    _promtool(folder)


@app.command()
def push(
    grafana: str = typer.Option(
        "http://127.0.0.1:3000", "--grafana", envvar="GRAFANA_URL", help="Address of Grafana, without a password."
    ),
    prometheus: str | None = typer.Option(
        None, "--prometheus", help="Address of Prometheus as Grafana reaches it; makes the data source."
    ),
    data_source: str | None = typer.Option(None, "--datasource", help="Or the uid of a data source that is there."),
    token_file: Path | None = typer.Option(
        None, "--token-file", help="File with the token; else the environment variable GRAFANA_TOKEN."
    ),
    contacts: bool = typer.Option(
        True, "--contacts/--no-contacts", help="Also make the receivers of receivers.json contact points."
    ),
) -> None:
    """Put data source, folder, boards, alert rules and contact points into a Grafana; twice changes nothing."""
    _needs_sdk()
    from tiltyard.settings import Settings
    from tiltyard.telemetry.grafana import Pusher, token_of
    from tiltyard.telemetry.notify import receivers

    known = receivers(Settings.from_env()) if contacts else None
    pusher = Pusher(grafana, token_of(token_file))
    changes = pusher.push(prometheus=prometheus, data_source=data_source, receivers=known)
    for change in changes:
        typer.echo(f"{change.how}: {change.what}")
    typer.echo(f"{grafana} holds the boards and rules" + ("." if changes else " already; nothing was written."))


def _needs_sdk() -> None:
    from importlib.util import find_spec

    if find_spec("grafana_foundation_sdk") is None:
        raise MachineError(
            "Grafana's builders are not installed (grafana-foundation-sdk). They are an extra: "
            "pip install 'tiltyard[dashboards]'"
        )


def _promtool(folder: Path) -> None:
    import shutil
    import subprocess

    program = shutil.which("promtool")
    if program is None:
        typer.echo("promtool is not installed (Debian: apt-get install prometheus): the rules were not run.")
        return
    rules, tests = str(folder / "rules.yaml"), folder / "rules_test.yaml"
    steps = [["check", "rules", rules]] + ([["test", "rules", str(tests)]] if tests.exists() else [])
    for step in steps:
        done = subprocess.run([program, *step], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SpecError(f"promtool {' '.join(step)} says: {(done.stdout + done.stderr).strip()}")
        typer.echo(f"promtool {' '.join(step)}: sound")
