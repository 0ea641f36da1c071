"""RayJobs: a job with a cluster of its own, which goes when the job ends, and at the latest at its deadline."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from tiltyard.kuberay.manifests.objects import ROLE, Manifest, labels_of, manifest
from tiltyard.kuberay.manifests.pods import container_security, pod_security
from tiltyard.kuberay.manifests.raycluster import API, cluster_body
from tiltyard.kuberay.spec import ClusterSpec, Job, Team

KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
STOP_WAIT_S = 120
"""As `tiltyard.submit.request.STOP_WAIT_S`, which stands above this package; a test holds them equal."""
_LINGER_S = 60
"""A cluster whose job has ended stays so long, for its last lines to be read."""


def rayjob(
    spec: ClusterSpec,
    job: Job,
    *,
    name: str | None = None,
    team: Team | None = None,
    metadata: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    package: str | None = None,
) -> Manifest:
    """One job.

    Args:
        spec: The cluster that it is like.
        job: What it does.
        name: Another name than the job's.
        team: In whose namespace; the shared one where None.
        metadata: Kept with the Ray job.
        env: Variables of the driver and its workers.
        package: ConfigMap with ``package.zip``, the working directory; None where the image's own is meant.
    """
    queue = team.kueue_queue if team else None
    runtime_env: dict[str, Any] = {
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), "PYTHONUNBUFFERED": "1", **(env or {})}
    }
    if package is not None:
        runtime_env["working_dir"] = f"{_PACKAGE_FOLDER}/package.zip"
    body: dict[str, Any] = {
        # The submitter looks before it submits, so that a pod of it that is started twice is one job.
        "submissionMode": "K8sJobMode",
        "entrypoint": shlex.join(job.command),
        "runtimeEnvYAML": json.dumps(runtime_env, indent=1) + "\n",  # JSON is YAML
        "activeDeadlineSeconds": job.deadline_s,
        "preRunningDeadlineSeconds": job.start_deadline_s,
        "backoffLimit": job.retries,
        "submitterPodTemplate": _submitter(spec, package),
        "rayClusterSpec": cluster_body(
            spec,
            [_bounded(spec, group, n) for group, n in job.workers.items()],
            component=job.kind,
            fixed=dict(job.workers) if queue else None,
        ),
        **_end(job, queued=queue is not None),
    }
    if metadata:
        body["metadata"] = dict(metadata)
    return manifest(
        spec,
        api=API,
        kind="RayJob",
        name=name or job.name,
        namespace=team.namespace if team else spec.namespace,
        component=job.kind,
        labels={KUEUE_QUEUE: queue} if queue else None,
        spec=body,
    )


_PACKAGE_FOLDER = "/home/ray/package"


def _bounded(spec: ClusterSpec, group: str, most: int) -> Any:
    found = spec.group(group)
    return type(found)(**{**dict(found), "min_replicas": 0, "max_replicas": most})


def _end(job: Job, *, queued: bool) -> dict[str, Any]:
    """How it goes away. Kueue wants shutdownAfterJobFinishes, which excludes rules of deletion."""
    if queued:
        return {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": _LINGER_S}
    ends: tuple[dict[str, str], ...] = (
        {"jobStatus": "SUCCEEDED"},
        {"jobStatus": "FAILED"},
        {"jobDeploymentStatus": "Failed"},
    )
    rules = [
        {"policy": policy, "condition": {**end, "ttlSeconds": seconds}}
        for policy, seconds in (("DeleteCluster", _LINGER_S), ("DeleteSelf", max(job.keep_s, _LINGER_S)))
        for end in ends
    ]
    return {"deletionStrategy": {"deletionRules": rules}}


def _submitter(spec: ClusterSpec, package: str | None) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "ray-job-submitter",
        "image": spec.image.name,
        "imagePullPolicy": spec.image.pull_policy,
        "securityContext": container_security(),
        "resources": {
            "requests": {"cpu": "250m", "memory": "512Mi"},
            "limits": {"cpu": "1", "memory": "1Gi"},
        },
    }
    body: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": pod_security(),
        "containers": [container],
    }
    if package is not None:
        container["volumeMounts"] = [{"name": "package", "mountPath": _PACKAGE_FOLDER, "readOnly": True}]
        body["volumes"] = [{"name": "package", "configMap": {"name": package}}]
    if spec.image.pull_secret:
        body["imagePullSecrets"] = [{"name": spec.image.pull_secret}]
    return {"metadata": {"labels": {**labels_of(spec, "submitter"), ROLE: "submitter"}}, "spec": body}
