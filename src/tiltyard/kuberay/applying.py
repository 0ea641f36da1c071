"""Brings a Kubernetes cluster to what its description says, and takes it away again.

Server-side apply: the server merges, and says who holds a field that would change. Applying twice changes nothing, which is
seen by the object's version. What this project did not make it never deletes: an object counts as ours if its labels name
this cluster and our field manager applied it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.kuberay.api import KINDS, MANAGER, Api, NotThereError, Ref
from tiltyard.kuberay.files import patch
from tiltyard.kuberay.manifests.objects import INSTANCE, PART_OF, Manifest
from tiltyard.kuberay.spec import ClusterSpec

CREATED, CHANGED, SAME = "created", "changed", "unchanged"
DELETED, GONE, KEPT = "deleted", "was not there", "kept"
_SERVERS = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink")
_KEPT_KINDS = frozenset({"Namespace"})
"""What holds other people's things: deleted only when asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What became, or would become, of one object; ``lines`` say which fields."""

    ref: Ref
    what: str
    lines: tuple[str, ...] = ()


def apply(
    api: Api, manifests: Iterable[Manifest], *, force: bool = False, say: Callable[[Step], None] = lambda _: None
) -> list[Step]:
    """Applies objects in order.

    Args:
        api: The cluster.
        manifests: The objects.
        force: Take fields over that other managers hold.
        say: Told each step as it is done.

    Raises:
        ConflictError: If another manager holds a field; what came before it is applied, and applying again goes on.
    """
    steps = []
    for manifest in manifests:
        ref = Ref.of(manifest)
        before = api.get(ref)
        after = api.apply(manifest, force=force)
        what = CREATED if before is None else SAME if _version(before) == _version(after) else CHANGED
        lines = _lines(before, after) if before is not None and what == CHANGED else ()
        steps.append(Step(ref=ref, what=what, lines=lines))
        say(steps[-1])
    return steps


def diff(api: Api, manifests: Iterable[Manifest], *, force: bool = False) -> list[Step]:
    """What `apply` would do, asked of the server itself (dry run); changes nothing."""
    steps = []
    for manifest in manifests:
        ref = Ref.of(manifest)
        before = api.get(ref)
        if before is None:
            steps.append(Step(ref=ref, what=CREATED))
            continue
        lines = _lines(before, api.apply(manifest, dry_run=True, force=force))
        steps.append(Step(ref=ref, what=CHANGED if lines else SAME, lines=lines))
    return steps


def delete(
    api: Api,
    manifests: Sequence[Manifest],
    spec: ClusterSpec,
    *,
    namespaces: bool = False,
    say: Callable[[Step], None] = lambda _: None,
) -> list[Step]:
    """Deletes what is ours of these objects, last first; volumes of PostgreSQL stay, and namespaces unless asked for.

    Args:
        api: The cluster.
        manifests: The objects.
        spec: Whose they must be.
        namespaces: The namespaces too, with everything that is in them.
        say: Told each step as it is done.
    """
    steps = []
    for manifest in reversed(manifests):
        ref = Ref.of(manifest)
        there = api.get(ref)
        if there is None:
            step = Step(ref=ref, what=GONE)
        elif not is_ours(there, spec):
            step = Step(ref=ref, what=KEPT, lines=("not ours: another field manager or cluster",))
        elif ref.kind in _KEPT_KINDS and not namespaces:
            step = Step(ref=ref, what=KEPT, lines=("what else is in it would go too: --namespaces",))
        else:
            step = Step(ref=ref, what=DELETED if api.delete(ref, uid=there["metadata"]["uid"]) else GONE)
        steps.append(step)
        say(step)
    return steps


def left_over(api: Api, manifests: Sequence[Manifest], spec: ClusterSpec) -> list[Ref]:
    """Objects that are ours and in the description no more; they stay until somebody deletes them."""
    wanted = {Ref.of(m) for m in manifests}
    kinds = [k.kind for k in KINDS.values() if k.namespaced and k.kind not in {"Pod", "Event", "Secret", "RayJob"}]
    found = []
    for namespace in (spec.namespace, *(team.namespace for team in spec.teams)):
        for kind in kinds:
            try:
                there = api.list(kind, namespace, f"{PART_OF}=tiltyard,{INSTANCE}={spec.name}")
            except NotThereError:  # a kind whose CRD is not installed
                continue
            for item in there:
                ref = Ref(kind=kind, name=item["metadata"]["name"], namespace=namespace)
                if ref not in wanted and is_ours(item, spec):
                    found.append(ref)
    return found


def is_ours(there: Mapping[str, Any], spec: ClusterSpec) -> bool:
    """Its labels name this cluster, and our field manager applied it."""
    metadata = there["metadata"]
    labels = metadata.get("labels") or {}
    applied = any(
        entry.get("manager") == MANAGER and entry.get("operation") == "Apply"
        for entry in metadata.get("managedFields") or ()
    )
    return applied and labels.get(PART_OF) == "tiltyard" and labels.get(INSTANCE) == spec.name


def _version(there: Mapping[str, Any]) -> str:
    return str(there["metadata"].get("resourceVersion"))


def _lines(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Which fields differ, without those that the server keeps for itself."""
    steps = patch(_told(before), _told(after))
    return tuple(_line(step, before) for step in steps)


def _told(there: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {k: v for k, v in there["metadata"].items() if k not in _SERVERS}
    return {**{k: v for k, v in there.items() if k != "status"}, "metadata": metadata}


def _line(step: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    path = str(step["path"]).strip("/").replace("/", ".").replace("~1", "/").replace("~0", "~")
    if before.get("kind") == "Secret":
        return f"{step['op']} {path}"
    return f"{step['op']} {path}" + (f" = {str(step['value'])[:100]}" if "value" in step else "")
