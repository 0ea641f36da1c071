"""The command line as a shell sees it: help, exit codes, errors on stderr, and nothing heavy imported for help."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer

from tiltyard import cli
from tiltyard.errors import SpecError
from tiltyard.local import probe
from tiltyard.settings import DEBUG_ENV


def run(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiltyard.cli", *args],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1", **env},
    )


def leave(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_help_lists_every_command_with_its_summary(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = leave(capsys, "--help")
    assert code == 0
    flat = " ".join(out.replace("│", " ").split())
    for entry in cli.COMMANDS.values():
        assert entry.name in flat
        assert entry.summary in flat, entry.name


def test_help_imports_no_engine_and_starts_fast() -> None:
    code = (
        "import sys, tiltyard.cli\n"
        "try: tiltyard.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'pandas', 'sqlalchemy', 'numpy', 'pydantic'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - begun)
        assert "heavy: []" in done.stdout
    # 0.4 s where this was written (two idle cores); the bound leaves room for a busy machine.
    assert min(seconds) < 1.0, seconds


@pytest.mark.parametrize("entry", list(cli.COMMANDS.values()), ids=lambda e: e.name)
def test_command_loads_and_its_summary_is_that_of_the_help(entry: cli.CommandEntry) -> None:
    command = cli.load(entry)
    told = (command.help or "").strip().splitlines()[0]
    assert told == entry.summary


@pytest.mark.parametrize("entry", list(cli.COMMANDS.values()), ids=lambda e: e.name)
def test_command_help_exits_zero(entry: cli.CommandEntry, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = leave(capsys, entry.name, "--help")
    assert code == 0
    assert f"tiltyard {entry.name}" in out


@pytest.mark.parametrize(
    ("args", "told"),
    [(["leaderboard"], "Nothing is recorded yet"), (["trial", "show", "x"], "Nothing is recorded yet")],
)
def test_results_with_no_journal_say_so_and_make_none(
    args: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    code, _, err = leave(capsys, *args)
    assert code == 1
    assert told in err
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("args", [["no-such-command"], ["up", "--no-such-option"], ["up", "--cpus", "0"]])
def test_main_with_a_wrong_command_line_exits_2_and_says_so_on_stderr(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = leave(capsys, *args)
    assert (code, out) == (2, "")
    assert next(a for a in reversed(args) if not a.isdigit()).lstrip("-") in err


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        """Fails."""
        raise error

    @app.command()
    def other() -> None:
        """Does nothing."""

    def load(_entry: Any) -> Any:
        return typer.main.get_group(app).commands["fail"]

    monkeypatch.setattr(cli, "load", load)
    monkeypatch.setitem(cli.COMMANDS, "fail", cli.CommandEntry(name="fail", summary="Fails.", module="none"))


def test_main_with_our_error_prints_the_message_alone_and_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(DEBUG_ENV, raising=False)
    _failing(monkeypatch, SpecError("Found [x], wanted y; write z."))
    code, out, err = leave(capsys, "fail")
    assert (code, out, err) == (1, "", "error: Found [x], wanted y; write z.\n")


def test_main_with_our_error_under_debug_lets_it_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_ENV, "1")
    _failing(monkeypatch, SpecError("Found x."))
    with pytest.raises(SpecError):
        cli.main(["fail"])


def test_main_with_debug_option_turns_tracebacks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEBUG_ENV, "")
    _failing(monkeypatch, SpecError("Found x."))
    with pytest.raises(SpecError):
        cli.main(["--debug", "fail"])


def test_main_with_ctrl_c_exits_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    assert leave(capsys, "fail")[0] == 130


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert leave(capsys, "--version")[1] == f"tiltyard {version('tiltyard')}\n"


def test_status_and_down_with_nothing_up_say_so_and_touch_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    status, down = run("status", TILTYARD_HOME=str(home)), run("down", TILTYARD_HOME=str(home))
    assert (status.returncode, down.returncode) == (1, 0)
    assert "tiltyard up" in status.stdout
    assert "Nothing was up" in down.stdout
    assert not home.exists()


def test_doctor_with_a_loose_token_exits_1_and_tells_it_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("t")
    token.chmod(0o644)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(probe, "_ENGINES", ())  # importing them takes seconds; tests/unit/local has it
    code, out, _ = leave(capsys, "doctor", "--json")
    findings = {f["subject"]: f for f in json.loads(out)}
    assert code == 1
    assert findings["Token file"]["remedy"] == f"chmod 600 {token}"
    assert findings["Python"]["verdict"] == "ok"
    code, out, _ = leave(capsys, "doctor")
    assert code == 1
    assert "MEND" in out
