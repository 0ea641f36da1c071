"""The Kubernetes API answers, refuses, is busy, hangs up or closes a watch: every error reaches the user with its reason."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import clusters
import kube_api
import pytest
import yaml

from tiltyard.errors import ClusterError, SpecError
from tiltyard.kuberay import api, applying, checking, starting, waiting
from tiltyard.kuberay.api import Ref
from tiltyard.kuberay.client import Kubernetes
from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.rendering import wanted_secrets

RAYCLUSTER = "/apis/ray.io/v1/namespaces/lab/rayclusters/lab"
REF = Ref(kind="RayCluster", name="lab", namespace="lab")
Connect = Callable[..., Kubernetes]


@pytest.fixture
def server() -> kube_api.KubeApi:
    return kube_api.KubeApi()


@pytest.fixture
def connect(server: kube_api.KubeApi, tmp_path: Path) -> Iterator[Connect]:
    with kube_api.serving(server) as url:
        config = kube_api.kubeconfig(tmp_path / "kubeconfig", url)
        opened: list[Kubernetes] = []

        def connected(**more: Any) -> Kubernetes:
            more = {"kubeconfig": config, "context": "test", "pause": lambda _: None, "patience_s": 5.0, **more}
            opened.append(Kubernetes(**more))
            return opened[-1]

        yield connected
        for kubernetes in opened:
            kubernetes.close()


def manifests() -> list[Manifest]:
    return [m for m in clusters.objects() if m["kind"] != "RayJob"]


def cluster_manifest() -> Manifest:
    return clusters.find(clusters.objects(), "RayCluster")


def test_apply_twice_creates_and_then_changes_nothing(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes, wanted = connect(), manifests()
    first = applying.apply(kubernetes, wanted)
    assert {s.what for s in first} == {applying.CREATED}
    versions = {p: o["metadata"]["resourceVersion"] for p, o in server.objects.items()}
    assert len(versions) == len(wanted)
    assert {s.what for s in applying.diff(kubernetes, wanted)} == {applying.SAME}
    assert {s.what for s in applying.apply(kubernetes, wanted)} == {applying.SAME}
    assert versions == {p: o["metadata"]["resourceVersion"] for p, o in server.objects.items()}
    asked = [path for method, path in server.requests if method == "PATCH"]
    assert all("fieldManager=tiltyard" in p and "fieldValidation=Strict" in p and "force=false" in p for p in asked)


def test_diff_tells_what_would_change_and_changes_nothing(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes, wanted = connect(), manifests()
    assert {s.what for s in applying.diff(kubernetes, wanted)} == {applying.CREATED}
    assert server.objects == {}
    applying.apply(kubernetes, wanted)
    changed = copy.deepcopy(wanted)
    cluster = clusters.find(changed, "RayCluster")
    cluster["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = 7
    del cluster["spec"]["gcsFaultToleranceOptions"]
    before = copy.deepcopy(server.objects)
    (step,) = [s for s in applying.diff(kubernetes, changed) if s.what != applying.SAME]
    assert (step.ref, step.what) == (REF, applying.CHANGED)
    assert "replace spec.autoscalerOptions.idleTimeoutSeconds = 7" in step.lines
    assert any("remove spec.gcsFaultToleranceOptions" in line for line in step.lines)
    assert server.objects == before
    (done,) = [s for s in applying.apply(kubernetes, changed) if s.what != applying.SAME]
    assert done.lines == step.lines


def test_field_that_another_manager_holds_is_a_conflict_until_it_is_taken(
    server: kube_api.KubeApi, connect: Connect
) -> None:
    kubernetes, wanted = connect(), cluster_manifest()
    theirs = copy.deepcopy(wanted)
    theirs["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = 1
    theirs["metadata"]["managedFields"] = [
        {"manager": "ann", "operation": "Apply", "fields": [["spec", "autoscalerOptions", "idleTimeoutSeconds"]]}
    ]
    server.put(RAYCLUSTER, theirs)
    with pytest.raises(api.ConflictError, match=r'conflict with "ann".*--force-conflicts'):
        applying.apply(kubernetes, [wanted])
    assert applying.apply(kubernetes, [wanted], force=True)[0].what == applying.CHANGED
    assert server.objects[RAYCLUSTER]["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] == 120


def test_delete_takes_what_is_ours_and_leaves_what_is_not(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes, wanted, spec = connect(), manifests(), clusters.full()
    applying.apply(kubernetes, wanted)
    stranger = server.objects[server.named("Deployment", "lab-mlflow")]
    stranger["metadata"]["managedFields"] = [{"manager": "ann", "operation": "Apply", "fields": []}]
    other = server.objects[server.named("StatefulSet", "lab-postgres")]
    other["metadata"]["labels"]["app.kubernetes.io/instance"] = "another-lab"
    server.put("/api/v1/namespaces/lab/configmaps/ann", {"kind": "ConfigMap", "metadata": {"name": "ann"}})
    steps = {str(s.ref): s.what for s in applying.delete(kubernetes, wanted, spec)}
    assert steps["Deployment/lab-mlflow in lab"] == steps["StatefulSet/lab-postgres in lab"] == applying.KEPT
    assert steps["Namespace/lab"] == applying.KEPT
    assert steps["RayCluster/lab in lab"] == applying.DELETED
    left = {(o["kind"], o["metadata"]["name"]) for o in server.objects.values()}
    namespaces = {("Namespace", n) for n in ("lab", "vision", "speech")}
    assert left == {("Deployment", "lab-mlflow"), ("StatefulSet", "lab-postgres"), ("ConfigMap", "ann")} | namespaces
    again = {s.what for s in applying.delete(kubernetes, wanted, spec, namespaces=True)}
    assert again == {applying.GONE, applying.KEPT, applying.DELETED}
    assert not any(o["kind"] == "Namespace" for o in server.objects.values())


def test_object_replaced_between_look_and_deletion_is_not_deleted(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes, wanted = connect(), cluster_manifest()
    applying.apply(kubernetes, [wanted])

    def replace(method: str, path: str) -> None:
        if method == "DELETE":
            server.objects[path]["metadata"]["uid"] = "of-a-new-one"

    server.before = replace
    with pytest.raises(api.ConflictError, match="UID in the precondition"):
        applying.delete(kubernetes, [wanted], clusters.full())
    assert RAYCLUSTER in server.objects


def test_what_is_described_no_more_is_named_and_kept(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes = connect()
    applying.apply(kubernetes, manifests())
    fewer = clusters.full(monitoring=None)
    less = [m for m in clusters.objects(fewer) if m["kind"] != "RayJob"]
    left = applying.left_over(kubernetes, less, fewer)
    assert {(r.kind, r.name) for r in left} >= {("PodMonitor", "lab-heads"), ("PodMonitor", "lab-workers")}
    assert {r.kind for r in left} == {"PodMonitor", "NetworkPolicy", "Deployment"}
    assert server.named("PodMonitor", "lab-heads")


@pytest.mark.parametrize(
    ("code", "reason", "wanted", "said"),
    [
        (401, "Unauthorized", api.ForbiddenError, "Log in anew"),
        (403, "Forbidden", api.ForbiddenError, "Ask who runs the cluster"),
        (404, "NotFound", api.NotThereError, "Is KubeRay installed"),
        (409, "Conflict", api.ConflictError, "--force-conflicts"),
        (409, "AlreadyExists", api.ExistsError, "the reason of the server"),
        (422, "Invalid", api.InvalidError, "tiltyard cluster validate"),
        (400, "BadRequest", api.InvalidError, "Mend the description"),
        (429, "TooManyRequests", api.AwayError, "Asked again in vain"),
        (500, "InternalError", api.AwayError, "Asked again in vain"),
    ],
)
def test_refusal_reaches_the_user_with_the_servers_reason(
    server: kube_api.KubeApi, connect: Connect, code: int, reason: str, wanted: type[ClusterError], said: str
) -> None:
    server.before = lambda *_: (code, reason, "the reason of the server")
    kubernetes = connect(patience_s=0.0)
    with pytest.raises(wanted, match=said) as refused:
        kubernetes.apply(cluster_manifest())
    assert f"answered {code} to apply RayCluster/lab in lab: the reason of the server" in str(refused.value)
    assert kube_api.TOKEN not in str(refused.value)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_busy_server_is_asked_again_as_long_as_it_says(server: kube_api.KubeApi, connect: Connect, code: int) -> None:
    left = iter([code, code])
    server.retry_after = "1"

    def busy(*_: str) -> tuple[int, str, str] | None:
        now = next(left, None)
        return (now, "Busy", "later") if now else None

    server.before = busy
    waited: list[float] = []
    assert connect(pause=waited.append).apply(cluster_manifest())["kind"] == "RayCluster"
    assert waited == ([1.0, 1.0] if code != 500 else [0.5, 1.0])


def test_server_that_hangs_up_is_asked_again_but_a_creation_is_not(server: kube_api.KubeApi, connect: Connect) -> None:
    lost = iter([0])

    def hang_up(*_: str) -> tuple[int, str, str] | None:
        return (0, "", "") if next(lost, None) == 0 else None

    server.before = hang_up
    assert connect().get(REF) is None
    lost = iter([0])
    with pytest.raises(api.AwayError, match="did not answer a request to create"):
        connect().create(cluster_manifest())
    assert [m for m, _ in server.requests].count("POST") == 1


def test_server_that_does_not_answer_in_time_is_given_up(server: kube_api.KubeApi, connect: Connect) -> None:
    held = threading.Event()

    def hold(*_: str) -> None:
        held.wait(timeout=30)

    server.before = hold
    try:
        with pytest.raises(api.AwayError, match="did not answer"):
            connect(answer_s=0.2, patience_s=0.0).get(REF)
    finally:
        held.set()


def test_server_that_is_not_there_or_no_api_is_told(tmp_path: Path, connect: Connect, server: kube_api.KubeApi) -> None:
    with pytest.raises(api.AwayError, match=r"127.0.0.1:9 did not answer"):
        connect(context="elsewhere", patience_s=0.0).get(REF)
    with pytest.raises(ClusterError, match=r"No way to Kubernetes.*context 'none'"):
        connect(context="none")
    with pytest.raises(ClusterError, match="No way to Kubernetes"):
        connect(kubeconfig=str(tmp_path / "nowhere"))
    server.answer = lambda *_: (200, ["no", "object"])  # type: ignore[assignment]
    with pytest.raises(ClusterError, match="did not answer as a Kubernetes API does"):
        connect().get(REF)


def test_wrong_token_is_refused(connect: Connect, server: kube_api.KubeApi, tmp_path: Path) -> None:
    text = (tmp_path / "kubeconfig").read_text().replace(kube_api.TOKEN, "wrong")
    (tmp_path / "wrong").write_text(text)
    with pytest.raises(api.ForbiddenError, match="answered 401") as refused:
        connect(kubeconfig=str(tmp_path / "wrong")).get(REF)
    assert "wrong" not in str(refused.value)


def test_context_and_its_namespace_are_honoured_and_the_kubeconfig_is_not_touched(
    connect: Connect, server: kube_api.KubeApi, tmp_path: Path
) -> None:
    from kubernetes import client

    before = (tmp_path / "kubeconfig").read_bytes(), client.Configuration.get_default_copy().host
    kubernetes = connect()
    kubernetes.get(REF)
    assert kubernetes.namespace == "tiltyard"
    assert before == ((tmp_path / "kubeconfig").read_bytes(), client.Configuration.get_default_copy().host)


# -- waiting ----------------------------------------------------------------------------------------------------------

POD = "/api/v1/namespaces/lab/pods/lab-head"
STUCK: dict[str, tuple[dict[str, Any], str]] = {
    "image": (
        {"containerStatuses": [{"name": "ray-head", "state": {"waiting": {
            "reason": "ImagePullBackOff", "message": "registry.example/tiltyard:1 not found"}}}]},
        r"ImagePullBackOff: registry.example/tiltyard:1 not found\nPush the image"),
    "node": (
        {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                         "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}]},
        r"Insufficient nvidia.com/gpu\nNo node fits"),
    "crash": (
        {"containerStatuses": [{"name": "ray-head", "state": {"terminated": {"reason": "OOMKilled"}}}]},
        r"ray-head: OOMKilled\nLook closer: kubectl -n lab describe raycluster lab"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("status", "said"), STUCK.values(), ids=STUCK.keys())
def test_cluster_that_never_becomes_ready_is_given_up_with_its_pods_reasons(
    server: kube_api.KubeApi, connect: Connect, status: dict[str, Any], said: str
) -> None:
    kubernetes = connect()
    applying.apply(kubernetes, [cluster_manifest()])
    labels = {"ray.io/cluster": "lab"}
    server.put(POD, {"kind": "Pod", "metadata": {"name": "lab-head", "labels": labels}, "status": status})
    with pytest.raises(
        ClusterError, match=rf"RayCluster/lab in lab is not ready after 0 s.*\n  pod lab-head: .*{said}"
    ):
        waiting.wait(kubernetes, [REF], timeout_s=0.3)


def test_reasons_of_a_job_come_from_its_cluster_and_its_submitting_pod(
    server: kube_api.KubeApi, connect: Connect
) -> None:
    kubernetes, manifest = connect(), night()
    kubernetes.create(manifest)
    path = job_path(server, manifest)
    server.set_status(path, jobDeploymentStatus="Initializing", rayClusterName="night-x7k2p")
    name = manifest["metadata"]["name"]
    for pod, labels in (
        ("worker", {"ray.io/cluster": "night-x7k2p"}),
        ("submitter", {"job-name": name}),
        ("other", {}),
    ):
        status = {"containerStatuses": [{"name": "c", "state": {"waiting": {"reason": "ErrImagePull"}}}]}
        server.put(
            f"/api/v1/namespaces/lab/pods/{pod}",
            {"kind": "Pod", "metadata": {"name": pod, "labels": labels}, "status": status},
        )
    found = waiting.reasons(kubernetes, Ref.of(manifest))
    assert found == ["pod worker: c: ErrImagePull", "pod submitter: c: ErrImagePull"]


@pytest.mark.slow
def test_quota_that_is_used_up_is_told_from_the_events(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes = connect()
    applying.apply(kubernetes, [cluster_manifest()])
    event = {
        "kind": "Event", "type": "Warning", "reason": "FailedToCreateHeadPod", "metadata": {"name": "e"},
        "involvedObject": {"name": "lab"}, "message": "pods is forbidden: exceeded quota: lab-quota",
    }  # fmt: skip
    server.put("/api/v1/namespaces/lab/events/e", event)
    with pytest.raises(ClusterError, match=r"exceeded quota: lab-quota\nThe quota is used up"):
        waiting.wait(kubernetes, [REF], timeout_s=0.2)


def test_wait_goes_on_through_closed_watches_until_all_is_ready(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes = connect()
    applying.apply(kubernetes, [cluster_manifest()])
    server.watch_closes_after = 1
    steps: Iterator[dict[str, Any]] = iter(
        [
            {"conditions": [{"type": "HeadPodReady", "status": "False", "message": "containers not ready"}]},
            {"conditions": [{"type": "HeadPodReady", "status": "True", "reason": "HeadPodRunningAndReady"}]},
            {"state": "ready", "readyWorkerReplicas": 1, "desiredWorkerReplicas": 1},
        ]
    )

    def step(path: str) -> None:
        found = next(steps, None)
        if found is not None:
            server.set_status(path, **found)

    server.on_watch = step
    told: list[str] = []
    waiting.wait(kubernetes, [REF], timeout_s=60, say=lambda _, s: told.append(s.text), pause=lambda _: None)
    assert told[1:] == ["containers not ready", "HeadPodRunningAndReady", "1 of 1 workers"]
    assert sum("watch=true" in path for _, path in server.requests) >= 3


@pytest.mark.parametrize(
    ("status", "what"),
    [
        ({}, "waiting"),
        ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "waiting"),
        ({"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED"}, "waiting"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "ready"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "failed"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "FAILED"}, "failed"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded"}, "failed"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no entrypoint"}, "failed"),
    ],
)
def test_state_of_a_rayjob_is_told_truthfully(status: dict[str, str], what: str) -> None:
    assert waiting.state_of({"kind": "RayJob", "metadata": {}, "status": status}).what == what


# -- one RayJob a logical date ----------------------------------------------------------------------------------------


def night(date: str = "20261125") -> Manifest:
    return starting.dated(clusters.find(clusters.objects(), "RayJob", "night"), date)


def job_path(server: kube_api.KubeApi, manifest: Manifest) -> str:
    return server.named("RayJob", manifest["metadata"]["name"])


@pytest.mark.parametrize(
    ("status", "good", "said"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, True, "Complete SUCCEEDED"),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad"}, False, "bad"),
        (
            {"jobDeploymentStatus": "Failed", "reason": "PreRunningDeadlineExceeded"},
            False,
            "PreRunningDeadlineExceeded",
        ),
    ],
)
def test_night_that_is_started_twice_is_one_job_and_both_tell_its_end(
    server: kube_api.KubeApi, connect: Connect, status: dict[str, str], good: bool, said: str
) -> None:
    kubernetes, manifest = connect(), night()
    server.on_watch = lambda path: server.set_status(path, **status)
    first = starting.start(kubernetes, manifest, timeout_s=60, pause=lambda _: None)
    second = starting.start(kubernetes, manifest, timeout_s=60, pause=lambda _: None)
    assert (first.created, second.created) == (True, False)
    assert (first.succeeded, second.succeeded) == (good, good)
    assert said in second.state.text
    assert sum(o["kind"] == "RayJob" for o in server.objects.values()) == 1
    there = server.objects[job_path(server, manifest)]["spec"]
    assert there["metadata"][starting.LOGICAL_DATE] == "20261125"
    assert there["entrypoint"] == "python x.py --date '2026-11-25'"


@pytest.mark.slow
def test_night_that_is_deleted_or_never_ends_is_an_error(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes = connect()
    server.on_watch = server.remove
    with pytest.raises(ClusterError, match="was deleted while it was waited for"):
        starting.start(kubernetes, night(), timeout_s=60, pause=lambda _: None)
    server.on_watch = lambda _: None
    with pytest.raises(ClusterError, match="has not ended after 0 s: New"):
        starting.start(kubernetes, night("20261126"), timeout_s=0.2)


def test_logical_date_is_that_of_the_tick_in_its_time_zone() -> None:
    tick = starting.scheduled_at("nightly-29401905", "nightly")
    assert tick is not None
    assert tick.isoformat() == "2025-11-25T23:45:00+00:00"
    assert starting.logical_date(tick, time_zone="Europe/Berlin", per="day") == "20251126"
    assert starting.logical_date(tick, time_zone="Etc/UTC", per="minute") == "20251125-2345"
    assert starting.scheduled_at("nightly-manual-xk2", "nightly") is None
    assert starting.scheduled_at("other-29401905", "nightly") is None
    with pytest.raises(SpecError, match="at most 47"):
        starting.dated({"kind": "RayJob", "metadata": {"name": "n" * 40}, "spec": {}}, "20261125")
    with pytest.raises(SpecError, match="Wanted: YYYYMMDD"):
        night("2026-11-25")
    with pytest.raises(SpecError, match="a RayJob is wanted"):
        starting.dated(cluster_manifest(), "20261125")


# -- checks that ask the cluster --------------------------------------------------------------------------------------


def test_schemas_come_from_the_connected_cluster_and_are_closed(server: kube_api.KubeApi, connect: Connect) -> None:
    kubernetes = connect()
    assert checking.connected_schemas(kubernetes) is None
    schema = {
        "type": "object",
        "properties": {
            "metadata": {"type": "object"},
            "spec": {"type": "object", "properties": {"rayVersion": {"type": "string"}}},
        },
    }
    crd = {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayclusters.ray.io"},
        "spec": {
            "group": "ray.io",
            "names": {"kind": "RayCluster"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}],
        },
    }
    server.put("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/rayclusters.ray.io", crd)
    crds = checking.connected_schemas(kubernetes)
    assert crds is not None
    told = [str(p) for p in checking.problems(manifests(), crds=crds, unknown_fields=lambda _: [])]
    assert any("authOptions" in t and "unexpected" in t for t in told)
    assert any("RayService" in t and "no CRD of it is there" in t for t in told)
    with pytest.raises(ClusterError, match=r"so nothing was sent:\n  RayCluster/lab"):
        checking.refuse(checking.problems([cluster_manifest()], crds=crds, unknown_fields=lambda _: []))
    server.before = lambda *_: (403, "Forbidden", "no")
    assert checking.connected_schemas(kubernetes) is None


def test_missing_secrets_and_keys_are_named_and_their_values_are_not(
    server: kube_api.KubeApi, connect: Connect
) -> None:
    kubernetes, wanted = connect(), wanted_secrets(clusters.full())
    assert len(checking.missing_secrets(kubernetes, wanted)) == len(wanted)
    for secret in wanted:
        path = f"/api/v1/namespaces/{secret.namespace}/secrets/{secret.name}"
        data = dict.fromkeys(secret.keys, "czNjcmV0")
        data.pop("mlflow-uri", None)
        server.put(path, {"kind": "Secret", "metadata": {"name": secret.name}, "data": data})
    (left,) = checking.missing_secrets(kubernetes, wanted)
    assert left == "Secret tiltyard-postgres in lab (journal and MLflow) lacks the key mlflow-uri"


def test_lists_come_in_pages_and_are_put_together(server: kube_api.KubeApi, connect: Connect) -> None:
    real = server.answer

    def paged(method: str, path: str, query: Any, body: bytes) -> tuple[int, dict[str, Any]]:
        code, answer = real(method, path, query, body)
        if "items" in answer:
            at = int(query.get("continue", 0))
            answer = {
                **answer,
                "items": answer["items"][at : at + 1],
                "metadata": {"continue": str(at + 1) if at < 2 else ""},
            }
        return code, answer

    server.answer = paged  # type: ignore[method-assign]
    for name in ("a", "b", "c"):
        server.put(f"/api/v1/namespaces/lab/pods/{name}", {"kind": "Pod", "metadata": {"name": name}})
    assert [p["metadata"]["name"] for p in connect().list("Pod", "lab")] == ["a", "b", "c"]


def test_yaml_of_every_manifest_reads_back_as_it_was() -> None:
    for manifest in clusters.objects():
        assert yaml.safe_load(yaml.safe_dump(manifest)) == manifest
