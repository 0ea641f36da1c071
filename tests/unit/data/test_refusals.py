"""A refusal of rows is put down in the journal of the home whose store it is, also where a person's own code commits."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest

from tiltyard.cli.data import parse_check
from tiltyard.data import DatasetSpec
from tiltyard.data.refusals import KIND
from tiltyard.data.store import DatasetStore
from tiltyard.errors import CheckFailedError
from tiltyard.journal import Journal
from tiltyard.settings import Settings
from tiltyard.types import Task

SPEC = DatasetSpec(task=Task.BINARY, label="y", checks=(parse_check("range:a:min=0"),))


def rows(*values: int) -> pd.DataFrame:
    return pd.DataFrame({"a": [*range(60), *values], "y": [0, 1] * 30 + [0] * len(values)})


def refused(store: DatasetStore) -> None:
    with pytest.raises(CheckFailedError):
        store.commit("wine", rows(-731), spec=SPEC)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    return Settings.from_env()


def test_refused_commit_and_append_by_own_code_are_decisions_without_the_values(settings: Settings) -> None:
    settings.ensure_home()
    store = DatasetStore(settings.data_uri)
    refused(store)
    store.commit("wine", rows(), spec=SPEC)
    with pytest.raises(CheckFailedError):
        store.append("wine", pd.DataFrame({"a": [-731], "y": [0]}))
    with Journal.open(settings.journal_uri) as journal:
        found = journal.decisions(kind=KIND)
    assert [(d.subject, d.outcome) for d in found] == [("wine", "nothing was committed")] * 2
    assert "731" not in str(found)


def test_store_elsewhere_than_the_homes_writes_no_journal(settings: Settings, tmp_path: Path) -> None:
    refused(DatasetStore(str(tmp_path / "elsewhere")))
    assert not settings.home.exists()


def test_rows_are_refused_where_the_journal_is_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TILTYARD_JOURNAL_URI", "postgresql://ann:s3cret@127.0.0.1:1/journal")
    with caplog.at_level(logging.WARNING, logger="tiltyard"):
        refused(DatasetStore(settings.data_uri))
    assert "could not be put down" in caplog.text
    assert "s3cret" not in caplog.text
