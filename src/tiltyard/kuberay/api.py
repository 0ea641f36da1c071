"""What is asked of a Kubernetes API, as plain values: which object, its conditions, its events; and the errors.

`tiltyard.kuberay.client` asks a real one. Nothing here imports ``kubernetes``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tiltyard.errors import ClusterError

MANAGER = "tiltyard"
"""Field manager of every server-side apply, and so the sign of what is ours."""


class NotThereError(ClusterError):
    """404: there is no such object, or no such kind."""


class ExistsError(ClusterError):
    """409: an object of that name is there already."""


class ConflictError(ClusterError):
    """409: another manager holds a field that would be changed, or the object changed meanwhile."""


class ForbiddenError(ClusterError):
    """401 or 403: not known, or not allowed."""


class InvalidError(ClusterError):
    """400 or 422: refused as it stands."""


class AwayError(ClusterError):
    """No answer, 429 or 5xx, also after waiting and asking again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Where objects of a kind are."""

    api: str
    kind: str
    plural: str
    namespaced: bool = True


KINDS: dict[str, Kind] = {
    k.kind: k
    for k in (
        Kind(api="v1", kind="Namespace", plural="namespaces", namespaced=False),
        Kind(api="v1", kind="ServiceAccount", plural="serviceaccounts"),
        Kind(api="v1", kind="ConfigMap", plural="configmaps"),
        Kind(api="v1", kind="Secret", plural="secrets"),
        Kind(api="v1", kind="Service", plural="services"),
        Kind(api="v1", kind="Pod", plural="pods"),
        Kind(api="v1", kind="Event", plural="events"),
        Kind(api="v1", kind="ResourceQuota", plural="resourcequotas"),
        Kind(api="apps/v1", kind="Deployment", plural="deployments"),
        Kind(api="apps/v1", kind="StatefulSet", plural="statefulsets"),
        Kind(api="batch/v1", kind="CronJob", plural="cronjobs"),
        Kind(api="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets"),
        Kind(api="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"),
        Kind(api="networking.k8s.io/v1", kind="Ingress", plural="ingresses"),
        Kind(api="rbac.authorization.k8s.io/v1", kind="Role", plural="roles"),
        Kind(api="rbac.authorization.k8s.io/v1", kind="RoleBinding", plural="rolebindings"),
        Kind(api="monitoring.coreos.com/v1", kind="PodMonitor", plural="podmonitors"),
        Kind(api="cert-manager.io/v1", kind="Certificate", plural="certificates"),
        Kind(api="ray.io/v1", kind="RayCluster", plural="rayclusters"),
        Kind(api="ray.io/v1", kind="RayJob", plural="rayjobs"),
        Kind(api="ray.io/v1", kind="RayService", plural="rayservices"),
        Kind(api="ray.io/v1", kind="RayCronJob", plural="raycronjobs"),
        Kind(
            api="apiextensions.k8s.io/v1",
            kind="CustomResourceDefinition",
            plural="customresourcedefinitions",
            namespaced=False,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ref:
    """One object by kind, namespace and name."""

    kind: str
    name: str
    namespace: str | None = None

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Ref:
        """The object that a manifest describes."""
        metadata = manifest["metadata"]
        return cls(kind=manifest["kind"], name=metadata["name"], namespace=metadata.get("namespace"))

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.kind}/{self.name}{where}"


class Api(Protocol):
    """A Kubernetes API, as `tiltyard.kuberay` uses it. Objects are Kubernetes' own JSON."""

    def get(self, ref: Ref) -> dict[str, Any] | None:
        """The object, or None."""

    def list(self, kind: str, namespace: str | None, selector: str = "") -> list[dict[str, Any]]:
        """Objects of a kind, by labels."""

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False, force: bool = False) -> dict[str, Any]:
        """Server-side apply as `MANAGER`; the object as it then is."""

    def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """A new object; ``ExistsError`` where its name is taken."""

    def delete(self, ref: Ref, *, uid: str) -> bool:
        """Deletes exactly that object; False where it is gone."""

    def watch(self, ref: Ref, *, version: str, timeout_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
        """What happens to an object, until the time is over or the watch is closed."""
