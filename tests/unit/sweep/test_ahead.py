"""What is worked out before Ray is started: from light modules, and nothing is started where the record answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, loguniform
from tiltyard.data.samples import commit_samples
from tiltyard.data.store import DatasetStore
from tiltyard.journal import Journal, Owner
from tiltyard.settings import Settings
from tiltyard.sweep.engine import ray_runtime
from tiltyard.sweep.engine.ahead import Planned, is_finished, planned, start_ahead


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    found.ensure_home()
    commit_samples(DatasetStore(found.data_uri), ["wine"])
    return found


@pytest.fixture
def wines() -> Experiment:
    space = {"lr": loguniform(1e-3, 1e-1)}
    return Experiment(
        name="wines",
        variants=(Variant(name="linear", model="logistic", space=space),),
        datasets=(DatasetRef("wine"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=3, epochs=1),
    )


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was started: `ensure_ray` says that it joined one, so that nothing is warmed."""
    found: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_runtime, "ensure_ray", lambda: found.append("Ray"))
    return found


def start(settings: Settings, wines: Experiment) -> Planned:
    return start_ahead(settings, wines, code_digest="c" * 64)


def test_start_ahead_of_a_new_key_starts_ray_and_plans_what_the_launch_will(
    settings: Settings, wines: Experiment, started: list[str]
) -> None:
    found = start(settings, wines)
    assert started == ["Ray"]
    assert found.plan == planned(settings, wines, code_digest="c" * 64).plan
    assert len(found.plan.trials) == 3


@pytest.mark.parametrize("state", ["finished", "held", "stopped"])
def test_start_ahead_of_a_recorded_key_starts_ray_only_where_something_is_left(
    settings: Settings, wines: Experiment, started: list[str], state: str
) -> None:
    key = planned(settings, wines, code_digest="c" * 64).plan.key
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim(key, experiment="wines", spec=wines.to_json(), owner=Owner.here(""))
        if state != "held":
            journal.release(claim, state=state, summary={})
    assert is_finished(settings, key) == (state == "finished")
    start(settings, wines)
    assert started == (["Ray"] if state == "stopped" else [])


def test_start_ahead_on_a_cluster_starts_nothing(
    settings: Settings, wines: Experiment, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert start(settings, wines).warm is None
    assert started == []


def test_planning_ahead_loads_neither_torch_nor_ray() -> None:
    code = "import sys, tiltyard.sweep.engine.ahead; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
