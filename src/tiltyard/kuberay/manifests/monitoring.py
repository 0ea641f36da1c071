"""PodMonitors: which ports the Prometheus operator scrapes, with the cluster's name on every series.

And the exporter of what stands in the record, which tells of nights, data and scores while nothing runs.
"""

from __future__ import annotations

from typing import Any

from tiltyard.kuberay.manifests.objects import INSTANCE, ROLE, Manifest, manifest
from tiltyard.kuberay.manifests.pods import HOME, RECORD, object_store_env_from, small_pod, store_env
from tiltyard.kuberay.spec import ClusterSpec

_RELABEL = [
    {
        "sourceLabels": ["__meta_kubernetes_pod_label_ray_io_cluster"],
        "targetLabel": "ray_io_cluster",
        "action": "replace",
    }
]


def pod_monitors(spec: ClusterSpec) -> list[Manifest]:
    """One for heads, whose autoscaler and dashboard have ports of their own, and one for workers."""
    if spec.monitoring is None:
        return []
    namespaces = [spec.namespace, *(team.namespace for team in spec.teams)]
    found = []
    for node, ports in (("head", ("metrics", "as-metrics", "dash-metrics")), ("worker", ("metrics",))):
        endpoints: list[dict[str, Any]] = [{"port": port, "interval": "15s", "relabelings": _RELABEL} for port in ports]
        found.append(
            manifest(
                spec,
                api="monitoring.coreos.com/v1",
                kind="PodMonitor",
                name=f"{spec.name}-{node}s",
                namespace=spec.namespace,
                component="monitoring",
                labels=spec.monitoring.labels,
                spec={
                    "jobLabel": "ray.io/cluster",
                    "namespaceSelector": {"matchNames": namespaces},
                    "selector": {"matchLabels": {"ray.io/node-type": node}},
                    "podMetricsEndpoints": endpoints,
                },
            )
        )
    return [*found, _record(spec), _record_monitor(spec)]


def _record(spec: ClusterSpec) -> Manifest:
    """Reads journal, registry and data store every half minute; writes nothing."""
    pod = small_pod(
        spec,
        role="record",
        image=spec.image,
        volumes=[{"name": "home", "emptyDir": {}}],
        container={
            "command": ["python", "-m", "tiltyard.telemetry.exporter"],
            "args": ["--host", "0.0.0.0", "--port", str(RECORD)],  # noqa: S104 - the NetworkPolicy says who comes in
            "ports": [{"name": "metrics", "containerPort": RECORD}],
            "env": store_env(spec),
            **({"envFrom": found} if (found := object_store_env_from(spec)) else {}),
            "resources": {"requests": {"cpu": "100m", "memory": "768Mi"}, "limits": {"cpu": "1", "memory": "768Mi"}},
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": RECORD}, "periodSeconds": 10},
            "volumeMounts": [{"name": "home", "mountPath": HOME}],
        },
    )
    return manifest(
        spec,
        api="apps/v1",
        kind="Deployment",
        name=f"{spec.name}-record",
        namespace=spec.namespace,
        component="record",
        spec={
            "replicas": 1,
            "selector": {"matchLabels": {INSTANCE: spec.name, ROLE: "record"}},
            "template": pod,
        },
    )


def _record_monitor(spec: ClusterSpec) -> Manifest:
    assert spec.monitoring is not None
    return manifest(
        spec,
        api="monitoring.coreos.com/v1",
        kind="PodMonitor",
        name=f"{spec.name}-record",
        namespace=spec.namespace,
        component="monitoring",
        labels=spec.monitoring.labels,
        spec={
            "selector": {"matchLabels": {INSTANCE: spec.name, ROLE: "record"}},
            "podMetricsEndpoints": [{"port": "metrics", "interval": "30s"}],
        },
    )
