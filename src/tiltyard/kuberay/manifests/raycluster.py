"""The RayCluster that a team shares, and the cluster that a RayJob or RayService brings with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tiltyard.kuberay.manifests.objects import Manifest, manifest
from tiltyard.kuberay.manifests.pods import container_security, ray_pod
from tiltyard.kuberay.spec import ClusterSpec, Pod, WorkerGroup, amount
from tiltyard.placement import GPU_NODE_CPU, GPU_NODE_LABEL, NodeGroup, node_offers

API = "ray.io/v1"
RAY = "ray"
_STORE_OF_SHM, _STORE_OF_MEMORY = Decimal("0.9"), Decimal("0.3")
"""Ray's object store as a share of /dev/shm where its size is said, else of the memory, as Ray has it."""


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
    coming = [node_group(g, g.max_replicas if fixed is None else fixed[g.name], spec.currency) for g in groups]
    body: dict[str, Any] = {
        "rayVersion": spec.ray_version,
        "enableInTreeAutoscaling": fixed is None,
        # Without authOptions KubeRay sets no token at all, and Ray's port 8265 runs what anybody sends.
        "authOptions": {"mode": "token", "secretName": spec.token_secret},
        "headGroupSpec": {
            # "0": no task runs on the head, so it cannot be killed by a trial's memory. A string: KubeRay takes no number.
            "rayStartParams": {
                "num-cpus": "0",
                "dashboard-host": "0.0.0.0",  # noqa: S104 - behind the NetworkPolicies
                **_store_param(spec.head),
            },
            "serviceType": "ClusterIP",
            "template": ray_pod(
                spec, spec.head, image=spec.image, is_head=True, component=component, groups=coming, files=files
            ),
        },
        "workerGroupSpecs": [_group(spec, group, component, fixed, coming, files) for group in groups],
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


def node_group(group: WorkerGroup, most: int, currency: str) -> NodeGroup:
    """What a sweep's driver is told of a group: its bound, what each worker offers, and what an hour of it costs."""
    pod, price = group.pod, group.price_per_hour
    return NodeGroup(
        name=group.name,
        most=most,
        offers=node_offers(cpus=int(amount(pod.cpu)), gpus=pod.gpus),
        store_bytes=store_bytes(pod),
        hourly=None if price is None else float(price),
        currency="" if price is None else currency,
    )


def store_bytes(pod: Pod) -> int:
    """Bytes of a node's object store."""
    return int(amount(pod.shm) * _STORE_OF_SHM if pod.shm else amount(pod.memory) * _STORE_OF_MEMORY)


def _store_param(pod: Pod) -> dict[str, str]:
    """Ray itself takes 0.3 of the memory, and puts what does not fit into /dev/shm on disk."""
    return {"object-store-memory": str(store_bytes(pod))} if pod.shm else {}


def _group(
    spec: ClusterSpec,
    group: WorkerGroup,
    component: str,
    fixed: Mapping[str, int] | None,
    coming: Sequence[NodeGroup],
    files: Sequence[tuple[str, str, str]],
) -> dict[str, Any]:
    few, many = (group.min_replicas, group.max_replicas) if fixed is None else (fixed[group.name],) * 2
    found: dict[str, Any] = {
        "groupName": group.name,
        "replicas": few,
        "minReplicas": few,
        "maxReplicas": many,  # KubeRay's default is two thousand million
        "rayStartParams": _store_param(group.pod),
        "template": ray_pod(
            spec,
            group.pod,
            image=group.image or spec.image,
            is_head=False,
            component=component,
            spot=group.spot,
            group=group.name,
            groups=coming,
            files=files,
        ),
    }
    labels = dict(group.labels)
    if group.pod.gpus:
        # No CPU: else work without GPUs takes such a node where the others are full, and holds it. KubeRay and Ray's
        # autoscaler both take the GPUs from the container's limits.
        found["resources"] = {"CPU": "0", GPU_NODE_CPU: group.pod.cpu}
        labels[GPU_NODE_LABEL] = "true"
    if labels:
        found["labels"] = labels
    if fixed is None:
        found["idleTimeoutSeconds"] = group.idle_s
        if group.priority:
            found["priority"] = group.priority
    return found
