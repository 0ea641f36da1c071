"""Manifests as the files that are committed: a kustomize base, and overlays that patch it.

An overlay holds what differs and nothing else: JSON patches (RFC 6902), objects that the base lacks, and deletions of those
that it has too many. They are computed from the two descriptions, so ``kubectl apply -k`` and `tiltyard.kuberay.applying`
make the same objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tiltyard.kuberay.description import BASE
from tiltyard.kuberay.manifests.objects import Manifest
from tiltyard.kuberay.manifests.rendering import render, render_jobs
from tiltyard.kuberay.spec import ClusterSpec

_HEAD = "# Written by `tiltyard cluster render` from cluster/cluster.py; change that file instead.\n"


def files(variants: Mapping[str, ClusterSpec], serve_config: Mapping[str, str]) -> dict[str, str]:
    """The text of every file, by its path below the cluster's folder.

    Args:
        variants: From `description.variants`.
        serve_config: Text of each Serve config that a description names, by its path.
    """
    base = rendered(variants[BASE], serve_config)
    found = _folder(BASE, base, {})
    for name, objects in render_jobs(variants[BASE]).items():
        found[f"jobs/{name}.yaml"] = _yaml([objects])
    for name, spec in variants.items():
        if name != BASE:
            found |= _overlay(name, _flat(base), _flat(rendered(spec, serve_config)))
            for job, body in render_jobs(spec).items():
                if _yaml([body]) != found.get(f"jobs/{job}.yaml"):
                    found[f"jobs/{name}/{job}.yaml"] = _yaml([body])
    return dict(sorted(found.items()))


def rendered(spec: ClusterSpec, serve_config: Mapping[str, str]) -> dict[str, list[Manifest]]:
    """The objects of a description, by family."""
    return render(spec, serve_config[spec.serving.config] if spec.serving is not None else "")


def write(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Writes the files and removes those that an earlier rendering left; the paths that changed."""
    changed = []
    for path, text in wanted.items():
        target = folder / path
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            changed.append(path)
    for path in stale(folder, wanted):
        (folder / path).unlink()
        changed.append(path)
    return changed


def stale(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Rendered files that are there and no longer wanted; other people's files are not counted."""
    there = [p for part in (BASE, "overlays", "jobs") for p in (folder / part).rglob("*.yaml")]
    names = {p.relative_to(folder).as_posix() for p in there if p.read_text().startswith(_HEAD)}
    return sorted(names - set(wanted))


def patch(before: Any, now: Any, at: str = "") -> list[dict[str, Any]]:
    """JSON patch that makes ``now`` of ``before``.

    >>> patch({"a": 1, "b": [1, 2]}, {"b": [1, 3, 4]})
    [{'op': 'remove', 'path': '/a'}, {'op': 'replace', 'path': '/b/1', 'value': 3}, {'op': 'add', 'path': '/b/-', 'value': 4}]
    """
    if before == now:
        return []
    found: list[dict[str, Any]] = []
    if isinstance(before, dict) and isinstance(now, dict):
        found += [{"op": "remove", "path": f"{at}/{_escaped(k)}"} for k in before if k not in now]
        for key, value in now.items():
            path = f"{at}/{_escaped(key)}"
            found += patch(before[key], value, path) if key in before else [{"op": "add", "path": path, "value": value}]
        return found
    if isinstance(before, list) and isinstance(now, list):
        both = min(len(before), len(now))
        for index in range(both):
            found += patch(before[index], now[index], f"{at}/{index}")
        found += [{"op": "remove", "path": f"{at}/{index}"} for index in range(len(before) - 1, both - 1, -1)]
        return found + [{"op": "add", "path": f"{at}/-", "value": value} for value in now[both:]]
    return [{"op": "replace", "path": at, "value": now}]


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")


_Id = tuple[str, str, str]


def _flat(families: Mapping[str, list[Manifest]]) -> dict[_Id, Manifest]:
    return {_id(m): m for objects in families.values() for m in objects}


def _id(manifest: Manifest) -> _Id:
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace", ""), metadata["name"]


def _folder(place: str, families: Mapping[str, list[Manifest]], more: Mapping[str, Any]) -> dict[str, str]:
    found = {f"{place}/{name}.yaml": _yaml(objects) for name, objects in families.items()}
    kustomization = {"resources": [f"{name}.yaml" for name in families], **more}
    return found | {f"{place}/kustomization.yaml": _kustomization(kustomization)}


def _overlay(name: str, base: Mapping[_Id, Manifest], now: Mapping[_Id, Manifest]) -> dict[str, str]:
    place = f"overlays/{name}"
    patches: list[dict[str, Any]] = []
    for key, before in base.items():
        target = {"kind": key[0], "name": key[2], **({"namespace": key[1]} if key[1] else {})}
        if key not in now:
            metadata = {n: v for n, v in before["metadata"].items() if n != "labels"}
            gone = {"$patch": "delete", "apiVersion": before["apiVersion"], "kind": key[0], "metadata": metadata}
            patches.append({"patch": yaml.safe_dump(gone, sort_keys=False)})
        elif steps := patch(before, now[key]):
            patches.append({"target": target, "patch": yaml.safe_dump(steps, sort_keys=False)})
    added = [m for key, m in now.items() if key not in base]
    resources = [f"../../{BASE}", *(["added.yaml"] if added else [])]
    found = {f"{place}/kustomization.yaml": _kustomization({"resources": resources, "patches": patches})}
    if added:
        found[f"{place}/added.yaml"] = _yaml(added)
    return found


def _kustomization(body: Mapping[str, Any]) -> str:
    return _HEAD + _dump({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", **body})


def _yaml(objects: Iterable[Manifest]) -> str:
    return _HEAD + "---\n".join(_dump(m) for m in objects)


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, and no aliases: both are for people."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _dump(value: Any) -> str:
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True))
