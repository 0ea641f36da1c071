"""Where things live: one folder unless told otherwise, and nothing is made by asking."""

import stat
from pathlib import Path

import pytest

from tiltyard.settings import Settings


def test_settings_of_an_empty_environment_lie_under_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Settings.from_env({})
    home = tmp_path / ".tiltyard"
    assert found.home == home
    assert found.journal_uri == f"sqlite:///{home}/journal.db"
    assert found.tracking_uri == f"sqlite:///{home}/mlflow.db"
    assert (found.data_uri, found.storage_uri) == (f"{home}/data", f"{home}/storage")
    assert list(tmp_path.iterdir()) == []


def test_settings_of_an_environment_take_each_store_from_it() -> None:
    env = {
        "TILTYARD_HOME": "/srv/home",
        "TILTYARD_JOURNAL_URI": "postgresql://host/journal",
        "TILTYARD_TRACKING_URI": "http://127.0.0.1:5000",
        "MLFLOW_TRACKING_URI": "http://other",
        "TILTYARD_DATA_URI": "s3://bucket/data",
        "TILTYARD_STORAGE_URI": "s3://bucket/storage",
    }
    found = Settings.from_env(env)
    assert found.journal_uri == "postgresql://host/journal"
    assert found.tracking_uri == "http://127.0.0.1:5000"
    assert (found.data_uri, found.storage_uri) == ("s3://bucket/data", "s3://bucket/storage")
    assert Settings.from_env({"MLFLOW_TRACKING_URI": "http://other"}).tracking_uri == "http://other"


def test_settings_with_an_empty_variable_are_as_if_it_were_not_set() -> None:
    assert Settings.from_env({"TILTYARD_HOME": ""}) == Settings.from_env({})


def test_ensure_home_makes_a_folder_for_its_owner_alone(tmp_path: Path) -> None:
    found = Settings.from_env({"TILTYARD_HOME": str(tmp_path / "deep" / "home")})
    assert found.ensure_home() == found.ensure_home() == tmp_path / "deep" / "home"
    assert stat.S_IMODE(found.home.stat().st_mode) == 0o700
