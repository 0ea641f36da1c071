"""One night for real: new data, the champion evaluated, a sweep, its winner compared on rows neither was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiltyard import actions
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.journal import Journal, Owner, TrialRow, TrialUpdate
from tiltyard.nightly import Night, run_night
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle, small_table
from tiltyard.types import Task
from tiltyard.who import person

pytestmark = pytest.mark.ray

MODEL = "night-sweep.small"
JOB = """
from tiltyard import Champion, DatasetRef, Experiment, Halving, Objective, Search, Variant, loguniform

def experiment():
    return Experiment(
        name="night-sweep",
        variants=(
            Variant(
                name="logistic",
                model="logistic",
                fixed={"optimizer": "adamw", "batch_size": 64},
                space={"lr": loguniform(1e-3, 1e-1)},
            ),
        ),
        datasets=(DatasetRef("small"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=4, halving=Halving(rungs=(1, 2), keep=0.5), finalists=1),
        champion=Champion(serve=False),
        seed=0,
    )
"""


def record_earlier_sweep(settings: Settings) -> None:
    """Three trials of yesterday, of which the second was the best."""
    key = "e" * 64
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim(key, experiment="night-sweep", spec="{}", owner=Owner.here())
        rows = [
            TrialRow(
                cell=f"{i:064d}",
                key=key,
                group="logistic@small",
                index=i,
                variant="logistic",
                model="logistic",
                dataset="small",
                dataset_version=1,
                config={"lr": lr, "optimizer": "adamw", "batch_size": 64},
                seed=i,
                data_seed=0,
            )
            for i, lr in enumerate((0.02, 0.05, 0.005))
        ]
        journal.add_trials(claim, rows)
        scores = (0.7, 0.8, 0.6)
        journal.set_trial_states(
            claim,
            [TrialUpdate(cell=r.cell, state="done", epoch=2, score=s) for r, s in zip(rows, scores, strict=True)],
        )
        journal.release(claim, state="done", summary={})


def test_night_with_a_new_version_makes_a_candidate_and_compares_it_with_the_champion(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    job = tmp_path / "job.py"
    job.write_text(JOB)
    settings = Settings.from_env()
    store, registry = DatasetStore(settings.data_uri), ModelRegistry(settings)
    registry.register(MODEL, small_bundle(tmp_path / "bundle").folder)  # of version 1 of dataset small
    registry.promote(MODEL, 1)
    spec = DatasetSpec(task=Task.MULTICLASS, label="label")
    store.commit("small", small_table(Task.MULTICLASS, rows=400, seed=1), spec=spec)
    store.commit("small", small_table(Task.MULTICLASS, rows=900, seed=2))
    night = Night(name="small", model=MODEL, dataset="small", job=str(job), cpu_hours=0.5, metric="accuracy")
    record_earlier_sweep(settings)
    first = run_night(settings, night, date="2026-11-20")
    assert (first.outcome, first.version) == ("waiting", 2), first.steps
    assert any(
        "begun with 2 earlier configurations (the best of 3 trials of sweep eeeeeeeeeeee)" in s for s in first.steps
    )
    assert any(s.startswith("checks: 0 were run when small@2 was committed") for s in first.steps)
    assert registry.get(MODEL, alias="champion").version == 1
    candidate = registry.get(MODEL, alias="candidate")
    assert (candidate.version, candidate.lineage.dataset_version) == (2, 2)
    with Journal.open(settings.journal_uri) as journal:
        found = actions.results(journal, MODEL)
        looks = actions.looks(night.gate, found, champion=f"{MODEL}@1", challenger=f"{MODEL}@2")
        verdicts = journal.decisions(kind="gate", subject=MODEL)
        swept = journal.trials(journal.launches("night-sweep")[0].key)
        warm = journal.decisions(kind="warm_start", subject="night-sweep")
    assert [look.on for look in looks] == ["small@2"]
    assert looks[0].paired.rows == store.resolve("small@2").split_rows["test"]
    assert verdicts[-1].evidence["rows"] == looks[0].paired.rows
    assert [t.config["lr"] for t in sorted(swept, key=lambda t: t.index)][:2] == [
        0.05,
        0.02,
    ]  # tried first, as they were
    assert [(d.actor, d.once) for d in warm] == [("night small", "warm_start/night small/2026-11-20")]
    assert candidate.author == person()
    assert run_night(settings, night, date="2026-11-21").outcome == "nothing changed"
