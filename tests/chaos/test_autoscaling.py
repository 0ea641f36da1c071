"""Workers come when work is there, to their group's bound and no further, and go when it ends; GPU nodes for GPU work alone.

On one machine, with Ray's own fake nodes: what Ray's autoscaler (v2) makes of the rendered RayCluster in a pod of KubeRay's
is given to the same autoscaler with its fake provider. What it does not show is Kubernetes: pods, images, quotas.
``make chaos``.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import sweeps
import users_models
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tiltyard.kuberay.manifests.raycluster import raycluster
from tiltyard.kuberay.spec import ClusterSpec, Image, ObjectStore, Pod, WorkerGroup
from tiltyard.local import commands, ports, processes
from tiltyard.local.state import Cluster, Service
from tiltyard.placement import GROUPS_ENV
from tiltyard.settings import Settings
from tiltyard.submit.clusters import Target
from tiltyard.submit.preparing import prepare
from tiltyard.submit.ray_jobs import RayJobs
from tiltyard.submit.sending import send

pytestmark = [pytest.mark.chaos, pytest.mark.ray, pytest.mark.timeout(600)]

IDLE_S = 6
SPEC = ClusterSpec(
    name="lab",
    namespace="lab",
    ray_version="2.60.0",
    image=Image(name="x:1"),
    head=Pod(cpu="1", memory="2Gi"),
    workers=(
        WorkerGroup(name="cpu", pod=Pod(cpu="1", memory="1Gi"), max_replicas=2, idle_s=IDLE_S),
        WorkerGroup(name="gpu", pod=Pod(cpu="2", memory="1Gi", gpus=1), max_replicas=1, idle_s=IDLE_S),
    ),
    store=ObjectStore(uri="s3://b/x"),
)
RAYCLUSTER = raycluster(SPEC)
SWEEP = """
from tiltyard import DatasetRef, Experiment, Halving, Objective, Resources, Search, Variant, loguniform, main


def experiment():
    return Experiment(
        name="grows",
        variants=[Variant(name="own", model="my_models:Gated", fixed={{"gate": {gate!r}, "batch_size": 32}},
                          space={{"lr": loguniform(1e-3, 1e-1)}})],
        datasets=[DatasetRef("rings")],
        objective=Objective(metric="accuracy"),
        search=Search(trials=6, halving=Halving(rungs=(1, 2), keep=0.5)),
        resources=Resources(pack=1),
    )


if __name__ == "__main__":
    main(__file__)
"""
GPU_THEN_CPU = """
import json, os, time
import ray
from tiltyard.experiment import Resources
from tiltyard.placement import AWAY_FROM_GPU_NODES, asked, groups_of

ray.init(log_to_driver=False)


@ray.remote
def node(seconds):
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


def alive(which):
    return any(n["NodeID"] == which and n["Alive"] for n in ray.nodes())


ask = asked(Resources(cpus=2, gpus=1), groups_of(os.environ))
with_gpus = node.options(num_cpus=ask.pop("CPU"), num_gpus=ask.pop("GPU"), resources=ask)
where = ray.get(with_gpus.remote(1))
print("GPU NODE CAME", flush=True)
elsewhere, deadline = set(), time.monotonic() + 150
while alive(where) and time.monotonic() < deadline:  # more than the CPU nodes hold, and work that holds no CPU at all
    busy = [node.remote(0.5) for _ in range(6)]
    spread = node.options(num_cpus=0, label_selector=AWAY_FROM_GPU_NODES, scheduling_strategy="SPREAD")
    elsewhere |= set(ray.get([*busy, *(spread.remote(0.01) for _ in range(6))]))
print("FOUND " + json.dumps({"left": not alive(where), "on_gpu_node": where in elsewhere, "nodes": len(elsewhere)}))
"""


class FakeCluster:
    """A head without work and an autoscaler over fake nodes, all on loopback."""

    def __init__(self, folder: Path) -> None:
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
        config.write_text(json.dumps(autoscaling_config(gcs=f"127.0.0.1:{port['gcs']}")))
        self.settings = Settings.from_env({"TILTYARD_HOME": str(folder / "home")})
        env = {
            **commands.ray_env({**os.environ, "HOME": str(folder)}, self.settings, cluster, port),
            GROUPS_ENV: next(e["value"] for e in head_container()["env"] if e["name"] == GROUPS_ENV),
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

    def told(self) -> str:
        """The end of what the autoscaler said."""
        log = Path(self.cluster.temp_dir) / "session_latest" / "logs" / "monitor.log"
        return log.read_text()[-4000:] if log.exists() else "(no autoscaler)"

    def end(self) -> None:
        processes.end(self.cluster)
        shutil.rmtree(self.cluster.temp_dir, ignore_errors=True)


def head_container() -> dict[str, Any]:
    """The head's container, as it is rendered."""
    found: dict[str, Any] = RAYCLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return found


def autoscaling_config(*, gcs: str) -> dict[str, object]:
    """What Ray's autoscaler makes of the rendered RayCluster in a pod of KubeRay's, with fake nodes as its provider."""
    config = _derive_autoscaling_config_from_ray_cr(RAYCLUSTER)
    kinds = config["available_node_types"]
    kinds[FAKE_HEAD_NODE_TYPE] = kinds.pop(config["head_node_type"])  # the fake provider's own name for it
    for name, kind in kinds.items():
        del kind["resources"]["memory"]  # of the pods; this machine has less
        kind["resources"] |= {f"fake_{name}": 1, "object_store_memory": 80 << 20}
    # By its module: the wheel of Ray 2.60 lacks the file of defaults that the type "fake_multinode" reads.
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "launch_multiple": True,
        "head_node_id": FAKE_HEAD_NODE_ID,
        "gcs_address": gcs,
    }
    return {**config, "head_node_type": FAKE_HEAD_NODE_TYPE, "provider": provider, "docker": {}, "rsync_exclude": []}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeCluster]:
    cluster = FakeCluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.end()


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what}: it did not come true in time"
        time.sleep(0.5)


def is_up(fake: FakeCluster) -> bool:
    try:
        return fake.connect().jobs() == []
    except Exception:
        return False


class Sent:
    """A job that was sent to the cluster, and what workers there were while it ran.

    ``travels``: with its folder. Fake nodes share one place for what travels, and each that comes unpacks it anew, away from
    under the processes of the others (Ray 2.60, ``working_dir.py``: ``overwrite=True``).
    """

    def __init__(self, fake: FakeCluster, work: Path, *, travels: bool = True) -> None:
        self.fake, self.jobs = fake, fake.connect()
        if travels:
            laptop = Settings.from_env({"TILTYARD_HOME": str(work.parent / "laptop")})
            prepared = prepare(str(work / "job.py"), settings=laptop, root=work)
            package = prepared.package.write_zip(work.parent / f"{work.name}.zip")
            self.id = send(prepared.request, package, fake.connect).job_id
        else:
            self.id, run = f"{work.name}-1", f"cd {shlex.quote(str(work))} && python job.py"
            self.jobs.submit(job_id=self.id, entrypoint=run, package=None, env={}, metadata={})
        self.seen: list[dict[str, int]] = []
        self.most: dict[str, int] = {}

    def has_ended(self) -> bool:
        now = self.fake.workers()
        if not self.seen or self.seen[-1] != now:
            self.seen.append(now)
        for kind, number in now.items():
            self.most[kind] = max(self.most.get(kind, 0), number)
        return self.jobs.job(self.id).has_ended

    def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        try:
            until(condition, timeout_s, what)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; workers: {self.seen}\n{self.jobs.logs(self.id)[-4000:]}\n{self.fake.told()}"
            ) from None

    def assert_succeeded(self) -> str:
        log = self.jobs.logs(self.id)
        assert self.jobs.job(self.id).state == "SUCCEEDED", log
        return log


def test_sweep_brings_workers_to_the_bound_of_its_group_and_leaves_none(fake: FakeCluster, tmp_path: Path) -> None:
    sweeps.commit_small_datasets(Path(fake.settings.data_uri))
    work, gate = tmp_path / "work", tmp_path / "gate"
    work.mkdir()
    gate.touch()
    (work / "job.py").write_text(SWEEP.format(gate=str(gate)))
    shutil.copy(users_models.__file__, work / "my_models.py")
    until(lambda: is_up(fake), 120, "the head answers")
    assert fake.workers() == {}
    sent = Sent(fake, work, travels=False)
    # A pack on each of the two, and four that wait for them: no third worker comes.
    sent.until(lambda: sent.has_ended() or len(list(tmp_path.glob("gate.*"))) == 2, 240, "two packs train at once")
    gate.unlink()
    sent.until(sent.has_ended, 240, "the sweep ends")
    assert "own@rings" in sent.assert_succeeded()
    assert sent.most == {"cpu": 2}, sent.seen
    until(lambda: fake.workers() == {}, 120, "idle workers go")
    sys.stderr.write(f"workers over time: {sent.seen}, then none\n")


def test_gpu_node_comes_for_gpu_work_and_goes_while_more_cpu_work_than_fits_elsewhere_waits(
    fake: FakeCluster, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "job.py").write_text(GPU_THEN_CPU)
    until(lambda: is_up(fake), 120, "the head answers")
    sent = Sent(fake, work)
    sent.until(sent.has_ended, 300, "the job ends")
    log = sent.assert_succeeded()
    found = json.loads(log.split("FOUND ")[1].splitlines()[0])
    assert found == {"left": True, "on_gpu_node": False, "nodes": 3}, (
        "two CPU nodes, and the head for what holds no CPU"
    )
    assert sent.most == {"cpu": 2, "gpu": 1}, sent.seen
    until(lambda: fake.workers() == {}, 120, "idle workers go")
    sys.stderr.write(f"workers over time: {sent.seen}, then none\n")
