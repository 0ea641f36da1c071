"""MLflow's server and the PostgreSQL that it shares with the journal."""

from __future__ import annotations

from typing import Any

from tiltyard.kuberay.manifests.objects import ROLE, Manifest, labels_of, manifest, secret_env
from tiltyard.kuberay.manifests.pods import (
    MLFLOW,
    POSTGRES,
    object_store_env,
    object_store_env_from,
    small_pod,
)
from tiltyard.kuberay.spec import ClusterSpec, Mlflow


def postgres(spec: ClusterSpec) -> list[Manifest]:
    """One PostgreSQL on a volume of its own; for real loads name a managed one in the Secret instead."""
    if not spec.postgres.in_cluster:
        return []
    name = postgres_name(spec)
    user = 999  # of the official image
    pod = small_pod(
        spec,
        role="postgres",
        image=spec.postgres.image,
        security={
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            "fsGroup": user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        container={
            "ports": [{"name": "postgres", "containerPort": POSTGRES}],
            "env": [
                {"name": "POSTGRES_USER", "value": "tiltyard"},
                {"name": "POSTGRES_DB", "value": "journal"},
                {"name": "PGDATA", "value": "/var/lib/postgresql/data/pgdata"},
                secret_env("POSTGRES_PASSWORD", spec.postgres.secret, "password"),
            ],
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "2Gi"}},
            "readinessProbe": {
                "exec": {"command": ["pg_isready", "-U", "tiltyard", "-d", "journal"]},
                "periodSeconds": 5,
            },
            "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
        },
    )
    claim = {
        "metadata": {"name": "data", "labels": labels_of(spec, "postgres")},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": spec.postgres.storage}},
        },
    }
    body: dict[str, Any] = {
        "serviceName": name,
        "replicas": 1,
        "selector": {"matchLabels": _selector(spec, "postgres")},
        "template": pod,
        "volumeClaimTemplates": [claim],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
    }
    return [
        _service(spec, name, "postgres", POSTGRES),
        manifest(
            spec,
            api="apps/v1",
            kind="StatefulSet",
            name=name,
            namespace=spec.namespace,
            component="postgres",
            spec=body,
        ),
    ]


def mlflow(spec: ClusterSpec, server: Mlflow) -> list[Manifest]:
    """The MLflow server: not authenticated, so the NetworkPolicies let in this cluster's pods alone.

    Artifacts go through it, so that only it needs the object store's credentials for them.
    """
    name = mlflow_name(spec)
    hosts = [name, f"{name}.{spec.namespace}", f"{name}.{spec.namespace}.svc", "localhost", "127.0.0.1"]
    allowed = ",".join(f"{h}:{MLFLOW}" for h in hosts)
    pod = small_pod(
        spec,
        role="mlflow",
        image=spec.image,
        volumes=[{"name": "tmp", "emptyDir": {}}],
        container={
            "command": ["mlflow", "server", "--host", "0.0.0.0", "--port", str(MLFLOW)],  # noqa: S104
            "args": [
                *("--workers", str(server.workers)),
                "--serve-artifacts",
                *("--allowed-hosts", allowed),
                *("--cors-allowed-origins", f"http://localhost:{MLFLOW}"),
            ],
            "ports": [{"name": "http", "containerPort": MLFLOW}],
            "env": [
                secret_env("MLFLOW_BACKEND_STORE_URI", spec.postgres.secret, "mlflow-uri"),
                {"name": "MLFLOW_ARTIFACTS_DESTINATION", "value": f"{spec.store.uri}/mlflow"},
                {"name": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "value": "false"},
                {"name": "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "value": "false"},
                {"name": "MLFLOW_DISABLE_TELEMETRY", "value": "true"},
                *({"name": n, "value": v} for n, v in object_store_env(spec).items()),
                *({"name": n, "value": v} for n, v in _mlflow_s3(spec).items()),
            ],
            **({"envFrom": found} if (found := object_store_env_from(spec)) else {}),
            "resources": {
                "requests": {"cpu": server.cpu, "memory": server.memory},
                "limits": {"cpu": server.cpu, "memory": server.memory},
            },
            # MLflow refuses a Host header it does not know, and a probe would send the pod's address.
            "readinessProbe": {
                "httpGet": {
                    "path": "/health",
                    "port": MLFLOW,
                    "httpHeaders": [{"name": "Host", "value": f"{name}:{MLFLOW}"}],
                },
                "periodSeconds": 10,
            },
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the pod's own
        },
    )
    return [
        _service(spec, name, "mlflow", MLFLOW),
        manifest(
            spec,
            api="apps/v1",
            kind="Deployment",
            name=name,
            namespace=spec.namespace,
            component="mlflow",
            spec={
                "replicas": 1,
                "strategy": {"type": "Recreate"},  # two versions must not migrate one database at once
                "selector": {"matchLabels": _selector(spec, "mlflow")},
                "template": pod,
            },
        ),
    ]


def mlflow_name(spec: ClusterSpec) -> str:
    """Name of the Service."""
    return f"{spec.name}-mlflow"


def postgres_name(spec: ClusterSpec) -> str:
    """Name of the Service."""
    return f"{spec.name}-postgres"


def _mlflow_s3(spec: ClusterSpec) -> dict[str, str]:
    return {"MLFLOW_S3_ENDPOINT_URL": spec.store.endpoint} if spec.store.endpoint else {}


def _selector(spec: ClusterSpec, role: str) -> dict[str, str]:
    return {"app.kubernetes.io/instance": spec.name, ROLE: role}


def _service(spec: ClusterSpec, name: str, role: str, port: int) -> Manifest:
    return manifest(
        spec,
        api="v1",
        kind="Service",
        name=name,
        namespace=spec.namespace,
        component=role,
        spec={
            "type": "ClusterIP",
            "selector": _selector(spec, role),
            "ports": [{"name": "http" if role == "mlflow" else role, "port": port, "targetPort": port}],
        },
    )
