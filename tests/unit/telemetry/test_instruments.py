"""Every metric is declared once, named by the rules of Prometheus, and made nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tiltyard.serving.comparison import BOUNDS_S
from tiltyard.telemetry import instruments
from tiltyard.telemetry.instruments import DECLARED, Kind

SOURCE = Path(__file__).parents[3] / "src" / "tiltyard"
FEW = {
    "experiment",
    "team",
    "state",
    "dataset",
    "metric",
    "resource",
    "kind",
    "model",
    "mode",
    "status",
    "outcome",
    "agree",
    "role",
    "reason",
    "night",
    "split",
    "column",
    "slice",
    "class",
    "bound",
    "since",
    "version",
    "currency",
    "registered",
    "run",
    "ray_job",
}
"""Those of the record are cut at what a person can look at (`tiltyard.telemetry.record`); of run, ray_job and version there is
one at a time for each experiment or role."""


def test_declared_metrics_are_named_once_with_base_units_and_labels_of_which_there_are_few() -> None:
    parts = ("CONTROL_PLANE", "RECORD", "DATA_PLANE", "MODEL_PLANE", "SERVING")
    every = [i for part in parts for i in getattr(instruments, part)]
    assert len(DECLARED) == len(every)
    for i in every:
        assert re.fullmatch(r"tiltyard_[a-z][a-z0-9_]*[a-z0-9]", i.name), i.name
        assert not re.search(r"_(ms|minutes|hours|percent|mb|total|count|sum|bucket)$", i.name), i.name
        assert ("seconds" in i.unit) == ("seconds" in i.name), f"{i.name} is in {i.unit}"
        assert set(i.labels) <= FEW, f"{i.name}: a label is something of which there are few; found {i.labels}"
        assert i.meaning.endswith(".")
        assert (i.kind is Kind.HISTOGRAM) == bool(i.bounds)
        assert list(i.bounds) == sorted(set(i.bounds))


def test_metrics_in_the_source_are_all_made_of_declared_ones() -> None:
    wrong, asked = [], set()
    for path in SOURCE.rglob("*.py"):
        file = path.relative_to(SOURCE).as_posix()
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            makers = ("ray.util.metrics", "ray.serve.metrics", "prometheus_client", "opentelemetry.metrics")
            if any(n.startswith(makers) for n in names) and file != "telemetry/instruments.py":
                wrong.append(
                    f"{file}:{getattr(node, 'lineno', 0)} makes metrics itself; declare them in telemetry/instruments.py"
                )
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                asked |= set(
                    re.findall(
                        r"tiltyard_(?:sweep|serving|budget|training|night|dataset|model|column)_[a-z_]+", node.value
                    )
                )
    assert not wrong, "\n".join(wrong)
    known = {*DECLARED, *(name.removeprefix("ray_") for name in instruments.exposed_series())}
    unknown = {n for n in asked if n not in known and not any(k.startswith(n) for k in known)}
    assert not unknown, f"{sorted(unknown)} are not declared in telemetry/instruments.py"


def test_metric_of_an_undeclared_name_or_another_kind_is_refused() -> None:
    with pytest.raises(KeyError):
        instruments.gauge("tiltyard_sweep_mood")
    with pytest.raises(AssertionError, match="declared as a gauge"):
        instruments.counter("tiltyard_sweep_trials")


def test_latencies_of_comparisons_have_the_bounds_that_they_are_recorded_in() -> None:
    assert DECLARED["tiltyard_serving_compared_seconds"].bounds == BOUNDS_S


def test_exposed_series_name_counters_and_histograms_as_prometheus_does() -> None:
    names = instruments.exposed_series()
    assert "ray_tiltyard_serving_requests_total" in names
    assert "ray_tiltyard_serving_request_seconds_bucket" in names
    assert "ray_tiltyard_sweep_trials" in names
