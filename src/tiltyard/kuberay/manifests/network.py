"""Who reaches which port: nothing but what stands here.

Ray's token covers the dashboard (8265) and not the metrics ports, Serve or MLflow; and 6379 and 10001 run whatever arrives.
So every pod of a namespace is closed, and each opening below names who comes in and at which port. Plain NetworkPolicies:
KubeRay's own field is behind an alpha gate. They need a network plug-in that keeps them; kubectl port-forward comes through
the node and is not held by most.
"""

from __future__ import annotations

from typing import Any

from tiltyard.kuberay.manifests.objects import COMPONENT, INSTANCE, ROLE, Manifest, manifest
from tiltyard.kuberay.manifests.pods import (
    AUTOSCALER_METRICS,
    DASHBOARD,
    DASHBOARD_METRICS,
    METRICS,
    MLFLOW,
    POSTGRES,
    RECORD,
    SERVE,
)
from tiltyard.kuberay.manifests.rayservice import SERVING
from tiltyard.kuberay.spec import ClusterSpec

_RAY = {"matchExpressions": [{"key": "ray.io/node-type", "operator": "Exists"}]}
_HEAD = {"matchLabels": {"ray.io/node-type": "head"}}
_NAMESPACE_NAME = "kubernetes.io/metadata.name"


def network_policies(spec: ClusterSpec) -> list[Manifest]:
    """The policies of every namespace of this cluster."""
    found = []
    for namespace in (spec.namespace, *(team.namespace for team in spec.teams)):
        found += _of_ray(spec, namespace)
    found += _of_stores(spec)
    return found


def _of_ray(spec: ClusterSpec, namespace: str) -> list[Manifest]:
    operator = _from_namespace(spec.operator_namespace)
    submitters = {"podSelector": {"matchLabels": {ROLE: "submitter", INSTANCE: spec.name}}}
    policies = [
        _policy(spec, namespace, "closed", {}, []),
        # Nodes of one cluster talk at any port; clusters of one namespace are not kept apart: one token opens them all.
        _policy(spec, namespace, "ray-nodes", _RAY, [{"from": [{"podSelector": _RAY}]}]),
        _policy(spec, namespace, "ray-jobs", _HEAD, [_opening([operator, submitters], DASHBOARD)]),
        _policy(spec, namespace, "ray-serve-checks", _RAY, [_opening([operator], SERVE, 52365)]),
    ]
    if spec.monitoring is not None:
        ports = (METRICS, AUTOSCALER_METRICS, DASHBOARD_METRICS)
        opening = _opening([_from_namespace(spec.monitoring.namespace)], *ports)
        policies.append(_policy(spec, namespace, "ray-metrics", _RAY, [opening]))
    if spec.ingress_namespace is not None and namespace == spec.namespace and spec.serving is not None:
        champions = {"matchLabels": {INSTANCE: spec.name, COMPONENT: SERVING}}
        opening = _opening([_from_namespace(spec.ingress_namespace)], SERVE)
        policies.append(_policy(spec, namespace, "serve", champions, [opening]))
    return policies


def _of_stores(spec: ClusterSpec) -> list[Manifest]:
    """MLflow and PostgreSQL answer this cluster's Ray nodes, in the teams' namespaces too, and the exporter of the record."""
    ray: list[dict[str, Any]] = [{"podSelector": _RAY}]
    ray += [{**_from_namespace(team.namespace), "podSelector": _RAY} for team in spec.teams]
    found = []
    if spec.monitoring is not None:  # the exporter of the record asks both stores, and is asked by Prometheus alone
        ray.append({"podSelector": _role(spec, "record")})
        opening = _opening([_from_namespace(spec.monitoring.namespace)], RECORD)
        found.append(_policy(spec, spec.namespace, "record", _role(spec, "record"), [opening]))
    if spec.mlflow is not None:
        found.append(_policy(spec, spec.namespace, "mlflow", _role(spec, "mlflow"), [_opening(ray, MLFLOW)]))
    if spec.postgres.in_cluster:
        mlflow = {"podSelector": _role(spec, "mlflow")}
        opening = _opening([*ray, mlflow], POSTGRES)
        found.append(_policy(spec, spec.namespace, "postgres", _role(spec, "postgres"), [opening]))
    return found


def _policy(
    spec: ClusterSpec, namespace: str, name: str, selector: dict[str, Any], openings: list[dict[str, Any]]
) -> Manifest:
    return manifest(
        spec,
        api="networking.k8s.io/v1",
        kind="NetworkPolicy",
        name=f"{spec.name}-{name}",
        namespace=namespace,
        component="network",
        spec={"podSelector": selector, "policyTypes": ["Ingress"], "ingress": openings},
    )


def _opening(sources: list[dict[str, Any]], *ports: int) -> dict[str, Any]:
    return {"from": sources, "ports": [{"protocol": "TCP", "port": port} for port in ports]}


def _from_namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE_NAME: name}}}


def _role(spec: ClusterSpec, role: str) -> dict[str, Any]:
    return {"matchLabels": {INSTANCE: spec.name, ROLE: role}}
