"""What the boards show: panels with their queries, units and meaning, as plain data; one module a board. Pure.

`tiltyard.telemetry.dashboards` makes Grafana's JSON of it; the tests ask a real Prometheus each query. Variables stand in the
queries as Grafana has them: ``$cluster`` (label ``ray_io_cluster``, which the PodMonitors add; on one machine there is none,
and "All" matches that too), ``$experiment`` and ``$model``.
"""

from __future__ import annotations

from tiltyard.telemetry.boards import cluster, cost, data, models, overview, serving, sweep
from tiltyard.telemetry.boards.shapes import VARIABLES, Board, Panel, Query

BOARDS = (
    overview.BOARD,
    sweep.BOARD,
    serving.BOARD,
    models.BOARD,
    data.BOARD,
    cost.BOARD,
    cluster.BOARD,
)
"""Every board."""

__all__ = ["BOARDS", "VARIABLES", "Board", "Panel", "Query"]
