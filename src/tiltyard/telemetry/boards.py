"""What the boards show: panels with their queries, units and meaning, as plain data. Pure.

`tiltyard.telemetry.dashboards` makes Grafana's JSON of it; the tests ask a real Prometheus each query. Variables stand in the
queries as Grafana has them: ``$cluster`` (label ``ray_io_cluster``, which the PodMonitors add; on one machine there is none,
and "All" matches that too), ``$experiment`` and ``$model``.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiltyard.telemetry.alerts import AVAILABILITY, P99_S, SLOW_SHARE, error_ratio, slow_ratio

RATE = "$__rate_interval"
_C = 'ray_io_cluster=~"$cluster"'
_E = f'{_C},experiment=~"$experiment",team=~"$team"'
_M = f'{_C},model=~"$model"'
_R = 'model=~"$model"'
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
    """One page of panels in rows. ``variables`` are those of `VARIABLES` that its queries use."""

    uid: str
    title: str
    meaning: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    variables: tuple[str, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Of all rows."""
        return tuple(panel for _, panels in self.rows for panel in panels)


VARIABLES = {
    "cluster": "label_values(ray_node_cpu_count, ray_io_cluster)",
    "team": "label_values(ray_tiltyard_sweep_trials, team)",
    "experiment": "label_values(ray_tiltyard_sweep_trials, experiment)",
    "model": 'label_values({__name__=~"ray_tiltyard_serving_version|tiltyard_model_age_seconds"}, model)',
}
"""Each variable and where its values come from."""


def _panel(
    title: str, unit: str, meaning: str, *queries: str | tuple[str, str], now: bool = False, stacked: bool = False
) -> Panel:
    asked = tuple(Query(expr=q) if isinstance(q, str) else Query(expr=q[0], legend=q[1]) for q in queries)
    return Panel(title=title, unit=unit, meaning=meaning, queries=asked, now=now, stacked=stacked)


def _quantile(q: float, name: str, by: str, where: str) -> str:
    return f"histogram_quantile({q}, sum by (le, {by}) (rate(ray_tiltyard_serving_{name}_bucket{{{where}}}[{RATE}])))"


_TRIALS = _panel(
    "Trials by state",
    "short",
    "How many trials wait, run, are done, were stopped or failed. Failed ones that rise: tiltyard leaderboard --all says why.",
    (f"sum by (state) (ray_tiltyard_sweep_trials{{{_E}}})", "{{state}}"),
    stacked=True,
)
_DONE = _panel(
    "Work done",
    "percentunit",
    "Share of the epochs that is done.",
    (f"max by (experiment) (ray_tiltyard_sweep_work_done_ratio{{{_E}}})", "{{experiment}}"),
)
_LAG = _panel(
    "Driver lag",
    "s",
    "Since the driver's loop last turned. It turns many times a second; seconds are a journal or a Ray head that is slow, "
    "minutes a driver that hangs.",
    (f"max by (experiment) (ray_tiltyard_sweep_driver_lag_seconds{{{_E}}})", "{{experiment}}"),
)
_BEST = _panel(
    "Best score so far",
    "none",
    "Of each dataset, on its validation rows.",
    (f"max by (experiment, dataset, metric) (ray_tiltyard_sweep_best_score{{{_E}}})", "{{dataset}} {{metric}}"),
)
_ATTEMPTS = _panel(
    "Attempts at packs",
    "short",
    "How tries at packs ended. Failed and fenced ones are lost work.",
    (f"sum by (state) (ray_tiltyard_sweep_attempts{{{_E}}})", "{{state}}"),
    stacked=True,
)
_HELD = _panel(
    "Held devices",
    "s",
    "CPU- and GPU-seconds that experiments were charged, waiting in them, and seconds of attempts that were lost.",
    (f"sum by (experiment, resource) (ray_tiltyard_sweep_held_seconds{{{_E}}})", "{{experiment}} {{resource}}"),
    (f"sum by (experiment, resource) (ray_tiltyard_sweep_lost_seconds{{{_E}}})", "{{experiment}} {{resource}} lost"),
)
_REQUESTS = _panel(
    "Requests",
    "reqps",
    "Answered requests by status. 5xx are ours, 4xx the callers'.",
    (f"sum by (status) (rate(ray_tiltyard_serving_requests_total{{{_M}}}[{RATE}]))", "{{status}}"),
    stacked=True,
)
_LATENCY = _panel(
    "Latency",
    "s",
    "From a request's head to its answer, at the front.",
    (_quantile(0.5, "request_seconds", "model", _M), "{{model}} p50"),
    (_quantile(0.95, "request_seconds", "model", _M), "{{model}} p95"),
    (_quantile(0.99, "request_seconds", "model", _M), "{{model}} p99"),
)
_BURN = _panel(
    "Error budget burn rate",
    "none",
    f"How many times faster than allowed errors come, at {AVAILABILITY:.1%} of requests answered: 1 just keeps it; above 14.4 "
    "over an hour a month's budget is gone in two days.",
    *(
        (f"({error_ratio(window, _M)}) / {1 - AVAILABILITY:.4g}", f"{{{{model}}}} {window}")
        for window in ("5m", "1h", "6h")
    ),
)
_SLOW_BURN = _panel(
    "Latency budget burn rate",
    "none",
    f"How many times faster than allowed requests take longer than {P99_S} s, at {SLOW_SHARE:.0%} of them: 1 just keeps it.",
    *((f"({slow_ratio(window, _M)}) / {SLOW_SHARE}", f"{{{{model}}}} {window}") for window in ("5m", "1h")),
)
_NIGHT_AGE = _panel(
    "Since the last night",
    "s",
    "Since each night's work last ended well. More than a day and a half: it was missed, hangs, or fails.",
    ("max by (night) (tiltyard_night_age_seconds)", "{{night}}"),
)
_NIGHT_OUTCOME = _panel(
    "What became of the night",
    "short",
    "1 at the outcome of each newest night. failed: tiltyard nightly history says why.",
    ("max by (night, outcome) (tiltyard_night_outcome) > 0", "{{night}}: {{outcome}}"),
)
_DRIFTED = _panel(
    "Columns that drifted",
    "short",
    "Of the newest evaluated version, against the training split; predictions count as columns.",
    (f"max by (model, role, dataset) (tiltyard_drifted_columns{{{_R}}})", "{{model}} {{role}} on {{dataset}}"),
)
_SCORE = _panel(
    "Score with its interval",
    "none",
    "On the newest evaluated version: value, low and high of 95%. Champion and candidate whose intervals overlap may be equal.",
    (
        f"max by (model, role, dataset, metric, bound) (tiltyard_model_score{{{_R}}})",
        "{{model}} {{role}} {{metric}} {{bound}}",
    ),
)
_BUDGET = _panel(
    "Budgets of teams",
    "s",
    "Limit, reserved and spent. Exported while a sweep that is charged to the budget runs.",
    ('max by (team, resource, kind) (ray_tiltyard_budget_seconds{team=~"$team"})', "{{team}} {{resource}} {{kind}}"),
)
_CPU = _panel(
    "CPU",
    "percent",
    "Use of each node's cores.",
    (f"avg by (instance) (ray_node_cpu_utilization{{{_C}}})", "{{instance}}"),
)
_MEMORY = _panel(
    "Memory",
    "percentunit",
    "Use of each node's memory. Near 1 Ray kills workers.",
    (
        f"max by (instance) (ray_node_mem_used{{{_C}}}) / max by (instance) (ray_node_mem_total{{{_C}}})",
        "{{instance}}",
    ),
)

BOARDS = (
    Board(
        uid="tiltyard-overview",
        title="Tiltyard: overview",
        meaning="Is it healthy, what does it do, what does it cost: one look.",
        variables=("cluster", "team", "experiment", "model"),
        rows=(
            (
                "Now",
                (
                    _panel(
                        "Sweeps",
                        "short",
                        "Experiments that sweep now.",
                        f"count(count by (experiment) (ray_tiltyard_sweep_elapsed_seconds{{{_E}}}))",
                        now=True,
                    ),
                    _panel(
                        "Models served",
                        "short",
                        "Models with a version that answers.",
                        f"count(count by (model) (ray_tiltyard_serving_version{{{_M}}}))",
                        now=True,
                    ),
                    _panel(
                        "Failed trials",
                        "short",
                        "Of the sweeps that run now.",
                        f'sum(ray_tiltyard_sweep_trials{{{_E},state="failed"}})',
                        now=True,
                    ),
                    _panel("Nodes", "short", "Nodes of Ray.", f"count(ray_node_cpu_count{{{_C}}})", now=True),
                    _panel(
                        "Nights that failed",
                        "short",
                        "Whose newest try ended with an error.",
                        'sum(max by (night) (tiltyard_night_outcome{outcome="failed"}))',
                        now=True,
                    ),
                    _panel(
                        "Champions below their bound",
                        "short",
                        "Surely worse on the newest version than on the test split that they were promoted on.",
                        'sum(tiltyard_model_below_bound{role="champion"})',
                        now=True,
                    ),
                    _panel(
                        "Record",
                        "s",
                        "Since nights, data and evaluations were last read without a fault; minutes: the exporter's log says why.",
                        "max(tiltyard_record_age_seconds)",
                        now=True,
                    ),
                ),
            ),
            ("Service levels", (_BURN, _SLOW_BURN, _LATENCY)),
            ("Nights", (_NIGHT_AGE, _NIGHT_OUTCOME, _DRIFTED, _SCORE)),
            ("Sweeps", (_TRIALS, _DONE, _BEST)),
            ("Cost", (_HELD, _BUDGET)),
        ),
    ),
    Board(
        uid="tiltyard-sweep",
        title="Tiltyard: sweep",
        meaning="One experiment: how far, how well, what failed, what it holds.",
        variables=("cluster", "team", "experiment"),
        rows=(
            (
                "How far",
                (
                    _TRIALS,
                    _DONE,
                    _panel(
                        "Packs that train",
                        "short",
                        "With trials waiting and none training nothing fits: look at the cluster and the budget.",
                        (f"sum by (experiment) (ray_tiltyard_sweep_packs_running{{{_E}}})", "{{experiment}}"),
                    ),
                    _panel(
                        "Paused",
                        "bool_yes_no",
                        "A person has paused it; go on: tiltyard continue EXPERIMENT.",
                        (f"max by (experiment) (ray_tiltyard_sweep_paused{{{_E}}})", "{{experiment}}"),
                        now=True,
                    ),
                ),
            ),
            ("How well", (_BEST,)),
            (
                "Rungs",
                (
                    _panel(
                        "What rungs decided",
                        "short",
                        "Trials that went on and that were stopped, each once a rung.",
                        (f"sum by (outcome) (ray_tiltyard_sweep_rung_decisions{{{_E}}})", "{{outcome}}"),
                    ),
                    _panel(
                        "Rungs decided",
                        "short",
                        "Over all groups.",
                        (f"sum by (experiment) (ray_tiltyard_sweep_rungs{{{_E}}})", "{{experiment}}"),
                    ),
                ),
            ),
            (
                "What went wrong",
                (
                    _ATTEMPTS,
                    _LAG,
                    _panel(
                        "Failures by reason",
                        "short",
                        "Trials that failed: diverged is a part of the space that does not work; worker_died and out_of_memory are "
                        "the cluster.",
                        (f"sum by (reason) (ray_tiltyard_sweep_failures{{{_E}}})", "{{reason}}"),
                        stacked=True,
                    ),
                    _panel(
                        "Retries and restarts",
                        "short",
                        "Packs that were tried again, and how often the sweep was resumed or taken over.",
                        (f"sum by (experiment) (ray_tiltyard_sweep_retries{{{_E}}})", "{{experiment}} retries"),
                        (f"sum by (experiment) (ray_tiltyard_sweep_restarts{{{_E}}})", "{{experiment}} restarts"),
                    ),
                ),
            ),
            (
                "All launches",
                (
                    _panel(
                        "Keys by state",
                        "short",
                        "Of each experiment, running or not: from the record.",
                        (
                            'sum by (experiment, state) (tiltyard_launches{experiment=~"$experiment"}) > 0',
                            "{{experiment}} {{state}}",
                        ),
                    ),
                ),
            ),
            (
                "What it holds",
                (
                    _HELD,
                    _panel(
                        "Time",
                        "s",
                        "Since this launch began to sweep.",
                        (f"max by (experiment) (ray_tiltyard_sweep_elapsed_seconds{{{_E}}})", "{{experiment}}"),
                    ),
                ),
            ),
        ),
    ),
    Board(
        uid="tiltyard-serving",
        title="Tiltyard: serving",
        meaning="Models that answer requests: how many, how fast, how well merged, how healthy.",
        variables=("cluster", "model"),
        rows=(
            ("Service levels", (_BURN, _SLOW_BURN, _LATENCY)),
            (
                "Traffic",
                (
                    _REQUESTS,
                    _panel(
                        "Rows",
                        "rowsps",
                        "Rows that were answered.",
                        (f"sum by (model) (rate(ray_tiltyard_serving_rows_total{{{_M}}}[{RATE}]))", "{{model}}"),
                    ),
                    _panel(
                        "Rows of a call",
                        "short",
                        "How many rows a model meets at once, small requests merged, and how many a request has.",
                        (_quantile(0.5, "batch_rows", "model", _M), "{{model}} call p50"),
                        (_quantile(0.5, "request_rows", "model", _M), "{{model}} request p50"),
                    ),
                    _panel(
                        "Requests that wait",
                        "short",
                        "More than a second's worth: add replicas, or a larger batch.",
                        (f"sum by (model) (ray_tiltyard_serving_waiting_requests{{{_M}}})", "{{model}}"),
                    ),
                ),
            ),
            (
                "Replicas",
                (
                    _panel(
                        "Healthy replicas",
                        "short",
                        "By deployment, as Ray Serve checks them.",
                        (
                            f"sum by (application, deployment) (ray_serve_deployment_replica_healthy{{{_C}}})",
                            "{{application}} {{deployment}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
    Board(
        uid="tiltyard-models",
        title="Tiltyard: models",
        meaning="Which versions answer, and how a challenger does beside its champion on live requests.",
        variables=("cluster", "model"),
        rows=(
            (
                "Versions",
                (
                    _panel(
                        "Version that serves",
                        "none",
                        "The registry's number.",
                        (f"max by (model) (ray_tiltyard_serving_version{{{_M}}})", "{{model}}"),
                    ),
                    _panel(
                        "Since the registry was heard",
                        "s",
                        "Minutes: the registry is away, and the version that was known last is served.",
                        (f"max by (model) (ray_tiltyard_serving_registry_age_seconds{{{_M}}})", "{{model}}"),
                    ),
                    _panel(
                        "Older than its alias",
                        "bool_yes_no",
                        "A newer version could not be loaded; the replica's log says why.",
                        (f"max by (model) (ray_tiltyard_serving_stale{{{_M}}})", "{{model}}"),
                    ),
                ),
            ),
            (
                "Scores on the newest version",
                (
                    _SCORE,
                    _panel(
                        "Score by slice",
                        "none",
                        "Of the metric that models are chosen by, with its interval; a slice far below the rest is a weakness.",
                        (
                            f"max by (model, role, metric, column, slice, bound) (tiltyard_model_slice_score{{{_R}}})",
                            "{{model}} {{role}} {{column}}={{slice}} {{bound}}",
                        ),
                    ),
                    _panel(
                        "Calibration error",
                        "percentunit",
                        "Mean distance of confidence and the share that was right.",
                        (
                            f"max by (model, role, dataset) (tiltyard_model_calibration_error{{{_R}}})",
                            "{{model}} {{role}}",
                        ),
                    ),
                    _panel(
                        "Fairness ratio",
                        "percentunit",
                        "Smallest selection rate of a group over the largest, of declared sensitive columns; look below 0.8.",
                        (
                            f"max by (model, role, column, bound) (tiltyard_model_fairness_ratio{{{_R}}})",
                            "{{model}} {{role}} {{column}} {{bound}}",
                        ),
                    ),
                    _panel(
                        "Since training",
                        "s",
                        "Age of each version that has a role.",
                        (f"max by (model, role) (tiltyard_model_age_seconds{{{_R}}})", "{{model}} {{role}}"),
                    ),
                    _panel(
                        "Below its bound",
                        "bool_yes_no",
                        "The whole interval is worse than that of the test split it was promoted on.",
                        (
                            f"max by (model, role, dataset) (tiltyard_model_below_bound{{{_R}}})",
                            "{{model}} {{role}} on {{dataset}}",
                        ),
                        now=True,
                    ),
                    _DRIFTED,
                ),
            ),
            (
                "Champion and challenger",
                (
                    _panel(
                        "Share of requests",
                        "percentunit",
                        "That a challenger meets, in shadow or as canary.",
                        (f"max by (model, mode) (ray_tiltyard_serving_split_share{{{_M}}})", "{{model}} {{mode}}"),
                    ),
                    _panel(
                        "Compared requests",
                        "reqps",
                        "By outcome; challenger_error: it failed where the champion did not.",
                        (
                            "sum by (model, outcome) "
                            f"(rate(ray_tiltyard_serving_compared_requests_total{{{_M}}}[{RATE}]))",
                            "{{model}} {{outcome}}",
                        ),
                    ),
                    _panel(
                        "Rows on which both agree",
                        "percentunit",
                        "Share of the rows that both answered.",
                        (
                            f'sum by (model) (rate(ray_tiltyard_serving_compared_rows_total{{{_M},agree="yes"}}[{RATE}])) '
                            f"/ (sum by (model) (rate(ray_tiltyard_serving_compared_rows_total{{{_M}}}[{RATE}])) > 0)",
                            "{{model}}",
                        ),
                    ),
                    _panel(
                        "Latency of each",
                        "s",
                        "p99 on the same requests.",
                        (_quantile(0.99, "compared_seconds", "model, role", _M), "{{model}} {{role}}"),
                    ),
                    _panel(
                        "Difference of scores",
                        "none",
                        "Mean absolute difference of a request's scores, median and p99.",
                        (_quantile(0.5, "score_difference", "model", _M), "{{model}} p50"),
                        (_quantile(0.99, "score_difference", "model", _M), "{{model}} p99"),
                    ),
                ),
            ),
        ),
    ),
    Board(
        uid="tiltyard-data",
        title="Tiltyard: data",
        meaning="What Ray Data streams, and who waits for it. Its gauges are there while a dataset is read.",
        variables=("cluster", "model"),
        rows=(
            (
                "Stream",
                (
                    _panel(
                        "Rows read",
                        "rowsps",
                        "By dataset of Ray Data.",
                        (f"sum by (dataset) (rate(ray_data_output_rows{{{_C}}}[{RATE}]))", "{{dataset}}"),
                    ),
                    _panel(
                        "Bytes read",
                        "Bps",
                        "By dataset of Ray Data.",
                        (f"sum by (dataset) (rate(ray_data_output_bytes{{{_C}}}[{RATE}]))", "{{dataset}}"),
                    ),
                    _panel(
                        "Spilled by datasets",
                        "bytes",
                        "More than nothing: the object store is too small for what streams at once.",
                        (f"sum by (dataset) (ray_data_spilled_bytes{{{_C}}})", "{{dataset}}"),
                    ),
                ),
            ),
            (
                "Waiting",
                (
                    _panel(
                        "Time that training waited",
                        "percentunit",
                        "Of the time in iterators: blocked over blocked and working.",
                        (
                            f"sum(rate(ray_data_iter_total_blocked_seconds{{{_C}}}[{RATE}])) / "
                            f"clamp_min(sum(rate(ray_data_iter_total_blocked_seconds{{{_C}}}[{RATE}])) "
                            f"+ sum(rate(ray_data_iter_user_seconds{{{_C}}}[{RATE}])), 1e-9)",
                            "waited",
                        ),
                    ),
                    _panel(
                        "Time that trials waited for data",
                        "percentunit",
                        "Of the seconds of packs, by dataset: near 0 where training is what takes the time.",
                        (
                            f"sum by (dataset) (rate(ray_tiltyard_training_data_wait_seconds_total{{{_C}}}[{RATE}])) / "
                            f"clamp_min(sum by (dataset) (rate(ray_tiltyard_training_seconds_total{{{_C}}}[{RATE}])), 1e-9)",
                            "{{dataset}}",
                        ),
                    ),
                    _panel(
                        "Rows trained on",
                        "rowsps",
                        "Rows that training steps took, once for all trials of a pack.",
                        (f"sum by (dataset) (rate(ray_tiltyard_training_rows_total{{{_C}}}[{RATE}]))", "{{dataset}}"),
                    ),
                ),
            ),
            (
                "Versions",
                (
                    _panel(
                        "Since the newest version",
                        "s",
                        "Freshness of each dataset.",
                        ("max by (dataset) (tiltyard_dataset_age_seconds)", "{{dataset}}"),
                    ),
                    _panel(
                        "Since the newest version that a night looks at",
                        "s",
                        "More than two days: whoever commits it does not, or is refused.",
                        ("max by (night, dataset) (tiltyard_night_data_age_seconds)", "{{night}} {{dataset}}"),
                    ),
                    _panel(
                        "Versions committed and refused",
                        "short",
                        "Refused ones broke a declared check.",
                        ("max by (dataset) (tiltyard_dataset_versions_committed)", "{{dataset}} committed"),
                        ("max by (dataset) (tiltyard_dataset_versions_refused)", "{{dataset}} refused"),
                        ("max by (dataset) (tiltyard_dataset_version)", "{{dataset}} newest"),
                    ),
                    _panel(
                        "Size of the newest version",
                        "bytes",
                        "Of its files.",
                        ("max by (dataset) (tiltyard_dataset_bytes)", "{{dataset}}"),
                    ),
                    _panel(
                        "Rows of the newest version",
                        "short",
                        "By split.",
                        ("sum by (dataset, split) (tiltyard_dataset_rows)", "{{dataset}} {{split}}"),
                    ),
                ),
            ),
            (
                "Inputs and answers against training",
                (
                    _DRIFTED,
                    _panel(
                        "Rows that moved",
                        "percentunit",
                        "Share of rows in another cell than in training, of the columns that moved most; (prediction) and "
                        "(confidence) are the answers.",
                        (
                            f"max by (model, role, column) (tiltyard_column_moved_ratio{{{_R}}})",
                            "{{model}} {{role}} {{column}}",
                        ),
                    ),
                    _panel(
                        "Missing values",
                        "percentunit",
                        "Share of a column in training and now.",
                        (
                            f"max by (model, column, since) (tiltyard_column_missing_ratio{{{_R}}})",
                            "{{model}} {{column}} {{since}}",
                        ),
                    ),
                    _panel(
                        "Means of numbers",
                        "none",
                        "Of a column in training and now.",
                        (
                            f"max by (model, column, since) (tiltyard_column_mean{{{_R}}})",
                            "{{model}} {{column}} {{since}}",
                        ),
                    ),
                    _panel(
                        "Answers by class",
                        "percentunit",
                        "Share of the answers on the newest evaluated version.",
                        (
                            f"max by (model, role, class) (tiltyard_predicted_ratio{{{_R}}})",
                            "{{model}} {{role}} {{class}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
    Board(
        uid="tiltyard-cost",
        title="Tiltyard: cost",
        meaning="What experiments hold and teams have left.",
        variables=("cluster", "team", "experiment"),
        rows=(
            (
                "Budgets",
                (
                    _BUDGET,
                    _panel(
                        "Budget used",
                        "percentunit",
                        "Reserved and spent over the limit, by team.",
                        (
                            'sum by (team, resource) (max by (team, resource, kind) (ray_tiltyard_budget_seconds{team=~"$team",'
                            'kind=~"reserved|spent"})) / max by (team, resource) '
                            '(ray_tiltyard_budget_seconds{team=~"$team",kind="limit"})',
                            "{{team}} {{resource}}",
                        ),
                    ),
                ),
            ),
            (
                "Experiments",
                (
                    _HELD,
                    _panel(
                        "Lost share",
                        "percentunit",
                        "Device-seconds of lost attempts over those held: what was wasted.",
                        (
                            f"sum by (experiment, resource) (ray_tiltyard_sweep_lost_seconds{{{_E}}}) / "
                            f"sum by (experiment, resource) (ray_tiltyard_sweep_held_seconds{{{_E}}} > 0)",
                            "{{experiment}} {{resource}}",
                        ),
                    ),
                    _panel(
                        "Cost of a trial",
                        "s",
                        "Device-seconds that were metered for each trial that has ended.",
                        (
                            f"max by (experiment, resource) (ray_tiltyard_sweep_trial_cost_seconds{{{_E}}})",
                            "{{experiment}} {{resource}}",
                        ),
                    ),
                ),
            ),
        ),
    ),
    Board(
        uid="tiltyard-cluster",
        title="Tiltyard: cluster",
        meaning="Nodes of Ray: cores, memory, disks, object store, GPUs.",
        variables=("cluster",),
        rows=(
            (
                "Nodes",
                (
                    _CPU,
                    _MEMORY,
                    _panel(
                        "Free disk",
                        "bytes",
                        "Where Ray keeps sessions and spills.",
                        (f"min by (instance) (ray_node_disk_free{{{_C}}})", "{{instance}}"),
                    ),
                ),
            ),
            (
                "Object store",
                (
                    _panel(
                        "Objects by place",
                        "bytes",
                        "SPILLED is on disk: slower.",
                        (f"sum by (Location) (ray_object_store_memory{{{_C}}})", "{{Location}}"),
                        stacked=True,
                    ),
                ),
            ),
            (
                "What Ray holds",
                (
                    _panel(
                        "Resources used",
                        "short",
                        "CPUs and GPUs that are taken, of those there are.",
                        (f'sum by (Name, State) (ray_resources{{{_C},Name=~"CPU|GPU"}})', "{{Name}} {{State}}"),
                    ),
                    _panel(
                        "Actors",
                        "short",
                        "By state: the workers of sweeps and replicas.",
                        (f"sum by (State) (ray_actors{{{_C}}})", "{{State}}"),
                    ),
                    _panel(
                        "Nodes and their CPUs",
                        "short",
                        "How many nodes there are, and how many CPUs they have together.",
                        (f"count(ray_node_cpu_count{{{_C}}})", "nodes"),
                        (f"sum(ray_node_cpu_count{{{_C}}})", "CPUs"),
                    ),
                    _panel(
                        "Workers that train",
                        "short",
                        "Packs that train now, of all experiments.",
                        (f"sum by (experiment) (ray_tiltyard_sweep_packs_running{{{_C}}})", "{{experiment}}"),
                    ),
                ),
            ),
            (
                "GPUs",
                (
                    _panel(
                        "GPU use",
                        "percent",
                        "Near 0 while Ray says that it is taken: somebody holds what they do not use.",
                        (f"avg by (instance) (ray_node_gpus_utilization{{{_C}}})", "{{instance}}"),
                    ),
                    _panel(
                        "GPU memory",
                        "decmbytes",
                        "Used, in MB.",
                        (f"sum by (instance) (ray_node_gram_used{{{_C}}})", "{{instance}}"),
                    ),
                ),
            ),
        ),
    ),
)
"""Every board."""
