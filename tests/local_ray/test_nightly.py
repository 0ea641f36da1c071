"""One night for real: new data, the champion evaluated, a sweep, its winner compared on rows neither was trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tiltyard import actions
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.journal import Journal
from tiltyard.nightly import Night, run_night
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.run import run_file
from tiltyard.settings import Settings
from tiltyard.types import Task

pytestmark = pytest.mark.ray

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
        datasets=(DatasetRef("rows"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=4, halving=Halving(rungs=(1, 2), keep=0.5), finalists=1),
        champion=Champion(serve=False),
        seed=0,
    )
"""


def rows(count: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 4)).astype(np.float32)
    label = np.array(["no", "yes"])[(x[:, 0] + 0.3 * rng.normal(size=count) > 0).astype(int)]
    return pa.table({**{f"x{i}": x[:, i] for i in range(4)}, "label": label})


def test_night_with_a_new_version_makes_a_candidate_and_compares_it_with_the_champion(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    job = tmp_path / "job.py"
    job.write_text(JOB)
    settings = Settings.from_env()
    store, registry = DatasetStore(settings.data_uri), ModelRegistry(settings)
    store.commit("rows", rows(600, 1), spec=DatasetSpec(task=Task.BINARY, label="label"))
    assert run_file(job) == 0
    night = Night(name="rows", model="night-sweep.rows", dataset="rows", job=str(job), cpu_hours=0.5)
    store.commit("rows", pa.concat_tables([rows(600, 1), rows(600, 2)]))
    first = run_night(settings, night, date="2026-11-20")
    assert (first.outcome, first.version) == ("waiting", 2), first.steps
    assert registry.get("night-sweep.rows", alias="champion").version == 1
    candidate = registry.get("night-sweep.rows", alias="candidate")
    assert (candidate.version, candidate.lineage.dataset_version) == (2, 2)
    with Journal.open(settings.journal_uri) as journal:
        found = actions.results(journal, "night-sweep.rows")
        looks = actions.looks(night.gate, found, champion="night-sweep.rows@1", challenger="night-sweep.rows@2")
        assert [look.on for look in looks] == ["rows@2"]
        assert looks[0].paired.rows == store.resolve("rows@2").split_rows["test"]
        verdicts = journal.decisions(kind="gate", subject="night-sweep.rows")
    assert verdicts[-1].evidence["rows"] == looks[0].paired.rows
    again = run_night(settings, night, date="2026-11-21")
    assert again.outcome == "nothing changed"
