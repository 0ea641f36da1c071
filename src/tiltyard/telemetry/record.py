"""What the record says, as readings of declared metrics: launches, budgets, nights, dataset versions, evaluated models. Pure.

How many series: each list is cut at what a person can look at (`MOST_EXPERIMENTS`, `MOST_TEAMS`, `MOST_MODELS`,
`MOST_COLUMNS`, `MOST_SLICES`, `MOST_CLASSES`), so a record of any length stays under the bound that the tests hold.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tiltyard.data.versions import DatasetVersion
from tiltyard.evaluation.folding import PREDICTED, Evaluated
from tiltyard.evaluation.scores import Score
from tiltyard.journal import Launch, Work, WorkResult
from tiltyard.money import Budget
from tiltyard.types import METRICS, Mode

Readings = list[tuple[str, dict[str, str], float]]
"""Name of an instrument, its labels, its value."""
MOST_EXPERIMENTS, MOST_TEAMS, MOST_MODELS, MOST_COLUMNS, MOST_SLICES, MOST_CLASSES = 30, 20, 12, 8, 6, 8
OUTCOMES = ("promoted", "refused", "waiting", "watched", "nothing_changed", "failed", "running")
ROLES = ("champion", "candidate", "previous")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A registered version that has a role.

    Args:
        name: Of the model.
        version: Its number.
        role: Alias that points at it.
        created: Seconds since 1970.
        trained_on: Dataset and version; None where that is not known.
    """

    name: str
    version: int
    role: str
    created: float
    trained_on: tuple[str, int] | None = None


def of_launches(launches: Iterable[Launch], *, now: float) -> Readings:
    """Keys by state, and the newest launch, of the experiments that were started last; ``launches`` has the newest first."""
    counts: dict[str, Counter[str]] = {}
    found: Readings = []
    for launch in launches:
        if launch.experiment not in counts and len(counts) == MOST_EXPERIMENTS:
            continue
        if launch.experiment not in counts:
            newest = {"experiment": launch.experiment, "run": launch.parent_run_id or ""}
            found.append(("tiltyard_launch_age_seconds", newest, max(0.0, now - launch.started)))
        counts.setdefault(launch.experiment, Counter())[launch.state] += 1
    return found + [
        ("tiltyard_launches", {"experiment": name, "state": state}, float(found[state]))
        for name, found in counts.items()
        for state in ("running", "finished", "stopped", "failed")
    ]


def of_budgets(budgets: Mapping[str, Budget]) -> Readings:
    """Limit, reserved and spent of each team's budget, the first `MOST_TEAMS` by name; what has no limit tells none."""
    found: Readings = []
    for team, budget in sorted(budgets.items())[:MOST_TEAMS]:
        amounts = {
            ("cpu", "limit"): budget.limit_cpu_s,
            ("gpu", "limit"): budget.limit_gpu_s,
            ("cpu", "reserved"): budget.reserved.cpu_s,
            ("gpu", "reserved"): budget.reserved.gpu_s,
            ("cpu", "spent"): budget.spent.cpu_s,
            ("gpu", "spent"): budget.spent.gpu_s,
        }
        found += [
            ("tiltyard_budget_seconds", {"team": team, "resource": resource, "kind": kind}, float(amount))
            for (resource, kind), amount in amounts.items()
            if amount is not None
        ]
    return found


def of_nights(
    works: Sequence[Work], results: Mapping[str, WorkResult], ages: Mapping[str, float], *, now: float
) -> Readings:
    """How the nights stand.

    Args:
        works: Every night of the journal, in order of start.
        results: The newest result of each that has one, by key.
        ages: By dataset, the age of its newest version.
        now: Seconds since 1970.
    """
    found: Readings = []
    by_night: dict[str, list[Work]] = {}
    for work in works:
        by_night.setdefault(work.subject, []).append(work)
    for name, nights in by_night.items():
        ended = [w.ended for w in nights if w.state == "finished" and w.ended is not None]
        since = max(ended, default=min(w.started for w in nights))
        found.append(("tiltyard_night_age_seconds", {"night": name}, max(0.0, now - since)))
        newest = max(nights, key=lambda w: str(w.about["date"]))
        told = str(results[newest.key].result["outcome"]) if newest.key in results else newest.state
        outcome = told.replace(" ", "_")
        found += [
            ("tiltyard_night_outcome", {"night": name, "outcome": o}, 1.0 if o == outcome else 0.0) for o in OUTCOMES
        ]
        dataset = str(newest.about.get("night", {}).get("dataset", ""))
        if dataset in ages:
            found.append(("tiltyard_night_data_age_seconds", {"night": name, "dataset": dataset}, ages[dataset]))
    return found


def ages_of(newest: Iterable[DatasetVersion], *, now: float) -> dict[str, float]:
    """Seconds since the newest version of each dataset was committed."""
    return {v.name: max(0.0, now - dt.datetime.fromisoformat(v.created_at).timestamp()) for v in newest}


def of_datasets(
    newest: Sequence[DatasetVersion], committed: Mapping[str, int], refused: Mapping[str, int], *, now: float
) -> Readings:
    """The newest version of each dataset, and how many were committed and refused."""
    found: Readings = []
    ages = ages_of(newest, now=now)
    for version in newest:
        dataset = {"dataset": version.name}
        found += [
            ("tiltyard_dataset_version", dataset, float(version.version)),
            ("tiltyard_dataset_versions_committed", dataset, float(committed.get(version.name, version.version))),
            ("tiltyard_dataset_age_seconds", dataset, ages[version.name]),
            ("tiltyard_dataset_bytes", dataset, float(sum(f.size_bytes for f in version.files))),
        ]
        found += [
            ("tiltyard_dataset_rows", {**dataset, "split": split}, float(rows))
            for split, rows in version.split_rows.items()
        ]
    names = dict.fromkeys([*(v.name for v in newest), *refused])
    return found + [
        ("tiltyard_dataset_versions_refused", {"dataset": name}, float(refused.get(name, 0))) for name in names
    ]


def of_models(known: Sequence[Known], evaluated: Iterable[Evaluated], *, now: float) -> Readings:
    """Each version with a role: its age, and what its newest evaluation says.

    Args:
        known: Versions with roles.
        evaluated: Every result, in any order.
        now: Seconds since 1970.
    """
    by_version: dict[tuple[str, int], list[Evaluated]] = {}
    for result in evaluated:
        if not result.problem:
            by_version.setdefault((result.model, result.model_version), []).append(result)
    found: Readings = []
    for model in list(known)[:MOST_MODELS]:
        who = {"model": model.name, "role": model.role, "version": str(model.version)}
        found.append(("tiltyard_model_age_seconds", who, max(0.0, now - model.created)))
        results = by_version.get((model.name, model.version), [])
        if results:
            at_home = None if model.trained_on is None else model.trained_on[0]
            newest = max(results, key=lambda r: (r.dataset == at_home, r.dataset_version))
            own = next((r for r in results if (r.dataset, r.dataset_version) == model.trained_on), None)
            found += _of_result(newest, own if own is not newest else None, {**who, "dataset": newest.dataset})
    return found


def _of_result(result: Evaluated, own: Evaluated | None, on: dict[str, str]) -> Readings:
    found: Readings = []
    for metric, score in result.scored.scores.items():
        found += _bounds("tiltyard_model_score", {**on, "metric": metric}, score)
    if result.scored.calibration_error is not None:
        found.append(("tiltyard_model_calibration_error", on, result.scored.calibration_error))
    if own is not None and result.metric in result.scored.scores and result.metric in own.scored.scores:
        below = _is_worse(result.scored.scores[result.metric], own.scored.scores[result.metric], result.metric)
        found.append(("tiltyard_model_below_bound", on, float(below)))
    parts = [(c, n, s) for c, of in result.slices.items() for n, s in of.items() if result.metric in s.scores]
    for column, name, scored in sorted(parts, key=lambda p: -p[2].rows)[:MOST_SLICES]:
        labels = {**on, "metric": result.metric, "column": column, "slice": name}
        found += _bounds("tiltyard_model_slice_score", labels, scored.scores[result.metric])
    for one in result.fairness:
        if one["ratio"] is not None:
            ratio = Score(**one["ratio"])
            found += _bounds("tiltyard_model_fairness_ratio", {**on, "column": str(one["column"])}, ratio)
    return found + _drift(result, on) + _predicted(result, on)


def _bounds(name: str, labels: dict[str, str], score: Score) -> Readings:
    ends = {"value": score.value, "low": score.low, "high": score.high}
    return [(name, {**labels, "bound": end}, float(v)) for end, v in ends.items() if v is not None]


def _is_worse(now: Score, then: Score, metric: str) -> bool:
    """The whole interval now is on the wrong side of the whole interval then."""
    if now.low is None or now.high is None or then.low is None or then.high is None:
        return False
    greater = metric not in METRICS or METRICS[metric].mode is Mode.MAX
    return now.high < then.low if greater else now.low > then.high


def _drift(result: Evaluated, on: dict[str, str]) -> Readings:
    if result.drift is None:
        return []
    found: Readings = [("tiltyard_drifted_columns", on, float(len(result.drift.drifted)))]
    of_answers = [c for c in result.drift.columns if c.column.startswith("(")]
    ranked = sorted(result.drift.columns, key=lambda c: -c.effect)
    for column in [*of_answers, *(c for c in ranked if c not in of_answers)][:MOST_COLUMNS]:
        labels = {**on, "column": column.column}
        found.append(("tiltyard_column_moved_ratio", labels, column.moved))
        then_and_now = {
            "tiltyard_column_missing_ratio": (column.missing_before, column.missing_now),
            "tiltyard_column_mean": (column.mean_before, column.mean_now),
        }
        for name, values in then_and_now.items():
            found += [
                (name, {**labels, "since": since}, float(v))
                for since, v in zip(("training", "now"), values, strict=True)
                if v is not None
            ]
    return found


def _predicted(result: Evaluated, on: dict[str, str]) -> Readings:
    """Shares of the answers by class."""
    shape = result.shapes.get(PREDICTED)
    if shape is None or not shape.categories or shape.count == 0:
        return []
    top = list(shape.categories.items())[:MOST_CLASSES]
    return [("tiltyard_predicted_ratio", {**on, "class": name}, rows / shape.count) for name, rows in top]
