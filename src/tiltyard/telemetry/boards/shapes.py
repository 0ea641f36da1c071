"""What a board is made of, as plain data; `tiltyard.telemetry.dashboards` makes Grafana's JSON of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

RATE = "$__rate_interval"
CLUSTER = 'ray_io_cluster=~"$cluster"'
EXPERIMENT = f'{CLUSTER},experiment=~"$experiment",team=~"$team"'
MODEL = f'{CLUSTER},model=~"$model"'
RECORDED = 'model=~"$model"'
"""Of the record: it belongs to a home, not to a cluster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One line or group of lines."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One picture.

    Args:
        title: A few words.
        unit: Grafana's name of it (``s``, ``percentunit``, ``reqps``, ``bytes``, ``short``).
        meaning: What it says and when to worry.
        queries: What is asked.
        now: One number instead of a line over time.
        stacked: Lines are parts of a whole.
    """

    title: str
    unit: str
    meaning: str
    queries: tuple[Query, ...]
    now: bool = False
    stacked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One page of panels in rows.

    ``variables`` are those of `VARIABLES` that its queries and links use; of those in ``one`` a single value is chosen.
    """

    uid: str
    title: str
    meaning: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[str, ...]
    one: tuple[str, ...] = ()

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Of all rows."""
        return tuple(panel for _, panels in self.rows for panel in panels)


VARIABLES = {
    "cluster": "label_values(ray_node_cpu_count, ray_io_cluster)",
    "team": 'label_values({__name__=~"ray_tiltyard_sweep_trials|tiltyard_budget_seconds"}, team)',
    "experiment": 'label_values({__name__=~"ray_tiltyard_sweep_trials|tiltyard_launches"}, experiment)',
    "model": 'label_values({__name__=~"ray_tiltyard_serving_version|tiltyard_model_age_seconds"}, model)',
}
"""Each variable and where its values come from."""

OF_ONE = {
    "run": ('max by (run) (tiltyard_launch_age_seconds{experiment=~"$experiment"})', "run"),
    "ray_job": (
        'max by (ray_job) (ray_tiltyard_sweep_elapsed_seconds{experiment=~"$experiment"})',
        "ray_job",
    ),
}
"""Variables that nobody chooses: what is asked at the end of the shown time, and the label that is taken. For links."""


def panel(
    title: str, unit: str, meaning: str, *queries: str | tuple[str, str], now: bool = False, stacked: bool = False
) -> Panel:
    """A panel of queries, each with the legend of its lines where there is one."""
    asked = tuple(Query(expr=q) if isinstance(q, str) else Query(expr=q[0], legend=q[1]) for q in queries)
    return Panel(title=title, unit=unit, meaning=meaning, queries=asked, now=now, stacked=stacked)


def quantile(q: float, name: str, by: str, where: str) -> str:
    """PromQL: a quantile of one of serving's histograms, by labels, of the series that ``where`` matches."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate(ray_tiltyard_serving_{name}_bucket{{{where}}}[{RATE}])))"
