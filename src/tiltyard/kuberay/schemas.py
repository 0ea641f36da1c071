"""Checks manifests against the schemas of KubeRay's CRDs, closed to fields they do not name.

An API server drops unknown fields or lets them pass; a typo (``entrypointt``) then costs a night. So every object of a schema
is closed here. The CRDs are those of the connected cluster, or of a folder; nothing of KubeRay is in this repository. What a
schema cannot say is in `tiltyard.kuberay.rules`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tiltyard.errors import ClusterError

GROUP, VERSION = "ray.io", "v1"
Schemas = Mapping[str, Mapping[str, Any]]
"""Closed JSON schemas by kind."""


def from_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """The schemas of the CRD files of a folder.

    Raises:
        ClusterError: If there is none of KubeRay's in it.
    """
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        crds = [yaml.load(p.read_text(), Loader=loader) for p in sorted(folder.glob("*.yaml"))]  # noqa: S506 - safe ones
    except (OSError, yaml.YAMLError) as error:
        raise ClusterError(f"The CRDs in {folder} cannot be read: {error}.") from error
    found = from_crds(crd for crd in crds if isinstance(crd, dict) and crd.get("kind") == "CustomResourceDefinition")
    if not found:
        raise ClusterError(
            f"{folder} holds no CRD of {GROUP}. Wanted: KubeRay's ray.io_*.yaml (helm-chart/kuberay-operator/crds), or none: "
            "without --crds the connected cluster is asked."
        )
    return found


def from_crds(crds: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Closed schemas of the version that is used, by kind."""
    found = {}
    for crd in crds:
        spec = crd["spec"]
        if spec["group"] != GROUP:
            continue
        for version in spec["versions"]:
            if version["name"] == VERSION:
                found[spec["names"]["kind"]] = closed(version["schema"]["openAPIV3Schema"])
    return found


def closed(schema: Any) -> Any:
    """A schema of Kubernetes as JSON schema, every object with named fields closed to others.

    Kubernetes' ``x-kubernetes-int-or-string`` takes both; objects that keep unknown fields stay open; the metadata is
    Kubernetes' own business.
    """
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"anyOf": [{"type": "integer"}, {"type": "string"}]}
    found = {
        name: ({n: closed(s) for n, s in value.items()} if name == "properties" else closed(value))
        for name, value in schema.items()
        if not name.startswith("x-") and name not in {"description", "default", "format"}
    }
    keeps = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in found and not keeps and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


def problems(manifest: Mapping[str, Any], schemas: Schemas) -> list[tuple[str, str]]:
    """Where a manifest differs from its kind's schema, and how."""
    from jsonschema import Draft202012Validator

    errors = Draft202012Validator(schemas[manifest["kind"]]).iter_errors(dict(manifest))
    return sorted((_path(error.absolute_path), _message(error.message)) for error in errors)


def _path(parts: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")


def _message(text: str) -> str:
    return text if len(text) < 300 else f"{text[:140]} ... {text[-140:]}"
