"""Pods: the containers of Ray nodes and of what runs beside them, with as few rights as they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.kuberay.manifests.objects import labels_of, secret_env, without_empty
from tiltyard.kuberay.spec import ClusterSpec, Image, Pod
from tiltyard.placement import GROUP_ENV, GROUPS_ENV, NodeGroup, to_env

HOME = "/home/ray/tiltyard"
USER, GROUP = 1000, 100
"""Of Ray's images: user ``ray``, group ``users``."""
METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS = 8080, 44217, 44227
DASHBOARD, CLIENT, GCS, SERVE, MLFLOW, POSTGRES = 8265, 10001, 6379, 8000, 5000, 5432
RECORD = 9105
"""Of the exporter of what stands in the record (`tiltyard.telemetry.exporter`)."""
GRACE_S = 90
"""A worker that is told to go has so long for the checkpoint it is writing."""


def pod_security() -> dict[str, Any]:
    """Not root, as Kubernetes' restricted profile asks."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": GROUP,
        "fsGroup": GROUP,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """No way to more rights."""
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def store_env(spec: ClusterSpec) -> list[dict[str, Any]]:
    """Variables under which `Settings.from_env` finds the cluster's stores."""
    plain = {
        "TILTYARD_HOME": HOME,
        "TILTYARD_TRACKING_URI": tracking_uri(spec),
        "TILTYARD_DATA_URI": f"{spec.store.uri}/data",
        "TILTYARD_STORAGE_URI": f"{spec.store.uri}/storage",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_GRAFANA_HOST": "DISABLED",
        **object_store_env(spec),
    }
    found: list[dict[str, Any]] = [{"name": n, "value": v} for n, v in plain.items()]
    return [*found, secret_env("TILTYARD_JOURNAL_URI", spec.postgres.secret, "journal-uri")]


def object_store_env(spec: ClusterSpec) -> dict[str, str]:
    """Where the object store is; its credentials come from its Secret."""
    found = {"AWS_REGION": spec.store.region} if spec.store.uri.startswith("s3:") else {}
    if spec.store.endpoint:
        found["AWS_ENDPOINT_URL"] = spec.store.endpoint
        if spec.store.endpoint.startswith("http://"):
            found["AWS_ALLOW_HTTP"] = "true"
    return found


def object_store_env_from(spec: ClusterSpec) -> list[dict[str, Any]]:
    """The Secret with the object store's credentials, as variables."""
    return [{"secretRef": {"name": spec.store.secret}}] if spec.store.secret else []


def tracking_uri(spec: ClusterSpec) -> str:
    """Where MLflow is."""
    return spec.tracking_uri or f"http://{spec.name}-mlflow.{spec.namespace}.svc:{MLFLOW}"


def ray_pod(
    spec: ClusterSpec,
    pod: Pod,
    *,
    image: Image,
    is_head: bool,
    component: str,
    spot: bool = False,
    group: str = "",
    groups: Sequence[NodeGroup] = (),
    files: Sequence[tuple[str, str, str]] = (),
) -> dict[str, Any]:
    """Template of a Ray node.

    Args:
        spec: The cluster.
        pod: What it asks for.
        image: What it runs.
        is_head: The head has more ports, a token of Kubernetes for its autoscaler, and no grace for checkpoints.
        component: What its cluster is for: ``ray``, ``serving`` or the kind of a job. KubeRay adds the cluster's name and
            the node's type, and not the name of a RayService or RayJob above it.
        spot: Whether its node may be taken away.
        group: Which of ``groups`` it is of; empty of the head.
        groups: The workers that its cluster may have; a driver that starts before any of them must know.
        files: Secrets that are mounted: (Secret, folder, name of the volume).
    """
    resources: dict[str, Any] = {"cpu": pod.cpu, "memory": pod.memory}
    if pod.gpus:
        resources[pod.gpu_resource] = str(pod.gpus)
    ports = {"metrics": METRICS}
    if is_head:
        ports = {
            "gcs-server": GCS,
            "dashboard": DASHBOARD,
            "client": CLIENT,
            "serve": SERVE,
            **ports,
            "as-metrics": AUTOSCALER_METRICS,
            "dash-metrics": DASHBOARD_METRICS,
        }
    volumes: list[dict[str, Any]] = [{"name": "ray", "emptyDir": {}}, {"name": "home", "emptyDir": {}}]
    mounts = [{"name": "ray", "mountPath": "/tmp/ray"}, {"name": "home", "mountPath": HOME}]  # noqa: S108 - Ray's
    if pod.shm:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": pod.shm}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - Ray's object store lives there
    for secret, folder, name in files:
        volumes.append({"name": name, "secret": {"secretName": secret}})
        mounts.append({"name": name, "mountPath": folder, "readOnly": True})  # type: ignore[dict-item]
    container = without_empty(
        {
            "name": "ray-head" if is_head else "ray-worker",
            "image": image.name,
            "imagePullPolicy": image.pull_policy,
            "ports": [{"name": n, "containerPort": p} for n, p in ports.items()],
            "env": [
                *store_env(spec),
                {"name": GROUPS_ENV, "value": to_env(groups)},
                *([{"name": GROUP_ENV, "value": group}] if group else []),
            ],
            "envFrom": object_store_env_from(spec),
            "resources": {"requests": resources, "limits": resources},
            "securityContext": container_security(),
            "volumeMounts": mounts,
        }
    )
    tolerations = [dict(t) for t in pod.tolerations]
    if pod.gpus and not any(t.get("key") == pod.gpu_resource for t in tolerations):
        tolerations.append({"key": pod.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    body = without_empty(
        {
            "containers": [container],
            "volumes": volumes,
            "nodeSelector": dict(pod.node_selector),
            "tolerations": tolerations,
            "securityContext": pod_security(),
            "imagePullSecrets": [{"name": image.pull_secret}] if image.pull_secret else None,
            "automountServiceAccountToken": None if is_head else False,
            "terminationGracePeriodSeconds": GRACE_S,
        }
    )
    labels = labels_of(spec, component)
    return {"metadata": {"labels": {**labels, **({"tiltyard.dev/spot": "true"} if spot else {})}}, "spec": body}


def small_pod(
    spec: ClusterSpec,
    *,
    role: str,
    container: Mapping[str, Any],
    image: Image,
    volumes: Sequence[Mapping[str, Any]] = (),
    service_account: str | None = None,
    restart: str | None = None,
    security: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Template of a pod with one container that is no Ray node."""
    body = without_empty(
        {
            "containers": [
                {
                    "name": role,
                    "image": image.name,
                    "imagePullPolicy": image.pull_policy,
                    "securityContext": container_security(),
                    **container,
                }
            ],
            "volumes": [dict(v) for v in volumes],
            "serviceAccountName": service_account,
            "automountServiceAccountToken": service_account is not None,
            "securityContext": dict(security or pod_security()),
            "imagePullSecrets": [{"name": image.pull_secret}] if image.pull_secret else None,
            "restartPolicy": restart,
        }
    )
    return {"metadata": {"labels": {**labels_of(spec, role), "tiltyard.dev/role": role}}, "spec": body}
