"""A driver on a cluster of two nodes, one of which is lost in the middle of a pack: ``python -m node_loss HOME DATA GATE``.

Prints the leaderboard as JSON. A process of its own, for a process has one Ray.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any

import psutil
import ray
import sweeps
from ray.cluster_utils import Cluster

from tiltyard.settings import Settings

SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
"""A node that answers nothing is given up after five checks: 2.5 s, where Ray waits 15 s. One that is slow has 10 s a check."""


def main(home: Path, data: str, gate: Path) -> None:
    """Runs the sweep, loses the node, prints what came out."""
    head: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 200 << 20, "_system_config": SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        told = sweep_and_lose(cluster, sweeps.settings_at(home, data), gate)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]
    print(json.dumps(told))


def sweep_and_lose(cluster: Cluster, settings: Settings, gate: Path) -> dict[str, Any]:
    """The sweep; both nodes hold a pack when one of them is lost."""
    worker = cluster.add_node(num_cpus=1, object_store_memory=200 << 20)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.CRITICAL)
    lost: list[int] = []

    def lose_the_node() -> None:
        try:
            sweeps.until(lambda: len(sweeps.marks(gate)) == 2, what="both packs at the gate")
            raylet = worker.all_processes["raylet"][0].process.pid
            lost.extend(pid for pid in sweeps.marks(gate) if psutil.Process(pid).ppid() == raylet)
            cluster.remove_node(worker, allow_graceful=False)
        finally:
            gate.unlink()

    gate.touch()
    with sweeps.meanwhile(lose_the_node):
        outcome = sweeps.run_launch(settings, sweeps.gated(gate, steps=2))
    ranked = {d: [dataclasses.asdict(s) for s in rows] for d, rows in sweeps.standings(outcome.leaderboard).items()}
    tries = [[a.pack_id, a.number, a.state] for a in sweeps.attempts(settings, outcome.claim.key)]
    return {"state": outcome.state, "standings": ranked, "attempts": tries, "packs_on_the_lost_node": len(lost)}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
