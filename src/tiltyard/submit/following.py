"""Follows a job on a cluster until it ends, through lost connections and restarts of the head's dashboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Protocol

from tiltyard.errors import SubmitError
from tiltyard.submit.ray_jobs import ClusterAwayError, Job

PATIENCE_S = 120.0


class Followed(Protocol):
    """What is needed of a cluster."""

    def job(self, job_id: str) -> Job:
        """One job."""

    def logs(self, job_id: str) -> str:
        """All it has written."""

    def tail(self, job_id: str) -> Iterator[str]:
        """What it writes, from the beginning, until it ends; fails where the connection does."""


def follow(
    jobs: Followed,
    job_id: str,
    write: Callable[[str], object],
    *,
    patience_s: float = PATIENCE_S,
    say: Callable[[str], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Job:
    """Writes what a job writes, each character once, until it ends; how it then stands.

    Args:
        jobs: The cluster's.
        job_id: Which job.
        write: Takes its output.
        patience_s: How long a cluster that does not answer is asked again.
        say: Told where that happens.
        clock: Seconds that only grow.
        pause: Waits.

    Raises:
        SubmitError: If there is no such job, or the cluster stays away.
    """
    written = 0
    away_since: float | None = None
    while True:
        try:
            ended = jobs.job(job_id).has_ended  # then its log is whole, and read at once
            seen = 0
            for piece in [jobs.logs(job_id)] if ended else jobs.tail(job_id):
                away_since = None
                fresh = piece[max(0, written - seen) :]
                seen += len(piece)
                if fresh:
                    write(fresh)
                    written = seen
            job = jobs.job(job_id)
            if job.has_ended:  # a log that ends by itself is whole, too
                return job
            away_since = None
        except ClusterAwayError as error:
            now = clock()
            away_since = now if away_since is None else away_since
            if now - away_since > patience_s:
                raise SubmitError(
                    f"{error} It stayed away for {patience_s:.0f} s; the job may go on. Follow it again: tiltyard logs -f "
                    f"{job_id}"
                ) from error
            say(f"{error} Trying again.")
        pause(1.0)


def wait_until_ended(
    jobs: Followed,
    job_id: str,
    *,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Job:
    """How a job stands when it has ended, or when the time is over."""
    deadline = clock() + timeout_s
    while True:
        try:
            job = jobs.job(job_id)
            if job.has_ended or clock() > deadline:
                return job
        except ClusterAwayError:
            if clock() > deadline:
                raise
        pause(0.5)
