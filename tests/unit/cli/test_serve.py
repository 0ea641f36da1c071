"""``tiltyard serve`` where it cannot serve; what it does where it can is in tests/local_ray."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.journal import Journal
from tiltyard.settings import Settings


def test_serve_with_an_address_where_no_ray_is_says_so_within_seconds_and_records_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test of this session may have one
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, nothing answers
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(SystemExit) as left:
            cli.main(["serve", "a.b", "--shadow", "a.b@candidate:10%"])
        assert time.monotonic() - begun < 20
    assert left.value.code == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "Nothing answers at RAY_ADDRESS" in err
    assert "unset it" in err
    with Journal.open(Settings.from_env().journal_uri) as journal:
        assert journal.decisions() == []
