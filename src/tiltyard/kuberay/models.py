"""The fields of KubeRay's objects that Tiltyard writes, typed and closed: what stands in where no CRD is at hand.

A field that is not here is refused, though KubeRay may know it: `tiltyard.kuberay.schemas` checks against the cluster's own
CRDs wherever it can reach them. Names and kinds follow KubeRay 1.7 (``ray.io/v1``) and Kubernetes' core API.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, strict=True)


class _Metadata(_Closed):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class _Port(_Closed):
    name: str | None = None
    container_port: int
    protocol: Literal["TCP", "UDP"] | None = None


class _KeyRef(_Closed):
    name: str
    key: str
    optional: bool | None = None


class _FieldRef(_Closed):
    field_path: str


class _ValueFrom(_Closed):
    secret_key_ref: _KeyRef | None = None
    config_map_key_ref: _KeyRef | None = None
    field_ref: _FieldRef | None = None


class _Env(_Closed):
    name: str
    value: str | None = None
    value_from: _ValueFrom | None = None


class _Name(_Closed):
    name: str


class _EnvFrom(_Closed):
    secret_ref: _Name | None = None
    config_map_ref: _Name | None = None


class _Resources(_Closed):
    requests: dict[str, str] | None = None
    limits: dict[str, str] | None = None


class _Capabilities(_Closed):
    drop: list[str] | None = None


class _Seccomp(_Closed):
    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]


class _ContainerSecurity(_Closed):
    allow_privilege_escalation: bool | None = None
    capabilities: _Capabilities | None = None
    read_only_root_filesystem: bool | None = None


class _PodSecurity(_Closed):
    run_as_non_root: bool | None = None
    run_as_user: int | None = None
    run_as_group: int | None = None
    fs_group: int | None = None
    seccomp_profile: _Seccomp | None = None


class _Mount(_Closed):
    name: str
    mount_path: str
    read_only: bool | None = None
    sub_path: str | None = None


class _Container(_Closed):
    name: str
    image: str
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    ports: list[_Port] | None = None
    env: list[_Env] | None = None
    env_from: list[_EnvFrom] | None = None
    resources: _Resources | None = None
    security_context: _ContainerSecurity | None = None
    volume_mounts: list[_Mount] | None = None


class _EmptyDir(_Closed):
    medium: Literal["", "Memory"] | None = None
    size_limit: str | None = None


class _SecretVolume(_Closed):
    secret_name: str
    optional: bool | None = None


class _Volume(_Closed):
    name: str
    empty_dir: _EmptyDir | None = None
    secret: _SecretVolume | None = None
    config_map: _Name | None = None


class _Toleration(_Closed):
    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class _PodBody(_Closed):
    containers: list[_Container]
    volumes: list[_Volume] | None = None
    node_selector: dict[str, str] | None = None
    tolerations: list[_Toleration] | None = None
    security_context: _PodSecurity | None = None
    image_pull_secrets: list[_Name] | None = None
    service_account_name: str | None = None
    automount_service_account_token: bool | None = None
    termination_grace_period_seconds: int | None = None
    restart_policy: Literal["Always", "OnFailure", "Never"] | None = None


class _PodTemplate(_Closed):
    metadata: _Metadata | None = None
    spec: _PodBody


class _Group(_Closed):
    group_name: str
    replicas: int | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    idle_timeout_seconds: int | None = None
    priority: int | None = None
    ray_start_params: dict[str, str]
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    template: _PodTemplate


class _Head(_Closed):
    ray_start_params: dict[str, str]
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    enable_ingress: bool | None = None
    resources: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    template: _PodTemplate


class _Autoscaler(_Closed):
    version: Literal["v1", "v2"] | None = None
    idle_timeout_seconds: int | None = None
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"] | None = None
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] | None = None
    security_context: _ContainerSecurity | None = None
    resources: _Resources | None = None


class _Auth(_Closed):
    mode: Literal["token", "disabled"]
    secret_name: str | None = None
    enable_k8s_token_auth: bool | None = Field(default=None, alias="enableK8sTokenAuth")


class _RedisPassword(_Closed):
    value_from: _ValueFrom


class _FaultTolerance(_Closed):
    redis_address: str | None = None
    redis_password: _RedisPassword | None = None
    external_storage_namespace: str | None = None


class _ClusterBody(_Closed):
    ray_version: str
    enable_in_tree_autoscaling: bool | None = None
    autoscaler_options: _Autoscaler | None = None
    auth_options: _Auth | None = None
    gcs_fault_tolerance_options: _FaultTolerance | None = None
    head_group_spec: _Head
    worker_group_specs: list[_Group] | None = None


class _Condition(_Closed):
    job_status: Literal["SUCCEEDED", "FAILED"] | None = None
    job_deployment_status: Literal["Failed"] | None = None
    ttl_seconds: int | None = None


class _DeletionRule(_Closed):
    policy: Literal["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]
    condition: _Condition


class _Deletion(_Closed):
    deletion_rules: list[_DeletionRule] | None = None


class _JobBody(_Closed):
    submission_mode: Literal["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"] | None = None
    entrypoint: str | None = None
    runtime_env_y_a_m_l: str | None = None
    metadata: dict[str, str] | None = None
    active_deadline_seconds: int | None = None
    pre_running_deadline_seconds: int | None = None
    backoff_limit: int | None = None
    shutdown_after_job_finishes: bool | None = None
    ttl_seconds_after_finished: int | None = None
    deletion_strategy: _Deletion | None = None
    submitter_pod_template: _PodTemplate | None = None
    cluster_selector: dict[str, str] | None = None
    suspend: bool | None = None
    ray_cluster_spec: _ClusterBody | None = None


class _ServiceBody(_Closed):
    serve_config_v2: str
    exclude_head_pod_from_serve_svc: bool | None = None
    ray_cluster_deletion_delay_seconds: int | None = None
    ray_cluster_config: _ClusterBody


class _CronBody(_Closed):
    schedule: str
    time_zone: str | None = None
    suspend: bool | None = None
    job_template: _JobBody


class RayCluster(_Closed):
    """``kind: RayCluster``."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: _Metadata
    spec: _ClusterBody


class RayJob(_Closed):
    """``kind: RayJob``."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: _Metadata
    spec: _JobBody


class RayService(_Closed):
    """``kind: RayService``."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: _Metadata
    spec: _ServiceBody


class RayCronJob(_Closed):
    """``kind: RayCronJob``."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCronJob"]
    metadata: _Metadata
    spec: _CronBody


KINDS: dict[str, type[_Closed]] = {m.__name__: m for m in (RayCluster, RayJob, RayService, RayCronJob)}


def problems(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    """Where a ``ray.io`` object differs from its type, and how; empty where it does not."""
    try:
        KINDS[manifest["kind"]].model_validate(manifest)
    except ValidationError as error:
        return [(_path(e["loc"]), f"{e['msg']} (found {_brief(e['input'])})") for e in error.errors()]
    return []


def _path(loc: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:57]}..."
