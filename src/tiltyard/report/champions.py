"""How an experiment's champions fared since: their evaluations on later dataset versions, with drift, from the journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.evaluation.drift import ColumnDrift
from tiltyard.evaluation.folding import Evaluated
from tiltyard.journal import Decision, Journal
from tiltyard.report.terminal import score

KIND = "evaluation"
MOST_VERSIONS = 8
"""Dataset versions of a champion that are shown: the newest."""
MOST_COLUMNS = 12
"""Columns whose drift is shown: those that moved most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """A champion and the dataset versions that it met, in order; ``left_out`` older ones are not here."""

    model: str
    results: tuple[Evaluated, ...]
    left_out: int


def met(journal: Journal, decisions: Sequence[Decision]) -> tuple[Met, ...]:
    """The evaluations of what an experiment crowned.

    Args:
        journal: Open.
        decisions: Of the experiment's key.
    """
    found = []
    for d in decisions:
        if d.kind != "champion" or "version" not in d.evidence:
            continue
        name = f"{d.subject}@{d.evidence['version']}"
        works = journal.works.find(KIND, d.subject)
        keys = [w.key for w in works if w.state == "finished" and w.about.get("model") == name]
        results = [Evaluated.from_json(r.result) for r in journal.works.newest(keys).values()]
        ordered = sorted(results, key=lambda r: (r.dataset, r.dataset_version))
        if ordered:
            shown = ordered[-MOST_VERSIONS:]
            found.append(Met(model=name, results=tuple(shown), left_out=len(ordered) - len(shown)))
    return tuple(found)


def shown(champions: Sequence[Met]) -> list[dict[str, Any]]:
    """What the template lays out."""
    return [_champion(m) for m in champions]


def _champion(m: Met) -> dict[str, Any]:
    drifts = {r.on: r.drift for r in m.results if r.drift is not None}
    moved: dict[str, float] = {}
    for drift in drifts.values():
        for c in drift.columns:
            moved[c.column] = max(moved.get(c.column, 0.0), c.effect)
    columns = sorted((c for c in moved if moved[c] > 0), key=lambda c: -moved[c])
    more = len(columns) - MOST_COLUMNS
    return {
        "model": m.model,
        "metric": m.results[0].metric.replace("_", " "),
        "rows": [_row(r) for r in m.results],
        "left_out": m.left_out,
        "versions": list(drifts),
        "columns": [
            (column, [_moved(drift.column(column)) for drift in drifts.values()]) for column in columns[:MOST_COLUMNS]
        ],
        "more": f"{more} more columns moved less." if more > 0 else "",
        "bounds": _bounds(m.results),
    }


def _row(r: Evaluated) -> dict[str, Any]:
    found = r.scored.scores.get(r.metric)
    drifted = r.drift.drifted if r.drift is not None else ()
    gone = list(r.drift.missing_columns) if r.drift is not None else []
    told = "not compared" if r.drift is None else f"{len(drifted)} columns" if drifted else "none"
    return {
        "on": r.on,
        "rows": f"{r.scored.rows:,}",
        "labelled": "" if r.scored.labelled == r.scored.rows else f"{r.scored.labelled:,} with a label",
        "problem": r.problem,
        "score": "no label yet" if found is None else score(found.value),
        "interval": "" if found is None or found.low is None else f"{score(found.low)} to {score(found.high)}",
        "calibration": "-" if r.scored.calibration_error is None else f"{r.scored.calibration_error:.3f}",
        "drift": told + (f"; gone: {', '.join(gone)}" if gone else ""),
        "drifted": bool(drifted or gone),
        "against": "" if r.paired is None else f"{r.paired.difference:+.4f} against {r.against}",
    }


def _moved(c: ColumnDrift | None) -> dict[str, Any]:
    if c is None:
        return {"text": "-", "strength": 0.0, "drifted": ""}
    note = "drifted" if c.drifted else ""
    return {"text": f"{c.effect:.1%}", "strength": round(min(1.0, c.effect * 2) ** 0.5, 3), "drifted": note}


def _bounds(results: Sequence[Evaluated]) -> str:
    report = next((r.drift for r in results if r.drift is not None), None)
    if report is None:
        return ""
    return (
        f"at least {report.least_effect:.0%} of the rows moved, and the chance of any false alarm in a version is at most "
        f"{report.alpha:.0%}"
    )
