"""What a pack asks Ray for, and how many packs a cluster that grows can hold; pure.

A cluster that starts from no workers tells nothing by what it has now. So its description says in the environment of its
pods (`GROUPS_ENV`) which groups of workers may come, how many, and what each offers.

GPU nodes are for work with GPUs. Ray's scheduler only prefers other nodes for the rest, and takes GPU nodes once those are
full. So nodes with GPUs offer no ``CPU`` at all: what they have stands under another name (`GPU_NODE_CPU`), which only a pack
with GPUs asks for. Work that asks for no CPU either (readers, fronts) stays away by a label (`AWAY_FROM_GPU_NODES`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tiltyard.errors import SpecError
from tiltyard.experiment import Resources

GROUPS_ENV = "TILTYARD_CLUSTER_GROUPS"
GROUP_ENV = "TILTYARD_WORKER_GROUP"
"""Which of them a worker's pod is of."""
GPU_NODE_CPU = "gpu_node_cpu"
"""Ray resource: CPUs of nodes with GPUs. KubeRay takes every name that ends in ``gpu`` for GPUs."""
GPU_NODE_LABEL = "tiltyard.dev/gpu-node"
AWAY_FROM_GPU_NODES: dict[str, str] = {GPU_NODE_LABEL: "!true"}
"""``label_selector`` of work that holds no CPU; a node without the label, on any other cluster, is as good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """Workers of one kind: at most ``most`` of them, each with these Ray resources and this much object store.

    ``hourly`` is what an hour of one costs in ``currency``; None where the description does not say.
    """

    name: str
    most: int
    offers: Mapping[str, float]
    store_bytes: int
    hourly: float | None = None
    currency: str = ""


def node_offers(*, cpus: float, gpus: float) -> dict[str, float]:
    """Ray resources of a node in a described cluster.

    >>> node_offers(cpus=7, gpus=1)
    {'CPU': 0, 'GPU': 1, 'gpu_node_cpu': 7}
    """
    return {"CPU": 0, "GPU": gpus, GPU_NODE_CPU: cpus} if gpus else {"CPU": cpus}


def asked(resources: Resources, groups: Sequence[NodeGroup]) -> dict[str, float]:
    """What a pack asks Ray for, so that it comes where its GPUs are, and to no GPU node without any.

    Args:
        resources: What a pack holds.
        groups: What may come; empty on a cluster that is not described.

    >>> asked(Resources(cpus=2, gpus=1), [])
    {'CPU': 2.0, 'GPU': 1.0}
    """
    if resources.gpus and any(g.offers.get(GPU_NODE_CPU) for g in groups):
        return {"CPU": 0, "GPU": resources.gpus, GPU_NODE_CPU: resources.cpus}
    return {"CPU": resources.cpus, "GPU": resources.gpus}


def fit(ask: Mapping[str, float], offers: Mapping[str, float]) -> int:
    """How many of that ask fit at once where so much is offered.

    >>> fit({"CPU": 0, "GPU": 0.5}, {"GPU": 1})
    2
    """
    return min((int(offers.get(name, 0) // need) for name, need in ask.items() if need), default=0)


def at_once(ask: Mapping[str, float], groups: Sequence[NodeGroup]) -> int:
    """How many packs the cluster holds at once when every group is at its bound."""
    return sum(group.most * fit(ask, group.offers) for group in groups)


def store_sizes(alive: Sequence[Mapping[str, float]], groups: Sequence[NodeGroup]) -> tuple[int, int]:
    """Bytes of the smallest object store that a node has or may have, and of all of them together.

    Args:
        alive: Ray resources of the nodes that are there.
        groups: What may come.
    """
    there = [int(has.get("object_store_memory", 0)) for has in alive]
    smallest = min([*there, *(g.store_bytes for g in groups)], default=0)
    return smallest, max(sum(there), sum(g.most * g.store_bytes for g in groups))


def to_env(groups: Sequence[NodeGroup]) -> str:
    """Groups as the value of `GROUPS_ENV`."""
    return json.dumps(
        [
            {
                "name": g.name,
                "most": g.most,
                "offers": dict(g.offers),
                "store_bytes": g.store_bytes,
                **({} if g.hourly is None else {"hourly": g.hourly, "currency": g.currency}),
            }
            for g in groups
        ]
    )


def groups_of(environ: Mapping[str, str]) -> list[NodeGroup]:
    """The groups that the environment tells of; none where it does not.

    Raises:
        SpecError: If its value is not what a cluster's description writes.
    """
    text = environ.get(GROUPS_ENV, "")
    if not text:
        return []
    try:
        return [
            NodeGroup(
                name=str(g["name"]),
                most=int(g["most"]),
                offers={str(k): float(v) for k, v in g["offers"].items()},
                store_bytes=int(g["store_bytes"]),
                hourly=float(g["hourly"]) if "hourly" in g else None,
                currency=str(g.get("currency", "")),
            )
            for g in json.loads(text)
        ]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpecError(
            f"{GROUPS_ENV} cannot be read ({type(error).__name__}: {error}); wanted what `tiltyard cluster render` writes "
            "into the pods. Render and apply the cluster anew, or unset it."
        ) from error
