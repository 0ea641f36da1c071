"""What a machine remembers of a registered version, so that it can serve it while the registry is away."""

from __future__ import annotations

from pathlib import Path

from tiltyard.registry import ModelAddress, ModelVersion
from tiltyard.registry.version import cached_bundle, recall, remember
from tiltyard.settings import Settings

VERSION = ModelVersion(
    name="a.b", version=3, digest="d" * 64, aliases=("champion",), tags={"x": "y"}, run_id="r", source="s", created_ms=5
)


def test_recall_of_what_was_remembered_needs_the_bundle_too(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    address = ModelAddress.parse("a.b@champion")
    assert recall(settings, address) is None
    remember(settings, address, VERSION)
    assert recall(settings, address) is None
    cached_bundle(settings, VERSION.digest).mkdir()
    assert recall(settings, address) == VERSION
    assert recall(settings, ModelAddress.parse("a.b@3")) is None


def test_recall_of_a_damaged_note_is_nothing(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path)})
    address = ModelAddress.parse("a.b")
    remember(settings, address, VERSION)
    next((tmp_path / "bundles" / "known").iterdir()).write_text("{")
    assert recall(settings, address) is None
