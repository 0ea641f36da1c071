"""Every metric that Tiltyard exports, declared once: what kind, in which unit, with which labels, and what it means.

Whoever exports one asks for it by name (`counter`, `gauge`, `histogram`); a test forbids any other way, and one holds every
query of the dashboards and of the alerts against this list. What happens in Ray's processes Ray exports on each node, with
``ray_`` before the name and ``_total`` behind a counter's. What stands in the record (nights, versions, evaluations) is true
while nothing runs: `tiltyard.telemetry.exporter` reads it and answers Prometheus itself, under the names as they are.
`Instrument.exposed` is what Prometheus sees.

Three habits of Ray's exporter decide how these are made: a gauge that is not set again within 20 s fades, so each has
somebody who renews it; Ray's histograms are dear and guess their ``_sum``, so ours are kept by the process that observes
(`tiltyard.telemetry.buckets`) and told as gauges; and every process adds its own labels, so queries sum over them. A label is
something of which there are few, never a trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tiltyard.telemetry.buckets import Histogram

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge


class Kind(StrEnum):
    """What sort of metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Source(StrEnum):
    """Who exports a metric."""

    RAY = "ray"
    RECORD = "record"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One metric.

    Args:
        name: As the code says it.
        kind: Counter, gauge or histogram.
        unit: Of a value.
        labels: Each with few values.
        meaning: One sentence for people.
        bounds: Upper ends of a histogram's buckets, rising.
        source: Who exports it.
    """

    name: str
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    meaning: str
    bounds: tuple[float, ...] = ()
    source: Source = Source.RAY

    @property
    def exposed(self) -> str:
        """The name in Prometheus; a histogram's series have ``_bucket``, ``_count`` and ``_sum`` behind it."""
        if self.source is Source.RECORD:
            return self.name
        return f"ray_{self.name}" + ("_total" if self.kind is Kind.COUNTER else "")


_SWEEP = ("experiment", "team")
_MODEL = ("model",)
_PAIR = ("model", "mode")
_LATENCY_S = (
    *(0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
)
"""The bounds that comparisons of champions and challengers are recorded in: a test holds the two equal."""
_ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 8192.0, 65_536.0)
_APART = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def _gauge(name: str, unit: str, labels: tuple[str, ...], meaning: str) -> Instrument:
    return Instrument(name=name, kind=Kind.GAUGE, unit=unit, labels=labels, meaning=meaning)


def _recorded(name: str, unit: str, labels: tuple[str, ...], meaning: str) -> Instrument:
    return Instrument(name=name, kind=Kind.GAUGE, unit=unit, labels=labels, meaning=meaning, source=Source.RECORD)


def _counter(name: str, unit: str, labels: tuple[str, ...], meaning: str) -> Instrument:
    return Instrument(name=name, kind=Kind.COUNTER, unit=unit, labels=labels, meaning=meaning)


def _histogram(name: str, unit: str, labels: tuple[str, ...], meaning: str, bounds: tuple[float, ...]) -> Instrument:
    return Instrument(name=name, kind=Kind.HISTOGRAM, unit=unit, labels=labels, meaning=meaning, bounds=bounds)


CONTROL_PLANE = (
    _gauge("tiltyard_sweep_trials", "trials", (*_SWEEP, "state"), "Trials of a running sweep by state."),
    _gauge("tiltyard_sweep_packs_running", "packs", _SWEEP, "Packs that train now."),
    _gauge("tiltyard_sweep_packs_waiting", "packs", _SWEEP, "Packs that could train, and wait for their turn."),
    _gauge("tiltyard_sweep_work_done_ratio", "ratio", _SWEEP, "Share of the packs' epochs that is done, 0 to 1."),
    _gauge(
        "tiltyard_sweep_elapsed_seconds",
        "seconds",
        (*_SWEEP, "ray_job"),
        "Since this launch began to sweep; the label is the Ray job that it runs in, if any.",
    ),
    _gauge("tiltyard_sweep_paused", "yes or no", _SWEEP, "1 while a person has paused the sweep."),
    _gauge(
        "tiltyard_sweep_driver_lag_seconds",
        "seconds",
        _SWEEP,
        "Since the driver's loop last turned; seconds that rise say that it hangs.",
    ),
    _gauge(
        "tiltyard_sweep_best_score", "of the metric", (*_SWEEP, "dataset", "metric"), "Best validation score so far."
    ),
    _gauge(
        "tiltyard_sweep_attempts",
        "attempts",
        (*_SWEEP, "state"),
        "Tries at packs over all launches of the key by how they ended: done, failed, fenced, or running.",
    ),
    _gauge(
        "tiltyard_sweep_held_seconds",
        "device-seconds",
        (*_SWEEP, "resource"),
        "CPU- and GPU-seconds that were metered over all launches of the key, waiting and losses in them.",
    ),
    _gauge(
        "tiltyard_sweep_lost_seconds",
        "device-seconds",
        (*_SWEEP, "resource"),
        "CPU- and GPU-seconds of attempts that failed or were taken over: paid for and wasted.",
    ),
    _gauge(
        "tiltyard_sweep_trial_cost_seconds",
        "device-seconds",
        (*_SWEEP, "resource"),
        "CPU- and GPU-seconds that were metered so far for each trial that has ended.",
    ),
    _gauge(
        "tiltyard_sweep_cost",
        "of the currency",
        (*_SWEEP, "currency"),
        "What its attempts cost at the prices that the cluster's description gives the worker groups that they ran on.",
    ),
    _gauge(
        "tiltyard_sweep_retries", "attempts", _SWEEP, "Tries at packs that were not their first, over all launches."
    ),
    _gauge(
        "tiltyard_sweep_restarts",
        "launches",
        _SWEEP,
        "How often the key was resumed, or taken over from a driver that died.",
    ),
    _gauge("tiltyard_sweep_rungs", "rungs", _SWEEP, "Rungs that were decided, over all groups."),
    _gauge(
        "tiltyard_sweep_rung_decisions",
        "trials",
        (*_SWEEP, "outcome"),
        "What rungs decided of trials: went_on or stopped, each trial once a rung.",
    ),
    _gauge(
        "tiltyard_sweep_failures",
        "trials",
        (*_SWEEP, "reason"),
        "Failed trials by class of reason: diverged, out_of_memory, worker_died, time, data or error.",
    ),
)
RECORD = (
    _recorded(
        "tiltyard_budget_seconds",
        "device-seconds",
        ("team", "resource", "kind"),
        "A team's budget, whether or not something runs: limit, reserved and spent.",
    ),
    _recorded("tiltyard_record_age_seconds", "seconds", (), "Since the record was last read without a fault."),
    _recorded(
        "tiltyard_launches", "keys", ("experiment", "state"), "Keys of an experiment by how their newest launch stands."
    ),
    _recorded(
        "tiltyard_launch_age_seconds",
        "seconds",
        ("experiment", "run"),
        "Since an experiment's newest launch started; the label is its parent run in MLflow, once there is one.",
    ),
    _recorded(
        "tiltyard_night_age_seconds",
        "seconds",
        ("night",),
        "Since a night's work last ended well; since its first start where none has.",
    ),
    _recorded(
        "tiltyard_night_outcome",
        "yes or no",
        ("night", "outcome"),
        "1 for what became of the newest night: promoted, refused, waiting, watched, nothing_changed, failed, running.",
    ),
    _recorded(
        "tiltyard_night_data_age_seconds",
        "seconds",
        ("night", "dataset"),
        "Since the newest version was committed of the dataset that a night looks at.",
    ),
)
"""Control plane: what holds while nothing runs."""
_SCORED = ("model", "role", "version", "dataset")
DATA_PLANE = (
    _counter(
        "tiltyard_training_rows", "rows", ("dataset",), "Rows that training steps took, once for all members of a pack."
    ),
    _counter(
        "tiltyard_training_bytes",
        "bytes",
        ("dataset",),
        "Bytes of those rows as the model takes them, once for all members of a pack.",
    ),
    _counter("tiltyard_training_seconds", "seconds", ("dataset",), "Seconds of packs, from start to end."),
    _counter(
        "tiltyard_training_data_wait_seconds",
        "seconds",
        ("dataset",),
        "Of them seconds in which a step waited for data.",
    ),
    _recorded("tiltyard_dataset_version", "version", ("dataset",), "Number of the newest version."),
    _recorded("tiltyard_dataset_versions_committed", "versions", ("dataset",), "Versions that there are."),
    _recorded(
        "tiltyard_dataset_versions_refused", "versions", ("dataset",), "Commits that a declared check has refused."
    ),
    _recorded("tiltyard_dataset_age_seconds", "seconds", ("dataset",), "Since the newest version was committed."),
    _recorded("tiltyard_dataset_rows", "rows", ("dataset", "split"), "Rows of the newest version."),
    _recorded("tiltyard_dataset_bytes", "bytes", ("dataset",), "Size of the newest version's files."),
    _recorded(
        "tiltyard_drifted_columns",
        "columns",
        _SCORED,
        "Columns of the newest evaluated version that drifted from the training split, predictions in them.",
    ),
    _recorded(
        "tiltyard_column_moved_ratio",
        "ratio",
        (*_SCORED, "column"),
        "Share of rows that moved to another cell since training; (prediction) and (confidence) are what was answered.",
    ),
    _recorded(
        "tiltyard_column_missing_ratio",
        "ratio",
        (*_SCORED, "column", "since"),
        "Share of missing values: in training, and now.",
    ),
    _recorded(
        "tiltyard_column_mean",
        "of the column",
        (*_SCORED, "column", "since"),
        "Mean of a number: in training, and now.",
    ),
    _recorded(
        "tiltyard_predicted_ratio",
        "ratio",
        (*_SCORED, "class"),
        "Share of the answers that name a class.",
    ),
)
MODEL_PLANE = (
    _recorded(
        "tiltyard_model_score",
        "of the metric",
        (*_SCORED, "metric", "bound"),
        "Score on the newest evaluated version: value, low and high of its interval of 95%.",
    ),
    _recorded(
        "tiltyard_model_slice_score",
        "of the metric",
        (*_SCORED, "metric", "column", "slice", "bound"),
        "The metric that models are chosen by, on one slice.",
    ),
    _recorded(
        "tiltyard_model_calibration_error",
        "ratio",
        _SCORED,
        "Mean distance of confidence and the share that was right, 0 to 1.",
    ),
    _recorded(
        "tiltyard_model_fairness_ratio",
        "ratio",
        (*_SCORED, "column", "bound"),
        "Smallest selection rate of a group over the largest, where a sensitive column was declared.",
    ),
    _recorded("tiltyard_model_age_seconds", "seconds", ("model", "role", "version"), "Since the version was trained."),
    _recorded(
        "tiltyard_model_below_bound",
        "yes or no",
        _SCORED,
        "1 where the whole interval is worse than that of the version's own test split: it is no longer what was promoted.",
    ),
)
SERVING = (
    _counter("tiltyard_serving_requests", "requests", ("model", "status"), "Answered HTTP requests."),
    _counter("tiltyard_serving_rows", "rows", _MODEL, "Rows in answered HTTP requests."),
    _histogram(
        "tiltyard_serving_request_seconds", "seconds", _MODEL, "From the request's head to its answer.", _LATENCY_S
    ),
    _histogram("tiltyard_serving_request_rows", "rows", _MODEL, "Rows of a request.", _ROWS),
    _histogram(
        "tiltyard_serving_batch_rows", "rows", _MODEL, "Rows of one call to a model, small requests merged.", _ROWS
    ),
    _gauge("tiltyard_serving_waiting_requests", "requests", _MODEL, "Requests that wait for the model."),
    _gauge(
        "tiltyard_serving_version",
        "version",
        (*_MODEL, "registered"),
        "Registry version that serves; the second label is the model's name in the registry.",
    ),
    _gauge("tiltyard_serving_stale", "yes or no", _MODEL, "1 while a newer version could not be loaded."),
    _gauge(
        "tiltyard_serving_registry_age_seconds",
        "seconds",
        _MODEL,
        "Since the registry last said which version the alias names; what was known is served meanwhile.",
    ),
    _gauge("tiltyard_serving_split_share", "ratio", _PAIR, "Share of requests that a challenger meets."),
    _counter(
        "tiltyard_serving_compared_requests",
        "requests",
        (*_PAIR, "outcome"),
        "Requests of the share: compared, dropped, champion_error or challenger_error.",
    ),
    _counter(
        "tiltyard_serving_compared_rows", "rows", (*_PAIR, "agree"), "Rows that both answered, by whether they agree."
    ),
    _histogram(
        "tiltyard_serving_compared_seconds", "seconds", (*_PAIR, "role"), "Latency of a compared request.", _LATENCY_S
    ),
    _histogram(
        "tiltyard_serving_score_difference",
        "of the scores",
        _PAIR,
        "Mean absolute difference of a request's scores.",
        _APART,
    ),
)
DECLARED: dict[str, Instrument] = {i.name: i for i in (*CONTROL_PLANE, *RECORD, *DATA_PLANE, *MODEL_PLANE, *SERVING)}
"""All of them, by name."""


def counter(name: str) -> Counter:
    """The declared counter, to count with."""
    from ray.util.metrics import Counter

    found = _of(name, Kind.COUNTER)
    return Counter(found.name, found.meaning, found.labels)


def gauge(name: str) -> Gauge:
    """The declared gauge, to set; whoever asks for it renews it at least every 10 s."""
    from ray.util.metrics import Gauge

    found = _of(name, Kind.GAUGE)
    return Gauge(found.name, found.meaning, found.labels)


def histogram(name: str) -> Histogram:
    """The declared histogram, to observe with; whoever asks for it calls its `Histogram.tell` every second or so."""
    from ray.util.metrics import Gauge

    found = _of(name, Kind.HISTOGRAM)
    return Histogram(
        found.name, found.bounds, found.labels, lambda series, labels: Gauge(series, found.meaning, labels)
    )


def _of(name: str, kind: Kind) -> Instrument:
    found = DECLARED[name]
    assert found.kind is kind, f"{name} is declared as a {found.kind}"
    assert found.source is Source.RAY, f"{name} is exported from the record, not by Ray"
    return found


def exposed_series(instruments: Sequence[Instrument] = tuple(DECLARED.values())) -> dict[str, Instrument]:
    """Every name of a series that Prometheus can have of them."""
    names: dict[str, Instrument] = {}
    for i in instruments:
        ends = ("_bucket", "_count", "_sum") if i.kind is Kind.HISTOGRAM else ("",)
        names |= {i.exposed + end: i for end in ends}
    return names
