"""Follows a sweep by what the journal says, from any process and any machine that reaches the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tiltyard.experiment import Experiment
from tiltyard.journal import Launch, TrialRow
from tiltyard.report.record import name_of, pick_launch, reading
from tiltyard.report.terminal import Best, Snapshot, SteadyConsole, SweepProgress
from tiltyard.settings import Settings
from tiltyard.types import Mode


def snapshot_of(launch: Launch, rows: Sequence[TrialRow], mode: Mode, *, now: float) -> Snapshot:
    """How far a launch is.

    Args:
        launch: From the journal.
        rows: Its trials.
        mode: Direction of the ranking metric.
        now: Seconds of the epoch.
    """
    states: dict[str, int] = {}
    best: dict[str, TrialRow] = {}
    for row in rows:
        states[row.state] = states.get(row.state, 0) + 1
        if row.score is None or row.state == "failed":
            continue
        leader = best.get(row.dataset)
        if leader is None or leader.score is None or mode.better(row.score, leader.score):
            best[row.dataset] = row
    return Snapshot(
        total=len(rows),
        done=states.get("done", 0),
        running=states.get("running", 0),
        stopped=states.get("stopped", 0),
        failed=states.get("failed", 0),
        elapsed_s=(launch.ended or now) - launch.started,
        best={d: Best(value=r.score or 0.0, trial=name_of(r)) for d, r in sorted(best.items())},
    )


def follow(
    settings: Settings,
    wanted: str | None,
    *,
    every_s: float = 1.0,
    console: SteadyConsole | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> Launch:
    """Shows a launch until nobody works on it any more; how it then stood.

    Args:
        settings: Where the journal is.
        wanted: An experiment, the beginning of a key, or None for the newest launch.
        every_s: Seconds between looks.
        console: Where to; stderr by default.
        pause: Waits.

    Raises:
        SpecError: If there is no such launch.
        JournalError: If nothing was ever recorded.
    """
    with reading(settings) as journal:
        launch = pick_launch(journal, wanted)
        experiment = Experiment.from_json(launch.spec)
        objective = experiment.objective
        with SweepProgress(
            title=f"{launch.experiment}  key {launch.key[:12]}",
            total=len(journal.trials(launch.key)),
            datasets=[d.name for d in experiment.datasets],
            metric=objective.metric,
            console=console,
        ) as shown:
            while True:
                held = journal.holder(launch.key) is not None  # asked first: what ends meanwhile is still seen
                launch = journal.launch(launch.key) or launch
                shown.update(snapshot_of(launch, journal.trials(launch.key), objective.direction, now=time.time()))
                if not held:
                    break
                pause(every_s)
            shown.say(_ending(launch))
    return launch


def _ending(launch: Launch) -> str:
    if launch.state == "running":
        return "Its process is gone: what was finished is kept. Go on with it: tiltyard resume " + launch.experiment
    reason = launch.summary.get("reason") or launch.summary.get("error")
    return launch.state + (f": {reason}" if reason else "") + f". Its trials: tiltyard leaderboard {launch.experiment}"
