"""Ends a job in order: first the journal knows, then the driver is told, and it has time to save.

A laptop reaches the cluster's jobs API and nothing else, so the record is made by a small job on the cluster. Recorded
first, because a driver that starts while it is being ended (a retry, a restarted head) looks there and does not begin. The
driver gets SIGTERM, ends its sweep in order and gives its claim back; Ray kills it after `request.STOP_WAIT_S`.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tiltyard.errors import SubmitError
from tiltyard.submit.following import Followed, wait_until_ended
from tiltyard.submit.ray_jobs import Job, JobExistsError
from tiltyard.submit.request import DRIVER, STOP_WAIT_S
from tiltyard.submit.sending import key_of
from tiltyard.who import person

_RECORD_S = 120.0
_RECORD_TRIES = 9


class Ended(Followed, Protocol):
    """What is needed of a cluster."""

    def submit(
        self, *, job_id: str, entrypoint: str, package: Path | None, env: Mapping[str, str], metadata: Mapping[str, str]
    ) -> None:
        """Starts a job, once an id."""

    def stop(self, job_id: str) -> bool:
        """Tells a job to end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """How a job stands after it was told to end. ``recorded``: the journal knows."""

    job: Job
    recorded: bool
    was_running: bool


def cancel(
    jobs: Ended,
    job: Job,
    *,
    record: bool = True,
    timeout_s: float = STOP_WAIT_S + 30.0,
    say: Callable[[str], None] = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> Cancelled:
    """Ends a job; one that has ended stays as it is.

    Args:
        jobs: The cluster's.
        job: Which.
        record: Whether the journal is to know first; without, a retry may start it again.
        timeout_s: How long its end is waited for.
        say: Told what is going on.
        pause: Waits.

    Raises:
        SubmitError: If the journal could not be told (nothing is then ended), or the job goes on.
    """
    if job.has_ended:
        return Cancelled(job=job, recorded=False, was_running=False)
    if record:
        say("Recording it in the journal ...")
        _record(jobs, job, pause)
    if not key_of(job):
        say(
            "It was not sent by tiltyard submit: Ray kills it three seconds after it was told, unless its environment says more."
        )
    say(f"Told to end; it may take up to {STOP_WAIT_S} s to save what it has.")
    jobs.stop(job.id)
    ended = wait_until_ended(jobs, job.id, timeout_s=timeout_s, pause=pause)
    if not ended.has_ended:
        raise SubmitError(
            f"{job.id} was told to end and is {ended.state} after {timeout_s:.0f} s. See: tiltyard logs {job.id}"
        )
    return Cancelled(job=ended, recorded=record, was_running=True)


def _record(jobs: Ended, job: Job, pause: Callable[[float], None]) -> None:
    by = person()
    for number in range(1, _RECORD_TRIES + 1):
        job_id = f"cancel-{job.id}-{number}"
        with suppress(JobExistsError):  # somebody asked for it before
            jobs.submit(
                job_id=job_id,
                entrypoint=f"{DRIVER} --cancel {shlex.quote(job.id)} {shlex.quote(by)}",
                package=None,
                env={},
                metadata={},
            )
            break
        if jobs.job(job_id).state != "FAILED":
            break
    done = wait_until_ended(jobs, job_id, timeout_s=_RECORD_S, pause=pause)
    if done.state != "SUCCEEDED":
        raise SubmitError(
            f"The journal could not be told that {job.id} is to end, so it goes on ({job_id} is {done.state}: "
            f"{_end_of(jobs.logs(job_id)) or done.message}). End it all the same: tiltyard cancel --no-record {job.id}"
        )


def _end_of(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
