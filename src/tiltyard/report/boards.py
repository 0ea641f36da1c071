"""Leaderboards and plans as tables of a terminal. Draws and decides nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tiltyard.report.terminal import configuration, score

if TYPE_CHECKING:
    from tiltyard.sweep import plan as planning
    from tiltyard.sweep.leaderboard import Leaderboard, Row
    from tiltyard.sweep.plan import Plan


def leaderboard_table(board: Leaderboard, dataset: str, *, limit: int | None = 10) -> Table:
    """The ranked trials of one dataset.

    Args:
        board: Of the experiment.
        dataset: Which table.
        limit: Rows to show; None for all. Finalists are always shown.

    Of a configuration, what its variant's trials differ in is shown; ``tiltyard trial show`` has all of it.
    """
    rows = board.tables[dataset]
    shown = [row for i, row in enumerate(rows) if limit is None or i < limit or row.test is not None]
    better = "higher" if board.mode == "max" else "lower"
    has_test = any(row.test for row in rows)
    again = any(row.replicates for row in rows)
    varied = _varied(rows)
    table = Table(
        title=Text.assemble((dataset, "bold"), (f"   {board.metric}, {better} is better", "dim")),
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
    )
    table.add_column("", justify="right")
    table.add_column("trial", no_wrap=True)
    table.add_column("validation", justify="right")
    if has_test:
        table.add_column("test [95%]", justify="right", no_wrap=True)
    if again:
        table.add_column("trained again [95%]", justify="right", no_wrap=True)
    table.add_column("epochs", justify="right")
    table.add_column("configuration", overflow="fold", ratio=1)
    for row in shown:
        test = [_test_cell(row)] if has_test else []
        test += [_replicates_cell(row)] if again else []
        table.add_row(
            str(row.rank),
            Text(row.name, "bold green" if row.rank == 1 and row.validation is not None else ""),
            score(row.validation),
            *test,
            str(row.epoch),
            _configuration_cell(row, varied[row.variant]),
        )
    left = len(rows) - len(shown)
    if left:
        table.caption = f"{left} more: tiltyard leaderboard {board.experiment} --all"
        table.caption_justify = "left"
    return table


def _test_cell(row: Row) -> Text:
    if row.test is None:
        return Text("")
    tie = " =" if row.tied_with_best else "  "
    return Text(f"{score(row.test.value)} [{score(row.test.low)}, {score(row.test.high)}]{tie}")


def _replicates_cell(row: Row) -> Text:
    """Mean over replicates with its interval, on the test split where they were looked at; how many; who is not apart."""
    found = row.replicates
    if found is None:
        return Text("")
    mean = found.test or found.validation
    if mean is None:
        return Text(f"all {found.num} failed", "red")
    interval = "" if mean.low is None else f" [{score(mean.low)}, {score(mean.high)}]"
    failed = f", {found.failed} failed" if found.failed else ""
    tie = " =" if row.tied_with_best and row.test is None else "  "
    return Text(f"{score(mean.mean)}{interval} x{found.num}{failed}{tie}")


def _varied(rows: Sequence[Row]) -> dict[str, set[str]]:
    """By variant, the hyperparameters that differ between its trials: what tells one row from another."""
    seen: dict[str, dict[str, set[str]]] = {}
    for row in rows:
        values = seen.setdefault(row.variant, {})
        for name in {*values, *row.config}:
            values.setdefault(name, set()).add(repr(row.config.get(name)))
    return {
        variant: {n for n, different in values.items() if len(different) > 1} or set(values)
        for variant, values in seen.items()
    }


def _configuration_cell(row: Row, shown: set[str]) -> Text:
    if row.state in {"failed", "interrupted"}:
        return Text(
            f"{row.state}: {row.reason or 'no reason was recorded'}", "red" if row.state == "failed" else "yellow"
        )
    return Text(configuration({name: value for name, value in row.config.items() if name in shown}), "dim")


def leaderboard_view(board: Leaderboard, *, limit: int | None = 10, datasets: Sequence[str] = ()) -> RenderableType:
    """Every dataset's table, or those named, and what the marks mean."""
    names = [name for name in board.tables if not datasets or name in datasets]
    parts: list[RenderableType] = []
    for name in names:
        parts += [leaderboard_table(board, name, limit=limit), Text("")]
    if any(row.tied_with_best for name in names for row in board.tables[name]):
        how = f"{board.comparison}, {board.metric}, Holm, 5%"
        where = f"on the test rows ({how})"
        if any(row.replicates for name in names for row in board.tables[name]):
            where += " or over the replicates (paired t test, Holm, 5%)"
        parts.append(Text(f"= cannot be told apart from the best {where}", "dim"))
    for name in names:
        parts += [Text(line, "dim") for line in _replicates_lines(board, name)]
    if board.order_dependent:
        who = ", ".join(board.order_dependent)
        parts.append(Text(f"Order-dependent: {who}. Another run may stop other trials early.", "yellow"))
    if board.test_looks > 1:
        parts.append(
            Text(
                f"The test split of this experiment was looked at {board.test_looks} times; "
                "each further look makes its scores more optimistic.",
                "yellow",
            )
        )
    return Group(*parts)


def _replicates_lines(board: Leaderboard, dataset: str) -> list[str]:
    """What the replicates correct: the luck of the picked run, and how far the others are behind the best."""
    rows = [row for row in board.tables[dataset] if row.replicates is not None]
    if not rows:
        return []
    lines = [f"{dataset}: finalists are ranked by the mean of their replicates on the validation split."]
    best = rows[0].replicates
    if best is not None and best.luck is not None:
        lines.append(
            f"  {rows[0].name} was picked as the best of many: its own run is {best.luck:+.4f} better there than the mean."
        )
    for row in rows[1:]:
        behind = row.replicates.behind_best if row.replicates is not None else None
        if behind is not None and behind.low is not None and behind.high is not None:
            lines.append(
                f"  {row.name} is behind it by {behind.mean:.4f} [{behind.low:.4f}, {behind.high:.4f}]"
                + (" =" if row.tied_with_best else "")
            )
    return lines


def plan_table(plan: Plan, *, known: int = 0) -> RenderableType:
    """What a launch is about to do, group by group, before anything starts.

    Args:
        plan: The trials.
        known: Trials whose results stand in the record already.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, justify in (
        ("variant", "left"),
        ("dataset", "left"),
        ("model", "left"),
        ("trials", "right"),
        ("compared after epochs", "left"),
        ("at most", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    most = 0
    for group in plan.groups:
        epochs = most_epochs(len(group.trials), group.rungs, group.keep)
        most += epochs
        version = group.trials[0].dataset_version if group.trials else "?"
        table.add_row(
            Text(group.variant),
            Text(f"{group.dataset}@{version}"),
            Text(group.model),
            str(len(group.trials)),
            _compared(group),
            f"{epochs} epochs",
        )
    total = f"{len(plan.trials)} trials, at most {most} epochs of training"
    if plan.later:
        total += f"; then {sum(plan.later.values())} more, chosen from what these come to"
    if plan.replicates:
        total += f"; then {plan.replicates} replicates of finalists, trained to the end"
    if known:
        total += f"; {known} trials stand in the record already"
    return Group(table, *_one_by_one(plan), Text(total, "dim"))


def _one_by_one(plan: Plan) -> list[Text]:
    """Which variants step in no pack, and why; those under a scheduler of Ray Tune's say so in the table."""
    from tiltyard.sweep.engine.packing import why_queued

    variants: dict[str, dict[str, None]] = {}
    for group in plan.groups:
        if not group.scheduler and (why := why_queued(group.model)) is not None:
            variants.setdefault(why, {})[group.variant] = None
    return [Text(f"{', '.join(who)}: one trial after another, for {why}", "dim") for why, who in variants.items()]


def _compared(group: planning.Group) -> str:
    """When the trials of a group are compared, and by whom; why they share no pack."""
    if not group.scheduler:
        return ", ".join(map(str, group.rungs))
    alone = "each trial alone: it trains itself"
    return alone if group.scheduler == "fifo" else f"by {group.scheduler}, order-dependent; {alone}"


def most_epochs(trials: int, rungs: Sequence[int], keep: float) -> int:
    """Epochs that a halving group trains over all its trials, where none fails.

    >>> most_epochs(9, (1, 3, 9), 1 / 3)
    21
    """
    total, before, live = 0, 0, trials
    for rung in rungs:
        total += live * (rung - before)
        before = rung
        live = min(live, max(1, math.ceil(keep * live)))
    return total
