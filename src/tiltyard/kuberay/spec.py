"""What one cluster is: images, groups of workers, stores, teams, jobs and schedules, as frozen values.

`ClusterSpec` says what is wanted in the words of the people who pay for it; `tiltyard.kuberay.manifests` turns it into
Kubernetes objects, `tiltyard.kuberay.rules` says which of these KubeRay would refuse. Secrets are named here, never held.
Quantities are Kubernetes' own text (``"16Gi"``, ``"500m"``), counts and seconds are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from tiltyard.errors import SpecError

RAYCLUSTER_NAME, RAYJOB_NAME, RAYCRON_NAME = 53, 47, 36
"""Longest names that KubeRay 1.7 takes (`facts`: ``validation.go``); a RayService has a RayJob's."""
DATE = "{date}"
"""In a job's command: its logical date, YYYY-MM-DD."""
CRONJOB_NAME = 52
"""Kubernetes appends 11 characters to a CronJob's name."""

_FACTORS: Mapping[str, Decimal] = {
    "": Decimal(1), "m": Decimal("0.001"), "k": Decimal(10**3), "M": Decimal(10**6), "G": Decimal(10**9),
    "T": Decimal(10**12), "Ki": Decimal(2**10), "Mi": Decimal(2**20), "Gi": Decimal(2**30), "Ti": Decimal(2**40),
}  # fmt: skip

Dns = Annotated[str, StringConstraints(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=RAYCLUSTER_NAME)]
Quantity = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")]
Text = Annotated[str, StringConstraints(min_length=1)]


def amount(quantity: str) -> Decimal:
    """A quantity as a number.

    >>> amount("2Gi") == 2 * 2**30, amount("500m")
    (True, Decimal('0.500'))
    """
    number, unit = re.fullmatch(r"([0-9.]+)(.*)", quantity).groups()  # type: ignore[union-attr]
    return Decimal(number) * _FACTORS[unit]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise SpecError(_told(type(self).__name__, error)) from error


class Image(_Frozen):
    """A container image: a tag that is not ``latest``, or a digest."""

    name: Text
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    pull_secret: Dns | None = None

    @field_validator("name")
    @classmethod
    def _pinned(cls, name: str) -> str:
        _, _, tag = name.rpartition("/")[2].partition(":")
        if "@sha256:" not in name and tag in {"", "latest"}:
            raise ValueError(
                f"{name!r} has no fixed tag, so what runs could change by itself; say NAME:TAG or NAME@sha256:..."
            )
        return name


class Pod(_Frozen):
    """What one pod asks for; requests equal limits, so that nobody is killed for a neighbour's memory.

    Args:
        cpu: Whole CPUs for Ray pods: Ray counts whole ones.
        memory: Memory.
        gpus: GPUs of ``gpu_resource``.
        gpu_resource: Name of the device plug-in's resource.
        shm: Size of ``/dev/shm``, which holds Ray's object store; part of the pod's memory.
        node_selector: Labels that a node must have.
        tolerations: Taints that the pod bears, as Kubernetes writes them.
    """

    cpu: Quantity
    memory: Quantity
    gpus: Annotated[int, Field(ge=0)] = 0
    gpu_resource: Text = "nvidia.com/gpu"
    shm: Quantity | None = None
    node_selector: Mapping[str, str] = {}
    tolerations: tuple[Mapping[str, str], ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> Pod:
        if self.shm is not None and amount(self.shm) >= amount(self.memory):
            raise ValueError(
                f"shm {self.shm} leaves nothing of memory {self.memory}: /dev/shm counts as the pod's memory"
            )
        return self


class WorkerGroup(_Frozen):
    """Workers of one kind, from none to ``max_replicas``.

    Args:
        name: The group's name.
        pod: What each asks for.
        min_replicas: Kept even when idle; 0 costs nothing.
        max_replicas: The bound; there is no default.
        idle_s: Seconds after which an idle worker goes.
        priority: On scale-up the higher group is tried first: spot before on-demand.
        image: Another image than the cluster's, e.g. with a compiler and CUDA.
        price_per_hour: Of one worker, in the spec's currency.
        spot: Whether the nodes may be taken away.
        labels: Ray labels of the nodes.
    """

    name: Dns
    pod: Pod
    min_replicas: Annotated[int, Field(ge=0)] = 0
    max_replicas: Annotated[int, Field(ge=1)]
    idle_s: Annotated[int, Field(ge=0)] = 120
    priority: int = 0
    image: Image | None = None
    price_per_hour: Annotated[Decimal, Field(ge=0)] | None = None
    spot: bool = False
    labels: Mapping[str, str] = {}

    @model_validator(mode="after")
    def _bounds(self) -> WorkerGroup:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"group {self.name}: min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            )
        return self


class Redis(_Frozen):
    """A Redis outside Ray that keeps the head's state: a head that is lost comes back with its jobs and actors."""

    address: Text
    """``host:port`` or ``redis://host:port``."""
    password_secret: Dns
    password_key: Text = "password"  # noqa: S105 - the name of a key


class Postgres(_Frozen):
    """Where the journal and MLflow keep their tables.

    Args:
        secret: Secret with the keys ``journal-uri`` and ``mlflow-uri`` (``postgresql+psycopg://...``), and, for a server in
            the cluster, ``password``.
        in_cluster: Whether a small PostgreSQL is rendered; without, the URIs name one of your own.
        storage: Size of its volume.
        image: Its image.
    """

    secret: Dns = "tiltyard-postgres"  # noqa: S105 - the name of a Secret
    in_cluster: bool = True
    storage: Quantity = "20Gi"
    image: Image = Image(name="docker.io/library/postgres:17.6")


class ObjectStore(_Frozen):
    """Where data, curves, checkpoints and artifacts are.

    Args:
        uri: Root, ``s3://bucket/prefix``.
        secret: Secret whose keys are the environment variables that reach it (``AWS_ACCESS_KEY_ID``, ...); None where
            the nodes' own identity does.
        endpoint: URL of an S3 that is not Amazon's.
        region: Its region.
    """

    uri: Annotated[str, StringConstraints(pattern=r"^(s3|gs)://[^/\s]+(/[^\s]*[^/\s])?$")]
    secret: Dns | None = "tiltyard-object-store"  # noqa: S105 - the name of a Secret
    endpoint: Text | None = None
    region: Text = "us-east-1"


class Quota(_Frozen):
    """The most that a namespace may ask for."""

    cpu: Quantity
    memory: Quantity
    gpus: Annotated[int, Field(ge=0)] = 0
    pods: Annotated[int, Field(ge=1)] = 100


class Team(_Frozen):
    """Who may run ephemeral clusters, where, and how much."""

    name: Dns
    namespace: Dns
    quota: Quota
    kueue_queue: Dns | None = None
    """Kueue's LocalQueue in that namespace: jobs then wait for their turn, with a fixed number of workers."""


class Job(_Frozen):
    """One job as a RayJob with a cluster of its own.

    Args:
        name: Its name; a date and more are appended.
        kind: What sort of job.
        command: What is run in the image's working directory; ``{date}`` stands for the logical date.
        workers: Name and number of workers of each group that it has; bounds where it scales.
        deadline_s: After so many seconds Kubernetes ends it, whatever the driver does: the backstop of its budget.
        start_deadline_s: It fails where no worker comes within this time (no GPU node, a quota).
        keep_s: How long the finished RayJob stays.
        retries: Each retry is a new cluster; the journal's fences keep them apart.
    """

    name: Dns
    kind: Literal["sweep", "evaluation", "night"] = "sweep"
    command: tuple[Text, ...]
    workers: Mapping[str, int]
    deadline_s: Annotated[int, Field(gt=0)]
    start_deadline_s: Annotated[int, Field(gt=0)] = 1800
    keep_s: Annotated[int, Field(gt=0)] = 7 * 86400
    retries: Annotated[int, Field(ge=0)] = 0


class Schedule(_Frozen):
    """When a job is run.

    Args:
        name: Of the CronJob.
        job: Name of one of the spec's jobs.
        cron: Five fields.
        time_zone: IANA name; the logical date is a day there.
        start_deadline_s: A start missed for longer (the cluster was down) is left out.
        history: How many finished runs stay.
        per: ``day``: one run a date, whatever the schedule says. ``minute``: one a tick.
        suspend: Rendered, but does not run.
    """

    name: Dns
    job: Dns
    cron: Annotated[str, StringConstraints(pattern=r"^\S+ \S+ \S+ \S+ \S+$")]
    time_zone: Text = "Etc/UTC"
    start_deadline_s: Annotated[int, Field(gt=10)] = 3600
    history: Annotated[int, Field(ge=1)] = 7
    per: Literal["day", "minute"] = "day"
    suspend: bool = False

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        from zoneinfo import ZoneInfo

        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(f"time_zone {name!r} is no IANA name; e.g. Europe/Berlin or Etc/UTC") from error
        return name


class Serving(_Frozen):
    """The RayService of the champions.

    Args:
        config: Path of the Serve config, relative to the repository.
        tokens_secret: Secret with ``serving-tokens.json``: who may ask (``tiltyard token create``).
        pod: What each worker asks for.
        min_replicas: Pods that are always there.
        max_replicas: And at most.
        host: Name under which an Ingress offers it; None for none.
        issuer: cert-manager's ClusterIssuer for that name's certificate.
        ingress_class: Which Ingress controller.
    """

    config: Text = "serve/champion.yaml"
    tokens_secret: Dns = "tiltyard-serving-tokens"  # noqa: S105 - the name of a Secret
    pod: Pod = Pod(cpu="2", memory="4Gi", shm="1Gi")
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 4
    host: Text | None = None
    issuer: Text | None = None
    ingress_class: Text | None = None

    @model_validator(mode="after")
    def _bounds(self) -> Serving:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        if self.issuer and not self.host:
            raise ValueError("issuer names who makes the certificate; say host too, the name it is for")
        return self


class Mlflow(_Frozen):
    """The MLflow server: one Deployment, reached inside the cluster only."""

    cpu: Quantity = "1"
    memory: Quantity = "2Gi"
    workers: Annotated[int, Field(ge=1)] = 2


class Monitoring(_Frozen):
    """PodMonitors for the Prometheus operator, and whose pods may scrape."""

    namespace: Dns = "monitoring"
    labels: Mapping[str, str] = {"release": "prometheus"}


class ClusterSpec(_Frozen):
    """One cluster for one or more teams; `tiltyard.kuberay.manifests.render` makes its objects.

    Args:
        name: Of the RayCluster and the beginning of other names.
        namespace: Where the shared cluster, MLflow and PostgreSQL live.
        ray_version: Must be that of the image.
        image: For the head, CPU workers, MLflow and the nightly pods; no compiler in it.
        head: What the head asks for; it runs drivers and no tasks.
        workers: Groups, CPU and GPU.
        autoscaler_idle_s: For groups that say nothing.
        token_secret: Secret with the key ``auth_token``, shared by all clusters, so that one token reaches each.
        postgres: The journal's and MLflow's tables.
        store: The object store.
        mlflow: The server; None where ``tracking_uri`` names another.
        tracking_uri: An MLflow server of your own.
        redis: Fault tolerance of the head.
        serving: The champions; None for none.
        jobs: Jobs as RayJobs.
        schedules: When they run.
        scheduler: ``cronjob``, or ``raycronjob`` where that alpha feature is on.
        teams: Namespaces with quotas for ephemeral clusters.
        quota: Of the shared namespace.
        monitoring: None where there is no Prometheus operator.
        operator_namespace: Where KubeRay's operator runs.
        ingress_namespace: From where Serve is reached; None for nowhere outside.
        currency: Of the prices.
        features: Alpha gates of the operator that are on; fields behind others are refused.
    """

    name: Dns
    namespace: Dns
    ray_version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
    image: Image
    head: Pod
    workers: tuple[WorkerGroup, ...]
    autoscaler_idle_s: Annotated[int, Field(ge=0)] = 120
    token_secret: Dns = "tiltyard-ray-token"  # noqa: S105 - the name of a Secret
    postgres: Postgres = Postgres()
    store: ObjectStore
    mlflow: Mlflow | None = Mlflow()
    tracking_uri: Text | None = None
    redis: Redis | None = None
    serving: Serving | None = None
    jobs: tuple[Job, ...] = ()
    schedules: tuple[Schedule, ...] = ()
    scheduler: Literal["cronjob", "raycronjob"] = "cronjob"
    teams: tuple[Team, ...] = ()
    quota: Quota | None = None
    monitoring: Monitoring | None = None
    operator_namespace: Dns = "kuberay-system"
    ingress_namespace: Dns | None = None
    currency: Text = "USD"
    features: frozenset[str] = frozenset()

    @model_validator(mode="after")
    def _consistent(self) -> ClusterSpec:
        for what, names in (
            ("workers", [g.name for g in self.workers]),
            ("jobs", [j.name for j in self.jobs]),
            ("schedules", [s.name for s in self.schedules]),
            ("teams", [t.name for t in self.teams]),
            ("namespaces", [self.namespace, *(t.namespace for t in self.teams)]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: {twice[0]!r} is there twice")
        if (self.mlflow is None) == (self.tracking_uri is None):
            raise ValueError("say mlflow (a server here) or tracking_uri (one of your own), and not both")
        if self.head.gpus:
            raise ValueError("the head has GPUs, and no work: take them out")
        for job in self.jobs:
            self._check_job(job)
        for schedule in self.schedules:
            job = self.job(schedule.job)
            limit = RAYCRON_NAME if self.scheduler == "raycronjob" else CRONJOB_NAME
            if len(schedule.name) > limit:
                raise ValueError(f"schedule {schedule.name!r} has {len(schedule.name)} characters; at most {limit} fit")
            if len(self.dated(job, schedule)) > RAYJOB_NAME:
                raise ValueError(
                    f"job {job.name!r} with its date has {len(self.dated(job, schedule))} characters; a RayJob's name has at "
                    f"most {RAYJOB_NAME}"
                )
        if self.serving and len(f"{self.name}-champions") > RAYJOB_NAME:
            raise ValueError(f"{self.name}-champions has more than {RAYJOB_NAME} characters, a RayService's most")
        return self

    def _check_job(self, job: Job) -> None:
        for group, replicas in job.workers.items():
            if replicas > self.group(group).max_replicas or replicas < 1:
                bound = self.group(group).max_replicas
                raise ValueError(
                    f"job {job.name}: {replicas} workers of {group}; wanted 1 to {bound}, the group's bound"
                )
        if not job.workers:
            raise ValueError(
                f"job {job.name} has no workers, and the head runs no tasks; say workers={{GROUP: NUMBER}}"
            )

    def dated(self, job: Job, schedule: Schedule) -> str:
        """A name as long as every name of this schedule's RayJobs."""
        return f"{job.name}-20260101" + ("-0000" if schedule.per == "minute" else "")

    def most_cost(self, job: Job) -> Decimal | None:
        """The most that a job's workers can cost until its deadline, all tries together; None where a price is missing.

        In `currency`. The head is not counted: its price is not described.
        """
        prices = [(self.group(name).price_per_hour, number) for name, number in job.workers.items()]
        if any(price is None for price, _ in prices):
            return None
        hours = Decimal(job.deadline_s * (job.retries + 1)) / 3600
        return sum((price * number * hours for price, number in prices if price is not None), Decimal(0))

    def group(self, name: str) -> WorkerGroup:
        """The group of that name."""
        return _named(self.workers, name, "worker group")

    def job(self, name: str) -> Job:
        """The job of that name."""
        return _named(self.jobs, name, "job")

    def team(self, name: str) -> Team:
        """The team of that name."""
        return _named(self.teams, name, "team")

    def derive(self, **changes: Any) -> ClusterSpec:
        """A copy with other values, checked anew."""
        return type(self)(**{**dict(self), **changes})


_Thing = TypeVar("_Thing", WorkerGroup, Job, Team)


def _named(things: tuple[_Thing, ...], name: str, what: str) -> _Thing:
    for thing in things:
        if thing.name == name:
            return thing
    there = ", ".join(t.name for t in things) or "none"
    raise SpecError(f"There is no {what} {name!r} in this cluster; there is: {there}.")


def _told(what: str, error: ValidationError) -> str:
    found = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"])
        text = str(problem["msg"]).removeprefix("Value error, ")
        value = problem.get("input")
        given = f" (given: {value!r})" if where and isinstance(value, str | int | float) else ""
        found.append(f"{where + ': ' if where else ''}{text}{given}")
    return f"{what} cannot be right: {'; '.join(found)}. Mend it in the cluster's description (cluster/cluster.py)."
