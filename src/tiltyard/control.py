"""Asks something of a sweep that runs, here or on a cluster: through the journal, which its driver looks into.

Nothing is done here: the driver obeys within seconds and answers (`tiltyard.sweep.engine.control`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.journal import Journal, Launch, Request
from tiltyard.report.record import find_trial, name_of, pick_launch, reading
from tiltyard.settings import Settings
from tiltyard.who import person

WAIT_S = 15.0
"""How long an answer is waited for; a driver that shares data or tests its finalists looks no sooner."""
_POLL_S = 0.1


def pause(settings: Settings, wanted: str, *, reason: str = "", wait_s: float = WAIT_S) -> Request:
    """Nothing new of a running sweep starts, until it is continued.

    Raises:
        SpecError: If no such sweep is recorded, or nobody works on it.
    """
    return _ask_running(settings, wanted, "pause", reason, wait_s)


def go_on(settings: Settings, wanted: str, *, reason: str = "", wait_s: float = WAIT_S) -> Request:
    """A paused sweep goes on.

    Raises:
        SpecError: If no such sweep is recorded, or nobody works on it.
    """
    return _ask_running(settings, wanted, "continue", reason, wait_s)


def stop_trial(settings: Settings, wanted: str, *, reason: str = "", wait_s: float = WAIT_S) -> Request:
    """One trial stops where it stands: it is ranked by what it has reached.

    Args:
        settings: Where the record is.
        wanted: Its name, or the beginning of its cell.
        reason: Why.
        wait_s: How long to wait for the answer.

    Raises:
        SpecError: If there is no such trial, or its sweep has ended for good.
    """
    with reading(settings) as journal:
        row = find_trial(journal, wanted)
        launch = _open_launch(journal, row.key)
        return _ask(journal, launch, "stop", name_of(row), {"cell": row.cell}, reason, wait_s)


def add_trials(
    settings: Settings,
    wanted: str,
    trials: int,
    *,
    variant: str | None = None,
    dataset: str | None = None,
    reason: str = "",
    wait_s: float = WAIT_S,
) -> Request:
    """So many more trials of each variant on each dataset, or of those named: the next of the same draws.

    Raises:
        SpecError: If no such sweep is recorded, or it has ended for good.
    """
    with reading(settings) as journal:
        launch = _open_launch(journal, pick_launch(journal, wanted).key)
        detail = {"trials": trials, "variant": variant, "dataset": dataset}
        return _ask(journal, launch, "add", launch.experiment, detail, reason, wait_s)


def _ask_running(settings: Settings, wanted: str, kind: str, reason: str, wait_s: float) -> Request:
    with reading(settings) as journal:
        launch = pick_launch(journal, wanted)
        if journal.holder(launch.key) is None:
            raise SpecError(
                f"{launch.experiment} (key {launch.key[:12]}) is {_state(launch)}: nobody works on it, so there is nothing "
                f"to {kind}. See what runs: tiltyard runs"
            )
        return _ask(journal, launch, kind, launch.experiment, {}, reason, wait_s)


def _open_launch(journal: Journal, key: str) -> Launch:
    launch = journal.launch(key)
    if launch is None or launch.state == "finished":
        name = launch.experiment if launch is not None else key[:12]
        raise SpecError(
            f"{name} (key {key[:12]}) is finished; a finished sweep does not change. Wanted: one that runs or was stopped. "
            "For more trials raise search.trials in its job file: what is done is kept."
        )
    return launch


def _state(launch: Launch) -> str:
    return "interrupted" if launch.state == "running" else launch.state


def _ask(
    journal: Journal, launch: Launch, kind: str, subject: str, detail: Mapping[str, Any], reason: str, wait_s: float
) -> Request:
    """Asks, and waits for the answer where somebody works on the sweep; the request as it then stands."""
    asked = journal.requests.ask(launch.key, kind, subject=subject, detail=detail, actor=person(), reason=reason)
    deadline = time.monotonic() + (wait_s if journal.holder(launch.key) is not None else 0)
    now: Request | None = asked
    while now is not None and now.state == "asked" and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        now = journal.requests.get(asked.number)
    return now or asked
