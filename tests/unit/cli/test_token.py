"""``tiltyard token`` on an empty machine, and what ``tiltyard serve`` refuses before it starts anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.serving.tokens import TokenStore, tokens_path
from tiltyard.settings import Settings


def _run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_token_made_listed_and_revoked_on_an_empty_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    assert "There is no token" in _run(capsys, "token", "list")[1]
    assert not (tmp_path / "home").exists()
    code, out, err = _run(capsys, "token", "create", "laptop", "--model", "a.*", "--model", "b.c", "--days", "1")
    assert code == 0
    text = out.strip()
    store = TokenStore(tokens_path(Settings.from_env()))
    token = store.find(text)
    assert token is not None
    assert token.models == ("a.*", "b.c")
    assert token.id in err
    assert text not in err
    (listed,) = json.loads(_run(capsys, "token", "list", "--json")[1])
    assert (listed["id"], listed["state"]) == (token.id, "valid")
    assert text.rpartition("_")[2] not in _run(capsys, "token", "list")[1]
    assert "revoked" in _run(capsys, "token", "revoke", token.id)[1]
    assert store.find(text) is None
    code, _, err = _run(capsys, "token", "revoke", "nobody")
    assert (code, "no token 'nobody'" in err) == (1, True)


def test_serve_with_nothing_registered_or_up_says_so_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    if "ray" not in sys.modules:  # else the command would set the environment of a Ray that other tests share
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    code, _, err = _run(capsys, "serve")
    assert (code, "No model is registered yet" in err) == (1, True)
    code, _, err = _run(capsys, "serve", "--end")
    assert (code, "Nothing is up" in err) == (1, True)
