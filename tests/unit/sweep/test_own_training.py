"""A user's own training: what it reports is recorded, and whatever it does its trial ends in a named state."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import sweeps

from tiltyard.data.feed import local_feed
from tiltyard.errors import ModelError, SpecError
from tiltyard.experiment import SILENT_S, Champion, Halving, Search, Variant
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.execute import CURVES, Outcome, execute, read_curves
from tiltyard.sweep.engine.layout import Storage
from tiltyard.sweep.engine.own import check_own, run_own, too_long
from tiltyard.sweep.plan import DatasetFacts, plan
from tiltyard.telemetry.logs import bound
from tiltyard.types import Task

FATES = {
    "well": None,
    "raise": "ValueError: the learning rate is on holiday (users_training.py:",
    "string": "report() was told accuracy='high'; a number is wanted",
    "nan": "diverged: accuracy is not a finite number at epoch 1",
    "other": "report() was not told accuracy; it was told precision",
    "epoch": "report() was told epoch 'first'; a whole number from 1 on is wanted",
    "object": "TypeError: report() takes numbers; found",
    "huge": "diverged: accuracy is not a finite number at epoch 1",
    "late": "report() was told epoch 10000000000; a whole number from 1 on is wanted",
    "loss": None,
    "pipe": "it wrote b'no report' where reports go",
    "surrogate": r"ValueError: a\udce4b\x00c (users_training.py:",
    "speechless": "SpeechlessError (users_training.py:",
    "segfault": "its process was ended by SIGSEGV",
    "exit": "its process exited with code 3 before train() returned",
    "sys-exit": "its process exited with code 4 before train() returned",
    "killed": "its process was ended by SIGKILL; where nobody did that, memory ran out",
    "memory": "MemoryError",
    "fork": None,
    "fork-away": None,
    "fork-and-exit": "its process exited with code 5 before train() returned",
    "print": "train() returned without a report; report(epoch, accuracy=...) is wanted",
}


def feed(split: str) -> Any:
    rng = np.random.default_rng(len(split))
    y = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 4)) + y[:, None]).astype(np.float32)
    return local_feed(x, y, content_digest="d" * 64, split=split, batch_size=16, data_seed=0)


def assigned(function: str, configs: list[dict[str, Any]], epochs: int = 2) -> Assignment:
    return Assignment(
        pack_id="own@rings/r0/0",
        group="own@rings",
        rung=0,
        from_epoch=0,
        to_epoch=epochs,
        total_epochs=epochs,
        model=f"train:users_training:{function}",
        task=Task.MULTICLASS,
        input_shape=(4,),
        num_outputs=3,
        metrics=("accuracy", "log_loss"),
        dataset="rings",
        data_seed=0,
        seats=tuple(Seat(cell=f"c{i}", seed=i, config=c) for i, c in enumerate(configs)),
    )


def run(folder: Path, function: str, configs: list[dict[str, Any]], *, epochs: int = 2, **how: Any) -> Outcome:
    feeds = {"train": feed("train"), "validation": feed("validation")}
    return execute(assigned(function, configs, epochs), **feeds, storage=Storage(""), folder=folder, **how)


@pytest.fixture(scope="module")
def misbehaved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All of them in one queue: none may take another along."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    outcome = run(tmp_path_factory.mktemp("own"), "misbehave", [{"how": how} for how in FATES])
    left = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    return {"outcome": outcome, "left": left}


@pytest.mark.slow
@pytest.mark.parametrize("how", FATES)
def test_trial_of_own_training_ends_in_a_named_state_with_the_reason(misbehaved: dict[str, Any], how: str) -> None:
    outcome, cell = misbehaved["outcome"], f"c{list(FATES).index(how)}"
    reason = FATES[how]
    if reason is None:
        assert outcome.scores[cell] == {"accuracy": 0.5, "log_loss": 0.7}
        assert cell not in outcome.failed
    else:
        assert outcome.failed[cell].startswith(reason)
        assert cell not in outcome.scores
    assert outcome.seconds[cell] >= 0


def test_own_training_leaves_no_process_behind(misbehaved: dict[str, Any]) -> None:
    assert misbehaved["left"] == []
    marked = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            marked += [process] * ("TILTYARD_TRAINING" in process.environ())
    assert [p for p in marked if p.status() != psutil.STATUS_ZOMBIE] == []


def test_lines_of_own_training_are_json_in_a_cluster_with_the_trials_ids_and_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("USERS_API_TOKEN", "xyzzy-plugh-42")
    with bound(experiment="wine", job="wine-1", pack="own@rings/r0/0"):
        outcome = run(tmp_path, "chatty", [{"scale": 1.5}, {"scale": 2.5}], epochs=1)
    assert set(outcome.scores) == {"c0", "c1"}
    told = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["message"] for line in told] == [
        "scale 1.5, token ***",
        "password=***",
        "scale 2.5, token ***",
        "password=***",
    ]
    assert [line["trial"] for line in told] == ["c0", "c0", "c1", "c1"]
    assert {(line["experiment"], line["job"], line["pack"]) for line in told} == {("wine", "wine-1", "own@rings/r0/0")}


@pytest.mark.slow
def test_own_training_that_never_returns_is_ended_after_its_time_and_the_next_trial_runs(tmp_path: Path) -> None:
    outcome = run(tmp_path, "misbehave", [{"how": "never"}, {"how": "deaf"}, {"how": "well"}], trial_s=1.0)
    why = "it took longer than budget.trial_s allows (1 s)"
    assert outcome.failed == {"c0": why, "c1": why}
    assert set(outcome.scores) == {"c2"}
    assert not [p for p in psutil.Process().children(recursive=True) if "own_child" in _command(p)]


@pytest.mark.slow
def test_own_training_without_a_limit_is_ended_once_it_comes_to_no_new_epoch() -> None:
    found: dict[str, Outcome] = {}

    @contextlib.contextmanager
    def member(cell: str) -> Iterator[tuple[Outcome, Path]]:
        found[cell] = Outcome()
        yield found[cell], Path()

    configs = [{"how": "never"}, {"how": "deaf"}]
    run_own(assigned("misbehave", configs), feed("train"), feed("validation"), member, lambda _: None, silent_s=1.0)
    why = "it reported no new epoch for 1 s; where an epoch takes longer, set budget.trial_s"
    assert [o.failed for o in found.values()] == [{"c0": why}, {"c1": why}]


def test_time_of_a_trial_is_its_budgets_where_there_is_one_and_else_that_without_a_new_epoch() -> None:
    assert too_long(None, took_s=1e9, quiet_s=SILENT_S) is None
    assert too_long(None, took_s=SILENT_S, quiet_s=SILENT_S + 1) is not None
    assert too_long(2 * SILENT_S, took_s=1.5 * SILENT_S, quiet_s=1.5 * SILENT_S) is None, "its budget stands for it"
    assert too_long(5.0, took_s=6.0, quiet_s=0.0) == "it took longer than budget.trial_s allows (5 s)"


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has ended, or is some other test's that waits to be reaped
        return ""


def test_own_training_that_a_person_stops_is_ended_at_once_and_the_next_trial_runs(tmp_path: Path) -> None:
    looks = iter([frozenset[str]()] * 8)
    outcome = run(
        tmp_path,
        "misbehave",
        [{"how": "deaf"}, {"how": "well"}, {"how": "well"}],
        withdrawn=lambda: next(looks, frozenset({"c0", "c1"})),
    )
    assert (outcome.withdrawn, outcome.failed, set(outcome.scores)) == ({"c0", "c1"}, {}, {"c2"})


def test_own_training_that_works_is_recorded_with_its_curve(tmp_path: Path) -> None:
    outcome = run(tmp_path, "nearest", [{"scale": 1.0}, {"scale": -1.0}], epochs=3)
    assert outcome.failed == {}
    assert outcome.scores["c0"]["accuracy"] > outcome.scores["c1"]["accuracy"]
    assert outcome.scores["c0"]["log_loss"] == pytest.approx(1 / 3)
    curves = read_curves(tmp_path / CURVES)
    assert list(curves["cell"]) == ["c0"] * 3 + ["c1"] * 3
    assert list(curves["epoch"]) == [1, 2, 3] * 2
    assert curves["accuracy"][2] == outcome.scores["c0"]["accuracy"]


def test_own_training_of_which_every_trial_fails_leaves_readable_curves(tmp_path: Path) -> None:
    outcome = run(tmp_path, "misbehave", [{"how": "raise"}])
    assert set(outcome.failed) == {"c0"}
    assert len(read_curves(tmp_path / CURVES)["cell"]) == 0


def test_own_training_with_too_few_parameters_is_refused_with_what_is_wanted() -> None:
    with pytest.raises(ModelError, match=r"takes \(config\); a function train\(config, data, report\) is wanted"):
        check_own("train:users_training:too_few")
    with pytest.raises(ModelError, match="'users_training:nowhere' cannot be imported"):
        check_own("train:users_training:nowhere")


def own(**changes: Any) -> Any:
    variant = Variant(name="own", model="train:users_training:nearest", fixed={"scale": 1.0})
    search = Search(trials=2, halving=Halving(rungs=(1, 3)))
    return sweeps.experiment(variants=(variant, sweeps.MLP), search=search, **changes)


def facts() -> dict[str, DatasetFacts]:
    return {
        name: DatasetFacts(
            name=name,
            version=1,
            content_digest=name,
            task=Task.MULTICLASS,
            split_rows={"train": 10, "validation": 10},
            input_shape=(4,),
            num_outputs=3,
            features=("x0", "x1", "x2", "x3"),
        )
        for name in ("rings", "flips")
    }


def test_plan_of_own_training_has_no_rungs_but_the_last() -> None:
    rungs = {g.variant: g.rungs for g in plan(own(), facts(), code_digest="c").groups}
    assert rungs == {"own": (3,), "mlp": (1, 3)}


def test_plan_of_own_training_with_a_champion_is_refused() -> None:
    with pytest.raises(SpecError, match="leaves no model that could be registered"):
        plan(own(champion=Champion()), facts(), code_digest="c")


def test_own_training_whose_parent_dies_ends_with_it_and_what_it_sent_away_with_the_next(tmp_path: Path) -> None:
    # A worker that Ray ends with SIGKILL cannot tidy up: the kernel does.
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(write, 1)
        try:
            run(tmp_path, "sleeps", [{}])
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        trained, away = (psutil.Process(int(pid)) for pid in told.readline().split())
    psutil.Process(child).kill()
    os.waitpid(child, 0)
    sweeps.until(lambda: ended(trained), what="its end")
    assert not ended(away)
    run(tmp_path, "misbehave", [{"how": "well"}])
    sweeps.until(lambda: ended(away), what="the end of what it sent away")


def ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
