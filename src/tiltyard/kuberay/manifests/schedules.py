"""Nights: a CronJob whose pod creates one RayJob a logical date, waits for it, and ends as it did.

KubeRay's own RayCronJob has no rule against overlap, runs every tick it missed, and gives its jobs no labels; it is used
only where the spec asks for it. Here ``Forbid`` means something, because the pod lives as long as the run.
"""

from __future__ import annotations

from typing import Any

import yaml

from tiltyard.kuberay.manifests.objects import Manifest, manifest
from tiltyard.kuberay.manifests.pods import small_pod
from tiltyard.kuberay.manifests.rayjob import rayjob
from tiltyard.kuberay.spec import DATE, ClusterSpec, Job, Schedule

JOB_FAILED = 3
"""Exit code of the waiting pod where the RayJob itself failed: trying again would only find the same."""
ACCOUNT = "nights"
_SLACK_S = 900
_TEMPLATE = "/etc/tiltyard/job"


def schedules(spec: ClusterSpec) -> list[Manifest]:
    """Every schedule, in the way the spec asks for."""
    found = []
    for schedule in spec.schedules:
        job = spec.job(schedule.job)
        if spec.scheduler == "raycronjob":
            found.append(_raycronjob(spec, schedule, job))
        else:
            found += [_template(spec, schedule, job), _cronjob(spec, schedule, job)]
    return found


def account(spec: ClusterSpec) -> str:
    """ServiceAccount of the waiting pods."""
    return f"{spec.name}-{ACCOUNT}"


def _template(spec: ClusterSpec, schedule: Schedule, job: Job) -> Manifest:
    text = yaml.safe_dump(rayjob(spec, job), sort_keys=False)
    return manifest(
        spec,
        api="v1",
        kind="ConfigMap",
        name=f"{schedule.name}-job",
        namespace=spec.namespace,
        component="nights",
        data={"job.yaml": text},
    )


def _cronjob(spec: ClusterSpec, schedule: Schedule, job: Job) -> Manifest:
    pod = small_pod(
        spec,
        role="nights",
        image=spec.image,
        service_account=account(spec),
        restart="Never",
        container={
            "command": ["tiltyard", "cluster", "start", f"{_TEMPLATE}/job.yaml", "--scheduled"],
            "args": ["--per", schedule.per, "--time-zone", schedule.time_zone],
            "env": [
                # Its suffix is the minute of the tick, whenever the pod really starts.
                {"name": "TILTYARD_SCHEDULED_BY", "value": schedule.name},
                {
                    "name": "TILTYARD_SCHEDULED_JOB",
                    "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}},
                },
                {"name": "TILTYARD_HOME", "value": "/tmp/tiltyard"},  # noqa: S108 - the pod's own
            ],
            "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"},
                "limits": {"cpu": "1", "memory": "512Mi"},
            },
            "volumeMounts": [{"name": "job", "mountPath": _TEMPLATE, "readOnly": True}],
        },
        volumes=[{"name": "job", "configMap": {"name": f"{schedule.name}-job"}}],
    )
    body: dict[str, Any] = {
        "schedule": schedule.cron,
        "timeZone": schedule.time_zone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": schedule.start_deadline_s,
        "successfulJobsHistoryLimit": schedule.history,
        "failedJobsHistoryLimit": schedule.history,
        "suspend": schedule.suspend,
        "jobTemplate": {
            "spec": {
                # A pod that is lost (a drained node) starts again and finds the RayJob; a RayJob that failed is final.
                "backoffLimit": 6,
                "podFailurePolicy": {
                    "rules": [
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                        {
                            "action": "FailJob",
                            "onExitCodes": {"containerName": "nights", "operator": "In", "values": [JOB_FAILED]},
                        },
                    ]
                },
                "activeDeadlineSeconds": (job.deadline_s + job.start_deadline_s) * (job.retries + 1) + _SLACK_S,
                "template": pod,
            }
        },
    }
    return manifest(
        spec,
        api="batch/v1",
        kind="CronJob",
        name=schedule.name,
        namespace=spec.namespace,
        component="nights",
        spec=body,
    )


def _raycronjob(spec: ClusterSpec, schedule: Schedule, job: Job) -> Manifest:
    body = rayjob(spec, job)["spec"]
    # Nobody fills the date in here: the day is that on which the driver starts, and a night made up for has the wrong one.
    body["entrypoint"] = body["entrypoint"].replace(f"'{DATE}'", '"$(date -u +%F)"')
    return manifest(
        spec,
        api="ray.io/v1",
        kind="RayCronJob",
        name=schedule.name,
        namespace=spec.namespace,
        component="nights",
        spec={
            "schedule": schedule.cron,
            "timeZone": schedule.time_zone,
            "suspend": schedule.suspend,
            "jobTemplate": body,
        },
    )
