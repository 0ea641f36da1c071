"""Follows a sweep by what the journal says, from any process and any machine that reaches the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tiltyard.errors import JournalError
from tiltyard.experiment import Experiment
from tiltyard.journal import Journal, Launch, TrialRow
from tiltyard.report.record import name_of, pick_launch, reading
from tiltyard.report.terminal import Best, Snapshot, SteadyConsole, SweepProgress, plain_line
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


def glance(settings: Settings, wanted: str | None) -> str:
    """How a launch stands now, on one line.

    Raises:
        SpecError: If there is no such launch.
        JournalError: If nothing was ever recorded.
    """
    with reading(settings) as journal:
        return _line(journal, pick_launch(journal, wanted))


def running(settings: Settings) -> list[str]:
    """A line for each sweep that somebody works on, newest first."""
    try:
        with reading(settings) as journal:
            open_ones = [launch for launch in journal.launches() if launch.state == "running"]
            return [_line(journal, launch) for launch in open_ones if journal.holder(launch.key) is not None]
    except JournalError:  # nothing was ever recorded
        return []


def _line(journal: Journal, launch: Launch) -> str:
    objective = Experiment.from_json(launch.spec).objective
    rows = journal.trials(launch.key)
    told = plain_line(snapshot_of(launch, rows, objective.direction, now=time.time()), objective.metric)
    state = launch.state
    if state == "running" and journal.holder(launch.key) is None:
        state = "its process is gone"
    elif (by := _paused_by(journal, launch)) is not None and state == "running":
        state = f"paused by {by}"
    return f"{launch.experiment}  key {launch.key[:12]}  {state} | {told}"


def _paused_by(journal: Journal, launch: Launch) -> str | None:
    """Who paused a launch, while it is."""
    told = [r for r in journal.requests.of(launch.key, state="done") if r.kind in {"pause", "continue"}]
    mine = [r for r in told if r.answer.get("fence") == launch.fence]
    return mine[-1].actor if mine and mine[-1].kind == "pause" else None


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
            paused: str | None = None
            while True:
                held = journal.holder(launch.key) is not None  # asked first: what ends meanwhile is still seen
                launch = journal.launch(launch.key) or launch
                shown.update(snapshot_of(launch, journal.trials(launch.key), objective.direction, now=time.time()))
                if not held:
                    break
                if (now := _paused_by(journal, launch)) != paused:
                    paused = now
                    shown.say(
                        f"paused by {now}; go on: tiltyard continue {launch.experiment}" if now else "it goes on",
                        style="yellow",
                    )
                pause(every_s)
            shown.say(_ending(launch))
    return launch


def _ending(launch: Launch) -> str:
    if launch.state == "running":
        return "Its process is gone: what was finished is kept. Go on with it: tiltyard resume " + launch.experiment
    reason = launch.summary.get("reason") or launch.summary.get("error")
    return launch.state + (f": {reason}" if reason else "") + f". Its trials: tiltyard leaderboard {launch.experiment}"
