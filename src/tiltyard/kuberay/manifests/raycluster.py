"""The RayCluster that a team shares, and the cluster that a RayJob or RayService brings with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.kuberay.manifests.objects import Manifest, manifest
from tiltyard.kuberay.manifests.pods import container_security, ray_pod
from tiltyard.kuberay.spec import ClusterSpec, WorkerGroup

API = "ray.io/v1"
RAY = "ray"


def raycluster(spec: ClusterSpec) -> Manifest:
    """The shared cluster: from no workers to each group's bound."""
    body = cluster_body(spec, spec.workers, component=RAY)
    if spec.redis is not None:
        secret = {"secretKeyRef": {"name": spec.redis.password_secret, "key": spec.redis.password_key}}
        body["gcsFaultToleranceOptions"] = {
            "redisAddress": spec.redis.address,
            "redisPassword": {"valueFrom": secret},
            "externalStorageNamespace": f"{spec.namespace}-{spec.name}",
        }
    return manifest(
        spec, api=API, kind="RayCluster", name=spec.name, namespace=spec.namespace, component=RAY, spec=body
    )


def cluster_body(
    spec: ClusterSpec,
    groups: Sequence[WorkerGroup],
    *,
    component: str,
    fixed: Mapping[str, int] | None = None,
    files: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """A RayClusterSpec.

    Args:
        spec: The cluster.
        groups: Its workers.
        component: What it is for; a label of its pods.
        fixed: Number of workers of each group where it does not scale (Kueue admits a cluster as a whole).
        files: Secrets mounted in every pod.
    """
    body: dict[str, Any] = {
        "rayVersion": spec.ray_version,
        "enableInTreeAutoscaling": fixed is None,
        # Without authOptions KubeRay sets no token at all, and Ray's port 8265 runs what anybody sends.
        "authOptions": {"mode": "token", "secretName": spec.token_secret},
        "headGroupSpec": {
            # "0": no task runs on the head, so it cannot be killed by a trial's memory. A string: KubeRay takes no number.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104 - behind the NetworkPolicies
            "serviceType": "ClusterIP",
            "template": ray_pod(spec, spec.head, image=spec.image, is_head=True, component=component, files=files),
        },
        "workerGroupSpecs": [_group(spec, group, component, fixed, files) for group in groups],
    }
    if fixed is None:
        body["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": spec.autoscaler_idle_s,
            "upscalingMode": "Default",
            "imagePullPolicy": spec.image.pull_policy,
            "securityContext": container_security(),
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": "500m", "memory": "1Gi"},
            },
        }
    return body


def _group(
    spec: ClusterSpec,
    group: WorkerGroup,
    component: str,
    fixed: Mapping[str, int] | None,
    files: Sequence[tuple[str, str, str]],
) -> dict[str, Any]:
    few, many = (group.min_replicas, group.max_replicas) if fixed is None else (fixed[group.name],) * 2
    found: dict[str, Any] = {
        "groupName": group.name,
        "replicas": few,
        "minReplicas": few,
        "maxReplicas": many,  # KubeRay's default is two thousand million
        "rayStartParams": {},
        "template": ray_pod(
            spec,
            group.pod,
            image=group.image or spec.image,
            is_head=False,
            component=component,
            spot=group.spot,
            files=files,
        ),
    }
    if group.labels:
        found["labels"] = dict(group.labels)
    if fixed is None:
        found["idleTimeoutSeconds"] = group.idle_s
        if group.priority:
            found["priority"] = group.priority
    return found
