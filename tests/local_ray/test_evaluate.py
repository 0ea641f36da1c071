"""Models evaluated on new versions through a real Ray Serve: once each, in any company, and as offline."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard import cli
from tiltyard.data.deletion import delete
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.kept import Kept, outputs_of
from tiltyard.evaluation.late import attach_labels
from tiltyard.evaluation.mlflow_log import log_to_mlflow
from tiltyard.evaluation.pairs import Done, Pair, plan
from tiltyard.evaluation.reading import batches
from tiltyard.evaluation.runner import evaluate
from tiltyard.evaluation.scores import ScoreFold, label_numbers
from tiltyard.evaluation.slices import Slice
from tiltyard.evaluation.spec import Evaluation
from tiltyard.journal import Journal, Owner
from tiltyard.registry import read_bundle
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle, small_table
from tiltyard.types import Task

pytestmark = pytest.mark.ray
ROWS = 1_200


@dataclass(frozen=True)
class Stage:
    """Three versions of one model, and a dataset that grows by versions."""

    settings: Settings
    store: DatasetStore
    registry: ModelRegistry


def table(rows: int, seed: int, shift: float = 0.0) -> pa.Table:
    made = small_table(Task.MULTICLASS, rows=rows, seed=seed)
    n1 = pa.array(made["n1"].to_numpy() + np.float32(shift))
    made = made.set_column(made.column_names.index("n1"), "n1", n1)
    return made.append_column("id", pa.array(np.arange(rows) + seed * 1_000_000))


SPEC = DatasetSpec(task=Task.MULTICLASS, label="label", key="id")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    home = tmp_path_factory.mktemp("evaluate")
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    store, registry = DatasetStore(settings.data_uri), ModelRegistry(settings)
    for seed in range(2):
        registry.register("s.small", small_bundle(home / f"small{seed}", seed=seed).folder)
    registry.promote("s.small", 1)
    store.commit("small", table(ROWS, 1), spec=SPEC)
    store.commit("small", table(ROWS, 2))
    store.commit("small", table(ROWS, 3, shift=0.6))
    return Stage(settings, store, registry)


EVALUATION = Evaluation(
    dataset="small",
    models=("s.small@1", "s.small@2"),
    rows="held-out",
    metric="accuracy",
    slices=(Slice(column="colour"),),
    batch_rows=200,
)


@pytest.fixture(scope="module")
def done(stage: Stage, ray_session: None) -> list[Done]:
    return evaluate(stage.settings, EVALUATION)


def results(done: list[Done]) -> dict[tuple[str, str], Evaluated]:
    return {(d.result.name, d.result.on): d.result for d in done if d.result is not None}


def offline(stage: Stage, version: int, number: int) -> tuple[Any, Any, pa.Table]:
    model = stage.registry.get("s.small", version=version)
    bundle = read_bundle(stage.registry.fetch(model), expect_digest=model.digest)
    rows = pa.concat_tables([stage.store.read(f"small@{number}", split=s) for s in ("validation", "test")])
    y = label_numbers(Task.MULTICLASS, bundle.spec.classes, [rows["label"]])
    return bundle.predict_table(rows).outputs, y, rows


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 20))
def test_requests_of_any_row_groups_hold_the_same_rows_in_order_and_none_too_many(sizes: list[int], most: int) -> None:
    whole = pa.table({"n": pa.array(range(sum(sizes)), pa.int64())})
    ends = np.cumsum([0, *sizes]).tolist()
    parts = [whole.slice(a, b - a) for a, b in itertools.pairwise(ends)]
    made = list(batches(parts, most))
    assert [n for t in made for n in t["n"].to_pylist()] == whole["n"].to_pylist()
    assert all(0 < t.num_rows <= most for t in made)
    assert all(t["n"].num_chunks == 1 for t in made)


def test_evaluation_of_new_versions_equals_the_bundle_offline(stage: Stage, done: list[Done]) -> None:
    assert [d.outcome for d in done] == ["new"] * 6  # two baselines, and two models on two versions
    found = results(done)
    for version in (1, 2):
        outputs, y, rows = offline(stage, version, 2)
        fold = ScoreFold(Task.MULTICLASS, 3)
        fold.add(outputs, y)
        expected, scored = fold.done(), found[f"s.small@{version}", "small@2"].scored
        assert scored.confusion == expected.confusion
        assert scored.rows == scored.labelled == rows.num_rows
        for name, score in expected.scores.items():
            assert scored.scores[name].value == pytest.approx(score.value, abs=1e-6)
    colours = found["s.small@1", "small@2"].slices["colour"]
    assert sum(s.rows for s in colours.values()) == found["s.small@1", "small@2"].scored.rows


def test_evaluation_compares_the_challenger_with_the_champion_on_the_same_rows(stage: Stage, done: list[Done]) -> None:
    result = results(done)["s.small@2", "small@2"]
    (champion, y, _), (challenger, _, _) = offline(stage, 1, 2), offline(stage, 2, 2)
    right = [(o.argmax(1) == y) for o in (champion, challenger)]
    assert result.paired is not None
    assert result.against == "s.small@1"
    assert result.paired.won == int((right[1] & ~right[0]).sum())
    assert result.paired.lost == int((right[0] & ~right[1]).sum())
    assert results(done)["s.small@1", "small@2"].paired is None


def test_drift_of_a_shifted_version_is_found_and_of_a_clean_one_is_not(done: list[Done]) -> None:
    clean, shifted = results(done)["s.small@1", "small@2"], results(done)["s.small@1", "small@3"]
    assert clean.drift is not None
    assert shifted.drift is not None
    assert clean.drift.drifted == ()
    assert "n1" in shifted.drift.drifted
    names = {c.column for c in shifted.drift.columns}
    assert {"n0", "n1", "colour", "label", "(prediction)", "(confidence)"} <= names


def test_evaluation_a_second_time_predicts_nothing_and_says_the_same(stage: Stage, done: list[Done]) -> None:
    again = evaluate(stage.settings, EVALUATION)
    assert [d.outcome for d in again] == ["finished"] * 6
    assert [d.result.to_json() for d in again if d.result] == [d.result.to_json() for d in done if d.result]


def test_evaluations_are_runs_in_mlflow_that_name_the_model_and_the_data(stage: Stage, done: list[Done]) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(stage.settings.tracking_uri)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`tiltyard.kind` = 'evaluation'")
    assert len(runs) == 6
    run = next(
        r for r in runs if (r.data.tags["tiltyard.model"], r.data.tags["tiltyard.dataset"]) == ("s.small@2", "small@3")
    )
    result = results(done)["s.small@2", "small@3"]
    assert run.data.metrics["accuracy"] == pytest.approx(result.scored.scores["accuracy"].value)
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == "small"
    with Journal.open(stage.settings.journal_uri) as journal:
        assert log_to_mlflow(stage.settings, journal, [d.pair for d in done]) == 0
        told: list[str] = []
        away = replace(stage.settings, tracking_uri="sqlite:////proc/nowhere/mlflow.db")
        assert log_to_mlflow(away, journal, [d.pair for d in done], told.append) == 0
    assert "next evaluation writes what is missing" in told[0]


INBOX = table(400, 9)
UNLABELLED = replace(EVALUATION, dataset="inbox", rows="all", labels=("label",), versions="latest")


@pytest.fixture(scope="module")
def raced(stage: Stage, done: list[Done]) -> list[list[Done]]:
    """Rows whose labels come later, evaluated by two at once."""
    stage.store.commit("inbox", INBOX.drop_columns(["label"]), spec=DatasetSpec(key="id"))
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda _: evaluate(stage.settings, UNLABELLED), range(2)))


def test_evaluation_started_by_two_at_once_predicts_each_pair_once(stage: Stage, raced: list[list[Done]]) -> None:
    outcomes: dict[str, list[str]] = {}
    for done_by_one in raced:
        for d in done_by_one:
            outcomes.setdefault(d.pair.key, []).append(d.outcome)
    predicted = {k: v for k, v in outcomes.items() if v.count("new")}
    assert len(predicted) == 2
    assert all(sorted(v)[-1] == "new" and v.count("new") == 1 for v in predicted.values())
    with Journal.open(stage.settings.journal_uri) as journal:
        rows = [Evaluated.from_json(journal.works.results(k)[0].result).scored.rows for k in predicted]
    assert rows == [400, 400]


def test_version_without_a_column_that_the_model_needs_is_recorded_as_such_once(stage: Stage, done: list[Done]) -> None:
    stage.store.commit("narrow", table(200, 8).drop_columns(["n2"]), spec=SPEC)
    spec = replace(EVALUATION, dataset="narrow", models=("s.small@1",), slices=())
    first = evaluate(stage.settings, spec)[-1]
    assert first.outcome == "new"
    assert first.result is not None
    assert "lacks columns that the model needs: n2" in first.result.problem
    assert first.result.drift is not None
    assert first.result.drift.missing_columns == ("n2",)
    assert evaluate(stage.settings, spec)[-1].outcome == "finished"


def test_labels_that_come_late_are_joined_by_key_and_append_a_revision_each(
    stage: Stage,
    raced: list[list[Done]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full, spec = INBOX, UNLABELLED
    unlabelled = [d for d in evaluate(stage.settings, spec) if d.pair.version.name == "inbox"]
    assert all(d.result is not None and d.result.scored.labelled == 0 for d in unlabelled)
    assert all(d.result is not None and d.result.paired is None for d in unlabelled)
    champion, challenger = unlabelled
    profiles = dict(stage.store.profile("small@1").splits["train"].columns)
    labels = full.select(["id", "label"])
    after: Evaluated | None = None
    with Journal.open(stage.settings.journal_uri) as journal:
        for part in (labels.slice(0, 150), labels):
            after = attach_labels(
                journal, challenger.pair.key, part, spec=spec, profiles=profiles, champion=champion.result
            )
            assert after is not None
            assert after.scored.labelled == part.num_rows
        again = attach_labels(
            journal, challenger.pair.key, labels.take(np.arange(400)[::-1].copy()), spec=spec, profiles=profiles
        )
        assert again is None
        assert [r.revision for r in journal.works.results(challenger.pair.key)] == [1, 2, 3]
    assert after is not None
    assert after.drift is not None
    assert after.drift.column("label") is not None
    bundle = read_bundle(stage.registry.fetch(stage.registry.get("s.small", version=2)))
    fold = ScoreFold(Task.MULTICLASS, 3)
    fold.add(bundle.predict_table(full).outputs, label_numbers(Task.MULTICLASS, bundle.spec.classes, [full["label"]]))
    assert after.scored.confusion == fold.done().confusion
    assert after.paired is not None
    assert after.paired.rows == 400
    pyarrow.csv.write_csv(labels, tmp_path / "labels.csv")  # and the champion's, on the command line
    monkeypatch.setenv("TILTYARD_HOME", str(stage.settings.home))
    for args in (
        ["evaluate", "labels", "s.small@1", "inbox@1", str(tmp_path / "labels.csv")],
        ["evaluate", "show", "s.small@1", "inbox@1"],
        ["evaluate", "list", "s.small"],
    ):
        with pytest.raises(SystemExit) as left:
            cli.main(args)
        out, _ = capsys.readouterr()
        assert left.value.code in (0, None)
        assert "inbox@1" in out
        assert "accuracy" in out
    with Journal.open(stage.settings.journal_uri) as journal:
        found = Evaluated.from_json(journal.works.results(champion.pair.key)[-1].result)
    assert found.scored.labelled == 400


def test_new_champion_is_compared_with_what_was_evaluated_before_it(stage: Stage, done: list[Done]) -> None:
    turned = replace(EVALUATION, models=("s.small@2", "s.small@1"))
    again = results(evaluate(stage.settings, turned))["s.small@1", "small@2"]
    before = results(done)["s.small@2", "small@2"].paired
    assert again.against == "s.small@2"
    assert again.paired is not None
    assert before is not None
    assert (again.paired.won, again.paired.lost) == (before.lost, before.won)


KILLED = """
import sys
from tiltyard.settings import Settings
from tiltyard.evaluation.runner import evaluate
from tiltyard.evaluation.spec import Evaluation
import json
evaluate(Settings.from_env(), Evaluation.from_json(json.loads(sys.argv[1])), in_flight=1)
"""


def wait_for_parts(folder: Place, least: int, goes_on: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while len(folder.names()) < least:
        assert goes_on(), "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_serve() -> None:
    """The controller and every replica, with nobody left to start them again."""
    import ray

    actors = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == "serve"]
    for name in sorted(actors, key=lambda n: "CONTROLLER" not in n):
        with suppress(ValueError):  # it went with the controller
            ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


def test_evaluation_killed_and_then_left_without_serve_is_taken_over_and_counts_each_row_once(
    stage: Stage, done: list[Done], tmp_path: Path
) -> None:
    import json

    import ray

    stage.store.commit("killed", table(3_000, 11), spec=SPEC)
    spec = replace(EVALUATION, dataset="killed", models=("s.small@1",), rows="all", batch_rows=20)
    pair: Pair = plan(spec, stage.store, stage.registry)[1][-1][0]
    env = {**os.environ, "TILTYARD_HOME": str(stage.settings.home)}
    env["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    answers = Place.of(stage.settings.storage_uri) / "evaluations" / pair.key
    folder = answers / "0001"
    process = subprocess.Popen([sys.executable, "-c", KILLED, json.dumps(spec.to_json())], env=env)
    try:
        wait_for_parts(folder, 3, lambda: process.poll() is None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    with Journal.open(stage.settings.journal_uri) as journal:
        work = journal.works.get(pair.key)
        assert work is not None
        assert work.state == "running"
        assert journal.works.results(pair.key) == []
    left = len(folder.names())
    assert 3 <= left < 150
    with ThreadPoolExecutor(1) as pool:  # who takes it over loses Serve in the middle
        second = pool.submit(evaluate, stage.settings, spec, in_flight=1)
        wait_for_parts(answers / "0002", 3, lambda: not second.done())
        kill_serve()
        failed = second.result(120)[-1]
    assert (failed.outcome, failed.result) == ("failed", None)
    with Journal.open(stage.settings.journal_uri) as journal:
        assert journal.works.results(pair.key) == []
    result = evaluate(stage.settings, replace(spec, batch_rows=500))[-1]
    assert result.outcome == "new"
    assert result.result is not None
    assert result.result.scored.rows == 3_000
    assert result.result.predictions.endswith("0003")
    parts = list(Kept(Place.of(result.result.predictions)).parts())
    assert sum(p.num_rows for p in parts) == 3_000
    assert len({i for p in parts for i in p["id"].to_pylist()}) == 3_000
    assert all(np.isfinite(outputs_of(p)).all() for p in parts)


def test_rows_that_are_new_leave_out_those_the_model_was_trained_on_and_a_version_without_files_fails_by_itself(
    stage: Stage, done: list[Done]
) -> None:
    stage.store.commit("grown", table(100, 41), spec=SPEC)
    lost = stage.store.resolve("grown")
    for file in lost.files:
        Path((Place.of(lost.uri) / file.path).path).unlink()
    both = pa.concat_tables([table(ROWS, 1), table(100, 21)])
    stage.store.commit("grown", both)
    spec = replace(EVALUATION, dataset="grown", rows="new", slices=())
    found = [d for d in evaluate(stage.settings, spec) if d.pair.version.name == "grown"]
    assert [(d.pair.version.version, d.outcome) for d in found] == [
        (1, "failed"),
        (1, "failed"),
        (2, "new"),
        (2, "new"),
    ]
    assert all(d.reason for d in found[:2])
    champion, challenger = (d.result for d in found[2:])
    assert champion is not None
    assert challenger is not None
    trained = stage.store.resolve("small@1").split_rows["train"]
    assert champion.scored.rows == challenger.scored.rows == ROWS + 100 - trained
    assert challenger.paired is not None
    assert challenger.paired.rows == champion.scored.rows


def test_plan_of_an_alias_and_a_number_that_mean_the_same_version_has_it_once(stage: Stage, done: list[Done]) -> None:
    spec = replace(EVALUATION, models=("s.small@champion", "s.small@1"))
    champion, groups = plan(spec, stage.store, stage.registry)
    assert champion.version == 1
    assert [len(g) for g in groups] == [1, 1, 1]


def test_version_that_was_deleted_is_left_out_of_the_plan_and_its_successor_is_in_it(
    stage: Stage, done: list[Done]
) -> None:
    stage.store.commit("gone", table(200, 31), spec=SPEC)
    stage.store.commit("gone", table(200, 32))
    delete(stage.store, "gone", [31_000_000], models={})
    spec = replace(EVALUATION, dataset="gone", models=("s.small@1",), slices=())
    _, groups = plan(spec, stage.store, stage.registry)
    planned = [p.version.version for group in groups for p in group if p.version.name == "gone"]
    assert planned == [v.version for v in stage.store.history("gone")]
    assert 1 not in planned


def test_claim_that_another_process_holds_is_left_to_it(stage: Stage, done: list[Done]) -> None:
    stage.store.commit("held", table(100, 12), spec=SPEC)
    spec = replace(EVALUATION, dataset="held", models=("s.small@1",), rows="all")
    pair = plan(spec, stage.store, stage.registry)[1][-1][0]
    with Journal.open(stage.settings.journal_uri) as journal:
        journal.works.claim(pair.key, kind="evaluation", subject="s.small", about={}, owner=Owner.here())
    told = evaluate(stage.settings, spec)[-1]
    assert (told.outcome, told.result) == ("held", None)
    assert f"process {os.getpid()}" in told.reason
