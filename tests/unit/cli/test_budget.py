"""``tiltyard budget``: set, shown, recorded; refused where it is no budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.journal import Journal, Owner
from tiltyard.money import Seconds


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        cli.main(["budget", *args])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


def test_budget_set_and_shown_tells_what_is_left_and_records_who(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "set", "vision", "--cpu-hours", "2", "--reason", "november")
    assert code == 0
    assert out.split()[-6:] == ["vision", "CPU", "2.000", "0.000", "0.000", "2.000"]
    with Journal.open(f"sqlite:///{home / 'journal.db'}") as journal:
        claim = journal.claim("k" * 64, experiment="demo", spec="{}", owner=Owner.here())
        hold = journal.budgets.hold("vision", claim=claim, pack_id="p", ask=Seconds(cpu_s=3600))
        journal.budgets.settle(hold, Seconds(cpu_s=1800, gpu_s=36))
        (decision,) = journal.decisions(kind="budget")
    assert (decision.subject, decision.evidence["cpu_s"], decision.reasons) == ("vision", 7200.0, ("november",))
    code, out, _ = run(capsys, "show", "vision", "--json")
    told = json.loads(out)["vision"]
    assert (code, told["free_cpu_s"], told["spent_cpu_s"], told["limit_gpu_s"]) == (0, 5400.0, 1800.0, None)
    code, out, _ = run(capsys, "show")
    assert "no limit" in out
    assert "0.010" in out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("set", "vision"), "Give --cpu-hours, --gpu-hours or both"),
        (("set", "No Name", "--cpu-hours", "1"), "'No Name' is not a name"),
        (("show",), "Nothing is recorded yet"),
    ],
)
def test_budget_that_cannot_be_right_is_refused(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    code, _, err = run(capsys, *args)
    assert code == 1
    assert said in err


def test_budget_below_zero_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "set", "vision", "--cpu-hours", "-1")[0] == 2


def test_budget_of_a_team_without_one_says_how_to_set_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Journal.open(f"sqlite:///{home / 'journal.db'}").close()
    code, out, _ = run(capsys, "show")
    assert code == 0
    assert "tiltyard budget set" in out
    code, _, err = run(capsys, "show", "speech")
    assert code == 1
    assert "tiltyard budget set speech" in err
