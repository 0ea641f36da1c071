"""Workers come when work is there, to their group's bound and no further, and go when it ends.

On one machine, with Ray's own fake nodes: the groups that a job of a `ClusterSpec` names become node types of Ray's fake
provider, under the same autoscaler (v2) that KubeRay runs. What it does not show is Kubernetes: pods, images, quotas.
``make chaos``.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tiltyard.kuberay.spec import ClusterSpec, Image, Job, ObjectStore, Pod, WorkerGroup, amount
from tiltyard.local import commands, ports, processes
from tiltyard.local.state import Cluster, Service
from tiltyard.settings import Settings
from tiltyard.submit.clusters import Target
from tiltyard.submit.preparing import prepare
from tiltyard.submit.ray_jobs import RayJobs
from tiltyard.submit.sending import send

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(600)]

SPEC = ClusterSpec(
    name="lab",
    namespace="lab",
    ray_version="2.60.0",
    image=Image(name="x:1"),
    head=Pod(cpu="1", memory="2Gi"),
    workers=(
        WorkerGroup(name="cpu", pod=Pod(cpu="1", memory="1Gi"), max_replicas=2),
        WorkerGroup(name="gpu", pod=Pod(cpu="1", memory="1Gi", gpus=1), max_replicas=1),
    ),
    jobs=(Job(name="work", command=("python", "job.py"), workers={"cpu": 2}, deadline_s=600),),
    store=ObjectStore(uri="s3://b/x"),
)
IDLE_S = 6
JOB = """
import sys, time
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1)
def work(seconds):
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()
print("NODES", len(set(ray.get([work.remote(8) for _ in range(6)]))))
"""


class FakeCluster:
    """A head without work and an autoscaler over fake nodes, all on loopback."""

    def __init__(self, spec: ClusterSpec, folder: Path) -> None:
        self.token = secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        (folder / "token").chmod(0o600)
        temp = tempfile.mkdtemp(prefix="ty-", dir="/tmp")
        chosen = ports.choose([f"ray_{p}" for p in commands.RAY_PORTS], seed=str(folder))
        port = {name: chosen[f"ray_{name}"] for name in commands.RAY_PORTS}
        self.url = f"http://127.0.0.1:{port['dashboard']}"
        cluster = Cluster(
            id=secrets.token_hex(8),
            home=str(folder),
            ready=False,
            started_at="",
            token_path=str(folder / "token"),
            temp_dir=temp,
        )
        config = folder / "autoscaling.json"
        config.write_text(json.dumps(autoscaling_config(spec, gcs=f"127.0.0.1:{port['gcs']}")))
        settings = Settings.from_env({"TILTYARD_HOME": str(folder / "home")})
        env = {
            **commands.ray_env({**os.environ, "HOME": str(folder)}, settings, cluster, port),
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        }
        argv = commands.ray_argv(cluster, port, cpus=0, gpus=0, object_store_bytes=100 << 20)
        process = processes.spawn([*argv, f"--autoscaling-config={config}"], env, folder / "ray.log")
        service = Service(name="ray", url=self.url, process=process, log=str(folder / "ray.log"), ports=port)
        self.cluster = replace(cluster, services=(service,))
        self.log = folder / "ray.log"

    def connect(self) -> RayJobs:
        return RayJobs(Target(name="fake", url=self.url, token=self.token, found_in="the test"))

    def workers(self) -> dict[str, int]:
        """Raylets that run now, by the type of their node; the head left out."""
        found: dict[str, int] = {}
        for process in processes.belonging(self.cluster):
            try:
                words = process.cmdline()
            except psutil.Error:
                continue
            if words and words[0].endswith("raylet") and "--head" not in words:
                line = " ".join(words)
                kind = next((g.name for g in SPEC.workers if f"fake_{g.name}" in line), "head")
                found[kind] = found.get(kind, 0) + 1
        found.pop("head", None)
        return found

    def end(self) -> None:
        processes.end(self.cluster)
        shutil.rmtree(self.cluster.temp_dir, ignore_errors=True)


def autoscaling_config(spec: ClusterSpec, *, gcs: str) -> dict[str, object]:
    """The groups of a description's job as node types of Ray's cluster launcher, with the same bounds."""
    job = spec.jobs[0]
    types: dict[str, object] = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    for group in map(spec.group, job.workers):
        resources: dict[str, int] = {
            "CPU": int(amount(group.pod.cpu)),
            f"fake_{group.name}": 1,
            "object_store_memory": 80 << 20,
        }
        if group.pod.gpus:
            resources["GPU"] = group.pod.gpus
        types[group.name] = {
            "resources": resources,
            "node_config": {},
            "min_workers": group.min_replicas,
            "max_workers": job.workers[group.name],
        }
    empty = ("file_mounts", "docker", "auth")
    lists = (
        "cluster_synced_files", "rsync_exclude", "initialization_commands", "setup_commands", "head_setup_commands",
        "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    )  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": sum(job.workers.values()),
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_S / 60,
        # By its module: the wheel of Ray 2.60 lacks the file of defaults that the type "fake_multinode" reads.
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": gcs,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        "file_mounts_sync_continuously": False,
        **{name: {} for name in empty},
        **{name: [] for name in lists},
    }  # fmt: skip


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(SPEC, tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: it did not come true in time"
        time.sleep(0.5)


def test_workers_go_from_none_to_the_bound_and_back_to_none(fake: FakeCluster, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "job.py").write_text(JOB)

    def up() -> bool:
        try:
            return fake.connect().jobs() == []
        except Exception:
            return False

    until(up, 120, "the head answers")
    assert fake.workers() == {}
    prepared = prepare(
        str(work / "job.py"), settings=Settings.from_env({"TILTYARD_HOME": str(tmp_path / "laptop")}), root=work
    )
    package = prepared.package.write_zip(tmp_path / "package.zip")
    sent = send(prepared.request, package, fake.connect)
    jobs = fake.connect()
    most: dict[str, int] = {}
    seen: list[dict[str, int]] = []

    def ended() -> bool:
        now = fake.workers()
        if not seen or seen[-1] != now:
            seen.append(now)
        for kind, number in now.items():
            most[kind] = max(most.get(kind, 0), number)
        return jobs.job(sent.job_id).has_ended

    until(ended, 240, "the job ends")
    assert jobs.job(sent.job_id).state == "SUCCEEDED", jobs.logs(sent.job_id)
    assert "NODES 2" in jobs.logs(sent.job_id)
    assert most == {"cpu": 2}, f"six tasks, and the bound is 2; seen: {seen}"
    until(lambda: fake.workers() == {}, 120, "idle workers go")
    sys.stderr.write(f"workers over time: {seen}, then none\n")
