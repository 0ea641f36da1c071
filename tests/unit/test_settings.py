"""Where things live: one folder unless told otherwise, and nothing is made by asking."""

import stat
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.settings import Settings, shown


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


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("postgresql://ann:s3cret@db:5432/journal", "postgresql://ann:***@db:5432/journal"),
        ("postgresql+psycopg://ann:s3/cr@et@db/journal", "postgresql+psycopg://ann:***@db/journal"),
        ("http://ann:s3cret@[::1]:5000/x@y", "http://ann:***@[::1]:5000/x@y"),
        ("HTTPS://:s3cret@host", "HTTPS://:***@host"),
        ("s3://KEY:s3cret@bucket/data", "s3://KEY:***@bucket/data"),
        ("postgresql://db/journal?user=ann&password=s3cret#x", "postgresql://db/journal?user=ann&password=***#x"),
        ("failed: http://a:s3cret@h/api (see http://b:s3cret@h)", "failed: http://a:***@h/api (see http://b:***@h)"),
    ],
)
def test_shown_hides_every_password(uri: str, told: str) -> None:
    assert shown(uri) == told
    assert shown(told) == told, "twice is as once"


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////home/ann/x@y/journal.db",
        "http://127.0.0.1:5000/a@b",
        "http://[::1]:5000/a@b",
        "postgresql://ann@db/journal",
        "s3://bucket/a:b@c",
        "/home/a:b@c",
        "file:///a:b@c",
        "",
    ],
)
def test_shown_leaves_what_holds_no_password(uri: str) -> None:
    assert shown(uri) == uri


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=6))
def test_shown_of_any_quoted_password_does_not_hold_it(password: str) -> None:
    quoted = quote(password, safe="")
    assert shown(f"postgresql://u:{quoted}@host:5432/db") == "postgresql://u:***@host:5432/db"
