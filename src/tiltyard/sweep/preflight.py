"""Can the packs of an experiment ever be placed? Pure: what a pack holds against what the nodes have.

A pack that no node can hold would wait for ever, for Ray Tune waits for resources without an end. Reading data needs no CPU
slot of its own (`tiltyard.data.stream`), so packs may take every CPU there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tiltyard.errors import PreflightError
from tiltyard.experiment import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What one node of the cluster has in all, free or not."""

    name: str
    cpus: float
    gpus: float


def check_placement(resources: Resources, nodes: Sequence[Node]) -> None:
    """Some node can hold a pack.

    Args:
        resources: What a pack holds.
        nodes: Every node there is, or that may come.

    Raises:
        PreflightError: With the arithmetic, if none can.
    """
    if any(node.cpus >= resources.cpus and node.gpus >= resources.gpus for node in nodes):
        return
    wants = f"{resources.cpus:g} CPUs" + (f" and {resources.gpus:g} GPUs" if resources.gpus else "")
    have = "; ".join(f"{n.name}: {n.cpus:g} CPUs, {n.gpus:g} GPUs" for n in nodes) or "no node at all"
    raise PreflightError(
        f"A pack holds {wants} on one node, and no node has that many: {have}. It would wait for ever. "
        f"Lower Experiment.resources{_which(resources, nodes)}, or run on a cluster with a node that large."
    )


def _which(resources: Resources, nodes: Sequence[Node]) -> str:
    """Names what is too much, where it is one thing."""
    cpus, gpus = max((n.cpus for n in nodes), default=0), max((n.gpus for n in nodes), default=0)
    if resources.cpus > cpus and resources.gpus <= gpus:
        return f" (cpus to at most {cpus:g})"
    if resources.gpus > gpus and resources.cpus <= cpus:
        return f" (gpus to at most {gpus:g})"
    return ""
