"""What a launch's report says, gathered from the journal and the curves alone, as plain values.

`gather` reads; everything else here is pure. The page (`tiltyard.report.page`) only lays these values out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiltyard.distributions import Distribution, IntUniform, LogUniform
from tiltyard.errors import MachineError
from tiltyard.experiment import Experiment
from tiltyard.journal import AttemptRow, CellScore, Decision, Journal, Launch, Spend, TrialRow
from tiltyard.money.prices import Part, parts
from tiltyard.report.champions import Met, met
from tiltyard.report.importance import Importance, importances, standings
from tiltyard.report.saved import FILE, Assumptions, Saved, read, saved
from tiltyard.settings import Settings
from tiltyard.sweep.engine.curves import curves_of_some
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.leaderboard import Leaderboard, Row
from tiltyard.sweep.plan import replicate_number
from tiltyard.types import METRICS

MOST_CURVES = 160
"""Learning curves of a dataset that are drawn; finalists always are."""
MOST_STUDIED = 400
"""Trials of a variant that are drawn; all of them count for the importance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveLine:
    """A trial's validation scores by epoch."""

    name: str
    cell: str
    epochs: tuple[int, ...]
    scores: tuple[float, ...]
    stopped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What the trials of one variant say about its hyperparameters, over all datasets.

    Args:
        variant: Its name.
        epoch: At which epochs its trials were compared: the first at which each group was scored.
        trials: How many count.
        importance: Most important first; empty where there are too few trials.
        configs: Of the trials that are drawn.
        standing: Of the same ones: the share of their group's trials that they beat.
        datasets: Of the same ones.
    """

    variant: str
    epoch: tuple[int, ...]
    trials: int
    importance: tuple[Importance, ...]
    configs: tuple[dict[str, Any], ...]
    standing: tuple[float, ...]
    datasets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellOfMatrix:
    """A variant on a dataset: its best trial's validation score, and whether that is the dataset's best or tied with it.

    ``strength`` is where the score lies between the dataset's worst variant (0) and its best (1).
    """

    score: float | None
    strength: float
    verdict: str
    trials: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Time:
    """Seconds that packs held their devices, and what became of them.

    Args:
        wall_s: From the first start of the key to its end, or to now; days between two starts are in it.
        held_s: Seconds that processes of packs held what they hold, summed over them.
        trained_s: Of these, inside attempts that were finished.
        wasted_s: Inside attempts that failed or were fenced.
        waited_s: The rest: starting, and waiting between packs.
        reused_s: What the scores that an earlier experiment left would have cost again.
        reused: Trials that began from such scores.
        cpu_s: CPU-seconds that were metered.
        gpu_s: GPU-seconds that were metered.
        attempts: Finished, failed.
    """

    wall_s: float
    held_s: float
    trained_s: float
    wasted_s: float
    waited_s: float
    reused_s: float
    reused: int
    cpu_s: float
    gpu_s: float
    attempts: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All that the report says."""

    launch: Launch
    experiment: Experiment
    board: Leaderboard
    versions: Mapping[str, int]
    states: Mapping[str, int]
    curves: Mapping[str, tuple[CurveLine, ...]]
    rungs: tuple[int, ...]
    studies: tuple[Study, ...]
    matrix: Mapping[str, Mapping[str, CellOfMatrix]]
    time: Time
    decisions: tuple[Decision, ...]
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Of finalists, by cell: confusion, calibration, slices and groups on the test rows, where the sweep kept them."""
    champions: tuple[Met, ...] = ()
    """What was crowned, and the evaluations of it since."""
    prices: Assumptions = field(default_factory=Assumptions)
    """What an hour costs where the cluster's description gives no price; 0 where nobody said."""
    paid: tuple[Part, ...] = ()
    """Seconds of its attempts by worker group, and what an hour of a pack costs there."""
    saved: Saved | None = None
    """Against the same trials by hand; None of a launch that has not finished."""

    @property
    def second_costs(self) -> float:
        """What a second of a pack cost, the mean over the groups that it ran on; 0 where no price is known."""
        seconds = sum(p.seconds for p in self.paid)
        if seconds:
            return sum(p.seconds * p.hourly for p in self.paid) / seconds / 3600
        return assumed_hourly(self.experiment, self.prices) / 3600

    @property
    def currency(self) -> str:
        """Of the prices, where the cluster's description says it."""
        return next((p.currency for p in self.paid if p.currency), "")

    @property
    def logarithmic(self) -> Mapping[str, frozenset[str]]:
        """By variant, the parameters that are drawn on a logarithmic scale."""
        return {v.name: frozenset(n for n, d in v.space.items() if is_logarithmic(d)) for v in self.experiment.variants}


def gather(
    settings: Settings, journal: Journal, launch: Launch, board: Leaderboard, *, now: float | None = None
) -> Findings:
    """Reads all of it.

    Args:
        settings: Where the storage is.
        journal: Open.
        launch: Which one.
        board: Its leaderboard.
        now: Seconds since 1970, of a launch that has not ended.
    """
    experiment = Experiment.from_json(launch.spec)
    rows = journal.trials(launch.key)
    search = [row for row in rows if not replicate_number(row.group)]
    scores = journal.cell_scores([row.cell for row in rows])
    by_cell: dict[str, list[CellScore]] = {}
    for (_, _epoch), score in sorted(scores.items(), key=lambda item: item[0][1]):
        by_cell.setdefault(score.cell, []).append(score)
    by_cell = {row.cell: [s for s in by_cell.get(row.cell, ()) if s.epoch <= row.epoch] for row in rows}
    layout = Layout(Storage(settings.storage_uri), launch.key)
    attempts = journal.attempts(launch.key)
    prices, at = read(settings.home / FILE), time.time() if now is None else now
    own = {(s.cell, s.epoch): s for of in by_cell.values() for s in of}
    spend = journal.spend(launch.key)
    decisions = tuple(d for d in journal.decisions() if d.evidence.get("key") == launch.key)
    return Findings(
        launch=launch,
        experiment=experiment,
        board=board,
        versions={row.dataset: row.dataset_version for row in rows},
        states=_counts(row.state for row in search),
        curves=_curves(layout.storage, board, search, by_cell, experiment.objective.metric),
        rungs=tuple(sorted({s.epoch for row in search for s in by_cell[row.cell]})),
        studies=tuple(
            study(variant, [r for r in search if r.variant == variant], by_cell, experiment)
            for variant in dict.fromkeys(r.variant for r in search)
        ),
        matrix=matrix(board),
        time=time_of(launch, attempts, spend, by_cell, now=at),
        decisions=decisions,
        details=_details(layout),
        champions=met(journal, decisions),
        prices=prices,
        paid=parts([(a.layout, a.metered_s) for a in attempts], assumed_hourly(experiment, prices)),
        saved=saved(launch, rows, own, spend, prices, now=at) if launch.state == "finished" else None,
    )


def assumed_hourly(experiment: Experiment, prices: Assumptions) -> float:
    """What an hour of a pack costs that holds what the experiment asks for, at assumed prices; 0 where none is set."""
    held = experiment.resources
    return held.cpus * prices.hourly_cpu + held.gpus * prices.hourly_gpu


def is_logarithmic(distribution: Distribution) -> bool:
    """Its values are drawn on a logarithmic scale."""
    return isinstance(distribution, LogUniform) or (isinstance(distribution, IntUniform) and distribution.log)


def _counts(states: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for state in states:
        found[state] = found.get(state, 0) + 1
    return found


def _details(layout: Layout) -> Mapping[str, Mapping[str, Any]]:
    try:
        found: Mapping[str, Mapping[str, Any]] = layout.storage.read_json(layout.finalists)["finalists"]
    except MachineError:  # of a sweep without a test split, or of an older Tiltyard
        return {}
    return found


def _curves(
    storage: Storage,
    board: Leaderboard,
    rows: Sequence[TrialRow],
    by_cell: Mapping[str, Sequence[CellScore]],
    metric: str,
) -> dict[str, tuple[CurveLine, ...]]:
    drawn = {}
    for dataset, table in board.tables.items():
        finalists = [row.cell for row in table if row.test is not None] or [row.cell for row in table[:3]]
        others = [r.cell for r in rows if r.dataset == dataset and r.cell not in finalists and by_cell[r.cell]]
        drawn[dataset] = [*finalists, *evenly(others, MOST_CURVES)]
    wanted = {cell: by_cell[cell] for cells in drawn.values() for cell in cells}
    found = curves_of_some(storage, wanted, metric)
    by_name = {row.cell: row for table in board.tables.values() for row in table}
    return {
        dataset: tuple(
            CurveLine(
                name=by_name[cell].name,
                cell=cell,
                epochs=tuple(e for e, _ in found[cell]),
                scores=tuple(v for _, v in found[cell]),
                stopped=by_name[cell].state == "stopped",
            )
            for cell in cells
            if found.get(cell) and cell in by_name
        )
        for dataset, cells in drawn.items()
    }


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most that many of them, evenly spread over their order.

    >>> evenly(range(10), 4)
    [0, 2, 5, 7]
    """
    return list(items) if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def study(
    variant: str, rows: Sequence[TrialRow], by_cell: Mapping[str, Sequence[CellScore]], experiment: Experiment
) -> Study:
    """What the trials of a variant say about its hyperparameters."""
    metric = experiment.objective.metric
    standing: dict[str, float] = {}
    epochs = set()
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group and (by_cell[row.cell] or row.state == "failed")]
        first = min((by_cell[row.cell][0].epoch for row in members if by_cell[row.cell]), default=None)
        if first is None:
            continue
        epochs.add(first)
        values = [_score_at(by_cell[row.cell], first, metric) for row in members]
        at_first = standings(values, experiment.objective.direction.sign)
        standing.update({row.cell: s for row, s in zip(members, at_first, strict=True)})
    counted = [row for row in rows if row.cell in standing]
    space = set(next(v for v in experiment.variants if v.name == variant).space)
    configs = {row.cell: {k: v for k, v in row.config.items() if k in space} for row in counted}
    shown = evenly(counted, MOST_STUDIED)
    return Study(
        variant=variant,
        epoch=tuple(sorted(epochs)),
        trials=len(counted),
        importance=tuple(importances(*_by_configuration(configs, standing))),
        configs=tuple(configs[r.cell] for r in shown),
        standing=tuple(standing[r.cell] for r in shown),
        datasets=tuple(r.dataset for r in shown),
    )


def _by_configuration(
    configs: Mapping[str, dict[str, Any]], standing: Mapping[str, float]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Each configuration once, with its mean standing: on several datasets it is tried with the same values."""
    together: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for cell, config in configs.items():
        together.setdefault(repr(sorted(config.items())), (config, []))[1].append(standing[cell])
    return [c for c, _ in together.values()], [sum(of) / len(of) for _, of in together.values()]


def _score_at(scores: Sequence[CellScore], epoch: int, metric: str) -> float | None:
    return next((s.metrics.get(metric) for s in scores if s.epoch == epoch and s.failed is None), None)


def matrix(board: Leaderboard) -> dict[str, dict[str, CellOfMatrix]]:
    """Variant -> dataset -> how the variant's best trial did there."""
    sign = METRICS[board.metric].mode.sign
    variants = list(dict.fromkeys(row.variant for table in board.tables.values() for row in table))
    found: dict[str, dict[str, CellOfMatrix]] = {variant: {} for variant in variants}
    for dataset, table in board.tables.items():
        of = {variant: [row for row in table if row.variant == variant] for variant in variants}
        tops = {v: top for v, rows in of.items() if (top := _first_scored(rows)) is not None}
        values = [sign * top.validation for top in tops.values() if top.validation is not None]
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        for variant in variants:
            top = tops.get(variant)
            score = None if top is None else top.validation
            strength = 0.0 if score is None else 1.0 if high == low else (sign * score - low) / (high - low)
            best = board.best(dataset)
            if top is None:
                verdict = ""
            elif best is not None and best.cell == top.cell:
                verdict = "best"
            elif any(row.tied_with_best for row in of[variant]):
                verdict = "tied"
            else:
                verdict = "behind"
            failed = sum(row.state == "failed" for row in of[variant])
            found[variant][dataset] = CellOfMatrix(
                score=score, strength=strength, verdict=verdict, trials=len(of[variant]), failed=failed
            )
    return found


def _first_scored(rows: Sequence[Row]) -> Row | None:
    return next(
        (row for row in rows if row.validation is not None and row.state not in {"failed", "interrupted"}), None
    )


def time_of(
    launch: Launch,
    attempts: Sequence[AttemptRow],
    spend: Spend,
    by_cell: Mapping[str, Sequence[CellScore]],
    *,
    now: float,
) -> Time:
    """Where the seconds went.

    The meter charges a pack's process for all that it holds, starting and waiting too; attempts say how much of that was
    training which was kept, and how much was lost.
    """
    own = f"/{launch.key[:16]}/"  # a member of a queue keeps a folder of its own below its attempt's, also of one that died
    reused = {cell: [s for s in scores if own not in s.storage_uri] for cell, scores in by_cell.items()}
    trained = sum(a.metered_s for a in attempts if a.state in {"done", "saved"})
    wasted = sum(a.metered_s for a in attempts if a.state in {"failed", "fenced"})
    wasted += spend.by_what.get("lost packs", 0.0)
    held = max(spend.wall_s, trained + wasted)
    return Time(
        wall_s=(launch.ended or now) - launch.started,
        held_s=held,
        trained_s=trained,
        wasted_s=wasted,
        waited_s=held - trained - wasted,
        reused_s=sum(s.seconds for scores in reused.values() for s in scores),
        reused=sum(bool(scores) for scores in reused.values()),
        cpu_s=spend.cpu_s,
        gpu_s=spend.gpu_s,
        attempts=(sum(a.state == "done" for a in attempts), sum(a.state in {"failed", "fenced"} for a in attempts)),
    )


def answer(findings: Findings, dataset: str, number: Callable[[float], str]) -> str:
    """The answer for one dataset, in one sentence with its uncertainty."""
    board = findings.board
    best, metric = board.best(dataset), board.metric.replace("_", " ")
    where = f"{dataset}@{findings.versions.get(dataset, '?')}"
    if best is None or best.validation is None:
        return f"On {where} no trial has a score yet."
    again = best.replicates.test or best.replicates.validation if best.replicates is not None else None
    if again is not None and again.low is not None and again.high is not None and best.replicates is not None:
        rows = "test" if best.replicates.test is not None else "validation"
        found = (
            f"{metric} {number(again.mean)} on the {rows} rows as a mean over {again.num} runs with other seeds "
            f"(95% interval {number(again.low)} to {number(again.high)})"
        )
    elif best.test is not None:
        t = best.test
        found = f"{metric} {number(t.value)} on {t.rows:,} test rows (95% interval {number(t.low)} to {number(t.high)})"
    else:
        found = (
            f"{metric} {number(best.validation)} on the validation rows, which is optimistic: it is the best of "
            f"{len(board.tables[dataset])} and was not looked at on a test split"
        )
    place = "best" if findings.launch.state == "finished" else "best so far"
    return f"On {where} {best.name} is {place}, with {found}; {_apart(board, dataset)}."


def _apart(board: Leaderboard, dataset: str) -> str:
    others = [row for row in board.tables[dataset][1:] if row.test is not None or row.replicates is not None]
    if not others:
        return "no other trial was compared with it"
    tied = [row for row in others if row.tied_with_best]
    if not tied:
        return "it is better than " + (
            "the other finalist" if len(others) == 1 else f"all {len(others)} other finalists"
        )
    which = ", ".join(row.name for row in tied[:3]) + (f" and {len(tied) - 3} more" if len(tied) > 3 else "")
    return f"it cannot be told apart from {which}"
