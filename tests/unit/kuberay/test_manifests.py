"""What is rendered: safe by default, bounded, with the same versions everywhere, and current in the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clusters
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.kuberay import rules
from tiltyard.kuberay.checking import problems
from tiltyard.kuberay.client import unknown_fields
from tiltyard.kuberay.description import variants
from tiltyard.kuberay.files import files, patch, rendered, stale, write
from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.rayjob import STOP_WAIT_S, rayjob
from tiltyard.kuberay.manifests.rayservice import with_tokens
from tiltyard.kuberay.manifests.rendering import wanted_secrets
from tiltyard.placement import NodeGroup, groups_of
from tiltyard.submit.request import STOP_WAIT_S as STOP_WAIT_OF_A_SUBMISSION

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
CONFIGS = {"serve/champion.yaml": clusters.SERVE_CONFIG}
CRDS = ROOT.parent / "shared" / "kuberay-crds"


def walk(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a manifest with its path."""
    yield at, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from walk(item, f"{at}.{key}")


def pods(manifests: list[Manifest]) -> list[tuple[str, dict[str, Any]]]:
    """Every pod of every object: where it stands, and its body."""
    return [
        (f"{m['kind']}/{m['metadata']['name']}{at}", value)
        for m in manifests
        for at, value in walk(m)
        if isinstance(value, dict) and "containers" in value
    ]


def test_everything_that_is_rendered_holds_by_types_and_rules() -> None:
    found = problems(clusters.objects(), crds=None, unknown_fields=unknown_fields)
    assert found == []


@pytest.mark.slow
@pytest.mark.skipif(
    not CRDS.is_dir(), reason="KubeRay's CRDs are not beside the repository; tiltyard cluster validate --crds DIR"
)
def test_everything_that_is_rendered_holds_by_kuberays_own_crds() -> None:
    from tiltyard.kuberay.schemas import from_folder

    crds = from_folder(CRDS)
    spec = clusters.full(scheduler="raycronjob", features=frozenset({"RayCronJob"}))
    every = [*clusters.objects(), *clusters.objects(spec)]
    assert problems(every, crds=crds, unknown_fields=unknown_fields, features=spec.features) == []
    job = clusters.find(every, "RayJob", "sweep")
    job["spec"]["entrypointt"] = "x"
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagee"] = "x"
    told = [str(p) for p in problems([job], crds=crds, unknown_fields=unknown_fields)]
    assert any("entrypointt" in t for t in told)
    assert any("imagee" in t for t in told)


def test_committed_files_are_current() -> None:
    wanted = files(variants(CLUSTER / "cluster.py"), CONFIGS)
    old = [
        name for name, text in wanted.items() if not (CLUSTER / name).exists() or (CLUSTER / name).read_text() != text
    ]
    assert not old, f"cluster/cluster.py and {old} differ: tiltyard cluster render"
    assert stale(CLUSTER, wanted) == []


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl, whose kustomize builds the overlays")
@pytest.mark.parametrize("overlay", ["dev", "gpu"])
def test_overlay_built_by_kustomize_is_what_its_description_says(overlay: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER / "overlays" / overlay)],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    spec = variants(CLUSTER / "cluster.py")[overlay]
    wanted = [m for family in rendered(spec, CONFIGS).values() for m in family]
    key = lambda m: (m["kind"], m["metadata"].get("namespace", ""), m["metadata"]["name"])  # noqa: E731
    assert sorted(yaml.safe_load_all(built), key=key) == sorted(wanted, key=key)


def test_every_ray_cluster_asks_for_the_shared_token_and_puts_no_work_on_its_head() -> None:
    bodies = [v for m in clusters.objects() for _, v in walk(m) if isinstance(v, dict) and "headGroupSpec" in v]
    assert len(bodies) == 4  # the shared one, the champions', and two jobs'; the night's template is text
    for body in bodies:
        assert body["authOptions"] == {"mode": "token", "secretName": "tiltyard-ray-token"}
        head = body["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert head["serviceType"] == "ClusterIP"
        limits = head["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert not any("gpu" in name for name in limits)
        assert all(g["maxReplicas"] < 100 for g in body["workerGroupSpecs"])
        assert {c["containerPort"] for c in head["template"]["spec"]["containers"][0]["ports"]} >= {44217, 44227, 8080}


def test_gpus_are_only_in_groups_that_cpu_work_does_not_reach() -> None:
    cluster = clusters.find(clusters.objects(), "RayCluster")
    cpu, gpu = cluster["spec"]["workerGroupSpecs"]
    assert "tolerations" not in cpu["template"]["spec"]
    body = gpu["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in body["tolerations"]
    assert body["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert (gpu["minReplicas"], gpu["priority"], gpu["idleTimeoutSeconds"]) == (0, 10, 120)
    assert "num-gpus" not in gpu["rayStartParams"]
    assert gpu["resources"] == {"CPU": "0", "gpu_node_cpu": "7"}
    assert gpu["labels"] == {"kind": "spot", "tiltyard.dev/gpu-node": "true"}
    assert not {"resources", "labels"} & set(cpu)


def told_groups(body: dict[str, Any]) -> list[list[NodeGroup]]:
    """What every Ray pod of a cluster is told of its groups."""
    templates = [g["template"] for g in (body["headGroupSpec"], *body["workerGroupSpecs"])]
    envs = [t["spec"]["containers"][0]["env"] for t in templates]
    return [groups_of({e["name"]: e.get("value", "") for e in env}) for env in envs]


def test_every_ray_pod_is_told_what_its_own_cluster_may_become() -> None:
    shared = clusters.find(clusters.objects(), "RayCluster")["spec"]
    cpu, gpu = told_groups(shared)[0]
    assert (cpu.most, cpu.offers, cpu.store_bytes) == (4, {"CPU": 4}, int(0.9 * 4 * 2**30))
    assert (gpu.most, gpu.offers) == (8, {"CPU": 0, "GPU": 1, "gpu_node_cpu": 7})
    assert told_groups(shared) == [[cpu, gpu]] * 3
    job = clusters.find(clusters.objects(), "RayJob", "sweep")["spec"]["rayClusterSpec"]
    assert [g.most for g in told_groups(job)[0]] == [2, 4], "the bounds of the job, not of the shared cluster"
    spec = clusters.full()
    queued = rayjob(spec, spec.job("sweep"), team=spec.team("speech"))["spec"]["rayClusterSpec"]
    assert [g.most for g in told_groups(queued)[0]] == [2, 4]
    assert [g["replicas"] for g in queued["workerGroupSpecs"]] == [2, 4]


def test_object_store_fits_into_shared_memory_where_its_size_is_said() -> None:
    body = clusters.find(clusters.objects(), "RayCluster")["spec"]
    head, (cpu, gpu) = body["headGroupSpec"], body["workerGroupSpecs"]
    assert head["rayStartParams"]["object-store-memory"] == str(int(0.9 * 2 * 2**30))
    assert cpu["rayStartParams"] == {"object-store-memory": str(int(0.9 * 4 * 2**30))}
    assert gpu["rayStartParams"] == {}, "Ray's own share of the memory, and KubeRay's /dev/shm of the whole of it"


def test_every_pod_is_not_root_and_asks_for_what_it_may_use() -> None:
    found = pods(clusters.objects())
    assert len(found) >= 10
    for where, body in found:
        assert body["securityContext"]["runAsNonRoot"] is True, where
        assert body["securityContext"]["runAsUser"] > 0, where
        assert body["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for container in body["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, where
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, where
            assert set(container["resources"]) == {"requests", "limits"}, where
            assert ":latest" not in container["image"], where


def test_no_manifest_holds_a_secret_and_every_secret_it_names_is_told() -> None:
    spec, manifests = clusters.full(), clusters.objects()
    assert not [m for m in manifests if m["kind"] == "Secret"]
    told = {(s.namespace, s.name) for s in wanted_secrets(spec)}
    for manifest in manifests:
        namespace = manifest["metadata"].get("namespace", "")
        for at, value in walk(manifest):
            if at.endswith((".secretKeyRef", ".secretRef")):
                assert (namespace, value["name"]) in told, (manifest["kind"], at, value)
            if at.endswith((".authOptions.secretName", ".secret.secretName")):
                assert (namespace, value) in told, (manifest["kind"], at, value)
    text = yaml.safe_dump_all(manifests)
    assert not re.search(r"postgres(ql)?(\+psycopg)?://[^/\s]*:[^/\s]*@", text)


OPENED = {
    6379: "gcs",
    10001: "client",
    8265: "dashboard",
    8080: "metrics",
    44217: "metrics",
    44227: "metrics",
    5000: "mlflow",
}


def test_nothing_from_outside_reaches_ray_metrics_or_mlflow() -> None:
    policies = [m for m in clusters.objects() if m["kind"] == "NetworkPolicy"]
    for namespace in ("lab", "vision", "speech"):
        mine = [p for p in policies if p["metadata"]["namespace"] == namespace]
        closed = next(p for p in mine if p["metadata"]["name"] == "lab-closed")
        assert closed["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": []}
        for policy in mine:
            for opening in policy["spec"]["ingress"]:
                assert opening["from"], f"{policy['metadata']['name']} opens to everybody"
                ports = {p["port"] for p in opening.get("ports", [])}
                for source in opening["from"]:
                    assert "ipBlock" not in source
                    outside = (
                        source.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                    )
                    allowed = {
                        "kuberay-system": {8265, 8000, 52365},
                        "monitoring": {8080, 44217, 44227, 9105},
                        "ingress-nginx": {8000},
                        "vision": {5000, 5432},
                        "speech": {5000, 5432},
                        None: ports,
                    }[outside]
                    assert ports <= allowed, (policy["metadata"]["name"], outside, ports)
                    if outside in {"vision", "speech"}:
                        assert "podSelector" in source, "of another namespace only Ray's pods"
    (ingress,) = [m for m in clusters.objects() if m["kind"] == "Ingress"]
    (rule,) = ingress["spec"]["rules"]
    assert [p["backend"]["service"]["port"]["number"] for p in rule["http"]["paths"]] == [8000]
    services = [m for m in clusters.objects() if m["kind"] == "Service"]
    assert {s["spec"]["type"] for s in services} == {"ClusterIP"}


def test_policies_and_budgets_select_pods_that_there_are() -> None:
    """By labels of our templates, and those that KubeRay adds to a pod."""
    kuberays = {"ray.io/node-type", "ray.io/cluster"}
    manifests = clusters.objects()
    labels = [
        value["metadata"]["labels"]
        for m in manifests
        for _, value in walk(m)
        if isinstance(value, dict) and "containers" in value.get("spec", {})
    ]
    for m in manifests:
        if m["kind"] in {"NetworkPolicy", "PodDisruptionBudget"}:
            selector = m["spec"].get("podSelector") or m["spec"].get("selector") or {}
            wanted = {k: v for k, v in selector.get("matchLabels", {}).items() if k not in kuberays}
            assert any(wanted.items() <= found.items() for found in labels), (m["metadata"]["name"], wanted)
            assert {e["key"] for e in selector.get("matchExpressions", [])} <= kuberays


def test_mlflow_knows_its_own_names_and_runs_no_jobs() -> None:
    (deployment,) = [
        m for m in clusters.objects() if m["kind"] == "Deployment" and m["metadata"]["name"].endswith("mlflow")
    ]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    args = " ".join(container["args"])
    assert "lab-mlflow.lab.svc:5000" in args
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert env["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert env["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    cluster = clusters.find(clusters.objects(), "RayCluster")
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    uri = next(e["value"] for e in head["env"] if e["name"] == "TILTYARD_TRACKING_URI")
    assert uri.removeprefix("http://") in args


def test_night_is_a_cronjob_that_neither_overlaps_nor_stampedes_nor_reads_more_than_it_must() -> None:
    manifests = clusters.objects()
    night = clusters.find(manifests, "CronJob")["spec"]
    assert (night["concurrencyPolicy"], night["timeZone"], night["startingDeadlineSeconds"]) == (
        "Forbid",
        "Europe/Berlin",
        3600,
    )
    pod = night["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"][:3] == ["tiltyard", "cluster", "start"]
    assert night["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [3]
    role = clusters.find(manifests, "Role", pod["serviceAccountName"])
    verbs = {r: set(rule["verbs"]) for rule in role["rules"] for r in rule["resources"]}
    assert verbs == {"rayjobs": {"create", "get", "list", "watch"}, "pods": {"get", "list"}, "events": {"get", "list"}}
    template = yaml.safe_load(clusters.find(manifests, "ConfigMap")["data"]["job.yaml"])
    assert rules.check(template) == []
    assert template["spec"]["activeDeadlineSeconds"] == 600


def test_raycronjob_has_no_place_holder_left_for_a_date() -> None:
    spec = clusters.full(scheduler="raycronjob", features=frozenset({"RayCronJob"}))
    job = clusters.find(clusters.objects(spec), "RayCronJob")["spec"]["jobTemplate"]
    assert job["entrypoint"] == 'python x.py --date "$(date -u +%F)"'


def test_jobs_have_deadlines_and_give_their_clusters_back() -> None:
    job = clusters.find(clusters.objects(), "RayJob", "sweep")["spec"]
    assert (job["activeDeadlineSeconds"], job["preRunningDeadlineSeconds"]) == (3600, 1800)
    rules_by_end = {(r["policy"], next(iter(r["condition"]))) for r in job["deletionStrategy"]["deletionRules"]}
    assert ("DeleteCluster", "jobDeploymentStatus") in rules_by_end
    env = yaml.safe_load(job["runtimeEnvYAML"])["env_vars"]
    assert env["RAY_JOB_STOP_WAIT_TIME_S"] == str(STOP_WAIT_S) == str(STOP_WAIT_OF_A_SUBMISSION)


def test_jobs_of_the_repositorys_cluster_run_files_that_are_there() -> None:
    for name, spec in variants(CLUSTER / "cluster.py").items():
        for job in spec.jobs:
            assert job.command[0] == "python"
            assert (ROOT / job.command[1]).is_file(), f"cluster/cluster.py ({name}) runs {job.command[1]}"


def test_serving_reads_its_tokens_from_the_mounted_secret_and_imports_a_real_application() -> None:
    service = clusters.find(clusters.objects(), "RayService")["spec"]
    config = yaml.safe_load(service["serveConfigV2"])
    (application,) = config["applications"]
    folder, _, name = application["args"]["tokens"].rpartition("/")
    worker = service["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]
    mounts = {m["mountPath"]: m["name"] for m in worker["containers"][0]["volumeMounts"]}
    volume = next(v for v in worker["volumes"] if v["name"] == mounts[folder])
    assert volume["secret"]["secretName"] == "tiltyard-serving-tokens"
    assert name == "serving-tokens.json"
    module, _, function = application["import_path"].partition(":")
    assert f"def {function}(" in (ROOT / f"{module.replace('.', '/')}.py").read_text()
    with pytest.raises(SpecError, match="no Serve config"):
        with_tokens("applications: 3", "x.yaml")


def test_images_and_versions_of_the_repositorys_cluster_are_those_of_the_pins() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, spec in variants(CLUSTER / "cluster.py").items():
        assert spec.ray_version == pins["ray"], (
            f"cluster/cluster.py ({name}) and constraints.txt differ in Ray's version"
        )
        images = [spec.image, *(g.image for g in spec.workers if g.image)]
        for image in images:
            assert image.name.endswith(f":{project['version']}"), (
                f"{image.name} and pyproject.toml differ in the version"
            )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b/c", "d~e", "f"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON), st.dictionaries(st.sampled_from("abc"), JSON))
@settings(max_examples=200)
def test_patch_of_any_two_values_makes_one_of_the_other(before: dict[str, Any], now: dict[str, Any]) -> None:
    import jsonpatch

    steps = patch(before, now)
    assert jsonpatch.apply_patch(before, steps) == now
    assert (steps == []) == (before == now)


def test_write_removes_what_was_rendered_before_and_leaves_what_was_not(tmp_path: Path) -> None:
    wanted = files({"base": clusters.full(), "small": clusters.full(teams=())}, CONFIGS)
    assert set(write(tmp_path, wanted)) == set(wanted)
    assert write(tmp_path, wanted) == []
    (tmp_path / "base" / "mine.yaml").write_text("a: 1\n")
    less = files({"base": clusters.full(monitoring=None)}, CONFIGS)
    assert "base/monitoring.yaml" in write(tmp_path, less)
    assert (tmp_path / "base" / "mine.yaml").exists()
    assert not (tmp_path / "overlays" / "small" / "kustomization.yaml").exists()
