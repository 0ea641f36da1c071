"""``tiltyard policy``: files read and refused; holds on the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.governance.policy import Alert, Drifted, Policy, Rule

POLICY = Policy(name="digits", rules=(Rule(name="drift", when=Drifted(), then=Alert()),))


def leave(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(args)
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_check_of_json_and_python_says_what_the_policy_does(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    plain = tmp_path / "p.json"
    plain.write_text(json.dumps(POLICY.to_json()))
    code, out, _ = leave(capsys, "policy", "check", str(plain))
    assert code == 0
    assert "drift: when drifted" in out
    python = tmp_path / "p.py"
    python.write_text(
        "from tiltyard.governance.policy import Policy\ndef policy():\n    return Policy(name='x', rules=())\n"
    )
    assert leave(capsys, "policy", "check", str(python))[0] == 0


@pytest.mark.parametrize("text", ["{", '{"name": "p", "rules": [{"name": "r"}]}'])
def test_check_of_a_wrong_file_is_refused_with_what_is_wanted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str
) -> None:
    (tmp_path / "p.json").write_text(text)
    code, _, err = leave(capsys, "policy", "check", str(tmp_path / "p.json"))
    assert code == 1
    assert "cannot be read" in err


def test_hold_and_resume_are_decisions_that_log_shows(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    assert leave(capsys, "policy", "hold", "m", "--reason", "holidays", "--days", "3")[0] == 0
    assert leave(capsys, "policy", "resume", "m", "--reason", "back")[0] == 0
    code, out, _ = leave(capsys, "policy", "log", "m")
    assert code == 0
    assert "held" in out
    assert "holidays" in out
    assert "resumed" in out


def test_evaluate_without_a_file_or_a_dataset_says_what_to_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    code, _, err = leave(capsys, "evaluate", "run")
    assert code == 1
    assert "--dataset NAME and --model NAME" in err
    code, out, _ = leave(capsys, "evaluate", "list")
    assert code == 0
    assert "Nothing was evaluated yet" in out
    code, _, err = leave(capsys, "evaluate", "show", "m@1", "d@2")
    assert code == 1
    assert "m@1 was not evaluated on d@2" in err
