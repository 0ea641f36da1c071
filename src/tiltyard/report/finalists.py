"""What the page says of the finalists beside their rank: where they are weak, for whom, how they are wrong, how sure they are.

From what the one look at the test rows left in storage (`tiltyard.sweep.engine.finals`): counts and means, no row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.progress import Work
from tiltyard.report import plots
from tiltyard.report.findings import Findings
from tiltyard.report.terminal import score
from tiltyard.sweep.leaderboard import Row

MOST_CLASSES = 12
"""Larger confusion matrices are left out: no phone shows one."""
FIRST_SLICES = 6
"""Slices of other than sensitive columns that stand open; the rest unfolds."""
MOST_SIDE_BY_SIDE = 3
"""Finalists whose slices stand beside each other."""
SURE = 0.05
"""A slice is called weak, corrected for all that were looked at, below this."""


def weak_spots(f: Findings) -> list[dict[str, Any]]:
    """Slices of the test rows, dataset by dataset: the sensitive columns' and the weakest others'."""
    found = []
    for dataset, known in _known(f):
        of = [(row, {(s["column"], s["name"]): s for s in d.get("slices", ())}) for row, d in known]
        of = of[:MOST_SIDE_BY_SIDE]
        order = list(of[0][1]) if of else []
        if not order:
            continue
        metric = str(known[0][1]["slice_metric"]).replace("_", " ")
        rows = [
            {
                "column": at[0],
                "name": at[1],
                "sensitive": of[0][1][at]["sensitive"],
                "rows": f"{of[0][1][at]['rows']:,}",
                "cells": [_slice_cell(slices.get(at)) for _, slices in of],
            }
            for at in order
        ]
        first = sum(r["sensitive"] for r in rows) + FIRST_SLICES
        weak = sum(slices[at]["p"] < SURE for _, slices in of[:1] for at in order)
        found.append(
            {
                "dataset": dataset,
                "metric": metric,
                "trials": [row.name for row, _ in of],
                "rows": rows[:first],
                "rest": rows[first:],
                "said": f"{weak} of them {'is' if weak == 1 else 'are'} surely weaker than the rest of the rows of {of[0][0].name}."
                if weak
                else f"None of them is surely weaker than the rest of the rows of {of[0][0].name}.",
            }
        )
    return found


def _slice_cell(s: Mapping[str, Any] | None) -> dict[str, Any]:
    if s is None:
        return {"value": "-", "interval": "", "weak": False}
    return {
        "value": score(s["value"]),
        "interval": f"{score(s['low'])} to {score(s['high'])}",
        "weak": s["p"] < SURE,
    }


_VERDICTS = {
    "alike": "alike: the whole interval is at four fifths or above",
    "flagged": "flagged: the whole interval is below four fifths",
    "unsure": "unsure: the interval holds four fifths",
    "too few": "too few rows to compare",
}


def groups(f: Findings) -> list[dict[str, Any]]:
    """Sensitive columns' groups, one table a column and finalist."""
    found = []
    for _, known in _known(f):
        for place, (row, detail) in enumerate(known[:MOST_SIDE_BY_SIDE]):
            for of in detail.get("fairness", ()):
                ratio = of["ratio"]
                odds = of["odds_difference"]
                found.append(
                    {
                        "title": f"{of['column']}: {row.name}",
                        "first": place == 0,
                        "flagged": of["verdict"] == "flagged",
                        "verdict": _VERDICTS[of["verdict"]],
                        "ratio": "-"
                        if ratio is None
                        else f"{ratio['value']:.2f} ({_ends(ratio)}), {of['lowest']} over {of['highest']}",
                        "odds": "-" if odds is None else f"{odds:.2f}",
                        "positive": (detail["classes"] or ["the last class"])[-1],
                        "groups": [
                            {
                                "name": g["name"],
                                "rows": f"{g['rows']:,}",
                                "selected": _share(g["selected"]),
                                "true": _share(g["true_positives"]),
                                "false": _share(g["false_positives"]),
                            }
                            for g in of["groups"]
                        ],
                        "few": ", ".join(f"{n} ({rows})" for n, rows in of["too_few"].items()),
                    }
                )
    return found


def _share(found: Mapping[str, Any]) -> tuple[str, str]:
    value = found["value"]
    return "-" if value is None else f"{value:.2f}", _ends(found)


def _ends(found: Mapping[str, Any]) -> str:
    if found["low"] is None or found["high"] is None:
        return ""
    return f"{found['low']:.2f} to {found['high']:.2f}"


def _known(f: Findings) -> list[tuple[str, list[tuple[Row, Mapping[str, Any]]]]]:
    """Datasets with their finalists of which something was kept, best first."""
    every = [(d, [(row, f.details[row.cell]) for row in t if row.cell in f.details]) for d, t in f.board.tables.items()]
    return [(dataset, known) for dataset, known in every if known]


def errors(f: Findings, doing: Work) -> list[dict[str, Any]]:
    """Calibration and confusion, dataset by dataset."""
    found = []
    for dataset, known in _known(f):
        doing.advance()
        lines = [
            (row.name, i, calibration_bins(d["calibration"])) for i, (row, d) in enumerate(known) if d["calibration"]
        ]
        errors = ", ".join(f"{row.name} {d['calibration_error']:.3f}" for row, d in known if d["calibration"])
        confusions = [_confusion(row.name, d) for row, d in known if 1 < len(d["confusion"]) <= MOST_CLASSES]
        if lines or confusions:
            found.append(
                {
                    "dataset": dataset,
                    "svg": plots.reliability(f"calibration {dataset}", lines) if lines else "",
                    "legend": [(plots.series_of(which), name) for name, which, _ in lines],
                    "caption": f"Calibration on the test rows. Mean distance from the dotted line: {errors}.",
                    "alt": f"Calibration of {len(lines)} finalists on {dataset}; mean distance from being calibrated: {errors}.",
                    "confusions": confusions,
                    "wide": any(len(c["classes"]) > 5 for c in confusions),
                }
            )
    return found


def calibration_bins(bins: Sequence[Sequence[float]]) -> list[tuple[float, float, int]]:
    """Neighbouring bins put together until each has a tenth of the rows: a bin of three rows says nothing.

    Args:
        bins: Rows, mean confidence, share that was right; rising in confidence.

    Returns:
        Mean confidence, share that was right, rows.

    >>> calibration_bins([(1, 0.1, 0.0), (9, 0.3, 0.4), (90, 0.9, 0.9)])
    [(0.28, 0.36, 10), (0.9, 0.9, 90)]
    """
    least = sum(rows for rows, _, _ in bins) / 10
    merged: list[list[float]] = []
    for rows, confidence, right in bins:
        part = [rows, rows * confidence, rows * right]
        if merged and merged[-1][0] < least:
            merged[-1] = [a + b for a, b in zip(merged[-1], part, strict=True)]
        else:
            merged.append(part)
    if len(merged) > 1 and merged[-1][0] < least:
        last = merged.pop()
        merged[-1] = [a + b for a, b in zip(merged[-1], last, strict=True)]
    return [(round(c / n, 6), round(r / n, 6), int(n)) for n, c, r in merged]


def _confusion(name: str, detail: Mapping[str, Any]) -> dict[str, Any]:
    classes = [str(c) for c in detail["classes"]]
    rows = []
    for i, counts in enumerate(detail["confusion"]):
        total = max(1, sum(counts))
        rows.append(
            (
                classes[i],
                [
                    {"n": n or "", "strength": round((n / total) ** 0.5, 3), "wrong": i != j}
                    for j, n in enumerate(counts)
                ],
            )
        )
    return {"title": name, "classes": classes, "rows": rows}
