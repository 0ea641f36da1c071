"""``tiltyard data``, after the commit: compare, name, keep, remove, verify, export and delete versions.

The commands appear beside those of `tiltyard.cli.data`, which takes them in.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from tiltyard.cli.tables import JSON, NAME, open_store, show, size, table
from tiltyard.errors import SpecError
from tiltyard.settings import Settings
from tiltyard.who import person

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tiltyard.data.diff import Difference
    from tiltyard.data.profile import ColumnProfile
    from tiltyard.data.store import DatasetStore
    from tiltyard.data.upkeep import Collected, Survey
    from tiltyard.evaluation.erasure import Whose

app = typer.Typer()

_DATASET = typer.Argument(help="Dataset.", metavar="NAME")
_FEW = 20  # files that a message names


# ---- look ----------------------------------------------------------------------------------------------------------


@app.command()
def diff(
    first: str = NAME,
    second: str = NAME,
    split: str = typer.Option("train", help="Split whose statistics are shown."),
    as_json: bool = JSON,
) -> None:
    """Show in what two versions differ: columns, rows, splits and statistics."""
    from tiltyard.data.compare import compare

    found = compare(open_store(), first, second)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1))
        return
    if split not in found.columns:
        raise SpecError(f"Neither version has rows in split {split!r}; splits: {', '.join(found.columns)}.")
    show(_overview(found), Text(), _statistics(found, split))


def _overview(found: Difference) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    rows = found.rows
    over = f" (by columns {', '.join(rows.columns)})" if rows.columns else ""
    told = f"{rows.added:,} added, {rows.removed:,} removed, {rows.kept:,} kept{over}"
    lines = [
        ("versions", f"{found.refs[0]} and {found.refs[1]}"),
        ("content", "the same" if found.same else f"{found.digests[0][:12]} and {found.digests[1][:12]}"),
        ("rows", f"{_pair(*found.num_rows)}: {told}"),
        *((f"{s} rows", _pair(*pair)) for s, pair in found.split_rows.items()),
        *((f"column {n}", f"added, {kind}") for n, kind in found.added_columns.items()),
        *((f"column {n}", f"removed, {kind}") for n, kind in found.removed_columns.items()),
        *((f"column {n}", " -> ".join(kinds)) for n, kinds in found.changed_columns.items()),
        *((f"declared {n}", f"{a} -> {b}") for n, (a, b) in found.declared.items()),
    ]
    if rows.moved:
        lines.append(("moved", f"{rows.moved:,} kept rows are in another split now"))
    for what, value in lines:
        facts.add_row(what, value)
    return facts


def _pair(a: int, b: int) -> str:
    return f"{a:,}" if a == b else f"{a:,} -> {b:,} ({b - a:+,})"


def _statistics(found: Difference, split: str) -> Table:
    """A line a column where both say the same, else two."""
    shown = table("column", "in", "type", "missing", "distinct", "mean", "std", "min", "median", "max", "most frequent")
    for name, pair in found.columns[split].items():
        told = [_profiled(p) for p in pair]
        if told[0] == told[1]:
            shown.add_row(name, "both", *told[0])
            continue
        for ref, line in zip(found.refs, told, strict=True):
            shown.add_row(name if ref == found.refs[0] else "", f"@{ref.rpartition('@')[2]}", *line)
    return shown


def _profiled(p: ColumnProfile | None) -> tuple[str, ...]:
    from tiltyard.data.cards import number

    if p is None:
        return ("absent", *("",) * 8)
    median = p.quantiles[len(p.quantiles) // 2] if p.quantiles else None
    common = ", ".join(f"{name} {count / max(1, p.count):.1%}" for name, count in list(p.categories.items())[:3])
    distinct = "" if p.distinct is None else f"{p.distinct:,}"
    numbers = (number(v) for v in (p.mean, p.std, p.minimum, median, p.maximum))
    return (p.type, f"{p.nulls + p.nans:,}", distinct, *numbers, common)


@app.command()
def card(name: str = NAME) -> None:
    """Print a version's dataset card as Markdown; it lies beside the version's record too."""
    from tiltyard.data import cards

    store = open_store()
    version = store.resolve(name)
    typer.echo(cards.render(version, store.profile(version)), nl=False)


# ---- keep and remove -----------------------------------------------------------------------------------------------


@app.command()
def tag(
    name: str = NAME,
    label: str = typer.Argument(help="The tag, a name such as gold.", metavar="TAG"),
    message: str = typer.Option("", "--message", "-m", help="Why."),
    move: bool = typer.Option(False, "--move", help="The tag may name another version now: move it here."),
    remove: bool = typer.Option(False, "--remove", help="Take the tag away; no version is removed by that."),
) -> None:
    """Name a version: NAME@TAG means it from then on, and gc keeps it."""
    from tiltyard.data import upkeep

    store = open_store()
    if remove:
        dataset, _, at = name.partition("@")
        if at or move:
            raise SpecError(
                f"To take a tag away, name dataset and tag alone: tiltyard data tag {dataset} {label} --remove"
            )
        was = upkeep.untag(store, dataset, label)
        typer.echo(f"{dataset} has no tag {label} any more; it named version {was.version}, which is still there.")
        return
    made, before = upkeep.tag(store, name, label, message=message, move=move)
    dataset = name.partition("@")[0]
    if before is not None and before.version == made.version:
        typer.echo(f"{dataset}@{label} is version {made.version} already.")
    else:
        typer.echo(f"{dataset}@{label} is version {made.version}" + (f", was {before.version}." if before else "."))


@app.command()
def pin(name: str = NAME, reason: str = typer.Option("", help="Why; gc tells it.")) -> None:
    """Keep a version from gc until it is unpinned."""
    from tiltyard.data import upkeep

    made = upkeep.pin(open_store(), name, reason=reason)
    dataset = name.partition("@")[0]
    typer.echo(f"{dataset}@{made.version} is pinned. To let it go: tiltyard data unpin {dataset}@{made.version}")


@app.command()
def unpin(name: str = NAME) -> None:
    """Take a version's pin away; no version is removed by that."""
    from tiltyard.data import upkeep

    was = upkeep.unpin(open_store(), name)
    typer.echo(f"{name.partition('@')[0]}@{was.version} is not pinned any more.")


@app.command()
def gc(
    name: str = _DATASET,
    yes: bool = typer.Option(False, "--yes", help="Do it; without, it is only shown."),
    keep_last: int = typer.Option(1, min=1, help="Keep so many of the newest versions."),
    older_than: float = typer.Option(
        24.0, min=0.0, help="Hours after which a file that nothing names is the rest of a commit that died."
    ),
    reason: str = typer.Option("", help="Why; told to whoever asks for a removed version."),
    as_json: bool = JSON,
) -> None:
    """Remove versions that no tag, pin, registered model or running sweep needs, and files that no version needs.

    Never the newest. It asks the registry and the journal of this home; models registered elsewhere need a pin.
    """
    from tiltyard.cli import needs
    from tiltyard.data import deletion, upkeep

    store, settings = open_store(), Settings.from_env()
    store.history(name)  # says what there is
    learned = needs.models(settings, name)
    begun = deletion.pending(store, name)
    finished = deletion.finish(store, name, models=learned) if yes else []
    others = needs.together(learned, needs.sweeps(settings, name))
    found = upkeep.gc(store, name, others=others, keep_last=keep_last, orphan_hours=older_than, reason=reason, yes=yes)
    if yes and (found.removed or finished):
        _record("data removal", name, {"versions": list(found.removed)}, reason or "nothing needed them")
    if as_json:
        typer.echo(json.dumps({**asdict(found), "unfinished_deletions": 0 if yes else len(begun)}, indent=1))
        return
    for line in _told(found, len(begun), bool(finished)):
        typer.echo(line)


def _told(found: Collected, begun: int, finished: bool) -> list[str]:
    lines = [f"keeps   {found.name}@{n}: {'; '.join(why)}" for n, why in found.kept.items()]
    verb = "removed" if found.done else "would remove"
    lines += [f"{verb} {found.name}@{n}: nothing needs it" for n in found.removed]
    if finished:
        lines.append(f"Finished {begun} deletion{'s' if begun > 1 else ''} that had been begun.")
    elif begun:
        lines.append(
            f"{begun} deletion{'s' if begun > 1 else ''} by key had been begun and not finished: --yes finishes."
        )
    freed = f"{size(found.files.free_bytes)} in {len(found.files.free):,} files"
    lines += _waiting(found.files, found.name)
    if found.done:
        return [*lines, f"Freed {freed}."]
    return [*lines, f"Would free {freed}. Nothing was changed; to do it: tiltyard data gc {found.name} --yes"]


def _waiting(files: Survey, name: str) -> list[str]:
    if not files.waiting:
        return []
    return [
        f"{len(files.waiting):,} young files ({size(sum(files.waiting.values()))}) belong to no version: perhaps to a commit "
        f"under way. Once none is: tiltyard data gc {name} --older-than 0 --yes"
    ]


@app.command()
def delete(
    name: str = _DATASET,
    key: list[str] = typer.Option(help="Key of the person whose rows go; may be given more than once."),
    column: str | None = typer.Option(None, help="Column the key stands in; the dataset's key where it has one."),
    reason: str = typer.Option("", help="Why, for the tombstones. Do not name the person."),
    yes: bool = typer.Option(False, "--yes", help="Do it; without, it is only shown."),
    as_json: bool = JSON,
) -> None:
    """Delete a person's rows from every version, for good; without --yes, show how many there are.

    The newest version and those that a tag, a pin or a registered model needs get successors without the rows; every
    version that held them becomes a tombstone, and its files go. Answers of models to these rows, which evaluations kept, go
    too. Models that learned from one are listed.
    """
    from tiltyard.cli import needs
    from tiltyard.data import deletion
    from tiltyard.data.places import Place
    from tiltyard.evaluation.erasure import Forgotten, forget

    store, settings = open_store(), Settings.from_env()
    store.history(name)  # says what there is
    learned = needs.models(settings, name)
    evaluations, running = needs.evaluations(settings, name)
    whose = _whose(store, name, key, column)

    def of_evaluations(*, look_only: bool = False) -> Forgotten:
        return forget(Place.of(settings.storage_uri), evaluations, whose, look_only=look_only)

    if not yes:
        kept = of_evaluations(look_only=True)
        try:
            found = deletion.find(store, name, key, column=column)
        except deletion.NoSuchRowsError:
            if not kept.answers:
                raise
            found = deletion.Found(column=whose.column, values=tuple(whose.values), rows={}, unknown=())
        if as_json:
            typer.echo(json.dumps({**asdict(found), "kept": asdict(kept)}, indent=1))
            return
        for number, count in found.rows.items():
            typer.echo(f"{name}@{number} holds {count:,} rows whose {found.column!r} is {' or '.join(found.values)}.")
        if kept.folders:
            typer.echo(f"Evaluations keep {kept.answers:,} answers to such rows and {kept.labels:,} labels of them.")
        typer.echo("Nothing was deleted. It cannot be undone; if these are the rows, say --yes.")
        return
    kept = of_evaluations()  # first: the rows are known by their hashes while they are there
    try:
        done = deletion.delete(store, name, key, column=column, reason=reason, models=learned)
    except deletion.NoSuchRowsError:
        if not kept.answers:
            raise
        done = deletion.Deleted(name=name)
    evidence: dict[str, Any] = {
        "versions": sorted(done.rows),
        "successors": {str(a): b for a, b in done.successors.items()},
        "kept answers": kept.answers,
        "kept labels": kept.labels,
    }
    _record("data deletion", name, {**evidence, "models": list(done.models)}, reason or "rows deleted by key")
    if as_json:
        typer.echo(json.dumps({**asdict(done), "kept": asdict(kept), "running evaluations": running}, indent=1))
        return
    for number, count in sorted(done.rows.items()):
        own = done.successors.get(number)
        typer.echo(
            f"{name}@{number} held {count:,} such rows and is gone"
            + (f"; {name}@{own} took its place." if own else ".")
        )
    for line in (*(f"Moved {what}." for what in done.moved), *_waiting(done.files, name)):
        typer.echo(line)
    if done.unknown:
        lacking = ", ".join(map(str, done.unknown))
        typer.echo(
            f"Versions {lacking} lack the column: whether they hold such rows cannot be told. Look, and remove them."
        )
    if done.models:
        typer.echo("Registered models that learned from these rows; retrain or retire them:")
        for model in done.models:
            typer.echo(f"  {model}")
    if kept.folders:
        typer.echo(
            f"Took {kept.answers:,} answers to such rows and {kept.labels:,} labels of them out of what evaluations kept."
        )
    for file in kept.unknown:
        typer.echo(
            f"These labels lack the column and the key, so whose they are cannot be told. Look, and remove: {file}"
        )
    for which in running:
        typer.echo(f"An evaluation runs and may yet keep answers to such rows; when it ended, delete again: {which}")
    typer.echo(
        f"Freed {size(done.files.free_bytes)} in {len(done.files.free):,} files. Copies that were exported are yours."
    )


def _whose(store: DatasetStore, name: str, key: list[str], column: str | None) -> Whose:
    """How the answers to a person's rows are known: by the hashes of rows that are there, and by the key."""
    from tiltyard.data import deletion
    from tiltyard.evaluation.erasure import Whose

    head = store.resolve(name)
    try:
        found = deletion.find(store, name, key, column=column)
    except deletion.NoSuchRowsError:
        found = deletion.Found(column=column or head.spec.keys[0], values=tuple(key), rows={}, unknown=())
    hashes = deletion.hashes(store, name, found)
    return Whose(hashes=hashes, column=found.column, values=found.values, keys=head.spec.keys)


def _record(kind: str, name: str, evidence: Mapping[str, Any], reason: str) -> None:
    """Appends who did it to the journal's decisions."""
    from tiltyard.journal import Journal

    settings = Settings.from_env()
    settings.ensure_home()
    with Journal.open(settings.journal_uri) as journal:
        journal.decide(
            kind=kind,
            subject=name,
            actor=person(),
            evidence=dict(evidence),
            reasons=[reason],
            outcome="done",
        )


# ---- verify and export ---------------------------------------------------------------------------------------------


@app.command()
def verify(
    name: str | None = typer.Argument(
        None, help="Dataset, NAME@VERSION or NAME@TAG; all where none.", metavar="[NAME]"
    ),
    as_json: bool = JSON,
) -> None:
    """Read versions again and hash them: any changed byte is found and named, with exit code 1."""
    from tiltyard.data.verify import Verified
    from tiltyard.data.verify import verify as verified

    store = open_store()
    total = Verified()
    for which in [name] if name else store.names():
        dataset, at, tail = which.partition("@")
        number = None if not at else int(tail) if tail.isdigit() else store.resolve(which).version
        total += verified(store, dataset, number)
    if as_json:
        typer.echo(json.dumps(asdict(total), indent=1))
    else:
        _tell_verified(len(total.versions), total.num_files, total.num_bytes, total.findings, total.notes)
    if total.findings:
        raise typer.Exit(1)


def _tell_verified(
    versions: int, num_files: int, num_bytes: int, findings: Collection[object], notes: Collection[str]
) -> None:
    for finding in findings:
        typer.echo(f"wrong: {finding}", err=True)
    for note in notes:
        typer.echo(f"note: {note}")
    read = f"{versions:,} versions, {num_files:,} files, {size(num_bytes)}"
    if findings:
        typer.echo(f"{len(findings):,} wrong in {read}. Restore the named files from a backup.", err=True)
    else:
        typer.echo(f"Every byte is as it was written: {read}.")


@app.command()
def export(
    name: str = NAME,
    folder: str = typer.Argument(help="A folder that does not exist yet, or is empty.", metavar="DIR"),
    split: str | None = typer.Option(None, help="train, validation or test; all where none."),
    form: str = typer.Option("parquet", "--format", help="parquet, csv or arrow."),
) -> None:
    """Write a version as plain files, one a split, with its card; whole or not at all."""
    from tiltyard.data.export import export as exported

    version, files = exported(open_store(), name, folder, split=split, form=form)
    names = ", ".join(f.name for f in files[:_FEW])
    typer.echo(f"Exported {version.ref} to {files[0].parent}: {names}.")
