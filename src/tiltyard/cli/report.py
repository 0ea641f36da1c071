"""``tiltyard report | compare | roi``: a page about a launch, two launches held against each other, and what was saved."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tiltyard.cli.tables import JSON, show, table
from tiltyard.errors import SpecError
from tiltyard.settings import Settings, shown

if TYPE_CHECKING:
    from tiltyard.report.comparing import Compared, Side
    from tiltyard.report.saved import Saved

app = typer.Typer()
_EXPERIMENT = "Name of an experiment, or the beginning of a key"


@app.command()
def report(
    experiment: str | None = typer.Argument(None, help=f"{_EXPERIMENT}; the newest."),
    out: Path | None = typer.Option(None, help="File to write; else beside the leaderboard, in storage."),
    open_it: bool = typer.Option(False, "--open", help="Show it in a browser."),
) -> None:
    """Write a page about an experiment: its answer, curves, what mattered, where time went."""
    from tiltyard.report.html import keep
    from tiltyard.report.html import report as draw

    settings = Settings.from_env()
    launch, page = draw(settings, experiment)
    if out is None:
        where = keep(settings, launch.key, page.encode())
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        where = str(out)
    typer.echo(shown(where))
    if open_it:
        typer.launch(_local_copy(where, page))


def _local_copy(where: str, page: str) -> str:
    """A file that a browser here can open."""
    if "://" not in where:
        return Path(where).absolute().as_uri()
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="tiltyard-", suffix=".html", delete=False, encoding="utf-8") as file:
        file.write(page)
    return Path(file.name).as_uri()


@app.command()
def compare(
    first: str = typer.Argument(help=f"{_EXPERIMENT}."),
    second: str = typer.Argument(help="The other one."),
    as_json: bool = JSON,
) -> None:
    """Hold two experiments against each other: who is better where, by more than chance, and what differs."""
    from tiltyard.experiment import Experiment
    from tiltyard.report.comparing import compare as held_against
    from tiltyard.report.comparing import differences
    from tiltyard.report.record import board_of, pick_launch, reading
    from tiltyard.report.terminal import clock_time

    settings = Settings.from_env()
    with reading(settings) as journal:
        launches = [pick_launch(journal, name) for name in (first, second)]
        boards = [board_of(settings, journal, launch) for launch in launches]
        rows = [journal.trials(launch.key) for launch in launches]
        spends = [journal.spend(launch.key) for launch in launches]
    versions = [{row.dataset: row.dataset_version for row in of} for of in rows]
    found = held_against(boards[0], boards[1], (versions[0], versions[1]))
    experiments = [Experiment.from_json(launch.spec) for launch in launches]
    changed = differences(experiments[0], experiments[1])
    if as_json:
        told = {
            "keys": [launch.key for launch in launches],
            "datasets": [asdict(c) for c in found],
            "differences": [{"where": w, "first": a, "second": b} for w, a, b in changed],
        }
        typer.echo(json.dumps(told, indent=1))
        return
    facts = table("", *(f"{launch.experiment} {launch.key[:8]}" for launch in launches))
    facts.add_row("state", *(launch.state for launch in launches))
    facts.add_row("trials", *(f"{len(of):,}" for of in rows))
    facts.add_row("took", *(clock_time((la.ended or time.time()) - la.started) for la in launches))
    facts.add_row("CPU time", *(clock_time(spend.cpu_s) for spend in spends))
    if any(spend.gpu_s for spend in spends):
        facts.add_row("GPU time", *(clock_time(spend.gpu_s) for spend in spends))
    scores = table("dataset", "first", "second", "the second is better by", "")
    for c in found:
        scores.add_row(c.dataset, _side(c.first, c.dataset), _side(c.second, c.dataset), _better(c), c.verdict)
    set_otherwise = table("set otherwise", "first", "second")
    for row in changed:
        set_otherwise.add_row(*row)
    show(facts, "", scores, "", set_otherwise if changed else "They are the same experiment but for code or data.")


def _side(side: Side | None, dataset: str) -> str:
    from tiltyard.report.terminal import score

    if side is None:
        return "-"
    interval = "" if side.low is None else f" [{score(side.low)}, {score(side.high)}]"
    return f"{score(side.value)}{interval}  {side.trial.replace(f'@{dataset}/', '/')}"


def _better(c: Compared) -> str:
    if c.better is None:
        return "-"
    return f"{c.better:+.4f}" + ("" if c.low is None or c.high is None else f" [{c.low:+.4f}, {c.high:+.4f}]")


@app.command()
def roi(
    experiment: str | None = typer.Argument(None, help="Only launches of this experiment."),
    assumptions: Path | None = typer.Option(None, help="File with what is assumed; roi.toml in TILTYARD_HOME."),
    write_assumptions: bool = typer.Option(False, help="Write that file with the defaults, to edit, and stop."),
    as_json: bool = JSON,
) -> None:
    """Show what sweeps saved against the same trials by hand: hours of people and devices, time to an answer."""
    from tiltyard.report.record import reading
    from tiltyard.report.saved import FILE, Assumptions, of_journal, read, text_of, together
    from tiltyard.report.saved import told as in_words
    from tiltyard.report.terminal import clock_time

    settings = Settings.from_env()
    path = assumptions or settings.home / FILE
    if write_assumptions:
        if path.exists():
            raise SpecError(f"{path} is there already. Edit it, or remove it first.")
        settings.ensure_home()
        path.write_text(text_of(Assumptions()))
        typer.echo(str(path))
        return
    assumed = read(path)
    with reading(settings) as journal:
        every = [(la, s) for la, s in of_journal(journal, assumed) if experiment in {None, la.experiment}]
    if not every:
        raise SpecError("No finished launch is recorded of it. See what there is: tiltyard runs")
    experiments: dict[str, list[Saved]] = {}
    months: dict[str, list[Saved]] = {}
    for launch, s in every:
        experiments.setdefault(launch.experiment, []).append(s)
        months.setdefault(time.strftime("%Y-%m", time.gmtime(launch.started)), []).append(s)
    lines = [together(name, of) for name, of in (*experiments.items(), *months.items())]
    if as_json:
        told = {"assumptions": asdict(assumed), "saved": [asdict(s) for s in lines]}
        typer.echo(json.dumps(told, indent=1))
        return
    gpus = ("GPU time", "by hand") if any(s.gpu_s or s.by_hand_gpu_s for s in lines) else ()
    found = table(
        "",
        "launches",
        "trials",
        "people",
        "by hand",
        "CPU time",
        "by hand",
        *gpus,
        "idea to answer",
        "by hand",
    )
    for s in lines:
        seconds = (s.person_s, s.by_hand_person_s, s.cpu_s, s.by_hand_cpu_s)
        more = (s.gpu_s, s.by_hand_gpu_s) if gpus else ()
        elapsed = (s.insight_s, s.by_hand_insight_s)
        found.add_row(s.what, f"{s.launches:,}", f"{s.trials:,}", *map(clock_time, (*seconds, *more, *elapsed)))
    whole = together("all", [s for _, s in every])
    worth = whole.worth(assumed)
    priced = assumed.hourly_researcher or assumed.hourly_cpu or assumed.hourly_gpu
    show(
        found,
        "",
        in_words(whole),
        "By hand: each trial set up by a person, trained alone to its full length, one after another, nothing reused.",
        *([f"Saved at the assumed prices: {worth:,.2f}"] if priced else []),
        f"Assumed ({path if path.exists() else 'defaults; edit them: tiltyard roi --write-assumptions'}):",
        *(f"  {name} = {value:g}" for name, value in asdict(assumed).items()),
    )
