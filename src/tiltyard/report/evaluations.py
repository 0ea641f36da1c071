"""What evaluations look like in a terminal: scores with intervals, drift with effects, and against the champion."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.slices import worst
from tiltyard.types import METRICS

MOST_COLUMNS = 12


def overview(results: Sequence[tuple[Evaluated, str]]) -> Table:
    """One line a result, with what became of it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("model", "dataset", "rows", "labelled", "score", "drifted", "against the champion", ""):
        numbers = name in {"rows", "labelled"}
        table.add_column(  # where the terminal is narrow, long texts fold; names and numbers do not
            name,
            no_wrap=numbers or name in {"model", "dataset"},
            overflow="fold",
            justify="right" if numbers else "left",
        )
    for r, outcome in results:
        table.add_row(
            Text(r.name, "bold"),
            r.on,
            f"{r.scored.rows:,}",
            f"{r.scored.labelled:,}",
            Text(r.problem, "red") if r.problem else score(r),
            drift(r),
            against(r),
            outcome,
        )
    return table


def score(r: Evaluated) -> str:
    """The score that counts, with its interval."""
    found = r.scored.scores.get(r.metric)
    return f"{r.metric} {found}" if found is not None else "no label yet"


def drift(r: Evaluated) -> Text:
    """Which columns have drifted."""
    if r.drift is None:
        return Text("")
    names = r.drift.drifted
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Text(", ".join(names[:3]) + more if names else "none", "yellow" if names else "green")


def against(r: Evaluated) -> str:
    """The comparison with the champion."""
    if r.paired is None:
        return ""
    low, high = r.paired.interval
    return f"{r.paired.metric} better by {r.paired.difference:+.4f} [{low:+.4f}, {high:+.4f}] than {r.against}"


def show(console: Console, r: Evaluated) -> None:
    """All of one result."""
    console.print(Text.assemble((r.name, "bold"), " on ", (r.on, "bold"), f": {r.scored.rows:,} rows ({r.rows})"))
    if r.problem:
        console.print(Text(r.problem, "red"))
    for name, found in r.scored.scores.items():
        console.print(f"  {name:18} {found}")
    if r.scored.calibration_error is not None:
        console.print(f"  {'calibration error':18} {r.scored.calibration_error:.4f}")
    if r.scored.unknown_labels:
        console.print(f"  {r.scored.unknown_labels} rows have a label that the model has no output for")
    if r.scored.not_finite:
        console.print(Text(f"  {r.scored.not_finite} answers are not finite", "red"))
    if r.paired is not None:
        console.print(f"  {against(r)}; p = {r.paired.p if r.paired.p is not None else r.paired.p_better():.3g}")
    _slices(console, r)
    for f in r.fairness:
        ratio = f["ratio"]
        told = f"{ratio['value']:.2f}" if ratio else "-"
        console.print(f"\n{f['column']}: {f['verdict']}; selection ratio {told} ({f['lowest']} to {f['highest']})")
    _drift(console, r)


def _slices(console: Console, r: Evaluated) -> None:
    for column, slices in r.slices.items():
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in (column, "rows", r.metric):
            table.add_column(name)
        for name, scored in slices.items():
            table.add_row(name, f"{scored.rows:,}", str(scored.scores.get(r.metric, "")))
        console.print()
        console.print(table)
    low = worst(r.slices, r.metric, sign=METRICS[r.metric].mode.sign)
    if low is not None:
        console.print(f"surely worst: {low[0]}={low[1]}, {r.metric} {low[2]:.4f}")


def _drift(console: Console, r: Evaluated) -> None:
    if r.drift is None:
        return
    report = r.drift
    console.print(
        f"\nDrift against the training split: chance of any false alarm at most {report.alpha:g}, "
        f"effect at least {report.least_effect:g}"
    )
    for name in report.missing_columns:
        console.print(Text(f"  {name} is gone", "red"))
    for name, (before, now) in report.changed_types.items():
        console.print(Text(f"  {name} was {before} and is {now}", "red"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("column", "moved", "psi", "js", "ks", "p (corrected)", "missing", "note"):
        table.add_column(name)
    for c in report.columns[:MOST_COLUMNS]:
        note = c.note
        if c.most_moved is not None and c.drifted:
            note = f"{c.most_moved[0]}: {c.most_moved[1]:.1%} before, {c.most_moved[2]:.1%} now"
        elif c.mean_before is not None and c.mean_now is not None and c.drifted:
            note = f"mean {c.mean_before:.4g} before, {c.mean_now:.4g} now"
        if c.new_categories:
            note += f"; new: {', '.join(list(c.new_categories)[:5])}"
        table.add_row(
            Text(c.column, "yellow" if c.drifted else ""),
            f"{c.moved:.3f}",
            f"{c.psi:.3f}",
            f"{c.js:.3f}",
            "" if c.ks is None else f"{c.ks:.3f}",
            f"{c.p_adjusted:.2g}",
            f"{c.missing_now:.1%}",
            note,
        )
    console.print(table)
    if len(report.columns) > MOST_COLUMNS:
        console.print(f"... and {len(report.columns) - MOST_COLUMNS} more columns, none of them drifted more")
