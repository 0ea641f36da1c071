"""``tiltyard data``: commit datasets, look at them, compare versions, and keep the store in order."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from tiltyard.cli import versions as versions_commands
from tiltyard.cli.tables import JSON, NAME, open_store, size, table, when
from tiltyard.cli.tables import show as show_all
from tiltyard.errors import SpecError

if TYPE_CHECKING:
    from tiltyard.data import Check, Commit, DatasetSpec, DatasetVersion
    from tiltyard.data.store import DatasetStore

app = typer.Typer(help="Commit datasets, look at them, and compare their versions.", no_args_is_help=True)

_MESSAGE = typer.Option("", "--message", "-m", help="Why; shown in the history.")
_TYPES = typer.Option(
    [], "--type", help="COLUMN=TYPE, where a CSV looks like another type; may be given more than once."
)
_TEXT = typer.Option([], "--text", help="Column of a CSV that is text even where it looks like numbers.")


# ---- look --------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(as_json: bool = JSON) -> None:
    """Show the newest version of every dataset."""
    found = open_store().newest()
    if as_json:
        typer.echo(json.dumps([_summary(v) for v in found], indent=1))
        return
    if not found:
        typer.echo("There is no dataset yet. Commit one: tiltyard data commit NAME SOURCE --task TASK --label COLUMN")
        return
    shown = table(
        "dataset", "version", "task", "label", "rows", "train", "validation", "test", "columns", "size", "committed"
    )
    for v in found:
        rows = (f"{v.split_rows.get(s, 0):,}" for s in ("train", "validation", "test"))
        label = ", ".join(v.spec.labels)
        task = str(v.spec.task or "")
        shown.add_row(
            Text(v.name, "bold"), str(v.version), task, label, f"{v.num_rows:,}", *rows, str(len(v.schema)),
            size(v.size_bytes), when(v),
        )  # fmt: skip
    show_all(shown)


def _summary(v: DatasetVersion) -> dict[str, Any]:
    """A version as JSON, without its list of files."""
    data = v.to_json()
    del data["files"], data["row_sums"]
    return {**data, "num_files": len(v.files), "size_bytes": v.size_bytes, "features": list(v.features)}


@app.command()
def show(name: str = NAME, as_json: bool = JSON) -> None:
    """Show a version: its rows, splits, columns, digests and card."""
    store = open_store()
    v = store.resolve(name)
    if as_json:
        typer.echo(json.dumps(_summary(v), indent=1))
        return
    facts = Table.grid(padding=(0, 2))
    for what, value in [*_facts(v), *_kept_by(store, v)]:
        facts.add_row(Text(what, "dim"), value)
    from tiltyard.data.cards import role

    columns = table("column", "type", "role")
    for column, kind in v.schema.items():
        columns.add_row(column, kind, role(v.spec, column))
    show_all(facts, Text(), columns, *(Text(f"warning: {w}", "yellow") for w in v.warnings))


def _kept_by(store: DatasetStore, v: DatasetVersion) -> list[tuple[str, str | Text]]:
    from tiltyard.data import upkeep

    named = [t.name for t in upkeep.tags(store, v.name) if t.version == v.version]
    held = [p.reason or "yes" for p in upkeep.pins(store, v.name) if p.version == v.version]
    facts: list[tuple[str, str | Text]] = [("tags", ", ".join(named)), ("pinned", ", ".join(held))]
    if v.successor_of is not None:
        facts.append(("successor of", f"{v.name}@{v.successor_of}, of which rows were deleted by key"))
    return [(what, value) for what, value in facts if value]


def _facts(v: DatasetVersion) -> list[tuple[str, str | Text]]:
    from tiltyard.data import cards

    spec, card = v.spec, v.spec.card
    rows = ", ".join(f"{v.split_rows.get(s, 0):,} {s}" for s in ("train", "validation", "test"))
    facts: list[tuple[str, str | Text]] = [
        ("dataset", Text(str(v.ref), "bold")),
        ("rows", f"{v.num_rows:,} ({rows})"),
        ("split", cards.describe_split(spec)),
        ("task", f"{spec.task or 'none declared'}" + (f" of {', '.join(spec.labels)}" if spec.labels else "")),
    ]
    if spec.task is not None and spec.task.is_classification:
        facts.append(("classes", ", ".join(map(str, v.classes[:12])) + (", ..." if len(v.classes) > 12 else "")))
    facts += [
        ("committed", f"{when(v)} UTC" + (f": {v.message}" if v.message else "")),
        ("content digest", v.content_digest),
        ("files digest", v.files_digest),
        ("files", f"{len(v.files)}, {size(v.size_bytes)}, under {v.uri}"),
        ("checks", f"{len(spec.checks)} declared" + (f", {len(v.warnings)} warned" if v.warnings else "")),
    ]
    facts += [(n, t) for n, t in (("about", card.description), ("source", card.source), ("licence", card.licence)) if t]
    return facts


@app.command()
def history(name: str = typer.Argument(help="Dataset.", metavar="NAME"), as_json: bool = JSON) -> None:
    """Show every version of a dataset, newest first, and why others are gone."""
    from tiltyard.data import upkeep

    store = open_store()
    versions, stones = store.history(name)[::-1], store.tombstones(name)
    if as_json:
        gone = [{"gone": True, **stones[n].to_json()} for n in sorted(stones, reverse=True)]
        typer.echo(json.dumps([*(_summary(v) for v in versions), *gone], indent=1))
        return
    tags = upkeep.tags(store, name)
    shown = table("version", "rows", "train", "validation", "test", "size", "committed", "content", "tags", "message")
    lines: dict[int, tuple[str | Text, ...]] = {
        n: (f"{s.num_rows:,}", "", "", "", "", s.committed_at[:16].replace("T", " "), s.content_digest[:12], "",
            Text(f"{s.kind} {s.at[:10]}: {s.reason}", "dim"))
        for n, s in stones.items()
    }  # fmt: skip
    for v in versions:
        rows = (f"{v.split_rows.get(s, 0):,}" for s in ("train", "validation", "test"))
        named = ", ".join(t.name for t in tags if t.version == v.version)
        lines[v.version] = (
            f"{v.num_rows:,}", *rows, size(v.size_bytes), when(v), v.content_digest[:12], named, v.message
        )  # fmt: skip
    for number in sorted(lines, reverse=True):
        shown.add_row(str(number), *lines[number])
    show_all(shown)


# ---- write -------------------------------------------------------------------------------------------------------


@app.command()
def commit(
    name: str = typer.Argument(help="Name of the dataset.", metavar="NAME"),
    source: str = typer.Argument(help="File, folder, glob or URI of Parquet, CSV, JSON lines, Arrow or pictures."),
    task: str | None = typer.Option(None, help="binary, multiclass, multilabel or regression."),
    label: list[str] = typer.Option([], help="Column that is predicted; more than once for several."),
    key: list[str] = typer.Option([], help="Column(s) that say which person or thing a row is about."),
    group: str | None = typer.Option(None, help="Column whose equal values stay in one split."),
    time: str | None = typer.Option(None, help="Column that says when a row happened."),
    sensitive: list[str] = typer.Option([], help="Column that no model sees unless an experiment names it."),
    ignore: list[str] = typer.Option([], help="Column that is no feature."),
    split: str | None = typer.Option(None, help="Shares of train, validation and test, such as 0.6,0.2,0.2."),
    split_seed: int | None = typer.Option(None, help="Another seed, another assignment to splits."),
    stratify: str | None = typer.Option(None, help="Column whose values each get the shares."),
    time_cuts: str | None = typer.Option(
        None, help="Instead of shares: two dates, validation from and test from, such as 2026-01-01,2026-03-01."
    ),
    check: list[str] = typer.Option(
        [],
        help="Rule that the rows must keep: KIND[:COLUMN[:PARAM=VALUE,...]], such as range:age:min=0,max=120; "
        'warn:KIND... only warns; a list is JSON: allowed:city:values=["Oslo"].',
    ),
    description: str | None = typer.Option(None, help="For the card: what the rows are."),
    origin: str | None = typer.Option(None, help="For the card: where they come from."),
    licence: str | None = typer.Option(None, help="For the card."),
    collected: str | None = typer.Option(None, help="For the card: when and how."),
    contact: str | None = typer.Option(None, help="For the card: whom to ask."),
    known_gap: list[str] = typer.Option(
        [], help="For the card: what is missing or wrong; may be given more than once."
    ),
    spec: Path | None = typer.Option(None, help="JSON file with a whole spec; the options above go on top of it."),
    text: list[str] = _TEXT,
    types: list[str] = _TYPES,
    message: str = _MESSAGE,
    expect_parent: int | None = typer.Option(
        None, help="Only if this version is still the newest (0: if there is none)."
    ),
) -> None:
    """Publish the rows of a source as a new version, where they are not the newest one already.

    What is declared (task, label, key, split, ...) is kept from the newest version where it is not said anew.
    """
    store = open_store()
    told = {
        "task": task,
        "label": label or None,
        "key": key or None,
        "group": group,
        "time": time,
        "sensitive": sensitive or None,
        "ignore": ignore or None,
        "checks": [parse_check(c) for c in check] or None,
    }
    splits = {"seed": split_seed, "stratify": stratify, **_shares(split), **_cuts(time_cuts)}
    card = {
        "description": description,
        "source": origin,
        "licence": licence,
        "collected": collected,
        "contact": contact,
        "known_gaps": tuple(known_gap) or None,
    }
    declared = _declared(store, name, spec, told, splits, card)
    made = store.commit(
        name, source, spec=declared, message=message, types=_types(types, text), expect_parent=expect_parent
    )
    _tell(made)


def _declared(
    store: DatasetStore,
    name: str,
    file: Path | None,
    told: dict[str, Any],
    splits: dict[str, Any],
    card: dict[str, Any],
) -> DatasetSpec | None:
    """The spec that the options mean; None where they say nothing."""
    from tiltyard.data import Card, DatasetSpec, SplitSpec

    told, splits, card = ({k: v for k, v in part.items() if v is not None} for part in (told, splits, card))
    if not (told or splits or card or file):
        return None
    base = DatasetSpec()
    if file is not None:
        base = _read_spec(file)
    elif name in store.names():
        base = store.resolve(name).spec
    if "stratify" in splits or "train" in splits:
        splits = {"time_cuts": None, **splits}
    plain = {**base.to_json(), **told}
    plain["split"] = SplitSpec(**{**{f: getattr(base.split, f) for f in SplitSpec.__slots__}, **splits})
    read = DatasetSpec.from_json({**plain, "split": {}, "card": {}, "checks": []})
    checks = tuple(told.get("checks", base.checks))
    return replace(read, split=plain["split"], card=Card(**{**_card(base), **card}), checks=checks)


def _card(spec: DatasetSpec) -> dict[str, Any]:
    return {name: getattr(spec.card, name) for name in type(spec.card).__slots__}


def _read_spec(file: Path) -> DatasetSpec:
    from tiltyard.data import DatasetSpec

    try:
        data = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"The spec {str(file)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(data, dict):
        raise SpecError(f"The spec {str(file)!r} holds {type(data).__name__}; wanted an object with label, task, ...")
    return DatasetSpec.from_json(data)


def parse_check(text: str) -> Check:
    """A check as the command line writes it.

    >>> parse_check("warn:range:age:min=0,max=120").params
    {'min': 0, 'max': 120}
    >>> parse_check('allowed:city:values=["Oslo","Bergen"]').params
    {'values': ['Oslo', 'Bergen']}

    Raises:
        SpecError: If it cannot be read.
    """
    from tiltyard.data import Check

    severity = "error"
    if text.startswith("warn:"):
        severity, text = "warning", text.removeprefix("warn:")
    kind, _, rest = text.partition(":")
    column, _, params = rest.partition(":")
    if "=" in column and not params:
        column, params = "", column
    values: dict[str, Any] = {}
    for pair in re.split(r",(?=\w+=)", params) if params else ():  # a list, or a pattern, may hold commas
        name, equals, value = pair.partition("=")
        if not equals:
            raise SpecError(f"Check {text!r} is not KIND[:COLUMN[:PARAM=VALUE,...]]: {pair!r} lacks a '='.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    columns = tuple(column.split("+")) if "+" in column else ()
    return Check(
        kind=kind, column=column if column and not columns else None, columns=columns, severity=severity, params=values
    )


def _shares(text: str | None) -> dict[str, float]:
    if text is None:
        return {}
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError as error:
        raise SpecError(f"--split {text!r} is not three shares such as 0.6,0.2,0.2.") from error
    return {"train": train, "validation": validation, "test": test}


def _cuts(text: str | None) -> dict[str, tuple[str, ...]]:
    if text is None:
        return {}
    cuts = tuple(part.strip() for part in text.split(","))
    if len(cuts) != 2:
        raise SpecError(f"--time-cuts {text!r} is not two dates such as 2026-01-01,2026-03-01.")
    return {"time_cuts": cuts}


def _types(types: list[str], text: list[str]) -> dict[str, str]:
    found = dict.fromkeys(text, "string")
    for pair in types:
        column, equals, kind = pair.rpartition("=")
        if not equals:
            raise SpecError(f"--type {pair!r} is not COLUMN=TYPE, such as zip=string.")
        found[column] = kind
    return found


def _tell(made: Commit) -> None:
    v = made.version
    rows = ", ".join(f"{n:,} {s}" for s, n in v.split_rows.items())
    if not made.created:
        typer.echo(f"{v.ref} holds exactly these rows already: no new version. Content digest {v.content_digest[:12]}.")
        return
    typer.echo(f"Committed {v.ref}: {v.num_rows:,} rows ({rows}), content digest {v.content_digest[:12]}.")
    for warning in v.warnings:
        typer.echo(f"warning: {warning}")
    typer.echo(f"Look at it: tiltyard data show {v.ref}")


@app.command()
def append(
    name: str = typer.Argument(help="Name of the dataset.", metavar="NAME"),
    source: str = typer.Argument(help="File, folder, glob or URI with more rows of the same columns."),
    text: list[str] = _TEXT,
    types: list[str] = _TYPES,
    message: str = _MESSAGE,
) -> None:
    """Publish the newest version's rows plus those of a source; no old row moves to another split."""
    made = open_store().append(name, source, message=message, types=_types(types, text))
    _tell(made)


app.add_typer(versions_commands.app)
