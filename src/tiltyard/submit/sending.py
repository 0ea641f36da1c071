"""Sends a request so that it may be repeated: the same key and content is one job, from however many laptops.

The cluster is asked which attempts of the key it knows; then one id follows, and Ray starts an id once. Two laptops that
race ask for the same id, and the later is told that it exists, and attaches. Where the head is lost while a job is sent the
whole is asked again: what was started is found, what was not is sent. Where the head forgot everything the driver asks the
journal (`tiltyard.submit.driver`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tiltyard.errors import KeyConflictError, SubmitError
from tiltyard.progress import work
from tiltyard.submit.ray_jobs import ClusterAwayError, Job, JobExistsError
from tiltyard.submit.request import META_BY, META_KEY, Request, attempt_of, conflict, what_differs
from tiltyard.telemetry.traces import environment, span

PATIENCE_S = 120.0
"""How long a cluster that does not answer is asked again: a head that is restarted takes a minute."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0


class Jobs(Protocol):
    """What is needed of a cluster."""

    def jobs(self) -> list[Job]:
        """Every submitted job."""

    def submit(
        self, *, job_id: str, entrypoint: str, package: Path | None, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Starts a job, once an id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of a request. ``started`` is False where it is an earlier job, whose state then is ``state``."""

    job_id: str
    started: bool
    state: str


def send(
    request: Request,
    package: Path,
    connect: Callable[[], Jobs],
    *,
    again: bool = False,
    patience_s: float = PATIENCE_S,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Sent:
    """Starts the request's job, or finds the one that is it.

    Args:
        request: What to run.
        package: Its files, zipped.
        connect: Reaches the cluster; called anew after each failure.
        again: Start another attempt although the last one succeeded.
        patience_s: How long a cluster that does not answer is asked again.
        say: Told where that happens.
        clock: Seconds that only grow.
        pause: Waits.

    Raises:
        KeyConflictError: If the key was used with other content.
        SubmitError: If the cluster refuses, or stays away.
    """
    deadline = clock() + patience_s
    wait = _FIRST_PAUSE_S
    again_from: int | None = None
    while True:
        try:
            jobs = connect()
            last = last_attempt(request, jobs.jobs())
            number = last[0] if last else 0
            if again and again_from is None:
                again_from = number  # asked once: what a retry finds beyond it is what was asked for
            if last is not None:
                lines = what_differs(request, last[1].metadata)
                if lines:
                    raise KeyConflictError(conflict(request, last[1].id, lines))
                if not _wants_another(last[1], again=again and number == again_from):
                    return Sent(job_id=last[1].id, started=False, state=last[1].state)
            job_id = request.id_of(number + 1)
            try:
                with work(f"send {job_id} to the cluster"), span("submit", job=job_id):
                    jobs.submit(
                        job_id=job_id,
                        entrypoint=request.entrypoint,
                        package=package,
                        env={**request.runtime_env, **environment()},
                        metadata=request.metadata,
                    )
            except JobExistsError:
                if clock() > deadline:
                    raise
                continue  # somebody was faster: look at what they started
            return Sent(job_id=job_id, started=True, state="PENDING")
        except ClusterAwayError as error:
            if clock() + wait > deadline:
                raise
            say(f"{error} Asking again for {deadline - clock():.0f} s.")
            pause(wait)
            wait = min(2 * wait, _LONGEST_PAUSE_S)


def last_attempt(request: Request, jobs: list[Job]) -> tuple[int, Job] | None:
    """The newest attempt of the request's key and its number."""
    found = [(n, job) for job in jobs if (n := attempt_of(request.id_stem, job.id)) is not None]
    return max(found, key=lambda pair: pair[0]) if found else None


def _wants_another(job: Job, *, again: bool) -> bool:
    return job.state in {"FAILED", "STOPPED"} or (again and job.has_ended)


def pick(jobs: list[Job], wanted: str) -> Job:
    """The job that a person means: its id, its key, or the beginning of one; of several attempts the newest.

    Raises:
        SubmitError: If there is none such, or more than one key is meant.
    """
    exact = [j for j in jobs if wanted in {j.id, key_of(j)}]
    found = exact or [j for j in jobs if j.id.startswith(wanted) or key_of(j).startswith(wanted)]
    if not found:
        known = ", ".join(j.id for j in jobs[:8]) or "none"
        raise SubmitError(f"There is no job {wanted!r}. The newest: {known}. All of them: tiltyard jobs")
    keys = {key_of(j) or j.id for j in found}
    if len(keys) > 1:
        raise SubmitError(f"{wanted!r} may be any of {', '.join(sorted(j.id for j in found)[:8])}. Say more of it.")
    return max(found, key=lambda j: (j.started or 0.0, j.id))


def by_of(job: Job) -> str:
    """Who submitted a job, as they said; empty where it was sent by other means."""
    return job.metadata.get(META_BY, "")


def key_of(job: Job) -> str:
    """The key that a job was submitted under; empty where it was sent by other means."""
    return job.metadata.get(META_KEY, "")
