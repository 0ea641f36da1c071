"""Everything that is checked before a manifest is sent: schema, KubeRay's rules, names, and the secrets it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tiltyard.errors import ClusterError
from tiltyard.kuberay import models, rules, schemas
from tiltyard.kuberay.api import Api, ForbiddenError, Ref
from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.rendering import WantedSecret
from tiltyard.kuberay.rules import Problem
from tiltyard.kuberay.schemas import Schemas

UnknownFields = Callable[[Mapping[str, Any]], list[tuple[str, str]]]


def problems(
    manifests: Iterable[Manifest],
    *,
    crds: Schemas | None,
    unknown_fields: UnknownFields,
    features: Iterable[str] = (),
) -> list[Problem]:
    """All that cannot be right in these manifests.

    Args:
        manifests: The objects.
        crds: Schemas of KubeRay's kinds; the project's own typed models where None.
        unknown_fields: Of Kubernetes' own kinds.
        features: Alpha gates of the operator that are on.
    """
    found: list[Problem] = []
    on = frozenset(features)
    for manifest in manifests:
        if str(manifest["apiVersion"]).startswith(f"{schemas.GROUP}/"):
            if crds is None:
                shape = models.problems(manifest)
            elif manifest["kind"] in crds:
                shape = schemas.problems(manifest, crds)
            else:
                shape = [("kind", f"no CRD of it is there; there is {', '.join(sorted(crds)) or 'none'}")]
        else:
            shape = unknown_fields(manifest)
        ref = Ref.of(manifest)
        found += [Problem(kind=ref.kind, name=ref.name, path=path, text=text) for path, text in shape]
        if not any(
            path.startswith(("spec", "apiVersion", "kind")) for path, _ in shape
        ):  # a rule reads what has a shape
            found += rules.check(manifest, features=on)
    return found


def refuse(found: Sequence[Problem]) -> None:
    """Raises where something was found.

    Raises:
        ClusterError: With every problem, one a line.
    """
    if found:
        lines = "\n".join(f"  {problem}" for problem in found)
        raise ClusterError(
            f"{len(found)} {'thing' if len(found) == 1 else 'things'} cannot be right, so nothing was sent:\n{lines}\nMend the "
            "description (cluster/cluster.py)."
        )


def missing_secrets(api: Api, wanted: Iterable[WantedSecret]) -> list[str]:
    """What is missing of the secrets that must be there, one line each; their values are not looked at."""
    found = []
    for secret in wanted:
        where = f"Secret {secret.name} in {secret.namespace} ({secret.why})"
        try:
            there = api.get(Ref(kind="Secret", name=secret.name, namespace=secret.namespace))
        except ForbiddenError:
            continue  # who may not read secrets is told by the pods
        if there is None:
            found.append(f"{where} is not there")
            continue
        lacking = sorted(set(secret.keys) - set(there.get("data") or {}))
        if lacking:
            found.append(f"{where} lacks the key {', '.join(lacking)}")
    return found


def connected_schemas(api: Api) -> dict[str, Any] | None:
    """The schemas of the connected cluster's own CRDs; None where it has none, or they may not be read."""
    names = [f"{plural}.{schemas.GROUP}" for plural in ("rayclusters", "rayjobs", "rayservices", "raycronjobs")]
    try:
        crds = [api.get(Ref(kind="CustomResourceDefinition", name=name)) for name in names]
    except ForbiddenError:
        return None
    return schemas.from_crds(crd for crd in crds if crd is not None) or None
