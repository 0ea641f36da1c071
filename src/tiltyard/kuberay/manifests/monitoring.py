"""PodMonitors: which ports the Prometheus operator scrapes, with the cluster's name on every series."""

from __future__ import annotations

from typing import Any

from tiltyard.kuberay.manifests.objects import Manifest, manifest
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
    return found
