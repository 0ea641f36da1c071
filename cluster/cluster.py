"""This team's cluster, as data: the base, and what differs on one machine (`dev`) and with GPUs (`gpu`).

Write the manifests anew after a change:  tiltyard cluster render
Check and apply them:                     tiltyard cluster apply --overlay gpu --context NAME
"""

from decimal import Decimal

from tiltyard.kuberay.spec import (
    ClusterSpec,
    Image,
    Job,
    Monitoring,
    ObjectStore,
    Pod,
    Quota,
    Schedule,
    Serving,
    Team,
    WorkerGroup,
)

CPU_IMAGE = Image(name="registry.example/tiltyard:0.1.0")
GPU_IMAGE = Image(name="registry.example/tiltyard-gpu:0.1.0")


def cluster() -> ClusterSpec:
    """CPU workers, the champions, and one team; change names, sizes, addresses and prices to yours."""
    return ClusterSpec(
        name="tiltyard",
        namespace="tiltyard",
        ray_version="2.60.0",
        image=CPU_IMAGE,
        head=Pod(cpu="4", memory="16Gi", shm="4Gi"),
        workers=(
            WorkerGroup(
                name="cpu",
                pod=Pod(cpu="8", memory="32Gi", shm="9Gi"),
                max_replicas=8,
                idle_s=120,
                price_per_hour=Decimal("0.40"),
            ),
        ),
        store=ObjectStore(uri="s3://tiltyard-results/lab", region="eu-central-1"),
        serving=Serving(min_replicas=1, max_replicas=4),
        jobs=(
            Job(
                name="first-sweep",
                kind="sweep",
                command=("python", "jobs/first_sweep.py"),
                workers={"cpu": 4},
                deadline_s=4 * 3600,
            ),
            Job(
                name="evaluate",
                kind="evaluation",
                command=("python", "jobs/evaluate.py"),
                workers={"cpu": 2},
                deadline_s=2 * 3600,
            ),
            Job(
                name="night",
                kind="night",
                command=("python", "jobs/nightly.py", "--date", "{date}"),
                workers={"cpu": 4},
                deadline_s=5 * 3600,
            ),
        ),
        schedules=(
            Schedule(
                name="nightly",
                job="night",
                cron="15 2 * * *",
                time_zone="Europe/Berlin",
                start_deadline_s=4 * 3600,
                suspend=True,  # until the stores hold data worth a night
            ),
        ),
        teams=(Team(name="vision", namespace="tiltyard-vision", quota=Quota(cpu="128", memory="512Gi", gpus=0)),),
        quota=Quota(cpu="160", memory="640Gi"),
        monitoring=Monitoring(),
        ingress_namespace="ingress-nginx",
    )


def dev() -> ClusterSpec:
    """One machine (kind, minikube): two small workers at most, no Prometheus, an S3 of your own beside it."""
    return cluster().derive(
        head=Pod(cpu="1", memory="3Gi", shm="500Mi"),
        workers=(WorkerGroup(name="cpu", pod=Pod(cpu="1", memory="3Gi", shm="800Mi"), max_replicas=2, idle_s=60),),
        store=ObjectStore(uri="s3://tiltyard/dev", endpoint="http://s3.s3.svc:9000"),
        serving=None,
        jobs=(Job(name="first-sweep", command=("python", "jobs/first_sweep.py"), workers={"cpu": 2}, deadline_s=3600),),
        schedules=(),
        teams=(),
        quota=None,
        monitoring=None,
        ingress_namespace=None,
    )


def gpu() -> ClusterSpec:
    """GPUs beside the CPUs: spot nodes are tried before on-demand ones; none stays when it is idle."""
    base = cluster()
    a10 = Pod(
        cpu="7",
        memory="28Gi",
        gpus=1,
        shm="8Gi",
        node_selector={"nvidia.com/gpu.product": "NVIDIA-A10G"},
    )
    spot = a10.model_copy(update={"tolerations": ({"key": "spot", "operator": "Exists", "effect": "NoSchedule"},)})
    return base.derive(
        workers=(
            *base.workers,
            WorkerGroup(
                name="gpu-spot",
                pod=spot,
                image=GPU_IMAGE,
                max_replicas=16,
                idle_s=180,
                priority=10,
                spot=True,
                price_per_hour=Decimal("0.36"),
            ),
            WorkerGroup(
                name="gpu",
                pod=a10,
                image=GPU_IMAGE,
                max_replicas=4,
                idle_s=180,
                priority=1,
                price_per_hour=Decimal("1.01"),
            ),
        ),
        quota=Quota(cpu="320", memory="1280Gi", gpus=20),
        teams=(Team(name="vision", namespace="tiltyard-vision", quota=Quota(cpu="128", memory="512Gi", gpus=8)),),
    )
