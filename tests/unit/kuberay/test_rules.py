"""KubeRay's rules that a CRD cannot say: each broken once, in a manifest that holds otherwise."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import clusters
import pytest

from tiltyard.kuberay import models, rules
from tiltyard.kuberay.checking import problems
from tiltyard.kuberay.client import unknown_fields

Change = Callable[[dict[str, Any]], Any]


def group(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["workerGroupSpecs"][0]
    return found


CLUSTER: dict[str, tuple[Change, str]] = {
    "no token": (lambda s: s.pop("authOptions"), "authOptions.*anybody who reaches 8265"),
    "token off": (lambda s: s["authOptions"].update(mode="disabled"), "mode.*Wanted: token"),
    "no version": (lambda s: s.update(rayVersion=""), "rayVersion.*is empty"),
    "old for a token": (lambda s: s.update(rayVersion="2.51.0"), "needs Ray 2.52"),
    "old for Kubernetes' token": (
        lambda s: (s.update(rayVersion="2.54.0"), s["authOptions"].update(enableK8sTokenAuth=True)), "need Ray 2.55"),
    "alpha: policy": (lambda s: s.update(networkPolicy={}), "RayClusterNetworkPolicy, which is off"),
    "alpha: mTLS": (lambda s: s.update(tlsOptions={}), "RayClusterMTLS, which is off"),
    "alpha: rocksdb": (lambda s: s.update(gcsFaultToleranceOptions={"backend": "rocksdb"}), "EmbeddedStorage, which is off"),
    "wrong strategy": (lambda s: s.update(upgradeStrategy={"type": "Rolling"}), "wanted Recreate or None"),
    "work on the head": (lambda s: s["headGroupSpec"].update(rayStartParams={}), "num-cpus.*wanted '0'"),
    "a number": (lambda s: s["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "wanted a string"),
    "GPU on the head": (
        lambda s: s["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"].update({"nvidia.com/gpu": "1"}),
        "held by nobody's work"),
    "open": (lambda s: s["headGroupSpec"].update(serviceType="LoadBalancer"), "opens 8265"),
    "ingress": (lambda s: s["headGroupSpec"].update(enableIngress=True), "opens the dashboard"),
    "no bound": (lambda s: group(s).pop("maxReplicas"), "no bound"),
    "minimum above maximum": (lambda s: group(s).update(minReplicas=9), "is 9, above maxReplicas 4"),
    "replicas outside": (lambda s: group(s).update(replicas=9), "is 9; wanted 1 to 4"),
    "fixed without bounds": (
        lambda s: (s.update(enableInTreeAutoscaling=False), s.pop("autoscalerOptions"), group(s).pop("minReplicas")),
        "both minReplicas and maxReplicas"),
    "negative": (lambda s: group(s).update(idleTimeoutSeconds=-1), "is below 0"),
    "idle without v2": (lambda s: s["autoscalerOptions"].update(version="v1"), "idleTimeoutSeconds.*needs the autoscaler v2"),
    "priority of an older Ray": (lambda s: (s.update(rayVersion="2.55.0"), group(s).update(priority=1)), "needs.*Ray 2.56"),
    "labels": (lambda s: group(s)["rayStartParams"].update(labels="a=b"), "use the group's own `labels`"),
    "CPUs beside GPUs": (
        lambda s: s["workerGroupSpecs"][1].update(resources={"CPU": "7"}), "work without GPUs would take such a node"),
    "CPUs beside GPUs, unsaid": (lambda s: s["workerGroupSpecs"][1].pop("resources"), "Wanted '0'.*as gpu_node_cpu"),
    "counted GPUs": (lambda s: group(s)["rayStartParams"].update({"num-gpus": "1"}), "follows from the container's limits"),
    "said twice": (
        lambda s: (group(s).update(resources={"CPU": "4"}), group(s)["rayStartParams"].update({"num-cpus": "4"})),
        "beside the group's `resources`"),
    "restarts": (lambda s: group(s)["template"]["spec"].update(restartPolicy="Always"), "takes none or Never"),
    "two groups of a name": (lambda s: s["workerGroupSpecs"][1].update(groupName="cpu"), "'cpu' is there twice"),
    "options without scaling": (lambda s: s.update(enableInTreeAutoscaling=False), "has no effect"),
}  # fmt: skip
RULE = {"policy": "DeleteCluster", "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 5}}
JOB: dict[str, tuple[Change, str]] = {
    "mode": (lambda s: s.update(submissionMode="HTTP"), "the CRD takes any text"),
    "entrypoint": (lambda s: s.pop("entrypoint"), "entrypoint: is missing"),
    "deadline": (lambda s: s.pop("activeDeadlineSeconds"), "a dead driver cannot stop"),
    "deadline 0": (lambda s: s.update(preRunningDeadlineSeconds=0), "wanted more than 0"),
    "retries": (lambda s: s.update(backoffLimit=-1), "backoffLimit: is below 0"),
    "env": (lambda s: s.update(runtimeEnvYAML="a: ["), "runtimeEnvYAML: cannot be read"),
    "env list": (lambda s: s.update(runtimeEnvYAML="- a"), "wanted a mapping"),
    "resources": (lambda s: s.update(entrypointResources="{a"), "entrypointResources: cannot be read"),
    "ttl": (lambda s: s.update(ttlSecondsAfterFinished=5), "needs shutdownAfterJobFinishes"),
    "both ends": (lambda s: s.update(shutdownAfterJobFinishes=True), "exclude each other"),
    "no end": (lambda s: s.pop("deletionStrategy"), "never gives its cluster back"),
    "workers scale": (
        lambda s: s["deletionStrategy"]["deletionRules"].append({**RULE, "policy": "DeleteWorkers"}), "scales by itself"),
    "twice": (lambda s: s["deletionStrategy"]["deletionRules"].append(RULE), "there twice for the same end"),
    "order": (
        lambda s: s["deletionStrategy"]["deletionRules"][3]["condition"].update(ttlSeconds=1), "comes later than DeleteSelf"),
    "no condition": (lambda s: s["deletionStrategy"]["deletionRules"][0].update(condition={}), "one of them"),
    "suspended": (lambda s: s.update(suspend=True), "needs shutdownAfterJobFinishes"),
    "selected": (lambda s: (s.update(clusterSelector={"ray.io/cluster": "x"}), s.pop("rayClusterSpec")), "refused with clusterS"),
    "selected nothing": (lambda s: s.update(clusterSelector={}), "wanted ray.io/cluster"),
    "neither": (lambda s: s.pop("rayClusterSpec"), "neither rayClusterSpec nor clusterSelector"),
    "strategy inside": (lambda s: s["rayClusterSpec"].update(upgradeStrategy={"type": "Recreate"}), "not allowed in the cluster"),
    "Kubernetes' token": (lambda s: s["rayClusterSpec"]["authOptions"].update(enableK8sTokenAuth=True), "refused in a RayJob"),
}  # fmt: skip
SERVICE: dict[str, tuple[Change, str]] = {
    "config": (lambda s: s.update(serveConfigV2="a: 1"), "applications"),
    "config text": (lambda s: s.update(serveConfigV2="a: ["), "cannot be read"),
    "upgrade": (lambda s: s.update(upgradeStrategy={"type": "Blue"}), "wanted NewCluster"),
    "incremental": (
        lambda s: (s.update(upgradeStrategy={"type": "NewClusterWithIncrementalUpgrade"}),
                   s["rayClusterConfig"].update(enableInTreeAutoscaling=False)),
        "needs enableInTreeAutoscaling"),
    "field": (lambda s: s.update(rayClusterSpec=s.pop("rayClusterConfig")), "is called rayClusterConfig"),
}  # fmt: skip
CRON: dict[str, tuple[Change, str]] = {
    "overlap": (lambda s: s.update(concurrencyPolicy="Allow"), "must not overlap"),
    "missed": (lambda s: s.pop("startingDeadlineSeconds"), "startingDeadlineSeconds: is missing"),
    "zone": (lambda s: s.pop("timeZone"), "timeZone: is missing"),
}
CASES = [
    (kind, name, change, said)
    for kind, cases in {"RayCluster": CLUSTER, "RayJob": JOB, "RayService": SERVICE, "CronJob": CRON}.items()
    for name, (change, said) in cases.items()
]


@pytest.mark.parametrize(("kind", "name", "change", "said"), CASES, ids=[f"{k}: {n}" for k, n, *_ in CASES])
def test_manifest_that_breaks_one_rule_is_told_where_and_what_is_wanted(
    kind: str, name: str, change: Change, said: str
) -> None:
    manifest = clusters.find(clusters.objects(), kind)
    assert rules.check(manifest) == [], "it holds before"
    change(manifest["spec"])
    told = "\n".join(map(str, rules.check(manifest)))
    assert told, name
    assert_said(said, told)


def assert_said(said: str, told: str) -> None:
    assert re.search(said, told), told


@pytest.mark.parametrize(("kind", "limit"), [("RayCluster", 53), ("RayJob", 47), ("RayService", 47)])
def test_name_too_long_or_beginning_with_a_digit_is_told_with_its_limit(kind: str, limit: int) -> None:
    manifest = clusters.find(clusters.objects(), kind)
    manifest["metadata"]["name"] = "n" * limit
    assert rules.check(manifest) == []
    manifest["metadata"]["name"] = "n" * (limit + 1)
    (problem,) = rules.check(manifest)
    assert f"has {limit + 1} characters; a {kind}'s name has at most {limit}" in str(problem)
    manifest["metadata"]["name"] = "1st"
    assert_said("beginning with a letter", str(rules.check(manifest)[0]))


def test_features_that_are_on_open_their_fields() -> None:
    manifest = clusters.find(clusters.objects(), "RayCluster")
    manifest["spec"]["networkPolicy"] = {"mode": "DenyAll"}
    assert rules.check(manifest, features={"RayClusterNetworkPolicy"}) == []


def test_raycronjob_is_refused_until_its_gate_is_named() -> None:
    spec = clusters.full(scheduler="raycronjob")
    manifest = clusters.find(clusters.objects(spec), "RayCronJob")
    assert_said("alpha and off", str(rules.check(manifest)[0]))
    assert rules.check(manifest, features={"RayCronJob"}) == []


def test_job_in_kueues_queue_must_be_one_that_kueue_can_admit() -> None:
    manifest = clusters.find(clusters.objects(), "RayJob")
    manifest["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "q"
    paths = {p.path for p in rules.check(manifest)}
    assert paths == {
        "spec.shutdownAfterJobFinishes",
        "spec.deletionStrategy",
        "spec.rayClusterSpec.enableInTreeAutoscaling",
    }


@pytest.mark.parametrize(
    ("kind", "path", "said"),
    [
        ("RayJob", "spec.entrypointt", "Extra inputs"),
        ("RayCluster", "spec.headGroupSpec.template.spec.containers.0.imagee", "Extra inputs"),
        ("RayCluster", "spec.workerGroupSpecs.0.maxReplicas", "valid integer"),
        ("RayService", "spec.serveConfigV3", "Extra inputs"),
    ],
)
def test_typed_models_are_closed_and_strict(kind: str, path: str, said: str) -> None:
    manifest = clusters.find(clusters.objects(), kind)
    assert models.problems(manifest) == []
    place: Any = manifest
    *parts, last = path.split(".")
    for part in parts:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = "4"
    ((where, text),) = models.problems(manifest)
    assert where.replace("[", ".").replace("]", "") == path
    assert said in text


def test_unknown_field_of_a_kubernetes_kind_is_told_with_its_path() -> None:
    manifest = clusters.find(clusters.objects(), "Deployment")
    manifest["spec"]["template"]["spec"]["containers"][0]["imagePullPolicyy"] = "Never"
    manifest["spec"]["strategyy"] = {}
    told = sorted(str(p) for p in problems([manifest], crds=None, unknown_fields=unknown_fields))
    assert told == [
        "Deployment/lab-mlflow spec.strategyy: is no field of V1DeploymentSpec",
        "Deployment/lab-mlflow spec.template.spec.containers[0].imagePullPolicyy: is no field of V1Container",
    ]
