"""Starts a RayJob once a name, waits for its end, and tells it truthfully: what the nightly pod does.

The name carries the logical date: the day, in the schedule's time zone, of the tick that the run is for, however late the
pod starts. A job of that name that is there already is that night's; it is waited for, and not started again.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tiltyard.errors import ClusterError, SpecError
from tiltyard.kuberay.api import Api, ExistsError, Ref
from tiltyard.kuberay.spec import DATE, RAYJOB_NAME
from tiltyard.kuberay.waiting import READY, WAITING, State, reasons, until

LOGICAL_DATE = "tiltyard.logical_date"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How one run ended, or stands when it is waited for no more. ``created``: it was not there before."""

    ref: Ref
    created: bool
    state: State
    why: tuple[str, ...]

    @property
    def succeeded(self) -> bool:
        """True where the job says so itself."""
        return self.state.what == READY


def scheduled_at(job_name: str, cronjob: str) -> datetime | None:
    """When a CronJob's tick was: Kubernetes names its Job ``<cronjob>-<minutes since 1970>``; None for other names.

    >>> scheduled_at("night-29400135", "night").isoformat()
    '2025-11-24T18:15:00+00:00'
    """
    found = re.fullmatch(rf"{re.escape(cronjob)}-(\d{{8,10}})", job_name)
    return datetime.fromtimestamp(int(found[1]) * 60, UTC) if found else None


def logical_date(tick: datetime, *, time_zone: str, per: str) -> str:
    """The date that a tick stands for, as names hold it."""
    return tick.astimezone(ZoneInfo(time_zone)).strftime("%Y%m%d" if per == "day" else "%Y%m%d-%H%M")


def iso(date: str) -> str:
    """A logical date as jobs take it.

    >>> iso("20261125"), iso("20261125-0215")
    ('2026-11-25', '2026-11-25T02:15')
    """
    day, _, minute = date.partition("-")
    return f"{day[:4]}-{day[4:6]}-{day[6:]}" + (f"T{minute[:2]}:{minute[2:]}" if minute else "")


def dated(template: Mapping[str, Any], date: str) -> dict[str, Any]:
    """A RayJob of a logical date: in its name, its labels, its metadata and, for ``{date}``, its command.

    Raises:
        SpecError: If the template is none, or the name has no room.
    """
    if template.get("kind") != "RayJob":
        raise SpecError(f"The template is a {template.get('kind')!r}; a RayJob is wanted.")
    if not re.fullmatch(r"\d{8}(-\d{4})?", date):
        raise SpecError(f"The date {date!r} is none. Wanted: YYYYMMDD, e.g. 20261125.")
    name = f"{template['metadata']['name']}-{date}"
    if len(name) > RAYJOB_NAME:
        raise SpecError(
            f"{name!r} has {len(name)} characters; a RayJob's name has at most {RAYJOB_NAME}. Shorten the job's."
        )
    labels = {**template["metadata"].get("labels", {}), "tiltyard.dev/logical-date": date}
    spec = {**template["spec"], "metadata": {**template["spec"].get("metadata", {}), LOGICAL_DATE: date}}
    if "entrypoint" in spec:
        spec["entrypoint"] = str(spec["entrypoint"]).replace(DATE, iso(date))
    return {**template, "metadata": {**template["metadata"], "name": name, "labels": labels}, "spec": spec}


def start(
    api: Api,
    manifest: Mapping[str, Any],
    *,
    timeout_s: float | None,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Run:
    """Creates a RayJob unless one of its name is there, and waits for its end.

    Args:
        api: The cluster.
        manifest: The RayJob.
        timeout_s: How long it is waited for; None to start it and go.
        say: Told how it goes.
        clock: Seconds that only grow.
        pause: Waits.

    Raises:
        ClusterError: If it is deleted while it is waited for, or the time is over.
    """
    ref = Ref.of(manifest)
    try:
        api.create(manifest)
        created = True
        say(f"{ref} created")
    except ExistsError:
        created = False
        say(f"{ref} is there already")
    if timeout_s is None:
        return Run(ref=ref, created=created, state=State(what=WAITING, text="not waited for"), why=())
    return follow(api, manifest, created=created, timeout_s=timeout_s, say=say, clock=clock, pause=pause)


def follow(
    api: Api,
    manifest: Mapping[str, Any],
    *,
    created: bool,
    timeout_s: float,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Run:
    """Waits for the end of a RayJob that is there; arguments and errors as `start`."""
    ref = Ref.of(manifest)

    def told(_: Ref, state: State) -> None:
        say(f"{ref.name}: {state.text}")

    def ended(state: State) -> bool:
        return state.what != WAITING or state.text == "not there"

    state = until(api, ref, ended, clock() + timeout_s, told, clock=clock, pause=pause)
    if state.text == "not there":
        raise ClusterError(f"{ref} was deleted while it was waited for; whether its job ended well is not known.")
    if state.what == WAITING:
        told_why = "\n".join(f"  {line}" for line in reasons(api, ref))
        raise ClusterError(f"{ref} has not ended after {timeout_s:.0f} s: {state.text}\n{told_why}".rstrip())
    return Run(ref=ref, created=created, state=state, why=() if state.what == READY else tuple(reasons(api, ref)))
