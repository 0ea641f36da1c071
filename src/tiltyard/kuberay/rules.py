"""KubeRay's own rules that a schema cannot say, and the few of this project: pure functions from a manifest to problems.

Source: KubeRay 1.7 (``ray-operator/controllers/ray/utils/validation.go`` and ``raycluster_types.go``), read on 2026-11-24. A
manifest that breaks one of them passes the API server and then is not reconciled, or runs as nobody wanted: a cluster without
a token, a group without a bound, a job that waits for ever.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import yaml

from tiltyard.placement import GPU_NODE_CPU

Manifest = Mapping[str, Any]

NAME_LIMITS = {"RayCluster": 53, "RayJob": 47, "RayService": 47, "RayCronJob": 36, "CronJob": 52}
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_UNBOUNDED = 2147483647
_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")
_QUEUE = "kueue.x-k8s.io/queue-name"
GATES = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "rocksdb": "GCSFaultToleranceEmbeddedStorage",
    "RayCronJob": "RayCronJob",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that cannot be right: where, what was found, and what is wanted."""

    kind: str
    name: str
    path: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name} {self.path}: {self.text}"


Found = Iterator[tuple[str, str]]


def check(manifest: Manifest, *, features: Iterable[str] = ()) -> list[Problem]:
    """Every rule that a manifest breaks; kinds that no rule is about break none.

    Args:
        manifest: One object.
        features: Feature gates of the operator that are on beside its defaults.
    """
    kind, name = manifest.get("kind", ""), manifest.get("metadata", {}).get("name", "")
    on = frozenset(features)
    rule = _KINDS.get(kind)
    found = [*_name(manifest), *(rule(manifest, on) if rule is not None else ())]
    return [Problem(kind=kind, name=name, path=path, text=text) for path, text in found]


def _name(manifest: Manifest) -> Found:
    kind, name = manifest.get("kind", ""), manifest.get("metadata", {}).get("name", "")
    limit = NAME_LIMITS.get(kind)
    if limit is None:
        return
    if len(name) > limit:
        yield "metadata.name", f"{name!r} has {len(name)} characters; a {kind}'s name has at most {limit}"
    if not _DNS_1035.fullmatch(name):
        yield "metadata.name", f"{name!r}; wanted lower case letters, digits and '-', beginning with a letter"


def _raycluster(manifest: Manifest, on: frozenset[str]) -> Found:
    yield from _cluster(manifest["spec"], "spec", on, inside=None)


def _cluster(spec: Mapping[str, Any], at: str, on: frozenset[str], *, inside: str | None) -> Found:
    """A RayClusterSpec; ``inside`` is the kind that brings it, if any."""
    yield from _auth(spec, at, inside)
    yield from _gates(spec, at, on)
    if inside and "upgradeStrategy" in spec:
        yield f"{at}.upgradeStrategy", f"not allowed in the cluster of a {inside}"
    strategy = spec.get("upgradeStrategy", {}).get("type")
    if strategy not in {None, "Recreate", "None"}:
        yield f"{at}.upgradeStrategy.type", f"{strategy!r}; wanted Recreate or None"
    scales = bool(spec.get("enableInTreeAutoscaling"))
    options = spec.get("autoscalerOptions", {})
    if options and not scales:
        yield f"{at}.autoscalerOptions", "has no effect while enableInTreeAutoscaling is off"
    v2 = scales and (options.get("version") == "v2" or (options.get("version") is None and _at_least(spec, 2, 47)))
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield f"{at}.autoscalerOptions.idleTimeoutSeconds", "is below 0"
    yield from _head(spec.get("headGroupSpec", {}), f"{at}.headGroupSpec", v2=v2)
    groups = spec.get("workerGroupSpecs", [])
    names = [group.get("groupName") for group in groups]
    for index, group in enumerate(groups):
        where = f"{at}.workerGroupSpecs[{index}]"
        if names.count(group.get("groupName")) > 1:
            yield f"{where}.groupName", f"{group.get('groupName')!r} is there twice"
        yield from _group(group, where, spec, scales=scales, v2=v2)


def _auth(spec: Mapping[str, Any], at: str, inside: str | None) -> Found:
    auth = spec.get("authOptions")
    version = spec.get("rayVersion", "")
    if not version:
        yield f"{at}.rayVersion", "is empty; token authentication then is refused. Say the image's Ray version"
    if auth is None:
        yield f"{at}.authOptions", "is missing, so nothing asks for a token: anybody who reaches 8265 runs code"
        return
    if auth.get("mode") == "disabled":
        yield f"{at}.authOptions.mode", "is 'disabled': anybody who reaches 8265 runs code. Wanted: token"
    if auth.get("mode") == "token" and version and not _at_least(spec, 2, 52):
        yield f"{at}.rayVersion", f"is {version}; token authentication needs Ray 2.52 or newer"
    if auth.get("enableK8sTokenAuth"):
        if inside:
            yield f"{at}.authOptions.enableK8sTokenAuth", f"is refused in a {inside}"
        if version and not _at_least(spec, 2, 55):
            yield f"{at}.rayVersion", f"is {version}; Kubernetes' tokens need Ray 2.55 or newer"


def _gates(spec: Mapping[str, Any], at: str, on: frozenset[str]) -> Found:
    used = [field for field in ("networkPolicy", "tlsOptions") if field in spec]
    if spec.get("gcsFaultToleranceOptions", {}).get("backend") == "rocksdb":
        used.append("rocksdb")
    for field in used:
        if GATES[field] not in on:
            yield (
                f"{at}.{field if field != 'rocksdb' else 'gcsFaultToleranceOptions.backend'}",
                f"is behind the operator's gate {GATES[field]}, which is off: the cluster would not be reconciled. Turn it on "
                "there and name it in features, or leave the field out",
            )


def _head(head: Mapping[str, Any], at: str, *, v2: bool) -> Found:
    params = head.get("rayStartParams", {})
    yield from _start_params(head, at)
    if params.get("num-cpus") != "0":
        yield (
            f"{at}.rayStartParams.num-cpus",
            f"is {params.get('num-cpus')!r}; wanted '0' (a string), so that no task runs on the head",
        )
    for container in _containers(head):
        gpus = [n for n in container.get("resources", {}).get("limits", {}) if n.endswith("/gpu")]
        if gpus:
            yield (
                f"{at}.template",
                f"asks for {gpus[0]}; the head runs no tasks, so a GPU there is held by nobody's work",
            )
    if head.get("serviceType") not in {None, "ClusterIP"}:
        yield f"{at}.serviceType", f"{head['serviceType']!r} opens 8265, 10001 and 6379 outside. Wanted: ClusterIP"
    if head.get("enableIngress"):
        yield f"{at}.enableIngress", "opens the dashboard outside. Reach it with kubectl port-forward"
    yield from _restart_policy(head, at, v2=v2)


def _group(group: Mapping[str, Any], at: str, spec: Mapping[str, Any], *, scales: bool, v2: bool) -> Found:
    yield from _start_params(group, at)
    yield from _gpu_group(group, at)
    few, many, now = (group.get(n) for n in ("minReplicas", "maxReplicas", "replicas"))
    if not scales and (few is None or many is None):
        yield at, "without autoscaling both minReplicas and maxReplicas must be said"
    if many is None or many >= _UNBOUNDED:
        yield f"{at}.maxReplicas", "is not said, and KubeRay's default is 2147483647: no bound. Say one"
    least = few or 0
    if many is not None and least > many:
        yield f"{at}.minReplicas", f"is {few}, above maxReplicas {many}"
    if now is not None and many is not None and not least <= now <= many:
        yield f"{at}.replicas", f"is {now}; wanted {least} to {many}"
    if group.get("idleTimeoutSeconds", 0) < 0:
        yield f"{at}.idleTimeoutSeconds", "is below 0"
    if "idleTimeoutSeconds" in group and not v2:
        yield f"{at}.idleTimeoutSeconds", "of a group needs the autoscaler v2"
    if "priority" in group and not (v2 and _at_least(spec, 2, 56)):
        yield f"{at}.priority", "needs the autoscaler v2 and Ray 2.56 or newer"
    yield from _restart_policy(group, at, v2=v2)


def _gpu_group(group: Mapping[str, Any], at: str) -> Found:
    limits = [n for c in _containers(group) for n in c.get("resources", {}).get("limits", {}) if n.endswith("gpu")]
    cpus = group.get("resources", {}).get("CPU", group.get("rayStartParams", {}).get("num-cpus"))
    if limits and cpus != "0":
        yield (
            f"{at}.resources.CPU",
            f"is {cpus!r} beside {limits[0]}: work without GPUs would take such a node and hold it. Wanted '0' (a string), with "
            f"the CPUs as {GPU_NODE_CPU}",
        )


def _start_params(group: Mapping[str, Any], at: str) -> Found:
    params = group.get("rayStartParams")
    if params is None:
        yield f"{at}.rayStartParams", "is missing; write {}"
        return
    if "labels" in params:
        yield f"{at}.rayStartParams.labels", "is refused; use the group's own `labels`"
    if "num-gpus" in params:
        yield f"{at}.rayStartParams.num-gpus", "follows from the container's limits; leave it out"
    counted = sorted({"num-cpus", "num-gpus", "memory", "resources"} & set(params))
    if group.get("resources") and counted:
        yield f"{at}.rayStartParams.{counted[0]}", "is refused beside the group's `resources`; say one of them"
    for name, value in params.items():
        if not isinstance(value, str):
            yield f"{at}.rayStartParams.{name}", f"is {value!r}; wanted a string"


def _restart_policy(group: Mapping[str, Any], at: str, *, v2: bool) -> Found:
    policy = group.get("template", {}).get("spec", {}).get("restartPolicy")
    if v2 and policy not in {None, "", "Never"}:
        yield f"{at}.template.spec.restartPolicy", f"is {policy!r}; the autoscaler v2 takes none or Never"


def _rayjob(manifest: Manifest, on: frozenset[str]) -> Found:
    queued = _QUEUE in manifest.get("metadata", {}).get("labels", {})
    yield from _job(manifest["spec"], "spec", on, queued=queued)


def _job(spec: Mapping[str, Any], at: str, on: frozenset[str], *, queued: bool) -> Found:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in _MODES:
        yield f"{at}.submissionMode", f"{mode!r} (the CRD takes any text); wanted one of {', '.join(_MODES)}"
    if mode != "InteractiveMode" and not spec.get("entrypoint"):
        yield f"{at}.entrypoint", "is missing"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if name in spec and spec[name] <= 0:
            yield f"{at}.{name}", f"is {spec[name]}; wanted more than 0"
    if "activeDeadlineSeconds" not in spec:
        yield f"{at}.activeDeadlineSeconds", "is missing: a dead driver cannot stop its cluster, so a deadline must"
    if spec.get("backoffLimit", 0) < 0:
        yield f"{at}.backoffLimit", "is below 0"
    yield from _json_fields(spec, at)
    yield from _job_end(spec, at)
    selector = spec.get("clusterSelector")
    if selector is not None:
        yield from _selected(spec, at, selector, mode)
    elif "rayClusterSpec" not in spec:
        yield at, "has neither rayClusterSpec nor clusterSelector"
    else:
        yield from _cluster(spec["rayClusterSpec"], f"{at}.rayClusterSpec", on, inside="RayJob")
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield f"{at}.suspend", "needs shutdownAfterJobFinishes: true"
    if queued:
        yield from _queued(spec, at)


def _json_fields(spec: Mapping[str, Any], at: str) -> Found:
    for name, read in (("runtimeEnvYAML", yaml.safe_load), ("entrypointResources", json.loads)):
        if name in spec:
            try:
                found = read(spec[name])
            except (ValueError, yaml.YAMLError) as error:
                yield f"{at}.{name}", f"cannot be read: {str(error).splitlines()[0]}"
                continue
            if not isinstance(found, dict):
                yield f"{at}.{name}", f"is {type(found).__name__}; wanted a mapping"


def _job_end(spec: Mapping[str, Any], at: str) -> Found:
    shuts, ttl = bool(spec.get("shutdownAfterJobFinishes")), spec.get("ttlSecondsAfterFinished", 0)
    if ttl < 0 or (ttl > 0 and not shuts):
        yield f"{at}.ttlSecondsAfterFinished", f"is {ttl}; above 0 it needs shutdownAfterJobFinishes: true"
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if rules and shuts:
        yield f"{at}.deletionStrategy", "and shutdownAfterJobFinishes exclude each other"
    if not rules and not shuts and "clusterSelector" not in spec:
        yield at, "never gives its cluster back: say deletionStrategy or shutdownAfterJobFinishes"
    scales = spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling")
    seconds: dict[tuple[Any, Any], dict[str, int]] = {}
    for index, rule in enumerate(rules):
        where, policy, condition = (
            f"{at}.deletionStrategy.deletionRules[{index}]",
            rule.get("policy"),
            rule.get("condition", {}),
        )
        if ("jobStatus" in condition) == ("jobDeploymentStatus" in condition):
            yield f"{where}.condition", "wanted jobStatus or jobDeploymentStatus, one of them"
        if policy == "DeleteWorkers" and scales:
            yield f"{where}.policy", "DeleteWorkers is refused where the cluster scales by itself"
        if policy in {"DeleteWorkers", "DeleteCluster"} and "clusterSelector" in spec:
            yield f"{where}.policy", f"{policy} is refused with clusterSelector"
        end = (condition.get("jobStatus"), condition.get("jobDeploymentStatus"))
        if policy in seconds.setdefault(end, {}):
            yield where, f"{policy} is there twice for the same end"
        seconds[end][policy] = condition.get("ttlSeconds", 0)
    for policies in seconds.values():
        order = [(p, policies[p]) for p in ("DeleteWorkers", "DeleteCluster", "DeleteSelf") if p in policies]
        for (first, early), (second, late) in pairwise(order):
            if early > late:
                yield f"{at}.deletionStrategy", f"{first} after {early} s comes later than {second} after {late} s"


def _selected(spec: Mapping[str, Any], at: str, selector: Mapping[str, str], mode: str) -> Found:
    if not selector.get("ray.io/cluster"):
        yield f"{at}.clusterSelector", "wanted ray.io/cluster: NAME"
    for name, wrong in (
        ("suspend", spec.get("suspend")),
        ("submissionMode", mode == "SidecarMode"),
        ("backoffLimit", spec.get("backoffLimit", 0) > 0),
    ):
        if wrong:
            yield f"{at}.{name}", f"{spec.get(name)!r} is refused with clusterSelector"


def _queued(spec: Mapping[str, Any], at: str) -> Found:
    if not spec.get("shutdownAfterJobFinishes"):
        yield f"{at}.shutdownAfterJobFinishes", "must be true where Kueue admits the job"
    if "clusterSelector" in spec:
        yield f"{at}.clusterSelector", "is refused where Kueue admits the job: it must bring its own cluster"
    if spec.get("deletionStrategy", {}).get("deletionRules"):
        yield f"{at}.deletionStrategy", "is refused where Kueue admits the job"
    if spec.get("rayClusterSpec", {}).get("enableInTreeAutoscaling"):
        yield f"{at}.rayClusterSpec.enableInTreeAutoscaling", "Kueue admits a cluster as a whole; say fixed replicas"


def _rayservice(manifest: Manifest, on: frozenset[str]) -> Found:
    spec = manifest["spec"]
    try:
        config = yaml.safe_load(spec.get("serveConfigV2", ""))
        if not isinstance(config, dict) or not isinstance(config.get("applications"), list):
            yield "spec.serveConfigV2", "wanted YAML with `applications:`, a list"
    except yaml.YAMLError as error:
        yield "spec.serveConfigV2", f"cannot be read: {str(error).splitlines()[0]}"
    kind = spec.get("upgradeStrategy", {}).get("type")
    if kind not in {None, "NewCluster", "NewClusterWithIncrementalUpgrade", "None"}:
        yield "spec.upgradeStrategy.type", f"{kind!r}; wanted NewCluster, NewClusterWithIncrementalUpgrade or None"
    if "rayClusterSpec" in spec:
        yield "spec.rayClusterSpec", "is called rayClusterConfig in a RayService"
    if "rayClusterConfig" in spec:
        if kind == "NewClusterWithIncrementalUpgrade" and not spec["rayClusterConfig"].get("enableInTreeAutoscaling"):
            yield "spec.upgradeStrategy.type", "an incremental upgrade needs enableInTreeAutoscaling"
        yield from _cluster(spec["rayClusterConfig"], "spec.rayClusterConfig", on, inside="RayService")


def _raycronjob(manifest: Manifest, on: frozenset[str]) -> Found:
    if GATES["RayCronJob"] not in on:
        yield (
            "kind",
            "RayCronJob is alpha and off. Use scheduler='cronjob', or turn its gate on and name it in features",
        )
    template = manifest["spec"].get("jobTemplate", {})
    yield from _job(template, "spec.jobTemplate", on, queued=False)
    rules = template.get("deletionStrategy", {}).get("deletionRules", [])
    if not any(rule.get("policy") == "DeleteSelf" for rule in rules):
        yield (
            "spec.jobTemplate.deletionStrategy",
            "finished RayJobs pile up without a rule DeleteSelf: there is no history limit",
        )


def _cronjob(manifest: Manifest, _: frozenset[str]) -> Found:
    spec = manifest["spec"]
    if spec.get("concurrencyPolicy") != "Forbid":
        yield (
            "spec.concurrencyPolicy",
            f"is {spec.get('concurrencyPolicy')!r}; wanted Forbid: two nights must not overlap",
        )
    for name in ("startingDeadlineSeconds", "timeZone", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
        if name not in spec:
            yield f"spec.{name}", "is missing"


_KINDS: dict[str, Callable[[Manifest, frozenset[str]], Found]] = {
    "RayCluster": _raycluster,
    "RayJob": _rayjob,
    "RayService": _rayservice,
    "RayCronJob": _raycronjob,
    "CronJob": _cronjob,
}


def _at_least(spec: Mapping[str, Any], major: int, minor: int) -> bool:
    found = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    return found is not None and (int(found[1]), int(found[2])) >= (major, minor)


def _containers(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(group.get("template", {}).get("spec", {}).get("containers", []))
