"""A small sweep from end to end on a real Ray, with real MLflow on SQLite: what it leaves, and what a second one reuses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import sweeps
from mlflow import MlflowClient

from tiltyard import cli
from tiltyard.data.features import fit_preprocessor
from tiltyard.data.preflight import plan_splits
from tiltyard.data.store import DatasetStore
from tiltyard.distributions import choice
from tiltyard.errors import AlreadyClaimedError, PreflightError
from tiltyard.experiment import Experiment, Halving, Resources, Search, Variant
from tiltyard.journal import Journal, Owner
from tiltyard.settings import Settings
from tiltyard.sweep.engine.driver import ENDED
from tiltyard.sweep.engine.outcome import Outcome
from tiltyard.sweep.engine.prepare import prepare
from tiltyard.sweep.plan import plan
from tiltyard.sweep.rerun import rerun_trial
from tiltyard.training import Pack
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray

DIVERGES = "mlp@rings/000"
POINTS: dict[str, Any] = {"mlp": ({"lr": 1e30, "dropout": 0.0},)}
OWN_POINTS: tuple[dict[str, Any], ...] = ({"how": "well"}, {"how": "exit"})


def experiment(**changes: Any) -> Experiment:
    """The first trial of the MLPs diverges: its learning rate is absurd."""
    search = Search(
        trials=6,
        halving=Halving(rungs=(1, 2), keep=1 / 2),
        finalists=2,
        points=POINTS,
    )
    return sweeps.experiment(**{"search": search, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, data: str) -> Settings:
    return sweeps.settings_at(tmp_path_factory.mktemp("home"), data)


@pytest.fixture(scope="module")
def swept(ray_session: None, settings: Settings) -> Outcome:
    """The one sweep that most tests look at."""
    return sweeps.run_launch(settings, experiment())


@pytest.fixture(scope="module")
def journal(swept: Outcome, settings: Settings) -> Iterator[Journal]:
    with Journal.open(settings.journal_uri) as journal:
        yield journal


@pytest.fixture(scope="module")
def runs(swept: Outcome, settings: Settings) -> dict[str, Any]:
    """MLflow's runs of the sweep: the parent under "parent", each child under its trial's name."""
    return runs_of(settings, swept)


def runs_of(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    found = client.get_experiment_by_name(outcome.leaderboard.experiment)
    assert found is not None
    all_runs = client.search_runs([found.experiment_id], f"tags.`tiltyard.key` = '{outcome.claim.key}'")
    parents = [r for r in all_runs if "mlflow.parentRunId" not in r.data.tags]
    assert [p.info.run_id for p in parents] == [outcome.parent_run_id]
    children = {r.info.run_name: r for r in all_runs if r.data.tags.get("mlflow.parentRunId") == outcome.parent_run_id}
    assert len(children) == len(all_runs) - 1, "two runs of one trial"
    return {"parent": parents[0], **children}


def test_sweep_of_two_variants_ends_with_a_leaderboard_of_every_trial(swept: Outcome) -> None:
    assert swept.state == "finished"
    for dataset, rows in swept.leaderboard.tables.items():
        assert len(rows) == 6, dataset
        assert [r.rank for r in rows] == [1, 2, 3, 4, 5, 6]
        assert {r.state for r in rows} == {"done", "stopped", "failed"}
        assert [r.test is not None for r in rows] == [True, True, False, False, False, False]
        done = [r.validation or 0.0 for r in rows if r.state == "done"]
        assert done == sorted(done, reverse=True)
        best = rows[0].test
        assert best is not None
        assert best.low <= best.value <= best.high
        assert set(best.others) == {"log_loss"}
    assert swept.leaderboard.test_looks == 1


def test_sweep_stops_the_worse_half_of_each_group_at_the_first_rung(swept: Outcome, journal: Journal) -> None:
    by_group: dict[str, dict[str, int]] = {}
    for r in swept.results:
        states = by_group.setdefault(r.name.split("/")[0], {})
        states[r.state] = states.get(r.state, 0) + 1
    assert by_group["lightgbm@rings"] == {"done": 2, "stopped": 1}  # the better half of three, rounded up
    assert by_group["mlp@rings"] == {"done": 1, "stopped": 1, "failed": 1}
    first = next(d for d in journal.decisions(kind="rung", subject="lightgbm@rings"))
    kept = {r.cell for r in swept.results if r.name.startswith("lightgbm@rings") and r.state == "done"}
    assert set(first.evidence["kept"]) == kept
    stopped = min(first.evidence["scores"], key=lambda c: first.evidence["scores"][c])
    assert stopped not in kept
    assert journal.verify_decisions() == len(journal.decisions())


def test_sweep_with_a_diverging_trial_fails_it_with_the_reason_and_goes_on(swept: Outcome) -> None:
    row = next(r for r in swept.leaderboard.tables["rings"] if r.name == DIVERGES)
    assert (row.state, row.validation, row.rank) == ("failed", None, 6)
    assert row.reason is not None
    assert "diverged" in row.reason
    assert all(r.reason is None for r in swept.results if r.state == "done")


def test_log_line_about_a_member_of_a_pack_bears_its_trial_id_beside_the_packs(swept: Outcome) -> None:
    import ray._private.worker

    cell = next(r.cell for r in swept.results if r.name == DIVERGES)
    node: Any = ray._private.worker.global_worker.node
    written = "".join(path.read_text() for path in Path(node.get_logs_dir_path()).glob("worker-*.err"))
    (line,) = {row for row in written.splitlines() if f"trial={cell[:12]}" in row}
    assert "The trial failed: diverged" in line
    assert f"experiment={experiment().name}" in line
    assert "pack=mlp@rings/r0/" in line


def test_sweep_started_again_answers_from_the_record_and_starts_nothing(
    swept: Outcome, settings: Settings, journal: Journal
) -> None:
    before = (len(journal.attempts(swept.claim.key)), len(psutil.Process().children(recursive=True)))
    again = sweeps.run_launch(settings, experiment())
    assert again.state == "reused"
    assert sweeps.standings(again.leaderboard) == sweeps.standings(swept.leaderboard)
    assert again.run_ids == swept.run_ids
    assert (len(journal.attempts(swept.claim.key)), len(psutil.Process().children(recursive=True))) == before


def test_sweep_whose_leaderboard_file_is_lost_answers_with_the_ranking_of_the_journal(
    swept: Outcome, settings: Settings
) -> None:
    file, aside = Path(swept.layout.leaderboard), Path(swept.layout.leaderboard + ".aside")
    file.rename(aside)
    try:
        again = sweeps.run_launch(settings, experiment())
    finally:
        aside.rename(file)
    assert again.state == "reused"
    for dataset, rows in swept.leaderboard.tables.items():
        assert [r.name for r in again.leaderboard.tables[dataset]] == [r.name for r in rows]


@pytest.fixture(scope="module")
def again(swept: Outcome, data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Outcome]:
    """The same sweep from empty state, its key left behind by a dead process, while MLflow is away."""
    other = sweeps.settings_at(tmp_path_factory.mktemp("again"), data, tracking_uri="http://127.0.0.1:9")
    with Journal.open(other.journal_uri) as journal:
        journal.claim(swept.claim.key, experiment="small", spec=experiment().to_json(), owner=dead_owner())
    return other, sweeps.run_launch(other, experiment())


def test_sweep_from_empty_state_with_the_same_seed_gives_the_same_leaderboard(
    swept: Outcome, again: tuple[Settings, Outcome]
) -> None:
    assert sweeps.standings(again[1].leaderboard) == sweeps.standings(swept.leaderboard)
    assert {r.cell for r in again[1].results} == {r.cell for r in swept.results}


def test_sweep_whose_key_a_dead_process_held_takes_it_over(again: tuple[Settings, Outcome]) -> None:
    assert (again[1].state, again[1].claim.outcome, again[1].claim.fence) == ("finished", "taken_over", 2)


def test_sweep_while_mlflow_is_away_finishes_and_the_next_start_writes_its_runs(
    swept: Outcome, again: tuple[Settings, Outcome], data: str
) -> None:
    away, outcome = again
    report = outcome.tracker
    assert report is not None
    assert (report.written, report.parent_run_id, outcome.parent_run_id) == (0, None, None)
    assert report.pending >= 1 + len(outcome.results)  # the launch and its trials at least
    assert "127.0.0.1" in (report.error or "")
    back = sweeps.settings_at(away.home, data)
    next_start = sweeps.run_launch(back, experiment())
    assert next_start.state == "reused"
    assert next_start.tracker is not None
    assert (next_start.tracker.pending, next_start.tracker.error) == (0, None)
    runs = runs_of(back, next_start)
    assert set(runs) == {"parent", *(r.name for r in swept.results)}
    assert runs["parent"].info.status == "FINISHED"


def dead_owner() -> Owner:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        here = Owner.here()
        owner = Owner(host=here.host, pid=process.pid, started=psutil.Process(process.pid).create_time())
    return owner


def test_sweep_whose_key_a_live_process_holds_is_refused(data: str, tmp_path: Path) -> None:
    other = sweeps.settings_at(tmp_path, data)
    wanted = experiment()
    _, facts = prepare(wanted, DatasetStore(other.data_uri))
    key = plan(wanted, facts, code_digest=sweeps.DIGEST).key
    with Journal.open(other.journal_uri) as journal:
        claim = journal.claim(key, experiment="small", spec=wanted.to_json(), owner=Owner.here())
        with pytest.raises(AlreadyClaimedError, match=r"running already: process \d+ on .* holds it"):
            sweeps.run_launch(other, wanted)
        launch = journal.launch(key)
        assert launch is not None
        assert (launch.state, launch.fence) == ("running", claim.fence)
        assert journal.trials(key) == []
    assert not (other.home / "spool").exists()


def test_sweep_whose_packs_no_node_can_hold_is_refused_with_the_arithmetic(
    ray_session: None, data: str, tmp_path: Path
) -> None:
    other = sweeps.settings_at(tmp_path, data)
    with pytest.raises(PreflightError, match=r"A pack holds 64 CPUs on one node, and no node has that many: .*2 CPUs"):
        sweeps.run_launch(other, experiment(resources=Resources(cpus=64)))
    with pytest.raises(PreflightError, match=r"1 CPUs and 1 GPUs on one node.*gpus to at most 0"):
        sweeps.run_launch(other, experiment(resources=Resources(gpus=1)))
    assert not (tmp_path / "journal.db").exists()


def test_sweep_whose_baseline_needs_a_split_that_does_not_fit_is_refused_before_any_trial(
    ray_session: None, data: str, tmp_path: Path
) -> None:
    other = sweeps.settings_at(tmp_path, data)
    with pytest.raises(
        PreflightError,
        match=r"Split 'train' of rings@1 takes [\d,]+ bytes.*at once \(by lightgbm, which cannot be streamed\)",
    ):
        sweeps.run_launch(other, experiment(resources=Resources(memory_share=1e-7)))
    with Journal.open(other.journal_uri) as journal:
        key = next(r.key for r in journal.launches())
        assert journal.attempts(key) == []


def test_sweep_whose_training_split_is_streamed_gives_every_trial_what_the_resident_one_gave_it(
    swept: Outcome, data: str, tmp_path: Path
) -> None:
    store = DatasetStore(data)
    rings = store.resolve("rings")
    sizes = {s: p.num_bytes for s, p in plan_splits(rings, fit_preprocessor(store, rings), allowed_bytes=1).items()}
    room = sizes["validation"] + sizes["test"] + 1
    plans = plan_splits(rings, fit_preprocessor(store, rings), allowed_bytes=room)
    assert {s: p.mode for s, p in plans.items()} == {"validation": "resident", "test": "resident", "train": "streamed"}
    store_bytes = ray.cluster_resources()["object_store_memory"]  # type: ignore[no-untyped-call]
    wanted = experiment(
        variants=(sweeps.MLP,),
        datasets=(DatasetRef("rings"),),
        search=Search(trials=3, halving=Halving(rungs=(1, 2), keep=1 / 2), finalists=1, points=POINTS),
        resources=Resources(memory_share=(room + 0.5) / store_bytes),
    )
    streamed = sweeps.run_launch(sweeps.settings_at(tmp_path, data), wanted)
    resident = {s.name: s for s in sweeps.standings(swept.leaderboard)["rings"]}
    found = sweeps.standings(streamed.leaderboard)["rings"]
    assert len(found) == 3
    for one in found:
        other = resident[one.name]
        assert (one.state, one.epoch, one.validation) == (other.state, other.epoch, other.validation)
        assert one.test is None or other.test is None or one.test == other.test


def test_sweep_records_how_its_packs_were_cut(swept: Outcome, journal: Journal) -> None:
    cut = journal.decisions(kind="packs")[0]
    assert (cut.evidence["slots"], cut.evidence["sizes"]) == (2, None)  # nothing was calibrated here
    assert cut.evidence["slot_bytes"] > 100 << 20
    assert "every launch of this key" in cut.outcome


@pytest.fixture(scope="module")
def more(swept: Outcome, settings: Settings) -> Outcome:
    """More trials of the same variants, and training of a user's own beside them."""
    own = Variant(name="own", model="train:users_training:misbehave", space={"how": choice("well", "exit")}, trials=2)
    fours = [v.model_copy(update={"trials": 4}) for v in (sweeps.MLP, sweeps.LIGHTGBM)]
    search = experiment().search.model_copy(update={"trials": 10, "points": {**POINTS, "own": OWN_POINTS}})
    return sweeps.run_launch(
        settings, experiment(search=search, variants=(*fours, own), datasets=(DatasetRef("rings"),))
    )


def test_sweep_with_more_trials_runs_only_the_new_ones(
    swept: Outcome, more: Outcome, settings: Settings, journal: Journal
) -> None:
    assert more.claim.key != swept.claim.key
    assert len(more.results) == 10
    known = {cell for cell, _ in swept.scores}
    trained = {(a.rung, cell) for a in journal.attempts(more.claim.key) for cell in a.cells}
    assert not {cell for rung, cell in trained if rung == 0} & known
    first_rung = {cell for rung, cell in trained if rung == 0}
    assert first_rung == {r.cell for r in more.results} - known
    before = {r.cell: r for r in swept.results}
    for r in more.results:
        if r.state == "done" and r.cell in before and before[r.cell].state == "done":
            assert r.score == before[r.cell].score
    assert set(runs_of(settings, more)) == {"parent", *(r.name for r in more.results)}


def test_training_of_a_users_own_is_ranked_and_one_that_exits_fails_alone(more: Outcome) -> None:
    own = [r for r in more.leaderboard.tables["rings"] if r.variant == "own"]
    assert [(r.state, r.epoch, r.validation) for r in own] == [("done", 2, 0.5), ("failed", 0, None)]
    assert own[1].reason == "its process exited with code 3 before train() returned"
    assert all(r.test is None for r in own)
    assert any(r.test is not None for r in more.leaderboard.tables["rings"])


def test_sweep_charges_what_its_packs_held(swept: Outcome, journal: Journal) -> None:
    spent = journal.spend(swept.claim.key)
    trained = sum(a.metered_s for a in journal.attempts(swept.claim.key))
    assert set(spent.by_what) == {"packs"}
    assert trained <= spent.cpu_s <= 2 * swept.seconds  # two CPUs, held at most all the time
    assert spent.gpu_s == 0


def test_mlflow_after_a_sweep_has_one_parent_and_one_child_a_trial(swept: Outcome, runs: dict[str, Any]) -> None:
    assert set(runs) == {"parent", *(r.name for r in swept.results)}
    parent = runs["parent"]
    assert parent.info.status == "FINISHED"
    best = swept.leaderboard.best("rings")
    assert best is not None
    assert parent.data.metrics["best_accuracy_rings"] == best.validation
    assert parent.data.tags["tiltyard.best.rings"] == best.cell
    for r in swept.results:
        run = runs[r.name]
        assert run.data.tags["tiltyard.cell"] == r.cell
        assert run.data.tags["tiltyard.state"] == r.state
        assert run.info.status == ("FAILED" if r.state == "failed" else "FINISHED")
        assert swept.run_ids[r.cell] == run.info.run_id
    assert "diverged" in runs[DIVERGES].data.tags["tiltyard.reason"]


def test_mlflow_run_of_a_trial_has_params_history_and_duration(
    swept: Outcome, settings: Settings, runs: dict[str, Any]
) -> None:
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    for r in (r for r in swept.results if r.state != "failed"):
        run = runs[r.name]
        expected = {k: str(list(v) if isinstance(v, tuple) else v) for k, v in r.config.items()} | {"data_seed": "0"}
        assert expected.items() <= run.data.params.items()
        assert {"model", "seed"} <= set(run.data.params)
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert [m.step for m in history] == list(range(1, r.epoch + 1))
        assert history[-1].value == r.score
        assert {"log_loss", "train_loss", "duration_s", "cpu_s"} <= set(run.data.metrics)
        assert run.data.metrics["duration_s"] > 0


def test_mlflow_run_of_a_trial_names_its_dataset_with_digest_and_version(swept: Outcome, runs: dict[str, Any]) -> None:
    for name, prepared in swept.prepared.items():
        run = runs[f"mlp@{name}/001"]
        (given,) = run.inputs.dataset_inputs
        assert given.dataset.name == name
        assert prepared.version.content_digest.startswith(given.dataset.digest)
        source = json.loads(given.dataset.source)
        assert source == {"name": name, "version": 1, "digest": prepared.version.content_digest}
        assert run.data.tags["tiltyard.dataset"] == f"{name}@1"


@pytest.mark.parametrize("name", ["mlp@rings/001", "mlp@rings/002", "lightgbm@flips/000", "lightgbm@flips/002"])
def test_rerun_of_a_trial_agrees_with_the_record(swept: Outcome, settings: Settings, name: str) -> None:
    row = next(r for r in swept.results if r.name == name)
    rerun = rerun_trial(settings, row.cell)
    assert rerun.epoch == row.epoch
    assert rerun.recorded["accuracy"] == row.score
    assert set(rerun.again) == {"accuracy", "log_loss"}
    assert all(math.isclose(rerun.again[m], v, rel_tol=1e-4) for m, v in rerun.recorded.items())
    assert rerun.agree


def test_rerun_of_a_trial_that_was_stopped_early_trains_as_far_as_it_went(swept: Outcome, settings: Settings) -> None:
    stopped = next(r for r in swept.results if r.state == "stopped" and r.variant == "mlp")
    rerun = rerun_trial(settings, stopped.cell)
    assert (rerun.epoch, rerun.agree) == (1, True)


def test_rerun_of_a_trial_that_diverged_diverges_again(swept: Outcome, settings: Settings) -> None:
    failed = next(r for r in swept.results if r.name == DIVERGES)
    rerun = rerun_trial(settings, failed.cell)
    assert rerun.agree
    assert "diverged" in (rerun.failure or "")
    assert "diverged" in (rerun.recorded_failure or "")


def test_trial_rerun_on_the_command_line_trains_in_this_process_and_says_that_they_agree(
    swept: Outcome, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained_here = []
    train_epoch = Pack.train_epoch

    def seen(pack: Pack, *args: Any, **kwargs: Any) -> Any:  # where a breakpoint would stop
        trained_here.append(pack.epoch)
        return train_epoch(pack, *args, **kwargs)

    monkeypatch.setattr(Pack, "train_epoch", seen)
    monkeypatch.setenv("TILTYARD_HOME", str(settings.home))
    monkeypatch.setenv("TILTYARD_DATA_URI", settings.data_uri)
    done = next(r for r in swept.results if r.state == "done" and r.variant == "mlp")
    with pytest.raises(SystemExit) as left:
        cli.main(["trial", "rerun", done.name])
    out, err = capsys.readouterr()
    assert not left.value.code, err
    assert f"{done.name}, trained again to epoch 2" in out
    assert "They agree within" in out
    assert trained_here == [0, 1]


def test_every_trial_of_a_finished_sweep_is_in_an_end_state(swept: Outcome, journal: Journal) -> None:
    assert {t.state for t in journal.trials(swept.claim.key)} <= ENDED - {"interrupted"}
    assert {a.state for a in journal.attempts(swept.claim.key)} == {"done"}
    launch = journal.launch(swept.claim.key)
    assert launch is not None
    assert launch.state == "finished"
