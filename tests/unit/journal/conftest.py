"""Each test of the journal runs on both stores: SQLite in a file, and a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiltyard.journal import Journal


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'journal.db'}"
    return str(request.getfixturevalue("postgres_uri"))


@pytest.fixture
def journal(uri: str) -> Iterator[Journal]:
    with Journal.open(uri) as opened:
        yield opened
