"""``tiltyard cluster`` and ``tiltyard submit`` as a shell sees them, against small servers on loopback."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kube_api
import pytest
import yaml
from ray_head import RayHead
from ray_head import serving as ray_serving

from tiltyard import cli

ROOT = Path(__file__).parents[3]
SPEC = """
import sys
sys.path.insert(0, {support!r})
import clusters
def cluster():
    return clusters.full()
def small():
    return clusters.full(serving=None, monitoring=None, teams=(), schedules=())
"""
Run = Callable[..., str]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kube_api.KubeApi]:
    found = kube_api.KubeApi()
    with kube_api.serving(found) as url:
        monkeypatch.setenv("KUBECONFIG", kube_api.kubeconfig(tmp_path / "kubeconfig", url))
        yield found


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("TILTYARD_CLUSTER_URL", "TILTYARD_CLUSTERS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    work = tmp_path / "work"
    (work / "cluster").mkdir(parents=True)
    (work / "serve").mkdir()
    (work / "cluster" / "cluster.py").write_text(SPEC.format(support=str(ROOT / "tests" / "support")))
    (work / "serve" / "champion.yaml").write_text((ROOT / "serve" / "champion.yaml").read_text())
    (work / "job.py").write_text("print('hello')\n")
    monkeypatch.chdir(work)

    def tiltyard(*args: object, code: int = 0) -> str:
        with pytest.raises(SystemExit) as left:
            cli.main([*map(str, args)])
        out, err = capsys.readouterr()
        assert (left.value.code or 0) == code, out + err
        return str(out + err)

    return tiltyard


ON = ("--context", "test")


def test_render_writes_files_that_check_and_kustomize_hold_current(run: Run) -> None:
    assert "changed" in run("cluster", "render")
    assert "are current" in run("cluster", "render", "--check")
    assert "0 changed" in run("cluster", "render")
    Path("cluster/base/raycluster.yaml").write_text("# mine\n")
    assert "base/raycluster.yaml. Write them anew" in run("cluster", "render", "--check", code=1)


def test_validate_without_a_cluster_uses_the_projects_own_types(run: Run) -> None:
    assert "by the project's own types" in run("cluster", "validate")
    assert "no 'big'; it describes base, small" in run("cluster", "validate", "--overlay", "big", code=1)
    assert "holds no CRD" in run("cluster", "validate", "--crds", "serve", code=1)


@pytest.mark.slow
def test_apply_diff_status_and_delete_tell_one_story(run: Run, server: kube_api.KubeApi) -> None:
    assert "would change" in run("cluster", "diff", "--overlay", "small", *ON, code=1)
    first = run("cluster", "apply", "--overlay", "small", *ON)
    assert "created" in first
    assert "Missing: Secret tiltyard-ray-token in lab (Ray's token) is not there" in first
    again = run("cluster", "apply", "--overlay", "small", *ON)
    assert "unchanged." in again
    assert "created" not in again
    assert "0 of " in run("cluster", "diff", "--overlay", "small", *ON)
    held = run("cluster", "status", "--overlay", "small", *ON, code=1)
    assert "RayCluster/lab" in held
    assert "StatefulSet/lab-postgres in lab is not ready after 1 s" in run(
        "cluster", "wait", "--overlay", "small", "--timeout", 1, *ON, code=1
    )
    server.set_status(server.named("RayCluster", "lab"), state="ready")
    assert "Ready: RayCluster/lab." in run("cluster", "wait", "--overlay", "small", "--for", "RayCluster", *ON)
    for kind, name in (("Deployment", "lab-mlflow"), ("StatefulSet", "lab-postgres")):
        server.set_status(server.named(kind, name), readyReplicas=1)
    assert "Ready: " in run("cluster", "wait", "--overlay", "small", *ON)
    run("cluster", "status", "--overlay", "small", *ON)
    assert "deleted" in run("cluster", "delete", "--overlay", "small", "--yes", *ON)
    assert {o["kind"] for o in server.objects.values()} == {"Namespace"}


def test_namespace_option_moves_everything_and_the_current_context_is_left_alone(
    run: Run, server: kube_api.KubeApi
) -> None:
    run("cluster", "apply", "--overlay", "small", "--namespace", "elsewhere", *ON)
    assert {o["metadata"].get("namespace", o["metadata"]["name"]) for o in server.objects.values()} == {"elsewhere"}


def test_apply_of_what_cannot_be_right_sends_nothing(run: Run, server: kube_api.KubeApi) -> None:
    spec = Path("cluster/cluster.py")
    spec.write_text(spec.read_text() + "def alpha():\n    return clusters.full(scheduler='raycronjob')\n")
    told = run("cluster", "apply", "--overlay", "alpha", *ON, code=1)
    assert "RayCronJob is alpha and off" in told
    assert server.objects == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "no entrypoint"}, 3),
    ],
)
def test_start_in_a_cronjobs_pod_runs_one_job_a_date_and_exits_as_it_did(
    run: Run, server: kube_api.KubeApi, monkeypatch: pytest.MonkeyPatch, status: dict[str, str], code: int
) -> None:
    run("cluster", "render")
    monkeypatch.setenv("TILTYARD_SCHEDULED_BY", "nightly")
    monkeypatch.setenv("TILTYARD_SCHEDULED_JOB", "nightly-29401905")
    server.on_watch = lambda path: server.set_status(path, **status)
    args = ("cluster", "start", "cluster/jobs/night.yaml", "--scheduled", "--time-zone", "Europe/Berlin", *ON)
    assert "RayJob/night-20251126 in lab created" in run(*args, code=code)
    assert "is there already" in run(*args, code=code)
    assert [o["metadata"]["name"] for o in server.objects.values()] == ["night-20251126"]


@pytest.mark.slow
def test_submit_ephemeral_is_one_rayjob_whose_cluster_goes_with_it(run: Run, server: kube_api.KubeApi) -> None:
    args = ("submit", "job.py", "--ephemeral", "--team", "speech", "--key", "k", *ON)
    assert "RayJob k-" in run(*args, "--plan")
    assert server.objects == {}
    server.on_watch = lambda path: server.set_status(path, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert "created" in run(*args)
    jobs = [o for o in server.objects.values() if o["kind"] == "RayJob"]
    (package,) = [o for o in server.objects.values() if o["kind"] == "ConfigMap"]
    assert package["metadata"]["ownerReferences"][0]["uid"] == jobs[0]["metadata"]["uid"]
    assert jobs[0]["metadata"]["namespace"] == "speech"
    assert jobs[0]["spec"]["entrypoint"] == "python -m tiltyard.submit.driver job.py"
    assert jobs[0]["spec"]["metadata"]["tiltyard.key"] == "k"
    mount = jobs[0]["spec"]["submitterPodTemplate"]["spec"]["containers"][0]["volumeMounts"][0]["mountPath"]
    env = yaml.safe_load(jobs[0]["spec"]["runtimeEnvYAML"])
    assert env["working_dir"] == f"{mount}/package.zip"
    assert "is there already" in run(*args)
    Path("job.py").write_text("print('other')\n")
    assert "with other content; changed: job.py" in run(*args, code=1)
    Path("job.py").write_text("print('hello')\n")
    server.set_status(server.named("RayJob", jobs[0]["metadata"]["name"]), jobDeploymentStatus="Failed")
    assert "-2 in speech created" in run(*args, "--detach")


def test_submit_shows_its_plan_and_refuses_a_cluster_of_another_ray(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    head = RayHead(token="t0ken-of-the-lab", version="2.59.0")
    with ray_serving(head) as url:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken-of-the-lab")
        args = ("submit", "job.py", "--address", url, "--detach")
        told = run(*args, code=1)
        assert "runs Ray 2.59.0, here is " in told
        assert "package   3 files" in told
        assert head.jobs == {}
        assert "Submitted: job-" in run(*args, "--other-ray")
        (job_id,) = head.jobs
        rows = json.loads(run("jobs", "--json", "--address", url))
        assert [(r["id"], r["state"]) for r in rows] == [(job_id, "PENDING")]
        assert "log of" in run("logs", job_id, "--address", url)
        head.end(job_id, "FAILED")
        assert f"{job_id}: FAILED" in run("logs", "-f", "job-", "--address", url, code=1)
        assert "FAILED" in run("status", "--watch", job_id, "--address", url, code=1)
        assert "had ended before: FAILED" in run("cancel", job_id, "--address", url)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong-t0ken")
        refused = run("jobs", "--address", url, code=1)
        assert "is not its token" in refused
        assert "t0ken" not in refused
    assert "did not answer" in run("jobs", "--address", url, code=1)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("submit", "job.py"), "nothing is up here"),
        (("submit", "job.py", "--env", "A"), "is not NAME=VALUE"),
        (("submit", "job.py", "--datasets", ","), "name at least one dataset"),
        (("submit", "none.py", "--address", "http://x"), "There is no job file"),
        (("submit", "job.py", "--ephemeral", "--cluster", "x"), "takes no --cluster"),
        (("cluster", "start", "none.yaml"), "cannot be read"),
        (("cluster", "wait", "--for", "Pod"), "wanted one of Deployment"),
        (("cluster", "render", "--spec", "none.py"), "There is no none.py"),
        (("cluster", "apply", "--context", "none"), "No way to Kubernetes"),
    ],
)
def test_command_that_cannot_be_right_ends_with_one_message(run: Run, args: tuple[str, ...], said: str) -> None:
    told = ""
    with pytest.raises(AssertionError) as left:  # the code is 1 or 2
        told = run(*args)
    assert said in " ".join(f"{told}{left.value}".split())


def test_schema_of_every_overlay_file_is_kustomizes(run: Run) -> None:
    run("cluster", "render")
    found: dict[str, Any] = yaml.safe_load(Path("cluster/overlays/small/kustomization.yaml").read_text())
    assert found["kind"] == "Kustomization"
    assert found["resources"] == ["../../base"]
    assert all("patch" in p for p in found["patches"])
