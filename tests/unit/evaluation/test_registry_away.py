"""MLflow away while an evaluation is planned or begins: a clear error, nothing lost, and the next start does all of it."""

from __future__ import annotations

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.errors import RegistryAwayError
from tiltyard.evaluation.runner import KIND, evaluate
from tiltyard.evaluation.spec import Evaluation
from tiltyard.journal import Journal, Owner
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import cached_bundle
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle, small_table
from tiltyard.types import Task

pytestmark = pytest.mark.slow  # a database of MLflow takes two seconds to make

MODEL = "s.small"
SPEC = Evaluation(dataset="small", models=(MODEL,), rows="test", metric="accuracy")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A champion of a dataset of two versions."""
    home = tmp_path_factory.mktemp("away")
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    store = DatasetStore(settings.data_uri)
    for seed in (0, 1):
        rows = small_table(rows=100 * (seed + 1), seed=seed)
        store.commit("small", rows, spec=DatasetSpec(task=Task.MULTICLASS, label="label"))
    registry = ModelRegistry(settings)
    registry.register(MODEL, small_bundle(home / "bundle").folder)
    registry.promote(MODEL, 1)
    return settings


@pytest.fixture
def away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The same home, whose MLflow is at an address where nothing listens."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return replace(settings, tracking_uri=f"http://ann:s3cret@127.0.0.1:{port}")


def test_evaluation_planned_while_the_registry_is_away_says_so_and_claims_nothing(away: Settings) -> None:
    with pytest.raises(RegistryAwayError, match=r"did not answer for s\.small.*TILTYARD_TRACKING_URI") as caught:
        evaluate(away, SPEC)
    assert "s3cret" not in str(caught.value)
    with Journal.open(away.journal_uri) as journal:
        assert not journal.works.find(KIND)


def test_evaluation_whose_artifacts_went_away_after_the_plan_fails_and_is_for_the_next_to_do(
    settings: Settings, tmp_path: Path
) -> None:
    version = ModelRegistry(settings).get(MODEL, version=1)
    shutil.rmtree(cached_bundle(settings, version.digest))
    artifacts = settings.home / "mlartifacts"
    artifacts.rename(tmp_path / "elsewhere")
    try:
        done = evaluate(settings, SPEC)
    finally:
        (tmp_path / "elsewhere").rename(artifacts)
    assert [(d.outcome, d.pair.version.version) for d in done] == [("failed", 1), ("failed", 2)]
    assert all("could not be fetched" in d.reason for d in done)
    with Journal.open(settings.journal_uri) as journal:
        works = journal.works.find(KIND)
        assert {w.state for w in works} == {"failed"}
        assert not any(journal.works.results(w.key) for w in works)
        again = [
            journal.works.claim(d.pair.key, kind=KIND, subject=MODEL, about=d.pair.about, owner=Owner.here())
            for d in done
        ]
        assert [c.is_ours for c in again] == [True, True]


def test_registry_that_is_away_is_told_in_one_error_without_its_password(away: Settings, tmp_path: Path) -> None:
    registry = ModelRegistry(away)
    bundle = small_bundle(tmp_path / "bundle", seed=5)
    for ask in (
        registry.names,
        lambda: registry.versions(MODEL),
        lambda: registry.find(MODEL, bundle.digest),
        lambda: registry.register(MODEL, bundle.folder),
        lambda: registry.promote(MODEL, 1),
        lambda: registry.rollback(MODEL),
    ):
        with pytest.raises(RegistryAwayError, match="did not answer") as caught:
            ask()
        assert "s3cret" not in str(caught.value)
