"""Writes launches, trials and evaluations as MLflow runs: one parent a launch, one child a trial, one run an evaluation.

Run by the writer's own process (`tiltyard.tracking.writer`), never on the training path. A run is found again by its tags
``tiltyard.key`` and ``tiltyard.cell``, so writing a trial twice continues its run and never makes a second.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tiltyard.tracking.records import EvaluationRecord, LaunchRecord, TrialRecord, thin

_STATUS = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_PARENT = "mlflow.parentRunId"


class MlflowRuns:
    """Runs in one MLflow. Opening the first time makes and migrates its database, which takes seconds.

    Every point's time is its run's start plus its epoch in milliseconds: a point that is written again, after a crash or
    by a later launch, is the same row and not a second one.
    """

    def __init__(self, tracking_uri: str, artifact_root: str | None = None) -> None:
        self._client = MlflowClient(tracking_uri)
        self._artifact_root = artifact_root
        self._experiments: dict[str, str] = {}
        self._runs: dict[str, tuple[str, int]] = {}
        """Run id and start by cell."""

    def open_launch(self, record: LaunchRecord) -> str:
        """The parent run of a launch, made or found again; its id."""
        experiment_id = self._experiment(record.experiment)
        found = self._client.search_runs(
            [experiment_id], f"tags.`tiltyard.key` = '{record.key}' and tags.`tiltyard.kind` = 'launch'", max_results=1
        )
        if found:
            run_id = str(found[0].info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            self._load_children(experiment_id, run_id)
            return run_id
        run = self._client.create_run(
            experiment_id,
            run_name=f"{record.experiment} {record.key[:8]}",
            tags={"tiltyard.kind": "launch", "tiltyard.key": record.key, "tiltyard.launch": record.launch_id}
            | dict(record.tags),
        )
        self._client.log_text(run.info.run_id, record.spec, "experiment.json")
        return str(run.info.run_id)

    def has(self, cell: str, run_id: str) -> bool:
        """This run of the cell is there."""
        return self._runs.get(cell, ("", 0))[0] == run_id

    def trial(self, experiment: str, key: str, parent: str, record: TrialRecord) -> str:
        """Writes a trial's run whole, or what is new of it; its id."""
        tags = _tags(key, parent, record)
        is_new = record.cell not in self._runs
        if is_new:
            run = self._client.create_run(
                self._experiment(experiment), start_time=record.start_ms, run_name=record.name, tags=tags
            )
            self._runs[record.cell] = str(run.info.run_id), record.start_ms
        run_id, start_ms = self._runs[record.cell]
        self._client.log_inputs(run_id, [_input(record)])
        self._client.log_batch(
            run_id,
            metrics=_metrics(record, start_ms),
            params=[Param(k, str(v)[:6000]) for k, v in record.params.items()],
            tags=[] if is_new else [RunTag(k, v) for k, v in tags.items()],
        )
        self._client.set_terminated(run_id, _STATUS[record.state], end_time=record.end_ms)
        return run_id

    def artifact(self, run_id: str, path: Path) -> None:
        """Puts a file into a run; a newer one of the same name replaces it."""
        self._client.log_artifact(run_id, str(path))

    def close_launch(self, run_id: str, status: str, metrics: dict[str, float], tags: dict[str, str]) -> None:
        """Ends the parent run."""
        self._client.log_batch(
            run_id,
            metrics=[Metric(k, v, 0, 0) for k, v in metrics.items() if math.isfinite(v)],
            tags=[RunTag(k, v) for k, v in tags.items()],
        )
        self._client.set_terminated(run_id, status)

    def evaluations(self, experiment: str) -> dict[str, tuple[str, int]]:
        """Run and revision of the evaluations of an experiment that have a run, by key."""
        found: dict[str, tuple[str, int]] = {}
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment(experiment)],
                "tags.`tiltyard.kind` = 'evaluation'",
                max_results=5000,
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                found[tags.get("tiltyard.key", "")] = str(run.info.run_id), int(tags.get("tiltyard.revision", "0"))
            token = page.token
            if not token:
                return found

    def evaluation(self, record: EvaluationRecord, run_id: str | None = None) -> str:
        """Writes an evaluation's run, or a new revision of it; its id.

        Args:
            record: What to write.
            run_id: The run that it has already.
        """
        tags = {
            "tiltyard.kind": "evaluation",
            "tiltyard.key": record.key,
            "tiltyard.model": record.model,
            "tiltyard.model_run": record.model_run_id,
            "tiltyard.dataset": f"{record.dataset}@{record.dataset_version}",
        }
        if run_id is None:
            run = self._client.create_run(
                self._experiment(record.experiment),
                start_time=record.at_ms - round(record.duration_s * 1000),
                run_name=f"{record.model} on {record.dataset}@{record.dataset_version}",
                tags=tags,
            )
            run_id = str(run.info.run_id)
            dataset = _dataset(record.dataset, record.dataset_version, record.dataset_digest)
            self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])])
        self._client.log_text(run_id, record.result, "evaluation.json")
        self._client.log_batch(
            run_id,
            metrics=[
                Metric(k, v, record.at_ms, record.revision) for k, v in record.metrics.items() if math.isfinite(v)
            ],
            params=[Param(k, str(v)[:6000]) for k, v in record.params.items()],
            tags=[RunTag("tiltyard.revision", str(record.revision))],  # last: a run without it is written again
        )
        self._client.set_terminated(run_id, "FINISHED", end_time=record.at_ms)
        return run_id

    def _experiment(self, name: str) -> str:
        if name in self._experiments:
            return self._experiments[name]
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                made = self._client.create_experiment(
                    name, artifact_location=f"{self._artifact_root}/{name}" if self._artifact_root else None
                )
            except MlflowException:  # somebody else made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
                made = found.experiment_id
        elif found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
            made = found.experiment_id
        else:
            made = found.experiment_id
        self._experiments[name] = str(made)
        return str(made)

    def _load_children(self, experiment_id: str, parent: str) -> None:
        """Learns which trials have a run already."""
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [experiment_id], f"tags.`{_PARENT}` = '{parent}'", max_results=5000, page_token=token
            )
            for run in page:
                if (cell := run.data.tags.get("tiltyard.cell")) is not None:
                    self._runs[cell] = str(run.info.run_id), run.info.start_time
            token = page.token
            if not token:
                return


def _tags(key: str, parent: str, record: TrialRecord) -> dict[str, str]:
    tags = {
        _PARENT: parent,
        "tiltyard.kind": "trial",
        "tiltyard.key": key,
        "tiltyard.cell": record.cell,
        "tiltyard.state": record.state,
        # Of a trial that was interrupted and went on, the reason is emptied.
        "tiltyard.reason": (record.reason or "")[:5000],
        "tiltyard.variant": record.variant,
        "tiltyard.dataset": f"{record.dataset}@{record.dataset_version}",
    }
    return tags | dict(record.tags)


def _metrics(record: TrialRecord, start_ms: int) -> list[Metric]:
    last = start_ms + (record.history[-1][0] if record.history else 0)
    points = [
        Metric(name, value, start_ms + epoch, epoch)
        for epoch, metrics in thin(record.history)
        for name, value in metrics.items()
        if math.isfinite(value)  # SQL stores keep inf as 1.8e308
    ]
    points += [Metric(f"test_{k}", v, last, 0) for k, v in record.test.items() if math.isfinite(v)]
    points += [Metric("duration_s", record.duration_s, last, 0), Metric("cpu_s", record.cpu_s, last, 0)]
    return points


def _input(record: TrialRecord) -> DatasetInput:
    dataset = _dataset(record.dataset, record.dataset_version, record.dataset_digest)
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])


def _dataset(name: str, version: int, digest: str) -> Any:
    return DatasetEntity(
        name=name,
        digest=digest[:36],  # MLflow's column holds 36 characters; the whole digest is in the source
        source_type="tiltyard",
        source=f'{{"name": "{name}", "version": {version}, "digest": "{digest}"}}',
    )
