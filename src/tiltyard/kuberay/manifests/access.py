"""Who may do what: namespaces, service accounts with least rights, quotas, and what may be evicted."""

from __future__ import annotations

from typing import Any

from tiltyard.kuberay.manifests.objects import COMPONENT, INSTANCE, Manifest, manifest
from tiltyard.kuberay.manifests.rayservice import SERVING, service_name
from tiltyard.kuberay.manifests.schedules import account
from tiltyard.kuberay.spec import ClusterSpec, Quota, Team

_RESTRICTED = {
    "pod-security.kubernetes.io/enforce": "restricted",
    "pod-security.kubernetes.io/enforce-version": "latest",
}


def namespaces(spec: ClusterSpec) -> list[Manifest]:
    """The shared namespace and each team's; pods that want to be root are refused in them."""
    names = [spec.namespace, *(team.namespace for team in spec.teams)]
    return [
        manifest(spec, api="v1", kind="Namespace", name=name, component="namespace", labels=_RESTRICTED)
        for name in names
    ]


def accounts(spec: ClusterSpec) -> list[Manifest]:
    """The account of the nightly pods, which may create RayJobs and look at them and at their pods."""
    if not spec.schedules or spec.scheduler != "cronjob":
        return []
    name = account(spec)
    rules = [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["get", "list"]},
    ]
    return [
        manifest(
            spec,
            api="v1",
            kind="ServiceAccount",
            name=name,
            namespace=spec.namespace,
            component="nights",
            automountServiceAccountToken=False,
        ),
        _role(spec, name, spec.namespace, rules),
        _binding(
            spec,
            name,
            spec.namespace,
            {"kind": "ServiceAccount", "name": name, "namespace": spec.namespace},
        ),
    ]


def members(spec: ClusterSpec) -> list[Manifest]:
    """What a team may do in its namespace: a Role for the group ``tiltyard:TEAM`` of the cluster's users."""
    rules = [
        {
            "apiGroups": ["ray.io"],
            "resources": ["rayjobs"],
            "verbs": ["create", "get", "list", "watch", "patch", "delete"],
        },
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create", "get", "patch", "delete"]},
        {"apiGroups": [""], "resources": ["pods", "pods/log", "events"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["create"]},
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [spec.token_secret],
            "verbs": ["get"],
        },
    ]
    found = []
    for team in spec.teams:
        group = {"kind": "Group", "name": f"tiltyard:{team.name}", "apiGroup": "rbac.authorization.k8s.io"}
        found += [
            _role(spec, f"{spec.name}-members", team.namespace, rules),
            _binding(spec, f"{spec.name}-members", team.namespace, group),
        ]
    return found


def quotas(spec: ClusterSpec) -> list[Manifest]:
    """The most that each namespace may ask for."""
    found = [_quota(spec, team.namespace, team.quota, _gpu_resources(spec)) for team in spec.teams]
    if spec.quota is not None:
        found.insert(0, _quota(spec, spec.namespace, spec.quota, _gpu_resources(spec)))
    return found


def disruption_budgets(spec: ClusterSpec) -> list[Manifest]:
    """The head is not drained away under running sweeps; champions are drained one at a time."""
    head = {"ray.io/cluster": spec.name, "ray.io/node-type": "head"}
    found = [_budget(spec, f"{spec.name}-head", head, {"minAvailable": 1})]
    if spec.serving is not None:
        serving = {INSTANCE: spec.name, COMPONENT: SERVING}
        found.append(_budget(spec, service_name(spec), serving, {"maxUnavailable": 1}))
    return found


def _gpu_resources(spec: ClusterSpec) -> list[str]:
    return sorted({g.pod.gpu_resource for g in spec.workers if g.pod.gpus}) or ["nvidia.com/gpu"]


def _quota(spec: ClusterSpec, namespace: str, quota: Quota, gpu_resources: list[str]) -> Manifest:
    hard: dict[str, str] = {
        "requests.cpu": quota.cpu,
        "requests.memory": quota.memory,
        "limits.cpu": quota.cpu,
        "limits.memory": quota.memory,
        "pods": str(quota.pods),
        **{f"requests.{name}": str(quota.gpus) for name in gpu_resources},
        "services.loadbalancers": "0",
        "services.nodeports": "0",
    }
    return manifest(
        spec,
        api="v1",
        kind="ResourceQuota",
        name=f"{spec.name}-quota",
        namespace=namespace,
        component="quota",
        spec={"hard": hard},
    )


def _budget(spec: ClusterSpec, name: str, selector: dict[str, str], how: dict[str, int]) -> Manifest:
    return manifest(
        spec,
        api="policy/v1",
        kind="PodDisruptionBudget",
        name=name,
        namespace=spec.namespace,
        component="availability",
        spec={**how, "selector": {"matchLabels": selector}},
    )


def _role(spec: ClusterSpec, name: str, namespace: str, rules: list[dict[str, Any]]) -> Manifest:
    return manifest(
        spec,
        api="rbac.authorization.k8s.io/v1",
        kind="Role",
        name=name,
        namespace=namespace,
        component="access",
        rules=rules,
    )


def _binding(spec: ClusterSpec, name: str, namespace: str, subject: dict[str, str]) -> Manifest:
    return manifest(
        spec,
        api="rbac.authorization.k8s.io/v1",
        kind="RoleBinding",
        name=name,
        namespace=namespace,
        component="access",
        roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        subjects=[subject],
    )


def team_of(spec: ClusterSpec, name: str | None) -> Team | None:
    """The team of that name; None for none."""
    return spec.team(name) if name is not None else None
