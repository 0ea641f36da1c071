"""The registry on a real MLflow (SQLite, local artifacts): versions, aliases, the cache, and what pyfunc loads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tiltyard.errors import DigestMismatchError, RegistryError
from tiltyard.registry import read_bundle
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import ModelVersion, cached_bundle
from tiltyard.settings import Settings
from tiltyard.testing.bundles import SmallBundle, small_bundle
from tiltyard.types import Task

pytestmark = pytest.mark.slow  # a real MLflow


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One MLflow for the module: making its database costs two seconds. Each test names models of its own."""
    return Settings.from_env({"TILTYARD_HOME": str(tmp_path_factory.mktemp("registry"))})


@pytest.fixture(scope="module")
def registry(settings: Settings) -> ModelRegistry:
    settings.ensure_home()
    return ModelRegistry(settings)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[SmallBundle]:
    home = tmp_path_factory.mktemp("bundles")
    return [small_bundle(home / str(seed), seed=seed) for seed in range(3)]


def _register(registry: ModelRegistry, name: str, bundles: list[SmallBundle]) -> list[ModelVersion]:
    return [registry.register(name, b.folder, score="validation_score") for b in bundles]


def test_register_twice_finds_the_same_version(registry: ModelRegistry, bundles: list[SmallBundle]) -> None:
    first, second, again = _register(registry, "twice.small", [bundles[0], bundles[1], bundles[0]])
    assert (first.version, second.version, again.version) == (1, 2, 1)
    assert first.digest == bundles[0].digest
    assert first.lineage == bundles[0].lineage
    assert second.score == ("validation_score", 0.1)
    assert [v.version for v in registry.versions("twice.small")] == [2, 1]
    assert registry.find("twice.small", bundles[1].digest) == second
    assert registry.find("twice.small", bundles[2].digest) is None
    assert "twice.small" in registry.names()


def test_register_under_one_run_keeps_the_bundles_apart(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings
) -> None:
    first = registry.register("apart.small", bundles[0].folder)
    second = registry.register("apart.small", bundles[1].folder, run_id=first.run_id)
    for version in (first, second):
        shutil.rmtree(cached_bundle(settings, version.digest))
        assert read_bundle(registry.fetch(version)).digest == version.digest


def test_promote_and_roll_back_move_champion_and_previous(registry: ModelRegistry, bundles: list[SmallBundle]) -> None:
    name = "moves.small"
    _register(registry, name, bundles)

    def holders() -> dict[str, int]:
        return {alias: v.version for v in registry.versions(name) for alias in v.aliases}

    assert registry.promote(name, 1) is None
    assert holders() == {"champion": 1}
    before = registry.promote(name, 3)
    assert before is not None
    assert before.version == 1
    assert holders() == {"champion": 3, "previous": 1}
    registry.promote(name, 3)
    assert holders() == {"champion": 3, "previous": 1}
    assert registry.rollback(name).version == 1
    assert holders() == {"champion": 1, "previous": 3}
    assert registry.get(name, alias="champion").aliases == ("champion",)
    registry.set_alias(name, "candidate", 1)
    assert registry.get(name, version=1).aliases == ("candidate", "champion")


def test_promote_of_an_unknown_version_changes_nothing_and_says_what_there_is(
    registry: ModelRegistry, bundles: list[SmallBundle]
) -> None:
    _register(registry, "unknown.small", bundles[:2])
    registry.promote("unknown.small", 2)
    with pytest.raises(RegistryError, match=r"no unknown\.small version 9.*v2 @champion, v1"):
        registry.promote("unknown.small", 9)
    assert registry.get("unknown.small", alias="champion").version == 2
    with pytest.raises(RegistryError, match=r"no unknown\.small@candidate.*v2 @champion"):
        registry.get("unknown.small", alias="candidate")
    with pytest.raises(RegistryError, match=r"no model 'nobody\.small'.*tiltyard models"):
        registry.get("nobody.small", alias="champion")


def test_roll_back_without_a_previous_says_so(registry: ModelRegistry, bundles: list[SmallBundle]) -> None:
    _register(registry, "first.small", bundles[:1])
    registry.promote("first.small", 1)
    with pytest.raises(RegistryError, match=r"no first\.small@previous.*v1 @champion"):
        registry.rollback("first.small")
    assert registry.get("first.small", alias="champion").version == 1


def test_fetch_of_what_was_registered_here_downloads_nothing(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings
) -> None:
    (version,) = _register(registry, "kept.small", bundles[:1])
    shutil.rmtree(_artifacts(version))
    assert read_bundle(registry.fetch(version), expect_digest=version.digest).digest == bundles[0].digest


def test_fetch_with_an_empty_cache_downloads_and_checks(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    (version,) = _register(registry, "download.small", [bundles[1]])
    shutil.rmtree(cached_bundle(settings, version.digest))
    assert read_bundle(registry.fetch(version)).digest == bundles[1].digest
    assert "Downloading" not in capfd.readouterr().err
    assert [p.name for p in cached_bundle(settings, "").parent.rglob(".fetch*")] == []


def test_fetch_with_a_damaged_cache_takes_the_original(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings
) -> None:
    (version,) = _register(registry, "damaged.small", [bundles[2]])
    (cached_bundle(settings, version.digest) / "bundle.json").write_text("{}")
    assert read_bundle(registry.fetch(version)).digest == bundles[2].digest


def test_fetch_of_a_corrupted_artifact_is_refused_and_not_kept(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings
) -> None:
    (version,) = _register(registry, "corrupt.small", [bundles[0]])
    cached = cached_bundle(settings, version.digest)
    shutil.rmtree(cached)
    parameters = next(_artifacts(version).rglob("model.safetensors"))
    content = bytearray(parameters.read_bytes())
    content[-1] ^= 1
    parameters.write_bytes(bytes(content))
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors"):
        registry.fetch(version)
    assert not cached.exists()


def test_fetch_of_an_artifact_that_is_gone_says_where_it_was(
    registry: ModelRegistry, bundles: list[SmallBundle], settings: Settings
) -> None:
    (version,) = _register(registry, "gone.small", [bundles[1]])
    shutil.rmtree(cached_bundle(settings, version.digest))
    shutil.rmtree(_artifacts(version))
    with pytest.raises(RegistryError, match=r"gone\.small version 1 could not be fetched from file:"):
        registry.fetch(version)


def test_fetch_of_a_model_that_somebody_else_registered_is_refused(registry: ModelRegistry, settings: Settings) -> None:
    foreign = ModelVersion(
        name="foreign", version=1, digest="", aliases=(), tags={}, run_id="", source="file:///nowhere", created_ms=0
    )
    with pytest.raises(RegistryError, match="Tiltyard did not register it"):
        registry.fetch(foreign)


def test_registry_out_of_reach_is_told_apart_from_an_unknown_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Settings.from_env({"TILTYARD_HOME": str(tmp_path), "TILTYARD_TRACKING_URI": "http://u:secret@127.0.0.1:9"})
    with pytest.raises(RegistryError, match=r"did not answer for x\.y") as told:
        ModelRegistry(away).promote("x.y", 1)
    assert "secret" not in str(told.value).split("did not answer")[0]


def test_pyfunc_with_the_pickle_switch_off_answers_as_the_bundle(
    registry: ModelRegistry, settings: Settings, tmp_path: Path
) -> None:
    """In a process of its own, as any MLflow client would: nothing of ours is called but through MLflow."""
    made = {
        model: small_bundle(tmp_path / model, task=task, model=model)
        for task, model in ((Task.MULTICLASS, "mlp"), (Task.REGRESSION, "lightgbm"))
    }
    for model, bundle in made.items():
        registry.promote(f"pyfunc.{model}", registry.register(f"pyfunc.{model}", bundle.folder).version)
        pq.write_table(bundle.rows, tmp_path / f"{model}.parquet")
    code = (
        "import mlflow, pandas\n"
        "for name in ('mlp', 'lightgbm'):\n"
        "    model = mlflow.pyfunc.load_model(f'models:/pyfunc.{name}@champion')\n"
        "    rows = pandas.read_parquet(f'{name}.parquet')\n"
        "    model.predict(rows).to_parquet(f'{name}.answers.parquet')\n"
    )
    env = {
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=env
    )
    assert done.returncode == 0, done.stderr
    for model, bundle in made.items():
        answers = pq.read_table(tmp_path / f"{model}.answers.parquet")
        offline = read_bundle(bundle.folder).predict_table(bundle.rows)
        assert answers["prediction"].to_pylist() == offline.labels
        if offline.probabilities is not None:
            found = np.stack([answers[f"probability_{c}"].to_numpy() for c in (0, 1, 2)], axis=1)
            np.testing.assert_array_equal(found, offline.probabilities)


def _artifacts(version: ModelVersion) -> Path:
    return Path(urllib.parse.urlparse(version.source).path)
