"""The Ray jobs API of one cluster, as plain values and as errors that say what to do.

Ray's own client with three traps closed: the variables RAY_ADDRESS and RAY_API_SERVER_ADDRESS would replace the address it
is given, its requests wait for ever, and a token without RAY_AUTH_MODE is not sent (so it goes as a header). The token
stays in this process: it is in no argument, no message and no variable.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tiltyard.errors import SubmitError
from tiltyard.submit.clusters import Target

CONNECT_S, ANSWER_S = 10, 120
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


class ClusterAwayError(SubmitError):
    """The cluster did not answer; what was asked for may have happened."""


class JobExistsError(SubmitError):
    """There is a job of that id already."""


class NoSuchJobError(SubmitError):
    """There is no job of that id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One submitted job. ``state``: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED. Times: seconds since 1970."""

    id: str
    state: str
    message: str
    started: float | None
    ended: float | None
    entrypoint: str
    metadata: Mapping[str, str]

    @property
    def has_ended(self) -> bool:
        """True where nothing of it runs any more."""
        return self.state in ENDED


class _Client(JobSubmissionClient):
    """Ray's, with an end to every request, and with no token but the target's.

    Ray would add the token of this machine's own cluster where none is given: it is nothing that others are to see.
    """

    def __init__(self, url: str, *, headers: dict[str, str], verify: str | bool) -> None:
        self._own_headers = headers
        super().__init__(url, headers=dict(headers), verify=verify)

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        self._headers = dict(self._own_headers)
        return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, ANSWER_S), **more})

    @property
    def server_version(self) -> str:
        return str(self._server_ray_version)


class RayJobs:
    """The jobs of one cluster."""

    def __init__(self, target: Target) -> None:
        self.target = target
        headers = {"Authorization": f"Bearer {target.token}"} if target.token else {}
        for name in ("dashboard_sdk", "job.sdk"):  # "Uploading package", "WebSocket closed": ours to tell
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with self._told("reach it"), _without_ray_addresses():
            self._client = _Client(target.url, headers=headers, verify=target.ca_file or True)

    @property
    def ray_version(self) -> str:
        """Ray's version on the cluster."""
        return self._client.server_version

    def jobs(self) -> list[Job]:
        """Every submitted job, newest first."""
        with self._told("list its jobs"):
            found = [_job(d) for d in self._client.list_jobs() if d.submission_id]
        return sorted(found, key=lambda j: j.started or 0.0, reverse=True)

    def job(self, job_id: str) -> Job:
        """One job.

        Raises:
            NoSuchJobError: If there is none of that id.
        """
        with self._told(f"show job {job_id}"):
            return _job(self._client.get_job_info(job_id))

    def submit(
        self,
        *,
        job_id: str,
        entrypoint: str,
        package: Path | None = None,
        env: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        """Sends a package, where the cluster has it not, and starts a job.

        Args:
            job_id: Its id; one job of an id is ever started.
            entrypoint: Command, run in the package's folder.
            package: A zip file; None for a job that needs no files.
            env: Variables of the driver and its workers.
            metadata: Kept with the job.

        Raises:
            JobExistsError: If a job of that id was started already, by whomever.
        """
        runtime_env: dict[str, Any] = {"env_vars": dict(env)}
        if package is not None:
            runtime_env["working_dir"] = str(package)
        with self._told(f"start job {job_id}"):
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=dict(metadata)
            )

    def stop(self, job_id: str) -> bool:
        """Tells a job to end (SIGTERM, and SIGKILL after its grace period); False where it did not run."""
        with self._told(f"stop job {job_id}"):
            return bool(self._client.stop_job(job_id))

    def logs(self, job_id: str) -> str:
        """All that a job has written so far."""
        with self._told(f"read the log of job {job_id}"):
            return str(self._client.get_job_logs(job_id))

    def tail(self, job_id: str) -> Iterator[str]:
        """What a job has written and writes, piece by piece, until it ends or the connection does."""
        loop = asyncio.new_event_loop()
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        try:
            while True:
                with self._told(f"follow the log of job {job_id}"):
                    try:
                        piece = loop.run_until_complete(anext(pieces))
                    except StopAsyncIteration:
                        return
                yield piece
        finally:
            with suppress(Exception):
                loop.run_until_complete(pieces.aclose())  # type: ignore[attr-defined]
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Errors of Ray's client as ours."""
        url = self.target.url
        try:
            yield
        except AuthenticationError as error:
            raise SubmitError(_unauthorised(self.target, str(error))) from error
        except requests.exceptions.SSLError as error:
            raise SubmitError(
                f"{url} cannot be trusted: {error}. Name its authority's certificate: ca_file in the clusters file."
            ) from error
        except requests.exceptions.HTTPError as error:  # of the check of the version
            code = error.response.status_code
            if code >= 500:
                raise ClusterAwayError(f"{url} answered {code} to {what}: the head is not ready.") from error
            raise SubmitError(f"{url} answered {code}; that is not a Ray dashboard. Wanted: port 8265.") from error
        except (requests.exceptions.RequestException, ConnectionError, OSError) as error:
            raise ClusterAwayError(
                f"{self.target.name} ({url}) did not answer a request to {what}: {_short(error)}. Is it up, and is "
                "the way to it (kubectl port-forward, VPN) open? What was submitted may run: tiltyard jobs"
            ) from error
        except RuntimeError as error:
            raise _refused(what, self.target, str(error)) from error
        except (ValueError, KeyError) as error:
            raise SubmitError(
                f"{url} did not answer as a Ray dashboard does: {_short(error)}. Wanted: port 8265."
            ) from error


def _refused(what: str, target: Target, text: str) -> SubmitError:
    """The error behind ``Request failed with status code 500: ...``."""
    if "already exists" in text:
        return JobExistsError(f"{target.name} has that job already.")
    if "does not exist" in text and "status code 404" in text:
        return NoSuchJobError(f"{target.name} has no such job. See what there is: tiltyard jobs")
    text = _last_line(text)
    if "status code 5" in text or "WebSocket" in text:
        return ClusterAwayError(f"{target.name} could not {what}: {text}")
    return SubmitError(f"{target.name} refused to {what}: {text}")


def _unauthorised(target: Target, text: str) -> str:
    wrong = "403" in text or "Invalid" in text or "incorrect" in text
    found = f"the token from {target.found_in} is not its token" if wrong else "it asks for a token"
    if not wrong and target.token is None:
        found += ", and none was found"
    return (
        f"{target.name} ({target.url}) refused: {found}. Wanted: RAY_AUTH_TOKEN, or a token_file of mode 0600 or a Secret in "
        "the clusters file. On Kubernetes: kubectl get secret tiltyard-ray-token -o jsonpath={.data.auth_token} | base64 -d"
    )


def _job(details: JobDetails) -> Job:
    return Job(
        id=str(details.submission_id),
        state=str(getattr(details.status, "value", details.status)),
        message=str(details.message or ""),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
        entrypoint=str(details.entrypoint or ""),
        metadata=dict(details.metadata or {}),
    )


def _last_line(text: str) -> str:
    """A server's traceback without the trace."""
    lines = [line for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    return (lines[0] if len(lines) < 2 else f"{lines[0].split(':')[0]}: {lines[-1]}")[:600]


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


@contextmanager
def _without_ray_addresses() -> Iterator[None]:
    kept = {n: os.environ.pop(n) for n in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if n in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
