"""``tiltyard dashboards``: Grafana's boards and Prometheus' rules, as files."""

from __future__ import annotations

from pathlib import Path

import typer

from tiltyard.errors import MachineError, SpecError

app = typer.Typer(
    help="Write Grafana's boards and Prometheus' rules, or check that they are current.", no_args_is_help=True
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
