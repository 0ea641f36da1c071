"""Makes Grafana's JSON of the boards, with Grafana's own builders (`grafana-foundation-sdk`, the ``dashboards`` extra).

`files` is everything under ``dashboards/``: the boards, the rules, and what Prometheus scrapes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableHide,
    VariableRefresh,
)

from tiltyard.telemetry.alerts import rules_file, scrape_file
from tiltyard.telemetry.boards import BOARDS, Board, Panel, onward
from tiltyard.telemetry.boards.shapes import OF_ONE, VARIABLES

_SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
_WIDTH, _HEIGHT, _NOW_HEIGHT = 24, 8, 4
GENERATED = "# Written by: tiltyard dashboards render. Change src/tiltyard/telemetry/alerts.py instead.\n"


def files() -> dict[str, str]:
    """Every file under ``dashboards/`` that is made, by its name."""
    made = {f"{board.uid}.json": _text(board) for board in BOARDS}
    made["rules.yaml"] = GENERATED + yaml.safe_dump(rules_file(), sort_keys=False, width=120)
    made["prometheus.yaml"] = GENERATED + yaml.safe_dump(scrape_file(), sort_keys=False)
    return made


def differing(folder: Path) -> list[str]:
    """Names of files in a folder that are not what they would be now, or are missing, or are there no more."""
    made = files()
    there = {p.name: p.read_text() for p in [*folder.glob("tiltyard-*.json"), *folder.glob("*.yaml")]}
    left = {name for name in there if name.startswith("tiltyard-") and name not in made}
    return sorted(left | {name for name, text in made.items() if there.get(name) != text})


def write(folder: Path) -> list[str]:
    """Writes what differs; the names."""
    changed, made = differing(folder), files()
    folder.mkdir(parents=True, exist_ok=True)
    for name in changed:
        if name in made:
            (folder / name).write_text(made[name])
        else:
            (folder / name).unlink()
    return changed


def model(board: Board) -> dict[str, Any]:
    """A board as Grafana's API takes it."""
    found: dict[str, Any] = json.loads(_text(board))
    return found


@cache
def _text(board: Board) -> str:
    return JSONEncoder(sort_keys=True, indent=1).encode(_build(board)) + "\n"


def _build(board: Board) -> Any:
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.meaning)
        .tags(["tiltyard"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Tiltyard")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["tiltyard"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus"))
    )
    for name in board.variables:
        made = made.with_variable(_of_one(name) if name in OF_ONE else _chosen(name, several=name not in board.one))
    for name, address in (("mlflow", "http://127.0.0.1:5000"), ("ray", "http://127.0.0.1:8265")):
        made = made.with_variable(dashboard.TextBoxVariable(name).label(f"{name}'s address").default_value(address))
    number = 0
    for title, panels in board.rows:
        number += 1
        made = made.with_row(dashboard.Row(title).id(number))
        width = _WIDTH // min(len(panels), 4 if panels[0].now else 2)
        for panel in panels:
            number += 1
            made = made.with_panel(_panel(board, panel, number, width))
    return made.build()


def _chosen(name: str, *, several: bool) -> Any:
    """A variable that a person chooses a value of, or several."""
    made = dashboard.QueryVariable(name).datasource(_SOURCE).query(VARIABLES[name])
    made = made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).multi(several).include_all(several)
    return made.all_value(".*") if several else made


def _of_one(name: str) -> Any:
    """A hidden variable that follows from what is chosen: the label of what a query finds at the end of the shown time."""
    expr, label = OF_ONE[name]
    made = (
        dashboard.QueryVariable(name).datasource(_SOURCE).query(f"query_result({expr})").regex(f'/{label}="([^"]+)"/')
    )
    return made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).hide(VariableHide.HIDE_VARIABLE)


def _links(links: Sequence[onward.Link]) -> list[Any]:
    return [dashboard.DashboardLink(title).url(url).target_blank(True) for title, url in links]


def _panel(board: Board, panel: Panel, number: int, width: int) -> Any:
    made: Any = stat.Panel() if panel.now else timeseries.Panel()
    made = made.title(panel.title).description(panel.meaning)
    made = (
        made.unit(panel.unit).datasource(_SOURCE).span(width).height(_NOW_HEIGHT if panel.now else _HEIGHT).id(number)
    )
    made = made.links(_links(onward.of_panel(board, panel)))
    if of_series := onward.of_series(board, panel):
        made = made.data_links(_links(of_series))
    if panel.stacked and not panel.now:
        made = made.fill_opacity(25).stacking(StackingConfig().mode(StackingMode.NORMAL))
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        asked = prometheus.Dataquery().expr(query.expr).ref_id(letter)
        if query.legend:
            asked = asked.legend_format(query.legend)
        made = made.with_target(asked.instant() if panel.now else asked.range())
    return made
