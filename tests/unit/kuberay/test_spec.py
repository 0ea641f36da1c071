"""A cluster's description: what cannot be right is refused where it is written, with what was found and wanted."""

from __future__ import annotations

from decimal import Decimal

import clusters
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.kuberay.manifests.rayjob import rayjob
from tiltyard.kuberay.spec import Image, Job, Pod, Schedule, Serving, Team, WorkerGroup, amount


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "a" * 54}, "name: .*at most 53"),
        ({"name": "2lab"}, "name: "),
        ({"ray_version": "2.60"}, "ray_version"),
        ({"head": Pod(cpu="1", memory="4Gi", gpus=1)}, "head has GPUs"),
        ({"tracking_uri": "http://mlflow"}, "and not both"),
        ({"mlflow": None}, "and not both"),
        ({"schedules": (Schedule(name="n", job="none", cron="0 2 * * *"),)}, "no job 'none'"),
        ({"teams": (Team(name="x", namespace="lab", quota=clusters.full().teams[0].quota),)}, "'lab' is there twice"),
        ({"wrkers": ()}, "wrkers"),
        ({"name": "a" * 40}, "RayService's most"),
    ],
)
def test_cluster_that_cannot_be_right_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said) as refused:
        clusters.full(**changes)
    assert "cluster/cluster.py" in str(refused.value) or "there is:" in str(refused.value)


def test_minimum_above_its_maximum_is_refused_with_the_group_and_both_numbers() -> None:
    with pytest.raises(SpecError, match="group gpu: min_replicas 5 is above max_replicas 2"):
        WorkerGroup(name="gpu", pod=Pod(cpu="1", memory="1Gi"), min_replicas=5, max_replicas=2)
    with pytest.raises(SpecError, match="min_replicas 3 is above max_replicas 1"):
        Serving(min_replicas=3, max_replicas=1)
    with pytest.raises(SpecError, match="max_replicas"):
        WorkerGroup(name="gpu", pod=Pod(cpu="1", memory="1Gi"))  # type: ignore[call-arg]  # there is no default


@pytest.mark.parametrize("name", ["ray", "registry.example/ray", "registry.example:5000/ray", "a/b:latest"])
def test_image_without_a_fixed_tag_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="no fixed tag"):
        Image(name=name)


@pytest.mark.parametrize("name", ["ray:2.60.0", "registry.example:5000/a/ray:1", "ray@sha256:abc"])
def test_image_with_a_fixed_tag_or_digest_is_taken(name: str) -> None:
    assert Image(name=name).name == name


def test_names_with_their_dates_must_fit_what_kuberay_takes() -> None:
    job = Job(name="n" * 38, command=("x",), workers={"cpu": 1}, deadline_s=1)
    schedule = Schedule(name="nightly", job=job.name, cron="0 2 * * *", per="minute")
    spec = clusters.full(jobs=(job,), schedules=(schedule.model_copy(update={"per": "day"}),))
    assert len(spec.dated(job, spec.schedules[0])) == 47
    with pytest.raises(SpecError, match="at most 47"):
        clusters.full(jobs=(job,), schedules=(schedule,))
    with pytest.raises(SpecError, match="at most 36"):
        clusters.full(schedules=(Schedule(name="n" * 37, job="night", cron="0 2 * * *"),), scheduler="raycronjob")


@pytest.mark.parametrize(
    ("workers", "said"), [({"cpu": 5}, "wanted 1 to 4"), ({}, "no workers"), ({"tpu": 1}, "no worker group 'tpu'")]
)
def test_job_beyond_its_groups_is_refused(workers: dict[str, int], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        clusters.full(jobs=(Job(name="a", command=("x",), workers=workers, deadline_s=1),), schedules=())


def test_shared_memory_above_the_pods_own_is_refused() -> None:
    with pytest.raises(SpecError, match="leaves nothing"):
        Pod(cpu="1", memory="4Gi", shm="4096Mi")


def test_time_zone_and_cron_are_checked() -> None:
    with pytest.raises(SpecError, match="no IANA name"):
        Schedule(name="n", job="x", cron="0 2 * * *", time_zone="Middle/Earth")
    with pytest.raises(SpecError, match="cron"):
        Schedule(name="n", job="x", cron="daily")


@given(st.integers(1, 10**6))
def test_amount_of_a_quantity_agrees_between_units(number: int) -> None:
    assert amount(f"{number}Gi") == amount(f"{number * 1024}Mi") == Decimal(number) * 2**30
    assert amount(f"{number}") == amount(f"{number * 1000}m")


def test_team_with_a_queue_gets_a_job_of_fixed_size_that_kueue_admits() -> None:
    spec = clusters.full()
    queued = rayjob(spec, spec.job("sweep"), team=spec.team("speech"))
    assert queued["metadata"]["namespace"] == "speech"
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "speech-queue"
    body = queued["spec"]["rayClusterSpec"]
    assert body["enableInTreeAutoscaling"] is False
    sizes = [(g["minReplicas"], g["replicas"], g["maxReplicas"]) for g in body["workerGroupSpecs"]]
    assert sizes == [(2, 2, 2), (4, 4, 4)]
    assert queued["spec"]["shutdownAfterJobFinishes"] is True
    assert "deletionStrategy" not in queued["spec"]


def test_most_that_a_job_can_cost_follows_from_bounds_prices_and_deadline() -> None:
    spec = clusters.full()
    assert spec.most_cost(spec.job("night")) is None, "a price is missing"
    cpu = WorkerGroup(name="cpu", pod=Pod(cpu="1", memory="1Gi"), max_replicas=4, price_per_hour=Decimal("0.40"))
    priced = spec.derive(workers=(cpu, *spec.workers[1:]))
    assert priced.most_cost(priced.job("night")) == Decimal("0.40") * 2 / 6  # ten minutes, and once again
