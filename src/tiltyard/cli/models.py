"""``tiltyard models``: registered models, and which of them is champion."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from tiltyard.errors import RegistryError, ServingError
from tiltyard.registry.address import CHAMPION, PREVIOUS, ModelAddress
from tiltyard.settings import Settings, shown
from tiltyard.who import person

if TYPE_CHECKING:
    from tiltyard.registry.mlflow_registry import ModelRegistry
    from tiltyard.registry.version import ModelVersion
    from tiltyard.serving.comparison import Comparison

app = typer.Typer(help="List registered models; show, compare, promote or roll one back.", invoke_without_command=True)

JSON = typer.Option(False, "--json", help="Print it as JSON.")
REASON = typer.Option("", help="Why, for the record of decisions.")
WHICH = "NAME, NAME@ALIAS or NAME@VERSION; a name alone means the champion."


@app.callback(invoke_without_command=True)
def models(ctx: typer.Context, as_json: bool = JSON) -> None:
    """List registered models; show, compare, promote or roll one back."""
    if ctx.invoked_subcommand is not None:
        return
    from tiltyard.report.terminal import output

    found = [] if _no_registry_yet(Settings.from_env()) else _all_versions(_registry())
    if as_json:
        typer.echo(json.dumps([_told(v) for v in found], indent=1))
        return
    console = output()
    if not found:
        console.print("No model is registered yet. A sweep registers its winners: tiltyard run jobs/first_sweep.py")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("model", "version", "aliases", "dataset", "score", "created", "digest"):
        table.add_column(column, no_wrap=True)
    for v in found:
        table.add_row(v.name, str(v.version), _aliases(v), _dataset(v), _score(v), _created(v), v.digest[:12])
    console.print(table)


@app.command()
def show(model: str = typer.Argument(help=WHICH), as_json: bool = JSON) -> None:
    """Show one version: where it came from, its scores, what it takes."""
    from tiltyard.report.terminal import output

    registry = _registry()
    version = registry.at(ModelAddress.parse(model))
    facts = {**_told(version), **_inside(registry, version)}
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    console = output()
    console.print(Text.assemble((f"{version.name} version {version.version}", "bold"), "  ", _aliases(version)))
    console.print(_facts_table({k: v for k, v in facts.items() if k not in {"name", "version", "aliases"}}))
    console.print(f"\nIts trial: tiltyard trial show {version.tags.get('tiltyard.cell', '')[:12]}")


@app.command()
def diff(
    first: str = typer.Argument(help=WHICH),
    second: str | None = typer.Argument(None, help="The one to compare with; without it @previous and @champion."),
    as_json: bool = JSON,
) -> None:
    """Show in what two versions differ: configuration, data, code, scores."""
    from tiltyard.report.terminal import output

    registry = _registry()
    if second is None:
        name = ModelAddress.parse(first).name
        addresses = [ModelAddress(name=name, alias=PREVIOUS), ModelAddress(name=name, alias=CHAMPION)]
    else:
        addresses = [ModelAddress.parse(first), ModelAddress.parse(second)]
    versions = [registry.at(a) for a in addresses]
    one, other = (_flat({**_told(v), **_inside(registry, v)}) for v in versions)
    differ = {k: [one.get(k), other.get(k)] for k in {**one, **other} if one.get(k) != other.get(k)}
    if as_json:
        typer.echo(json.dumps(differ, indent=1))
        return
    console = output()
    if not differ:
        console.print("They are the same version.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", *(f"{v.name} v{v.version}" for v in versions)):
        table.add_column(column, overflow="fold")
    for name, values in differ.items():
        table.add_row(Text(name, "dim"), *(Text(_word(value)) for value in values))
    console.print(table)


@app.command()
def promote(
    name: str = typer.Argument(help="The registered model."),
    version: int = typer.Argument(min=1, help="The version that becomes champion."),
    reason: str = REASON,
) -> None:
    """Make a version the champion; the one before becomes @previous."""
    from tiltyard.report.terminal import output

    registry = _registry()
    wanted = registry.get(name, version=version)
    registry.fetch(wanted)  # whole and as registered, before any replica is told to load it
    before = registry.promote(name, version)
    console = output()
    if before is not None and before.version == version:
        console.print(f"{name} version {version} is the champion already.")
        return
    _record("promotion", wanted, before, reason)
    console.print(f"{name} version {version} is @champion{_was(before)}. What serves it follows within seconds.")


@app.command()
def rollback(name: str = typer.Argument(help="The registered model."), reason: str = REASON) -> None:
    """Make @previous the champion again; the champion becomes @previous."""
    from tiltyard.report.terminal import output

    registry = _registry()
    before = registry.get(name, alias=CHAMPION)
    now = registry.rollback(name)
    _record("rollback", now, before, reason)
    output().print(f"{name} version {now.version} is @champion again{_was(before)}. To undo it: the same command.")


@app.command()
def challenge(
    model: str = typer.Argument(help="NAME@ALIAS or NAME@VERSION of the challenger; with --off, NAME alone."),
    shadow: str = typer.Option(
        "", metavar="SHARE", help="Ask it this share of requests too, e.g. 10%; nobody waits for it."
    ),
    canary: str = typer.Option("", metavar="SHARE", help="Let it answer this share of requests, e.g. 1%."),
    off: bool = typer.Option(False, "--off", help="Let the champion answer everything by itself again."),
    reason: str = REASON,
) -> None:
    """Give a challenger a share of the champion's requests; what serves the model follows within seconds."""
    from tiltyard.report.terminal import output
    from tiltyard.serving.traffic import CANARY, DECISION, OFF, SHADOW, Split, parse_share

    if sum(map(bool, (shadow, canary, off))) != 1:
        raise ServingError("Wanted exactly one of --shadow SHARE, --canary SHARE and --off.")
    address = ModelAddress.parse(model)
    split, challenger = None, None
    if not off:
        split = Split(mode=SHADOW if shadow else CANARY, challenger=address, share=parse_share(shadow or canary))
        registry = _registry()
        challenger = registry.at(address)
        registry.get(address.name, alias=CHAMPION)
        registry.fetch(challenger)  # whole and as registered, before any replica is told to load it
    evidence: dict[str, Any] = {**split.to_evidence(), "digest": challenger.digest} if split and challenger else {}
    decide(DECISION, address.name, evidence, reason, outcome=split.mode if split else OFF)
    console = output()
    if split is None:
        console.print(f"{address.name}: its champion answers everything again. What serves it follows within seconds.")
        return
    console.print(
        f"{address.name}: {split}. What serves it follows within seconds.\n"
        f"See how they compare: tiltyard models compare {address.name}\n"
        f"End it: tiltyard models challenge {address.name} --off"
    )


@app.command()
def compare(name: str = typer.Argument(help="The registered model."), as_json: bool = JSON) -> None:
    """Show how challengers compared with the champion on the same requests, in service."""
    from tiltyard.report import record
    from tiltyard.report.terminal import output
    from tiltyard.serving.comparison import DECISION, Comparison, together

    with record.reading(Settings.from_env()) as journal:
        decisions = journal.decisions(kind=DECISION, subject=name)
    found = together(Comparison.from_evidence(d.evidence) for d in decisions)
    if as_json:
        typer.echo(json.dumps([_comparison(c) for c in found], indent=1))
        return
    console = output()
    if not found:
        console.print(
            f"No comparison of {name} is recorded. Begin one: tiltyard models challenge {name}@candidate --shadow 10%"
        )
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for c in found:
        table.add_column(f"{c.pair.mode}: v{c.pair.champion_version} and v{c.pair.challenger_version}")
    told = [_comparison(c) for c in found]
    for key in (k for k in told[0] if k not in {"mode", "model"}):
        table.add_row(Text(key.replace("_", " "), "dim"), *(Text(_word(t[key])) for t in told))
    console.print(table)


def _comparison(found: Comparison) -> dict[str, Any]:
    from tiltyard.serving.comparison import quantile_s

    def ms(buckets: tuple[int, ...], q: float) -> float | None:
        return round(1000 * quantile_s(buckets, q), 2) if any(buckets) else None

    pair = found.pair
    return {
        "model": pair.model,
        "mode": pair.mode,
        "champion": f"version {pair.champion_version} ({pair.champion_digest[:12]})",
        "challenger": f"version {pair.challenger_version} ({pair.challenger_digest[:12]})",
        "requests": found.requests,
        "rows": found.rows,
        "agreement": found.agreement if found.rows else None,
        "mean_difference": found.mean_difference if found.values else None,
        "largest_difference": found.difference_max if found.values else None,
        **{f"champion_p{q}_ms": ms(found.champion_seconds, q / 100) for q in (50, 95, 99)},
        **{f"challenger_p{q}_ms": ms(found.challenger_seconds, q / 100) for q in (50, 95, 99)},
        "champion_errors": found.champion_errors,
        "challenger_errors": found.challenger_errors,
        "dropped": found.dropped,
    }


def _no_registry_yet(settings: Settings) -> bool:
    """True where looking would make an empty database."""
    scheme, _, path = settings.tracking_uri.partition(":///")
    return scheme.startswith("sqlite") and bool(path) and not Path(path).exists()


def _all_versions(registry: ModelRegistry) -> list[ModelVersion]:
    return [v for name in registry.names() for v in registry.versions(name)]


def _registry() -> ModelRegistry:
    return open_registry(Settings.from_env())


def open_registry(settings: Settings) -> ModelRegistry:
    """The registry of a home.

    Raises:
        RegistryError: If nothing was ever registered there; none is made.
    """
    import logging

    from tiltyard.registry.mlflow_registry import ModelRegistry

    if _no_registry_yet(settings):
        raise RegistryError(
            f"No model is registered yet: there is no {shown(settings.tracking_uri)}. Run a sweep first (tiltyard run "
            "jobs/first_sweep.py), or set TILTYARD_HOME to where one was run."
        )
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return ModelRegistry(settings)


def _record(kind: str, now: ModelVersion, before: ModelVersion | None, reason: str) -> None:
    """Appends who did it to the journal's decisions."""
    evidence: dict[str, Any] = {"version": now.version, "digest": now.digest}
    if before is not None:
        evidence |= {"before_version": before.version, "before_digest": before.digest}
    decide(kind, now.name, evidence, reason, outcome="done")


def decide(kind: str, subject: str, evidence: Mapping[str, Any], reason: str, *, outcome: str) -> None:
    """Appends a decision of the person who runs this to the journal."""
    from tiltyard.journal import Journal

    with Journal.open(Settings.from_env().journal_uri) as journal:
        journal.decide(
            kind=kind,
            subject=subject,
            actor=person(),
            evidence=evidence,
            reasons=[reason or "by hand, no reason given"],
            outcome=outcome,
        )


def _told(v: ModelVersion) -> dict[str, Any]:
    lineage = {k.removeprefix("tiltyard."): value for k, value in v.tags.items() if k.startswith("tiltyard.")}
    return {
        "name": v.name,
        "version": v.version,
        "aliases": list(v.aliases),
        "dataset_version": _dataset(v),
        "score": dict([v.score]) if v.score else {},
        "metrics": v.metrics,
        "created": _created(v),
        "digest": v.digest,
        "run": v.run_id,
        "source": v.source,
        **{k: lineage[k] for k in ("experiment", "variant", "cell", "seed", "data_seed", "epoch") if k in lineage},
        **{k: lineage[k] for k in ("dataset_digest", "code_digest", "parent_run_id") if k in lineage},
        **{k: json.loads(lineage[k]) for k in ("config", "environment") if k in lineage},
    }


def _inside(registry: ModelRegistry, version: ModelVersion) -> dict[str, Any]:
    """What the bundle itself says, after its digest was checked."""
    from tiltyard.registry.bundle import PREPROCESSOR, SPEC

    folder = registry.fetch(version)
    spec = json.loads((folder / SPEC).read_text())
    columns = json.loads((folder / PREPROCESSOR).read_text())["columns"]
    return {
        "model": spec["model"],
        "model_args": spec["model_args"],
        "task": spec["task"],
        "classes": spec["classes"],
        "columns": {c["name"]: c["type"] for c in columns},
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _facts_table(facts: Mapping[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in ((n, v) for n, v in facts.items() if v not in ({}, [], "", None)):
        shown = ", ".join(f"{k} {_word(v)}" for k, v in value.items()) if isinstance(value, dict) else _word(value)
        table.add_row(name, Text(shown))
    return table


def _word(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ", ".join(map(_word, value)) if isinstance(value, (list, tuple)) else "" if value is None else str(value)


def _aliases(v: ModelVersion) -> Text:
    return Text(" ".join(f"@{a}" for a in v.aliases), "bold green" if CHAMPION in v.aliases else "")


def _dataset(v: ModelVersion) -> str:
    name, number = v.tags.get("tiltyard.dataset", ""), v.tags.get("tiltyard.dataset_version", "")
    return f"{name}@{number}" if name else ""


def _score(v: ModelVersion) -> str:
    return f"{v.score[0]} {v.score[1]:.4f}" if v.score else ""


def _created(v: ModelVersion) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(v.created_ms / 1000))


def _was(before: ModelVersion | None) -> str:
    return f"; version {before.version} is @previous" if before is not None else ""
