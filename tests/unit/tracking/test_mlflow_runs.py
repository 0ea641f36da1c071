"""Runs in a real MLflow on SQLite: what is written of a launch and its trials, and what writing again changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tiltyard.tracking.mlflow_runs import MlflowRuns
from tiltyard.tracking.records import EvaluationRecord, LaunchRecord, TrialRecord

pytestmark = pytest.mark.slow  # a real MLflow

KEY = "f" * 64


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow for this file: making its database takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def runs(uri: str, tmp_path: Path) -> MlflowRuns:
    return MlflowRuns(uri, tmp_path.as_uri())


@pytest.fixture
def client(uri: str) -> MlflowClient:
    return MlflowClient(tracking_uri=uri)


@pytest.fixture
def launch(request: pytest.FixtureRequest) -> LaunchRecord:
    name = request.node.name.removeprefix("test_")[:90]
    return LaunchRecord(experiment=name, key=KEY, launch_id="l1", spec='{"name": "x"}', tags={"team": "vision"})


def trial(cell: str = "a", *, epochs: int = 2, state: str = "stopped", **changes: Any) -> TrialRecord:
    plain = TrialRecord(
        cell=cell * 64,
        name=f"mlp@rings/{cell}",
        variant="mlp",
        dataset="rings",
        dataset_version=3,
        dataset_digest="d" * 64,
        params={"lr": 0.01, "hidden": [64, 32], "model": "mlp"},
        history=[(e, {"accuracy": e / 10, "train_loss": 1 / e}) for e in range(1, epochs + 1)],
        state=state,
        reason="not among the best 1 of 3 at epoch 2" if state == "stopped" else None,
        duration_s=0.5 * epochs,
        cpu_s=0.5 * epochs,
        start_ms=1_700_000_000_000,
        end_ms=1_700_000_009_000,
    )
    return replace(plain, **changes)


def children(client: MlflowClient, launch: LaunchRecord) -> list[Any]:
    found = client.get_experiment_by_name(launch.experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id], "tags.`tiltyard.kind` = 'trial'"))


def points(client: MlflowClient, run_id: str, metric: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run_id, metric)]


def test_trial_written_once_has_all_that_is_known_of_it(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord
) -> None:
    parent = runs.open_launch(launch)
    run = client.get_run(runs.trial(launch.experiment, KEY, parent, trial()))
    assert run.info.run_name == "mlp@rings/a"
    assert (run.info.status, run.info.start_time, run.info.end_time) == (
        "FINISHED",
        1_700_000_000_000,
        1_700_000_009_000,
    )
    assert run.data.params == {"lr": "0.01", "hidden": "[64, 32]", "model": "mlp"}
    tags = run.data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert tags["tiltyard.cell"] == "a" * 64
    assert (tags["tiltyard.state"], tags["tiltyard.dataset"], tags["tiltyard.variant"]) == ("stopped", "rings@3", "mlp")
    assert tags["tiltyard.reason"].startswith("not among the best")
    assert points(client, run.info.run_id, "accuracy") == [(1, 0.1), (2, 0.2)]
    assert run.data.metrics == {"accuracy": 0.2, "train_loss": 0.5, "duration_s": 1.0, "cpu_s": 1.0}
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("rings", "d" * 36)
    assert json.loads(given.dataset.source) == {"name": "rings", "version": 3, "digest": "d" * 64}
    assert [(t.key, t.value) for t in given.tags] == [("mlflow.data.context", "training")]


def test_parent_run_holds_spec_tags_and_how_the_launch_ended(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord
) -> None:
    parent = runs.open_launch(launch)
    assert client.get_run(parent).info.status == "RUNNING"
    runs.close_launch(parent, "FINISHED", {"best_accuracy_rings": 0.9, "nothing": math.nan}, {"tiltyard.best": "x"})
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"best_accuracy_rings": 0.9}
    assert {"team": "vision", "tiltyard.best": "x", "tiltyard.key": KEY, "tiltyard.launch": "l1"}.items() <= dict(
        run.data.tags
    ).items()
    folder = client.list_artifacts(parent)
    assert [f.path for f in folder] == ["experiment.json"]


def test_trial_written_again_by_the_same_or_another_process_changes_nothing(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord, uri: str
) -> None:
    first = runs.trial(launch.experiment, KEY, runs.open_launch(launch), trial())
    before = client.get_run(first).data
    again = MlflowRuns(uri)
    late = trial(start_ms=1_800_000_000_000, end_ms=1_800_000_009_000)  # a later launch says when it wrote
    for writer in (runs, again):
        assert writer.trial(launch.experiment, KEY, writer.open_launch(launch), late) == first
    assert len(children(client, launch)) == 1
    for metric in ("accuracy", "train_loss", "duration_s", "cpu_s"):
        wanted = 2 if metric in {"accuracy", "train_loss"} else 1
        assert len(points(client, first, metric)) == wanted, f"{metric} stands twice"
    after = client.get_run(first)
    assert (after.data.metrics, after.data.params) == (before.metrics, before.params)
    assert after.inputs is not None
    assert len(after.inputs.dataset_inputs) == 1


def test_trial_that_was_interrupted_and_went_on_continues_its_run(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord, uri: str
) -> None:
    interrupted = trial(epochs=1, state="interrupted", reason="stopped by Ctrl-C")
    run_id = runs.trial(launch.experiment, KEY, runs.open_launch(launch), interrupted)
    assert client.get_run(run_id).info.status == "KILLED"
    later = MlflowRuns(uri)
    done = trial(epochs=4, state="done", start_ms=1_800_000_000_000)
    assert later.trial(launch.experiment, KEY, later.open_launch(launch), done) == run_id
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["tiltyard.state"], run.data.tags["tiltyard.reason"]) == (
        "FINISHED",
        "done",
        "",
    )
    assert [step for step, _ in points(client, run_id, "accuracy")] == [1, 2, 3, 4]
    assert run.data.metrics["duration_s"] == 2.0


def test_trial_whose_scores_are_not_numbers_is_written_without_them(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord
) -> None:
    history = [(1, {"accuracy": 0.3, "train_loss": 2.0}), (2, {"accuracy": math.nan, "train_loss": math.inf})]
    record = trial(history=history, state="failed", reason="diverged: accuracy is not a finite number")
    run_id = runs.trial(launch.experiment, KEY, runs.open_launch(launch), record)
    assert points(client, run_id, "accuracy") == [(1, 0.3)]
    assert points(client, run_id, "train_loss") == [(1, 2.0)]
    assert client.get_run(run_id).info.status == "FAILED"


def test_trial_with_a_history_of_a_thousand_epochs_is_thinned_to_both_ends_and_between(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord
) -> None:
    run_id = runs.trial(launch.experiment, KEY, runs.open_launch(launch), trial(epochs=1000, state="done"))
    steps = [step for step, _ in points(client, run_id, "accuracy")]
    assert len(steps) == 64
    assert (steps[0], steps[-1]) == (1, 1000)


def test_trials_of_another_key_have_runs_of_their_own(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord, uri: str
) -> None:
    one = runs.trial(launch.experiment, KEY, runs.open_launch(launch), trial())
    other = MlflowRuns(uri)
    parent = other.open_launch(replace(launch, key="e" * 64))
    assert other.trial(launch.experiment, "e" * 64, parent, trial()) != one
    assert len(children(client, launch)) == 2


def test_launch_of_an_experiment_that_was_deleted_in_mlflow_brings_it_back(
    runs: MlflowRuns, client: MlflowClient, launch: LaunchRecord, uri: str
) -> None:
    runs.open_launch(launch)
    found = client.get_experiment_by_name(launch.experiment)
    assert found is not None
    client.delete_experiment(found.experiment_id)
    later = MlflowRuns(uri)
    later.open_launch(replace(launch, key="9" * 64))
    found = client.get_experiment_by_name(launch.experiment)
    assert found is not None
    assert found.lifecycle_stage == "active"


def test_evaluation_is_a_run_of_its_own_with_a_step_for_each_revision(runs: MlflowRuns, client: MlflowClient) -> None:
    record = EvaluationRecord(
        experiment="evaluations",
        key="e" * 64,
        revision=1,
        model="rings@3",
        model_run_id="0" * 32,
        dataset="rings",
        dataset_version=7,
        dataset_digest="d" * 64,
        metrics={"rows": 100.0, "accuracy": math.nan},
        params={"rows": "test"},
        result='{"revision": 1}',
        at_ms=1_700_000_009_000,
        duration_s=2.0,
    )
    assert runs.evaluations("evaluations") == {}
    run_id = runs.evaluation(record)
    assert runs.evaluations("evaluations") == {record.key: (run_id, 1)}
    revised = replace(record, revision=2, metrics={"rows": 100.0, "accuracy": 0.9}, result='{"revision": 2}')
    assert runs.evaluation(revised, run_id) == run_id
    assert runs.evaluations("evaluations") == {record.key: (run_id, 2)}
    run = client.get_run(run_id)
    assert points(client, run_id, "rows") == [(1, 100.0), (2, 100.0)]
    assert points(client, run_id, "accuracy") == [(2, 0.9)]
    assert (run.info.start_time, run.info.end_time) == (1_700_000_007_000, 1_700_000_009_000)
    assert (run.data.tags["tiltyard.model"], run.data.tags["tiltyard.dataset"]) == ("rings@3", "rings@7")
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].tags[0].value == "evaluation"
