"""The dataset card: what a person must know before using a version, as Markdown.

Rendered from a version's record and its profile, and kept beside the record when it is published. What people declare
(`tiltyard.data.versions.Card`) stands first, what was counted after it. Values of sensitive columns and keys are not
shown. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tiltyard.data.profile import ColumnProfile, Profile
from tiltyard.data.versions import SPLITS, Check, DatasetSpec, DatasetVersion

SCHEMA_VERSION = 1
"""Of the card's form; stands in its first line."""
NOT_SAID = "Not declared."


def render(version: DatasetVersion, profile: Profile | None) -> str:
    """The card of a version.

    Args:
        version: Its record.
        profile: Its profile; None where there is none, and the card says so.

    Returns:
        Markdown, with the card's schema version in a comment on top.
    """
    card = version.spec.card
    parts = [
        f"<!-- tiltyard dataset card, schema version {SCHEMA_VERSION} -->\n# {version.ref}",
        card.description or "No description was declared.",
        _facts(version),
        "## Known gaps\n\n" + _list(card.known_gaps, "None declared."),
        "## Sensitive columns\n\n" + _sensitive(version.spec),
        "## Columns\n\n" + _columns(version, profile),
        "## Splits\n\n" + _splits(version),
        "## Checks\n\n" + _list([describe_check(c) for c in version.spec.checks], "None declared."),
    ]
    if version.warnings:
        parts.append("### Warnings of this version\n\n" + _list([_one_line(w) for w in version.warnings], ""))
    parts.append("## Where this version comes from\n\n" + _lineage(version))
    return "\n\n".join(parts) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(value: object) -> str:
    return _one_line(str(value)).replace("|", "\\|")


def _list(lines: Iterable[str], otherwise: str) -> str:
    return "\n".join(f"- {_one_line(line)}" for line in lines) or otherwise


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(v) for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _facts(version: DatasetVersion) -> str:
    spec, card = version.spec, version.spec.card
    task = f"{spec.task} of {', '.join(spec.labels)}" if spec.task else "none declared"
    return _table(
        ("", ""),
        [
            ("source", card.source or NOT_SAID),
            ("licence", card.licence or NOT_SAID),
            ("collected", card.collected or NOT_SAID),
            ("contact", card.contact or NOT_SAID),
            ("task", task),
            ("rows", f"{version.num_rows:,}"),
        ],
    )


def _sensitive(spec: DatasetSpec) -> str:
    if not spec.sensitive:
        return "None declared."
    return _list((f"`{c}`" for c in spec.sensitive), "") + "\n\nThey reach no model unless an experiment names them."


def _columns(version: DatasetVersion, profile: Profile | None) -> str:
    split = next((s for s in SPLITS if profile and s in profile.splits), None)
    if profile is None or split is None:
        rows = [(f"`{name}`", kind, role(version.spec, name)) for name, kind in version.schema.items()]
        return _table(("column", "type", "role"), rows) + "\n\nThis version has no profile."
    found = profile.splits[split].columns
    told = [
        (f"`{name}`", kind, role(version.spec, name), *_profiled(found.get(name), name in version.spec.sensitive))
        for name, kind in version.schema.items()
    ]
    head = ("column", "type", "role", "missing", "mean", "std", "min", "median", "max", "most frequent")
    return _table(head, told) + f"\n\nCounted on the {split} split ({profile.splits[split].num_rows:,} rows)."


def _profiled(column: ColumnProfile | None, hidden: bool) -> tuple[str, ...]:
    if column is None:
        return ("",) * 7
    missing = f"{(column.nulls + column.nans) / max(1, column.count):.1%}"
    if hidden:
        return (missing, *("hidden",) * 6)
    median = column.quantiles[len(column.quantiles) // 2] if column.quantiles else None
    numbers = (column.mean, column.std, column.minimum, median, column.maximum)
    common = ", ".join(f"{name} ({count:,})" for name, count in list(column.categories.items())[:3])
    return (missing, *(number(v) for v in numbers), common)


def number(value: float | str | None) -> str:
    """A number of a profile as a person reads it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.6g}"


def _splits(version: DatasetVersion) -> str:
    rows = [(s, f"{n:,}", f"{n / max(1, version.num_rows):.1%}") for s, n in version.split_rows.items()]
    return f"{describe_split(version.spec)}.\n\n" + _table(("split", "rows", "share"), rows)


def _lineage(version: DatasetVersion) -> str:
    facts: list[tuple[str, object]] = [
        ("committed", f"{version.created_at}" + (f": {version.message}" if version.message else "")),
        ("parent", f"{version.name}@{version.parent}" if version.parent else "none: the first version"),
    ]
    if version.successor_of is not None:
        told = f"{version.name}@{version.successor_of}, of which rows were deleted by key"
        facts.append(("successor of", told))
    facts += [("content digest", f"`{version.content_digest}`"), ("files digest", f"`{version.files_digest}`")]
    return _table(("", ""), facts)


def describe_check(check: Check) -> str:
    """A declared check in words."""
    on = check.column or ", ".join(check.columns)
    params = ", ".join(f"{name} {value}" for name, value in check.params.items())
    told = check.kind + (f" of {on}" if on else "") + (f": {params}" if params else "")
    return told + (" (only warns)" if check.severity == "warning" else "")


def describe_split(spec: DatasetSpec) -> str:
    """How rows are assigned to splits, in words."""
    split = spec.split
    if split.time_cuts is not None:
        return f"by {spec.time}: validation from {split.time_cuts[0]}, test from {split.time_cuts[1]}"
    unit = spec.group or " and ".join(spec.keys) or "the row's content"
    shares = " / ".join(f"{share:g}" for share in (split.train, split.validation, split.test))
    return f"{shares} by {unit}, seed {split.seed}" + (f", stratified by {split.stratify}" if split.stratify else "")


def role(spec: DatasetSpec, column: str) -> str:
    """What a column is for."""
    named = {
        "label": spec.labels,
        "key": spec.keys,
        "group": (spec.group,),
        "time": (spec.time,),
        "sensitive": spec.sensitive,
        "ignored": spec.ignore,
    }
    return ", ".join(what for what, names in named.items() if column in names) or "feature"
