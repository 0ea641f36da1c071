"""Where a panel leads on: to which pages of MLflow and of Ray's dashboard, and from a line to what that very line is of. Pure.

Addresses begin with ``${mlflow}`` and ``${ray}``, variables of every board; behind them stand routes of the two programs'
pages. What a line is of is known by its labels, so only what a query keeps in ``by (...)`` can lead on.
"""

from __future__ import annotations

import re

from tiltyard.telemetry.boards.shapes import Board, Panel

Link = tuple[str, str]
"""Title and address."""

_RUN = "${mlflow}/#/runs/"
_JOB = "${ray}/#/jobs/"
_OF_BOARD = {
    "tiltyard-overview": ("${mlflow}/#/experiments", "${ray}/#/overview"),
    "tiltyard-sweep": (_RUN + "${run}", _JOB + "${ray_job}"),
    "tiltyard-serving": ("${mlflow}/#/models", "${ray}/#/serve"),
    "tiltyard-models": ("${mlflow}/#/models", "${ray}/#/serve"),
    "tiltyard-data": ("${mlflow}/#/experiments", "${ray}/#/jobs"),
    "tiltyard-cost": ("${mlflow}/#/experiments", "${ray}/#/jobs"),
    "tiltyard-cluster": ("${mlflow}/#/experiments", "${ray}/#/cluster"),
}


def _label(name: str) -> str:
    return f"${{__field.labels.{name}}}"


_SWEEP_BOARD = (
    f"/d/tiltyard-sweep?var-experiment={_label('experiment')}"
    "&var-datasource=${datasource}&var-mlflow=${mlflow}&var-ray=${ray}"
)
_OF_SERIES: tuple[tuple[frozenset[str], Link], ...] = (
    (
        frozenset({"model", "version"}),
        ("This version in MLflow", f"${{mlflow}}/#/models/{_label('model')}/versions/{_label('version')}"),
    ),
    (
        frozenset({"registered"}),
        ("This version in MLflow", f"${{mlflow}}/#/models/{_label('registered')}/versions/${{__value.raw}}"),
    ),
    (frozenset({"run"}), ("This launch in MLflow", _RUN + _label("run"))),
    (frozenset({"ray_job"}), ("This job in Ray's dashboard", _JOB + _label("ray_job"))),
    (frozenset({"experiment"}), ("The board of this experiment", _SWEEP_BOARD)),
    (
        frozenset({"application", "deployment"}),
        (
            "This deployment in Ray's dashboard",
            f"${{ray}}/#/serve/applications/{_label('application')}/{_label('deployment')}",
        ),
    ),
    (frozenset({"instance"}), ("Nodes in Ray's dashboard", "${ray}/#/cluster")),
)


def of_panel(board: Board, panel: Panel) -> tuple[Link, ...]:
    """Links of a panel: a page of MLflow and one of Ray's dashboard that show what it is of."""
    mlflow, ray = _OF_BOARD[board.uid]
    labels = labels_of(panel)
    if board.uid == "tiltyard-overview":  # of everything: by what its lines are of
        if "model" in labels:
            mlflow, ray = _OF_BOARD["tiltyard-models"]
        elif "experiment" in labels:
            mlflow, ray = _OF_BOARD["tiltyard-cost"]
    return ("MLflow", mlflow), ("Ray dashboard", ray)


def of_series(board: Board, panel: Panel) -> tuple[Link, ...]:
    """Links of each line of a panel, to what that line is of; none where its labels name nothing that has a page."""
    labels = labels_of(panel)
    return tuple(
        link
        for needed, link in _OF_SERIES
        if needed <= labels and not (board.uid == "tiltyard-sweep" and link[1] == _SWEEP_BOARD)
    )


def labels_of(panel: Panel) -> frozenset[str]:
    """Labels that every line of a panel has."""
    of_queries = [_labels(q.expr) if q.legend else frozenset[str]() for q in panel.queries]
    return frozenset.intersection(*of_queries)


def _labels(expr: str) -> frozenset[str]:
    found = re.search(r"\bby \(([^)]*)\)", expr)
    return frozenset(la.strip() for la in found[1].split(",")) - {"le"} if found else frozenset()
