"""A request as a RayJob that brings its own cluster: two objects, named by the key.

The package travels as a ConfigMap that the submitting pod mounts, so it must be small; Ray then carries it to every node.
RayJobs of one name exist once, which is what keeps two laptops to one job.
"""

from __future__ import annotations

import base64
import shlex
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiltyard.errors import KeyConflictError, SubmitError
from tiltyard.kuberay.api import Api, ExistsError, Ref
from tiltyard.kuberay.manifests.objects import Manifest, manifest
from tiltyard.kuberay.manifests.rayjob import rayjob
from tiltyard.kuberay.spec import ClusterSpec, Job
from tiltyard.kuberay.waiting import FAILED, state_of
from tiltyard.submit.packing import size
from tiltyard.submit.preparing import Prepared
from tiltyard.submit.request import Request, attempt_of, conflict, what_differs

DEADLINE_S = 24 * 3600


def as_objects(
    prepared: Prepared, spec: ClusterSpec, *, team: str | None, limit_bytes: int, attempt: int = 1
) -> tuple[Manifest, Manifest]:
    """The ConfigMap with the package, and the RayJob.

    Args:
        prepared: What is asked.
        spec: The cluster that it is to be like: every group of workers, up to its bound.
        team: Whose namespace and queue; the shared namespace where None.
        limit_bytes: The most that a ConfigMap takes.
        attempt: Which attempt of the key.

    Raises:
        SubmitError: If the package is too large for one.
    """
    request, job_id = prepared.request, prepared.request.id_of(attempt)
    with tempfile.TemporaryDirectory() as folder:
        data = prepared.package.write_zip(Path(folder) / "package.zip").read_bytes()
    if len(data) > limit_bytes:
        raise SubmitError(
            f"The package is {size(len(data))} zipped; with --ephemeral it travels in a ConfigMap, which takes "
            f"{size(limit_bytes)}. Name what the job does not need in .tiltyardignore, bake the code into the image "
            "(cluster/Dockerfile), or submit to a cluster that runs (--cluster)."
        )
    job = job_of(request, spec, job_id)
    whose = spec.team(team) if team is not None else None
    body = rayjob(spec, job, team=whose, metadata=request.metadata, env=request.env, package=f"{job_id}-package")
    package = manifest(
        spec,
        api="v1",
        kind="ConfigMap",
        name=f"{job_id}-package",
        namespace=body["metadata"]["namespace"],
        component="package",
        binaryData={"package.zip": base64.b64encode(data).decode()},
    )
    return package, body


def job_of(request: Request, spec: ClusterSpec, name: str) -> Job:
    """What is asked as a job of the cluster.

    As large and as long as the job of the file's name that the cluster describes, or with every group up to its bound, for
    a day.
    """
    described = next((j for j in spec.jobs if j.name == Path(request.job_file).stem.replace("_", "-")), None)
    return Job(
        name=name,
        command=tuple(shlex.split(request.entrypoint)),
        workers=described.workers if described else {g.name: g.max_replicas for g in spec.workers},
        deadline_s=described.deadline_s if described else DEADLINE_S,
    )


def send(
    api: Api,
    prepared: Prepared,
    spec: ClusterSpec,
    *,
    team: str | None,
    limit_bytes: int,
    check: Callable[[Manifest], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Manifest, bool]:
    """Creates the RayJob of a request, or finds the one that it is; the RayJob, and whether it is new.

    The RayJob first, because its name is what is taken once; its submitter waits for the package, which a second laptop
    brings where the first one was cut off.

    Args:
        api: Kubernetes.
        prepared: What is asked.
        spec: The cluster that it is to be like.
        team: Whose namespace and queue.
        limit_bytes: The most that a ConfigMap takes.
        check: Raises where the RayJob cannot be right.
        say: Told what is done.

    Raises:
        KeyConflictError: If the key was used with other content.
        SubmitError: If the package is too large.
    """
    request = prepared.request
    while True:
        _, first = as_objects(prepared, spec, team=team, limit_bytes=limit_bytes)
        last = _last(request, api.list("RayJob", first["metadata"]["namespace"]))
        number = 1
        if last is not None:
            number, there = last
            lines = what_differs(request, there["spec"].get("metadata") or {})
            if lines:
                raise KeyConflictError(conflict(request, there["metadata"]["name"], lines))
            number += state_of(there).what == FAILED
        package, job = as_objects(prepared, spec, team=team, limit_bytes=limit_bytes, attempt=number)
        created = last is None or number != last[0]
        if created:
            check(job)
            try:
                made = api.create(job)
            except ExistsError:
                continue  # somebody was faster: look at what they made
            say(f"{Ref.of(job)} created")
        else:
            found = api.get(Ref.of(job))
            if found is None:
                continue
            made = found
            say(f"{Ref.of(job)} is there already")
        if api.get(Ref.of(package)) is None:
            owner = {"apiVersion": job["apiVersion"], "kind": "RayJob", "name": job["metadata"]["name"]}
            package["metadata"]["ownerReferences"] = [{**owner, "uid": made["metadata"]["uid"]}]
            api.apply(package)
        return job, created


def _last(request: Request, rayjobs: list[dict[str, Any]]) -> tuple[int, dict[str, Any]] | None:
    found = [(n, j) for j in rayjobs if (n := attempt_of(request.id_stem, j["metadata"]["name"])) is not None]
    return max(found, key=lambda pair: pair[0]) if found else None
