"""What every manifest has: kind, name, namespace, and the labels that say whose it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiltyard.kuberay.spec import ClusterSpec

Manifest = dict[str, Any]

PART_OF = "app.kubernetes.io/part-of"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
ROLE = "tiltyard.dev/role"
"""Of a pod that is no Ray node: ``submitter``, ``nights``, ``mlflow``, ``postgres``. Network policies go by it."""


def manifest(
    cluster: ClusterSpec,
    /,
    *,
    api: str,
    kind: str,
    name: str,
    component: str,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    **body: Any,
) -> Manifest:
    """One object with its labels; without a namespace where the kind has none.

    Args:
        cluster: Whose it is.
        api: API group and version.
        kind: Its kind.
        name: Its name.
        component: Which part of the cluster.
        namespace: None for objects of the whole cluster.
        labels: More of them.
        **body: Everything below ``metadata``.
    """
    metadata: dict[str, Any] = {"name": name}
    if namespace is not None:
        metadata["namespace"] = namespace
    metadata["labels"] = {**labels_of(cluster, component), **(labels or {})}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **body}


def labels_of(spec: ClusterSpec, component: str) -> dict[str, str]:
    """Labels of every object and pod of this cluster."""
    return {PART_OF: "tiltyard", INSTANCE: spec.name, COMPONENT: component}


def without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that say something."""
    return {k: v for k, v in values.items() if v is not None and v not in ({}, [], ())}


def secret_env(name: str, secret: str, key: str) -> dict[str, Any]:
    """A variable whose value stands in a Secret."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
