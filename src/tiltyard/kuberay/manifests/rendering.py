"""All objects of a cluster, in the order in which they can be made; and the secrets that must be there before."""

from __future__ import annotations

from dataclasses import dataclass

from tiltyard.kuberay.manifests.access import accounts, disruption_budgets, members, namespaces, quotas
from tiltyard.kuberay.manifests.monitoring import pod_monitors
from tiltyard.kuberay.manifests.network import network_policies
from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.raycluster import raycluster
from tiltyard.kuberay.manifests.rayjob import rayjob
from tiltyard.kuberay.manifests.rayservice import ingress, rayservice
from tiltyard.kuberay.manifests.schedules import schedules
from tiltyard.kuberay.manifests.stores import mlflow, postgres
from tiltyard.kuberay.spec import ClusterSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedSecret:
    """A Secret that somebody must make: nothing here ever holds one."""

    namespace: str
    name: str
    keys: tuple[str, ...]
    why: str


def render(spec: ClusterSpec, serve_config: str = "") -> dict[str, list[Manifest]]:
    """Objects by the family they belong to, each family one file; families in the order in which they are applied.

    Args:
        spec: The cluster.
        serve_config: Text of the Serve config that ``spec.serving`` names.

    Raises:
        SpecError: If the Serve config is none.
    """
    serving = spec.serving
    families = {
        "namespaces": namespaces(spec),
        "access": [*accounts(spec), *members(spec), *quotas(spec), *disruption_budgets(spec)],
        "network": network_policies(spec),
        "postgres": postgres(spec),
        "mlflow": mlflow(spec, spec.mlflow) if spec.mlflow is not None else [],
        "raycluster": [raycluster(spec)],
        "serving": [rayservice(spec, serving, serve_config), *ingress(spec, serving)] if serving is not None else [],
        "schedules": schedules(spec),
        "monitoring": pod_monitors(spec),
    }
    return {name: objects for name, objects in families.items() if objects}


def render_jobs(spec: ClusterSpec) -> dict[str, Manifest]:
    """Each job as a RayJob, by name. They run once they are applied, so they are no part of the cluster."""
    return {job.name: rayjob(spec, job) for job in spec.jobs}


def wanted_secrets(spec: ClusterSpec) -> list[WantedSecret]:
    """Every Secret that the objects name, and the keys they read."""
    postgres_keys = ("journal-uri", *(("mlflow-uri",) if spec.mlflow else ()))
    if spec.postgres.in_cluster:
        postgres_keys = (*postgres_keys, "password")
    found = []
    for namespace in (spec.namespace, *(team.namespace for team in spec.teams)):
        shared = namespace == spec.namespace
        found.append(WantedSecret(namespace=namespace, name=spec.token_secret, keys=("auth_token",), why="Ray's token"))
        keys = postgres_keys if shared else ("journal-uri",)
        found.append(WantedSecret(namespace=namespace, name=spec.postgres.secret, keys=keys, why="journal and MLflow"))
        if spec.store.secret:
            found.append(WantedSecret(namespace=namespace, name=spec.store.secret, keys=(), why="the object store"))
    if spec.serving is not None:
        name, keys = spec.serving.tokens_secret, ("serving-tokens.json",)
        found.append(WantedSecret(namespace=spec.namespace, name=name, keys=keys, why="who may ask the champions"))
    if spec.redis is not None:
        name, keys = spec.redis.password_secret, (spec.redis.password_key,)
        found.append(WantedSecret(namespace=spec.namespace, name=name, keys=keys, why="Redis of the head"))
    return found
