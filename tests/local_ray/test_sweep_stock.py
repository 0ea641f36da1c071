"""Ray Tune's own schedulers over what shares no pack: recorded, ranked and tracked as everything else, named order-dependent."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import sweeps
from mlflow import MlflowClient

from tiltyard.codedigest import code_digest
from tiltyard.distributions import choice, uniform
from tiltyard.experiment import Halving, Search, Variant
from tiltyard.journal import Journal
from tiltyard.report.record import curve_of
from tiltyard.resume import find
from tiltyard.settings import Settings
from tiltyard.sweep.engine.stock_checkpoints import saved_of
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray

HOWS = ("string", "exit", "silent", "raise")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(ray_session: None, tmp_path: Path, data: str) -> Settings:
    return sweeps.settings_at(tmp_path / "home", data)


def lines_of(message: str) -> list[tuple[str, str, str]]:
    """First word, experiment and trial of the log lines of this session's workers that say this, whoever wrote them when."""
    from ray._private import worker

    node: Any = worker._global_node
    texts = [p.read_text(errors="replace") for p in Path(node.get_logs_dir_path()).glob("worker-*.err")]
    lines = [line for text in texts for line in text.splitlines() if message in line]
    found = [re.search(r"(\S+) (?:rises|learns) .*\[experiment=(\S+) trial=(\w+)", line) for line in lines]
    return [(f.group(1), f.group(2), f.group(3)) if f else ("", "", "") for f in found]


def test_sweep_of_trainables_under_asha_beside_packs_ends_each_in_a_named_state(settings: Settings) -> None:
    curve = Variant(name="curve", model="tune:users_trainables:curve", space={"height": uniform(0.1, 0.9)}, trials=3)
    bad = Variant(name="bad", model="tune:users_trainables:misbehave", space={"how": choice(*HOWS)}, trials=4)
    plain = Variant(name="plain", model="tune:users_trainables:Plain", fixed={"how": "well"}, trials=1)
    own = Variant(name="own", model="train:users_training:nearest", fixed={"scale": 1.0}, trials=1)
    mlp = sweeps.MLP.model_copy(update={"trials": 2})
    points: dict[str, Any] = {
        "curve": tuple({"height": h} for h in (0.9, 0.5, 0.1)),
        "bad": tuple({"how": how} for how in HOWS),
    }
    wanted = sweeps.experiment(
        variants=(curve, bad, plain, own, mlp),
        datasets=(DatasetRef("rings"),),
        search=Search(trials=11, halving=Halving(rungs=(1, 4), keep=1 / 2), scheduler="asha", points=points),
    )
    outcome = sweeps.run_launch(settings, wanted)
    assert outcome.state == "finished"
    assert outcome.leaderboard.order_dependent == ("curve", "bad", "plain", "own")
    rows = {r.name: r for r in outcome.leaderboard.tables["rings"]}
    assert len(rows) == 11

    reasons = [rows[f"bad@rings/{i:03d}"].reason for i in range(4)]
    assert {rows[f"bad@rings/{i:03d}"].state for i in range(4)} == {"failed"}
    assert reasons[0] == "report() was told accuracy='high'; a number is wanted"
    assert str(reasons[1]).startswith("its process died")
    assert reasons[2] == "it ended without a report; tune.report({'accuracy': ...}) is wanted"
    assert reasons[3] == "ValueError: no such thing"

    curves = [rows[f"curve@rings/{i:03d}"] for i in range(3)]
    assert (curves[0].state, curves[0].epoch) == ("done", 4)
    for row in curves:
        assert row.state in {"done", "stopped"}
        assert row.validation == pytest.approx(row.config["height"] * (1 - 0.5**row.epoch))
        if row.state == "stopped":
            assert row.reason == f"stopped by asha at epoch {row.epoch}, which depends on the order of events"
    assert (rows["plain@rings/000"].state, rows["plain@rings/000"].epoch) == ("done", 4), rows["plain@rings/000"].reason
    assert (rows["own@rings/000"].state, rows["own@rings/000"].epoch) == ("done", 4)
    assert {rows[f"mlp@rings/{i:03d}"].state for i in range(2)} == {"done", "stopped"}
    tested = [r.variant for r in rows.values() if r.test is not None]
    assert set(tested) == {"mlp"}

    with Journal.open(settings.journal_uri) as journal:
        best = curves[0].cell
        told = curve_of(journal.cell_scores([best]), best)
        assert [p["epoch"] for p in told] == [1, 2, 3, 4]
        assert told[0]["accuracy"] == pytest.approx(0.45)
        assert {a.state for a in journal.attempts(outcome.claim.key)} == {"done"}
        assert journal.spend(outcome.claim.key).by_what["tune trials"] > 0
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    history = client.get_metric_history(outcome.run_ids[best], "accuracy")
    assert [m.step for m in history] == [1, 2, 3, 4]

    for row in curves:
        assert [told[1:] for told in lines_of(f"it rises to {row.config['height']}")] == [("small", row.cell[:12])]

    reused = sweeps.run_launch(settings, wanted)
    assert (reused.state, reused.leaderboard) == ("reused", outcome.leaderboard)


def test_trainable_interrupted_goes_on_from_its_last_checkpoint(settings: Settings, tmp_path: Path) -> None:
    steps = Variant(
        name="steps",
        model="tune:users_trainables:Steps",
        fixed={"folder": str(tmp_path), "together": 1, "driver": os.getpid(), "interrupt_at": 3, "rate": 0.1},
    )
    wanted = sweeps.experiment(variants=(steps,), datasets=(DatasetRef("rings"),), search=Search(trials=1, epochs=4))
    digest = code_digest(None, [steps.model])  # `find` asks whether the code is still the same
    interrupted = sweeps.run_launch(settings, wanted, digest=digest)
    assert interrupted.state == "stopped"
    (trial,) = interrupted.plan.trials
    saved = saved_of(interrupted.layout, trial)
    assert saved is not None
    assert saved.epoch in {2, 3}  # the third report may just have come
    (step,) = find(settings, interrupted.claim.key).steps
    assert (step.action, step.from_epoch, step.to_epoch) == ("continue", saved.epoch, 4)

    outcome = sweeps.run_launch(settings, wanted, digest=digest)
    (row,) = outcome.leaderboard.tables["rings"]
    assert (row.state, row.epoch) == ("done", 4)
    assert row.validation == pytest.approx(0.4)
    trained = [int(line) for line in (tmp_path / "steps").read_text().split()]
    assert trained == [1, 2, 3, *range(saved.epoch + 1, 5)]
    with Journal.open(settings.journal_uri) as journal:
        told = curve_of(journal.cell_scores([row.cell]), row.cell)
        tries = [(a.state, a.layout["goes_on_from"]) for a in journal.attempts(outcome.claim.key)]
    assert [p["epoch"] for p in told] == [1, 2, 3, 4]
    assert tries == [("failed", 0), ("done", saved.epoch)]


def test_sweep_of_a_trainable_under_pbt_says_what_it_changed(settings: Settings, tmp_path: Path) -> None:
    steps = Variant(
        name="steps",
        model="tune:users_trainables:Steps",
        fixed={"folder": str(tmp_path), "together": 2},
        space={"rate": uniform(0.001, 0.1)},
    )
    points: dict[str, Any] = {"steps": ({"rate": 0.001}, {"rate": 0.1})}
    search = Search(trials=2, epochs=4, scheduler="pbt", points=points)
    outcome = sweeps.run_launch(
        settings, sweeps.experiment(variants=(steps,), datasets=(DatasetRef("rings"),), search=search)
    )
    assert outcome.leaderboard.order_dependent == ("steps",)
    rows = {r.name: r for r in outcome.leaderboard.tables["rings"]}
    slow, quick = rows["steps@rings/000"], rows["steps@rings/001"]
    assert {(r.state, r.epoch) for r in (slow, quick)} == {("done", 4)}, [r.reason for r in (slow, quick)]
    assert slow.validation is not None
    assert slow.validation > 4 * 0.001
    assert slow.reason is not None
    assert slow.reason.startswith("pbt changed rate to ")
    told = {(ray_trial, cell) for ray_trial, _, cell in lines_of(f" learns in {tmp_path}")}
    assert len(told) == 2, "a trial that took over another's configuration is still itself"
    assert {cell for _, cell in told} == {slow.cell[:12], quick.cell[:12]}
