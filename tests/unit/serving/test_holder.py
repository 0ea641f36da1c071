"""What a replica serves: a version takes over whole or not at all. No Ray, no MLflow: bundles in the local cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tiltyard.errors import DigestMismatchError, RegistryError
from tiltyard.registry import ModelAddress, ModelVersion, read_bundle
from tiltyard.registry.version import cached_bundle, recall, remember
from tiltyard.serving.holder import AGAIN_S, Holder, find, look_up, served_name
from tiltyard.settings import Settings
from tiltyard.testing.bundles import SmallBundle, small_bundle

CHAMPION = ModelAddress.parse("a.b")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home whose registry is nowhere: whatever asks it fails at once."""
    return Settings.from_env({"TILTYARD_HOME": str(tmp_path), "TILTYARD_TRACKING_URI": "nowhere://"})


def _cached(settings: Settings, number: int) -> tuple[ModelVersion, SmallBundle]:
    made = small_bundle(settings.home / f"made{number}", seed=number)
    shutil.copytree(made.folder, cached_bundle(settings, made.digest))
    version = ModelVersion(
        name="a.b", version=number, digest=made.digest, aliases=(), tags={}, run_id="", source="", created_ms=0
    )
    return version, made


def test_version_that_is_whole_takes_over_and_answers_as_offline(settings: Settings) -> None:
    holder = Holder(settings, CHAMPION)
    for number in (1, 2):
        version, made = _cached(settings, number)
        assert holder.wants(version)
        assert holder.take(version)
        assert not holder.wants(version)
        answer = holder.predict(made.rows)
        assert (answer.model, answer.version, answer.digest) == ("a.b", number, made.digest)
        np.testing.assert_array_equal(answer.outputs, read_bundle(made.folder).predict_table(made.rows).outputs)
        assert recall(settings, CHAMPION) == version
    assert [c.name for c in holder.describe().columns][-1] == "colour"


def test_version_that_is_damaged_leaves_the_old_one_and_is_tried_again_later(settings: Settings) -> None:
    clock = Clock()
    holder = Holder(settings, CHAMPION, clock=clock)
    good, made = _cached(settings, 1)
    bad, _ = _cached(settings, 2)
    holder.take(good)
    parameters = cached_bundle(settings, bad.digest) / "model.safetensors"
    whole = parameters.read_bytes()
    parameters.write_bytes(whole[:-1])
    assert not holder.take(bad)
    assert "version 2 could not be loaded" in holder.describe().problem
    assert holder.predict(made.rows).version == 1
    assert not holder.wants(bad)
    assert not holder.wants(good)
    assert holder.problem == ""

    holder.take(bad)
    clock.now += AGAIN_S
    parameters.write_bytes(whole)
    assert holder.wants(bad)
    assert holder.take(bad)
    assert (holder.problem, holder.predict(made.rows).version) == ("", 2)


def test_first_version_that_cannot_be_loaded_is_an_error(settings: Settings) -> None:
    holder = Holder(settings, CHAMPION)
    with pytest.raises(RegistryError, match=r"Nothing is served for a\.b@champion yet"):
        holder.describe()
    version, _ = _cached(settings, 1)
    other = ModelVersion(**{f: getattr(version, f) for f in ModelVersion.__slots__} | {"digest": "0" * 64})
    shutil.copytree(cached_bundle(settings, version.digest), cached_bundle(settings, other.digest))
    with pytest.raises(Exception, match=r"nowhere|digest") as told:
        holder.take(other)
    assert not isinstance(told.value, DigestMismatchError) or "0000" in str(told.value)


def test_find_with_the_registry_away_gives_what_is_remembered(settings: Settings) -> None:
    version, _ = _cached(settings, 3)
    with pytest.raises(RegistryError, match=r"did not answer for a\.b@champion, and this machine has no copy"):
        find(settings, CHAMPION)
    remember(settings, CHAMPION, version)
    assert find(settings, CHAMPION) == version
    known, why = look_up(settings, CHAMPION)
    assert known == version
    assert "the registry did not answer" in why


def test_served_name_of_a_champion_is_its_model_alone() -> None:
    assert [served_name(ModelAddress.parse(t)) for t in ("a.b", "a.b@candidate", "a.b@3")] == [
        "a.b",
        "a.b@candidate",
        "a.b@3",
    ]
