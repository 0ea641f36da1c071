"""Descriptions of clusters for tests: one with everything, and manifests of it."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.rendering import render, render_jobs
from tiltyard.kuberay.spec import (
    ClusterSpec,
    Image,
    Job,
    Monitoring,
    ObjectStore,
    Pod,
    Quota,
    Redis,
    Schedule,
    Serving,
    Team,
    WorkerGroup,
)

ROOT = Path(__file__).parents[2]
SERVE_CONFIG = (ROOT / "serve" / "champion.yaml").read_text()


def full(**changes: Any) -> ClusterSpec:
    """A cluster that has one of everything."""
    spec = ClusterSpec(
        name="lab",
        namespace="lab",
        ray_version="2.60.0",
        image=Image(name="registry.example/tiltyard:1", pull_secret="registry"),
        head=Pod(cpu="2", memory="8Gi", shm="2Gi"),
        workers=(
            WorkerGroup(name="cpu", pod=Pod(cpu="4", memory="16Gi", shm="4Gi"), min_replicas=1, max_replicas=4),
            WorkerGroup(
                name="gpu-spot",
                pod=Pod(cpu="7", memory="28Gi", gpus=1, node_selector={"gpu": "a10"}),
                max_replicas=8,
                priority=10,
                spot=True,
                labels={"kind": "spot"},
            ),
        ),
        store=ObjectStore(uri="s3://bucket/lab", endpoint="http://s3.lab:9000"),
        redis=Redis(address="redis:6379", password_secret="redis"),
        serving=Serving(host="champions.example", issuer="letsencrypt", ingress_class="nginx"),
        jobs=(
            Job(
                name="sweep",
                command=("python", "jobs/first_sweep.py"),
                workers={"cpu": 2, "gpu-spot": 4},
                deadline_s=3600,
            ),
            Job(
                name="night",
                kind="night",
                command=("python", "x.py", "--date", "{date}"),
                workers={"cpu": 1},
                deadline_s=600,
                retries=1,
            ),
        ),
        schedules=(Schedule(name="nightly", job="night", cron="0 2 * * *", time_zone="Europe/Berlin"),),
        teams=(
            Team(name="vision", namespace="vision", quota=Quota(cpu="64", memory="256Gi", gpus=4)),
            Team(name="speech", namespace="speech", quota=Quota(cpu="8", memory="64Gi"), kueue_queue="speech-queue"),
        ),
        quota=Quota(cpu="100", memory="400Gi", gpus=8),
        monitoring=Monitoring(),
        ingress_namespace="ingress-nginx",
    )
    return spec.derive(**changes) if changes else spec


def objects(spec: ClusterSpec | None = None) -> list[Manifest]:
    """Every object of a cluster, jobs too; the caller's own to change."""
    return copy.deepcopy(_objects() if spec is None else _rendered(spec))


@cache
def _objects() -> list[Manifest]:
    return _rendered(full())


def _rendered(spec: ClusterSpec) -> list[Manifest]:
    found = [m for family in render(spec, SERVE_CONFIG).values() for m in family]
    return [*found, *render_jobs(spec).values()]


def find(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The object of a kind whose name begins so."""
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"].startswith(name))
