"""One page of HTML about a launch: everything in one file, no script, no network, light and dark, screen and paper.

The words stand in ``page.html`` (Jinja, escaping whatever is put in), the looks in ``page.css``; here the values of
`tiltyard.report.findings` become what the template lays out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from tiltyard.experiment import Experiment
from tiltyard.progress import Work, work
from tiltyard.report import champions, finalists, plots
from tiltyard.report.findings import CellOfMatrix, CurveLine, Findings, Study, answer, assumed_hourly, evenly
from tiltyard.report.saved import told
from tiltyard.report.terminal import clock_time, configuration, score
from tiltyard.sweep.leaderboard import Row

HERE = Path(__file__).parent
TOP = 10
"""Rows of a leaderboard on the page."""
MOST_LINES = 150
"""Lines of a parallel plot: more are only a smear."""
MOST_POINTS = 300
MOST_AXES = 6
MOST_SLICES = 4
MOST_VARIANTS = 12
LEAST_SHARE = 0.02
"""A parameter that explains less is called one without effect."""


def render(findings: Findings) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    env = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    total = len(findings.curves) + 2 * min(len(findings.studies), MOST_VARIANTS) + len(findings.board.tables)
    with work(f"draw the report of {findings.experiment.name}", total=total, unit="plots") as doing:
        seen = {
            "curves": _curves(findings, doing),
            "studies": _studies(findings, doing),
            "details": finalists.errors(findings, doing),
            "weak": finalists.weak_spots(findings),
            "groups": finalists.groups(findings),
            "champions": champions.shown(findings.champions),
        }
    for figure in _figures(seen):
        figure["svg"] = Markup(figure["svg"])  # noqa: S704 - drawn here; matplotlib escapes the texts in it
    css = Markup((HERE / "page.css").read_text())  # noqa: S704 - our own file
    return env.get_template("page.html").render(
        **_context(findings), **seen, css=css, sections=_sections(findings, seen)
    )


def _figures(seen: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    found = list(seen["curves"]) + [p for s in seen["studies"] for p in s["plots"]]
    return found + [d for d in seen["details"] if d["svg"]]


def _sections(f: Findings, seen: Mapping[str, Any]) -> list[tuple[str, str]]:
    every = [
        ("leaderboard", "Leaderboard", True),
        ("matrix", "Variants on datasets", _has_matrix(f)),
        ("curves", "Learning curves", seen["curves"]),
        ("parameters", "Hyperparameters", seen["studies"]),
        ("finalists", "Errors of the finalists", seen["details"]),
        ("slices", "Slices", seen["weak"]),
        ("groups", "Fairness", seen["groups"]),
        ("since", "Since then", seen["champions"]),
        ("time", "Time and money", True),
        ("again", "Do it again", True),
    ]
    return [(anchor, title) for anchor, title, there in every if there]


def _has_matrix(f: Findings) -> bool:
    return len(f.matrix) > 1 or len(f.board.tables) > 1


def _context(f: Findings) -> dict[str, Any]:
    datasets = list(f.board.tables)
    return {
        "f": f,
        "metric": f.board.metric.replace("_", " "),
        "headline": _headline(f),
        "answers": [answer(f, dataset, score) for dataset in datasets],
        "warnings": _warnings(f),
        "tables": [_table(f, dataset) for dataset in datasets],
        "datasets": datasets,
        "show_matrix": _has_matrix(f),
        "matrix": [(variant, [_matrix_cell(cells[d]) for d in datasets]) for variant, cells in f.matrix.items()],
        "time": _time(f),
        "commands": _commands(f),
        "facts": _facts(f),
        "decisions": [
            {"when": _when(d.at), "what": f"{d.kind} of {d.subject}: {d.outcome}", "why": "; ".join(d.reasons)}
            for d in f.decisions
        ],
        "spec": _pinned(f).to_json(),
        "made": f"Made by Tiltyard {installed('tiltyard')} from the journal and the curves. Times are UTC.",
    }


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(at))


def _headline(f: Findings) -> str:
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(f.states.items()))
    parts = [
        f.launch.state,
        f"{sum(f.states.values()):,} trials ({states})",
        f"{len(f.matrix)} variants on {len(f.board.tables)} datasets",
        f"started {_when(f.launch.started)} UTC",
        f"took {clock_time(f.time.wall_s)}",
        f"key {f.launch.key[:12]}",
    ]
    return " · ".join(parts)


def _warnings(f: Findings) -> list[str]:
    lines = []
    reason = f.launch.summary.get("reason") or f.launch.summary.get("error")
    if reason:
        lines.append(f"It ended early: {reason}.")
    failed = f.states.get("failed", 0)
    if failed:
        lines.append(f"{failed:,} trials failed; their reasons stand in the leaderboard: tiltyard leaderboard --all.")
    if f.board.test_looks > 1:
        lines.append(
            f"The test rows of this experiment were looked at {f.board.test_looks} times: each further look makes their "
            "scores more optimistic."
        )
    return lines


def _table(f: Findings, dataset: str) -> dict[str, Any]:
    table = f.board.tables[dataset]
    shown = table[:TOP]
    bounds = [v for row in shown if row.test for v in (row.test.low, row.test.high)]
    low, high = (min(bounds), max(bounds)) if bounds else (0.0, 1.0)
    searched = {v.name: set(v.space) for v in f.experiment.variants}
    rest = len(table) - len(shown)
    looks = [row for row in table if row.test is not None]
    return {
        "dataset": f"{dataset}@{f.versions.get(dataset, '?')}",
        "rows": [_row(row, low, high, searched.get(row.variant, set())) for row in shown],
        "rest": (
            f"{rest:,} more: tiltyard leaderboard {f.launch.experiment} --dataset {dataset} --all. " if rest else ""
        )
        + ("" if looks else "No finalist was scored on test rows."),
    }


def _row(row: Row, low: float, high: float, searched: set[str]) -> dict[str, Any]:
    span = (high - low) or 1.0
    test = row.test
    chip, text = ("best", "best") if row.rank == 1 and row.validation is not None else ("", "")
    if row.tied_with_best:
        chip, text = "tied", "="
    return {
        "rank": row.rank,
        "name": row.name,
        "chip": chip,
        "chip_text": text,
        "config": configuration({n: v for n, v in row.config.items() if n in searched}),
        "reason": f"{row.state}: {row.reason}" if row.state in {"failed", "interrupted"} and row.reason else "",
        "validation": score(row.validation),
        "epoch": row.epoch,
        "test": "-" if test is None else score(test.value),
        "interval": None
        if test is None
        else [round(100 * (v - low) / span, 1) for v in (test.low, test.value, test.high)],
        "interval_text": "" if test is None else f"{score(test.low)} to {score(test.high)}, {test.rows:,} rows",
        "replicates": _replicates(row),
    }


def _replicates(row: Row) -> str:
    again = row.replicates
    if again is None:
        return ""
    spread = again.test or again.validation
    if spread is None or spread.low is None:
        return f"{again.num} runs with other seeds, {again.failed} failed"
    return f"mean of {spread.num} other seeds: {score(spread.mean)} ({score(spread.low)} to {score(spread.high)})"


def _matrix_cell(cell: CellOfMatrix) -> dict[str, Any]:
    note = {"best": "best", "tied": "= best", "behind": "", "": ""}[cell.verdict]
    failed = f"{cell.failed} of {cell.trials} failed" if cell.failed else ""
    return {
        "score": score(cell.score),
        "strength": round(cell.strength, 3),
        "note": ", ".join(part for part in (note, failed) if part),
    }


def _curves(f: Findings, doing: Work) -> list[dict[str, Any]]:
    found = []
    for dataset, lines in f.curves.items():
        doing.advance()
        if not lines:
            continue
        table = f.board.tables[dataset]
        marked = [row.cell for row in table if row.test is not None][: plots.SERIES] or [row.cell for row in table[:3]]
        drawn = [_curve(line, marked) for line in lines]
        total = sum(row.validation is not None for row in table)
        best = f.board.best(dataset)
        found.append(
            {
                "title": dataset,
                "legend": [
                    (plots.series_of(marked.index(line.cell)), line.name) for line in lines if line.cell in marked
                ],
                "svg": plots.curves(f"curves {dataset}", drawn, rungs=f.rungs, metric=f.board.metric.replace("_", " ")),
                "caption": f"{len(drawn):,} of {total:,} trials are drawn."
                if len(drawn) < total
                else f"All {total:,} trials.",
                "alt": f"Learning curves of {len(drawn)} trials on {dataset}; the best, {best.name if best else 'none'}, "
                f"ends at {f.board.metric} {score(best.validation if best else None)}.",
            }
        )
    return found


def _curve(line: CurveLine, marked: Sequence[str]) -> plots.Curve:
    which = marked.index(line.cell) if line.cell in marked else None
    return plots.Curve(
        epochs=line.epochs,
        scores=line.scores,
        stopped=line.stopped,
        series=which,
    )


def _studies(f: Findings, doing: Work) -> list[dict[str, Any]]:
    found = []
    for s in f.studies[:MOST_VARIANTS]:
        if s.configs and any(s.configs):
            found.append(_study(f, s))
        doing.advance(2)
    return found


def _study(f: Findings, study: Study) -> dict[str, Any]:
    bars = [{"name": i.parameter, "share": round(100 * i.share)} for i in study.importance]
    names = [i.parameter for i in study.importance] or sorted({n for c in study.configs for n in c})
    epochs = " and ".join(map(str, study.epoch))
    datasets = list(f.board.tables)
    stood = f"how {study.trials:,} trials stood at epoch {epochs}"
    if study.importance and study.importance[0].share >= LEAST_SHARE:
        top = study.importance[0]
        said = f"{top.parameter} mattered most: it alone explains {round(100 * top.share)}% of {stood}."
    elif study.importance:
        said = f"None of them alone explains {stood}."
    else:
        said = f"Too few trials ({study.trials:,}) to say what mattered."
    drawn = []
    if names and len(study.configs) > 1:
        some = evenly(range(len(study.configs)), MOST_POINTS)
        axes = [_axis(f, study, n, some) for n in names[:MOST_SLICES]]
        standing = [study.standing[i] for i in some]
        series = [datasets.index(study.datasets[i]) for i in some]
        drawn.append(
            {
                "svg": plots.slices(f"slices {study.variant}", axes, standing, series),
                "legend": [(plots.series_of(i), d) for i, d in enumerate(datasets)] if len(datasets) > 1 else [],
                "caption": "Each dot is a trial: how it stood over the parameter's value.",
                "alt": f"Standing of {len(some)} trials of {study.variant} over {', '.join(names[:MOST_SLICES])}.",
            }
        )
        some = evenly(range(len(study.configs)), MOST_LINES)
        axes = [_axis(f, study, n, some) for n in names[:MOST_AXES]]
        drawn.append(
            {
                "svg": plots.parallel(f"parallel {study.variant}", axes, [study.standing[i] for i in some]),
                "legend": [],
                "caption": f"Each line is a trial ({len(some):,} of {study.trials:,}); the stronger, the better it stood.",
                "alt": f"Parallel coordinates of {len(some)} trials of {study.variant} over {', '.join(names[:MOST_AXES])}.",
            }
        )
    return {"title": study.variant, "caption": said, "bars": bars, "plots": drawn}


def _axis(f: Findings, study: Study, name: str, which: Sequence[int]) -> plots.Axis:
    values = [study.configs[i].get(name) for i in which]
    return plots.axis_of(name, values, _value, log=name in f.logarithmic.get(study.variant, ()))


def _value(value: Any) -> str:
    return configuration({"": value})[1:]


def _time(f: Findings) -> dict[str, Any]:
    t = f.time
    whole = max(t.held_s + t.reused_s, 1e-9)
    bars = [
        ("trained", "trained", t.trained_s),
        ("waited", "waited", t.waited_s),
        ("wasted", "wasted", t.wasted_s),
        ("reused", "reused", t.reused_s),
    ]
    finished, failed = t.attempts
    devices = f", {t.gpu_s:,.0f} GPU-seconds" if t.gpu_s else ""
    return {
        "said": f"It took {clock_time(t.wall_s)}. Packs held their devices for {clock_time(t.held_s)} together "
        f"({t.cpu_s:,.0f} CPU-seconds{devices}) in {finished:,} attempts that were finished and {failed:,} that were lost.",
        "bars": [
            {
                "name": name,
                "kind": kind,
                "share": round(100 * s / whole, 1),
                "percent": f"{100 * s / whole:.0f}%",
                "value": clock_time(s),
                "cost": _money(s * f.second_costs, f.currency) if f.second_costs else "",
            }
            for name, kind, s in bars
        ],
        "note": "Trained: inside attempts whose results were kept. Waited: starting, and between packs. Wasted: attempts that "
        f"failed or were taken over. Reused: {_reused(t.reused)}.",
        "money": _cost(f),
        "saved": "" if f.saved is None else told(f.saved),
    }


def _reused(trials: int) -> str:
    if trials == 0:
        return "no trial had been trained by an earlier experiment"
    many = "one trial" if trials == 1 else f"{trials:,} trials"
    return f"what {many} would have cost that an earlier experiment had trained"


def _money(value: float, currency: str = "") -> str:
    told = f"{value:,.2f}" if value >= 0.005 or value == 0 else f"{value:.2g}"
    return (told if value == 0 or value >= 1e-4 else "less than 0.0001") + (f" {currency}" if currency else "")


def _cost(f: Findings) -> str:
    """What it cost at the prices that are described or assumed, and of which budget that is."""
    t, budget = f.time, f.experiment.budget
    if f.second_costs:
        trials = sum(f.states.values()) or 1
        cost = t.held_s * f.second_costs
        said = f"That cost {_money(cost, f.currency)}, {_money(cost / trials, f.currency)} a trial, {_prices(f)}."
        if t.reused_s:
            said += f" Reuse saved {_money(t.reused_s * f.second_costs, f.currency)}."
    else:
        said = "What an hour costs is not known here: set hourly_cpu and hourly_gpu (tiltyard roi --write-assumptions)."
    limits = [
        f"{used / 3600:.3g} of {limit:g} {what}-hours"
        for what, used, limit in (("CPU", t.cpu_s, budget.cpu_hours), ("GPU", t.gpu_s, budget.gpu_hours))
        if limit is not None
    ]
    return said + (f" Of its budget were used: {', '.join(limits)}." if limits else "")


def _prices(f: Findings) -> str:
    """Which prices those are: of the worker groups that it ran on, and what is assumed where those have none."""
    assumed = f"at {f.prices.hourly_cpu:g} a CPU-hour and {f.prices.hourly_gpu:g} a GPU-hour (roi.toml)"
    described = [p for p in f.paid if p.group]
    if not described:
        return assumed
    seconds = sum(p.seconds for p in f.paid) or 1.0
    groups = ", ".join(
        f"{_money(p.hourly, p.currency)} an hour of a pack on {p.group} ({p.seconds / seconds:.0%} of the time)"
        for p in described
    )
    said = f"at its share of the workers' prices in the cluster's description: {groups}"
    if (left := sum(p.seconds for p in f.paid if not p.group)) == 0:
        return said
    rest = assumed if assumed_hourly(f.experiment, f.prices) else "counted as nothing"
    return f"{said}; workers without a price there ({left / seconds:.0%} of the time) {rest}"


def _pinned(f: Findings) -> Experiment:
    """The experiment with the dataset versions that it was run on: what runs the same trials again."""
    pinned = (replace(d, version=f.versions.get(d.name, d.version)) for d in f.experiment.datasets)
    return f.experiment.model_copy(update={"datasets": tuple(pinned)})


def _commands(f: Findings) -> list[dict[str, str]]:
    name = f.launch.experiment
    best = [row for dataset in f.board.tables if (row := f.board.best(dataset)) is not None]
    commands = [
        ("Every trial, ranked:", f"tiltyard leaderboard {name} --all"),
        ("Go on where it ended, or see what is left:", f"tiltyard resume {f.launch.key[:12]}"),
    ]
    if best:
        again = "\n".join(f"tiltyard trial rerun {row.cell[:16]}  # {row.name}" for row in best)
        commands.append(("Train the best anew, alone, and compare with the record:", again))
    crowned = [d.subject for d in f.decisions if d.kind == "champion"]
    if not crowned and best and f.experiment.champion is not None:  # the page is drawn just before they are
        crowned = [
            f"{name}.{d}" for d in f.board.tables if (row := f.board.best(d)) is not None and row.state == "done"
        ]
    if crowned:
        commands.append(("Serve the champions by HTTP:", "tiltyard serve " + " ".join(crowned)))
    commands.append(
        (
            "The whole experiment again, from the description at the end of this page saved as experiment.json:",
            'python -c "import tiltyard, pathlib; tiltyard.run(tiltyard.Experiment.from_json('
            "pathlib.Path('experiment.json').read_text()))\"",
        )
    )
    return [{"what": what, "text": text} for what, text in commands]


def _facts(f: Findings) -> list[tuple[str, str]]:
    return [
        ("key", f.launch.key),
        ("datasets", ", ".join(f"{d}@{v}" for d, v in f.versions.items())),
        ("seeds", f"{f.experiment.seed} (models), {f.experiment.data_seed} (order of the rows)"),
        ("MLflow run", f.launch.parent_run_id or "not written yet"),
    ]
