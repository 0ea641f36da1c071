"""Can the packs of an experiment ever be placed? Pure: what a pack holds against what the nodes have.

A pack that no node can hold would wait for ever, for Ray Tune waits for resources without an end. Reading data needs no CPU
slot of its own (`tiltyard.data.stream`), so packs may take every CPU there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiltyard.errors import PreflightError
from tiltyard.experiment import Resources

OBJECT_STORE_SHARE = 0.25
"""Share of the machine's memory for a local object store, at most; Ray's own default is 0.3."""
OBJECT_STORE_MAX_BYTES = 2 << 30
OBJECT_STORE_LEAST_BYTES = 100 << 20
"""Ray 2.60 starts no object store below 75 MiB."""
SHARED_MEMORY = "/dev/shm"  # noqa: S108 - looked at, nothing is written there
SHARED_MEMORY_SHARE = 0.9
"""Of what is free in /dev/shm: where the store does not fit there Ray puts it on disk, and says so in a log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node of the cluster has in all, free or not."""

    name: str
    cpus: float
    gpus: float
    gpu_node_cpus: float = 0
    """CPUs that only a pack with GPUs may have (`tiltyard.placement`)."""

    def holds(self, resources: Resources) -> bool:
        """A pack fits while nothing else is there."""
        cpus = max(self.cpus, self.gpu_node_cpus) if resources.gpus else self.cpus
        return cpus >= resources.cpus and self.gpus >= resources.gpus


def check_placement(resources: Resources, nodes: Sequence[Node]) -> None:
    """Some node can hold a pack.

    Args:
        resources: What a pack holds.
        nodes: Every node there is, or that may come.

    Raises:
        PreflightError: With the arithmetic, if none can.
    """
    if any(node.holds(resources) for node in nodes):
        return
    wants = f"{resources.cpus:g} CPUs" + (f" and {resources.gpus:g} GPUs" if resources.gpus else "")
    have = "; ".join(map(_said, nodes)) or "no node at all"
    raise PreflightError(
        f"A pack holds {wants} on one node, and no node has that many: {have}. It would wait for ever. "
        f"Lower Experiment.resources{_which(resources, nodes)}, or run on a cluster with a node that large."
    )


def object_store_bytes(*, memory_bytes: int, shared_bytes: int | None) -> int:
    """How large a local object store may be.

    Args:
        memory_bytes: Memory of the machine.
        shared_bytes: What is free in ``/dev/shm``; None where there is none.

    Raises:
        PreflightError: With the arithmetic, if the shared memory is too small for any.
    """
    wanted = min(OBJECT_STORE_MAX_BYTES, int(memory_bytes * OBJECT_STORE_SHARE))
    if shared_bytes is None:
        return wanted
    fits = int(shared_bytes * SHARED_MEMORY_SHARE)
    if fits < min(wanted, OBJECT_STORE_LEAST_BYTES):
        raise PreflightError(
            f"{SHARED_MEMORY} has {shared_bytes >> 20} MiB free, of which an object store may take {fits >> 20} MiB; it needs at "
            f"least {OBJECT_STORE_LEAST_BYTES >> 20} MiB, and would take {wanted >> 20} MiB here. Give the container more "
            "(docker run --shm-size=2g; in Kubernetes an emptyDir with medium: Memory at /dev/shm), or free it."
        )
    return min(wanted, fits)


def _said(node: Node) -> str:
    kept = f", {node.gpu_node_cpus:g} more CPUs for packs with GPUs" if node.gpu_node_cpus else ""
    return f"{node.name}: {node.cpus:g} CPUs, {node.gpus:g} GPUs{kept}"


def _which(resources: Resources, nodes: Sequence[Node]) -> str:
    """Names what is too much, where it is one thing."""
    own = [max(n.cpus, n.gpu_node_cpus) if resources.gpus else n.cpus for n in nodes]
    cpus, gpus = max(own, default=0), max((n.gpus for n in nodes), default=0)
    if resources.cpus > cpus and resources.gpus <= gpus:
        return f" (cpus to at most {cpus:g})"
    if resources.gpus > gpus and resources.cpus <= cpus:
        return f" (gpus to at most {gpus:g})"
    return ""
