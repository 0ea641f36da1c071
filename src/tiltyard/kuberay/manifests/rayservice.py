"""The champions as a RayService, and the Ingress in front of them where they are reached from outside."""

from __future__ import annotations

from typing import Any

import yaml

from tiltyard.errors import SpecError
from tiltyard.kuberay.manifests.objects import Manifest, manifest
from tiltyard.kuberay.manifests.pods import SERVE
from tiltyard.kuberay.manifests.raycluster import API, cluster_body
from tiltyard.kuberay.spec import ClusterSpec, Serving, WorkerGroup

SERVING = "serving"
TOKENS_FOLDER = "/etc/tiltyard/serving"


def rayservice(spec: ClusterSpec, serving: Serving, config: str) -> Manifest:
    """The service.

    Args:
        spec: The cluster that it is like; it has one of its own.
        serving: How large.
        config: Text of the Serve config file.

    Raises:
        SpecError: If the config is no Serve config.
    """
    group = WorkerGroup(
        name="serve", pod=serving.pod, min_replicas=serving.min_replicas, max_replicas=serving.max_replicas, idle_s=300
    )
    return manifest(
        spec,
        api=API,
        kind="RayService",
        name=service_name(spec),
        namespace=spec.namespace,
        component=SERVING,
        spec={
            "serveConfigV2": with_tokens(config, serving.config),
            "excludeHeadPodFromServeSvc": True,
            "rayClusterDeletionDelaySeconds": 120,
            "rayClusterConfig": cluster_body(
                spec, [group], component=SERVING, files=[(serving.tokens_secret, TOKENS_FOLDER, "serving-tokens")]
            ),
        },
    )


def service_name(spec: ClusterSpec) -> str:
    """Name of the RayService; Serve is then reached at ``<name>-serve-svc``."""
    return f"{spec.name}-champions"


def with_tokens(config: str, path: str) -> str:
    """A Serve config whose applications read their bearer tokens from the mounted Secret, unless they say otherwise.

    Raises:
        SpecError: If it is not YAML with applications.
    """
    try:
        found: Any = yaml.safe_load(config)
        applications = found["applications"]
        for application in applications:
            application.setdefault("args", {}).setdefault("tokens", f"{TOKENS_FOLDER}/serving-tokens.json")
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{path} is no Serve config: wanted YAML with `applications:`, a list. ({error})") from error
    return str(yaml.safe_dump(found, sort_keys=False))


def ingress(spec: ClusterSpec, serving: Serving) -> list[Manifest]:
    """What reaches Serve from outside, and nothing else; TLS by cert-manager where an issuer is named."""
    if serving.host is None:
        return []
    backend = {"service": {"name": f"{service_name(spec)}-serve-svc", "port": {"number": SERVE}}}
    secret = f"{service_name(spec)}-tls"
    body: dict[str, Any] = {
        "rules": [{"host": serving.host, "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}]
    }
    if serving.ingress_class:
        body["ingressClassName"] = serving.ingress_class
    found = []
    if serving.issuer:
        body["tls"] = [{"hosts": [serving.host], "secretName": secret}]
        found.append(
            manifest(
                spec,
                api="cert-manager.io/v1",
                kind="Certificate",
                name=service_name(spec),
                namespace=spec.namespace,
                component=SERVING,
                spec={
                    "secretName": secret,
                    "dnsNames": [serving.host],
                    "issuerRef": {"name": serving.issuer, "kind": "ClusterIssuer"},
                },
            )
        )
    found.append(
        manifest(
            spec,
            api="networking.k8s.io/v1",
            kind="Ingress",
            name=service_name(spec),
            namespace=spec.namespace,
            component=SERVING,
            spec=body,
        )
    )
    return found
