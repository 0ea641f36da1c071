"""``tiltyard models`` on a real registry: two versions of one task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiltyard import cli
from tiltyard.journal import Journal
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.serving.comparison import DECISION, Comparison, Pair, bucketed
from tiltyard.serving.traffic import standing
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle

NAME = "sweep.small"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("models")
    registry = ModelRegistry(Settings.from_env({"TILTYARD_HOME": str(home)}))
    for seed in (1, 2):
        made = small_bundle(home / f"bundle{seed}", seed=seed)
        registry.register(NAME, made.folder, score="validation_score")
    registry.promote(NAME, 1)
    return home


def _run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    try:
        cli.main(["models", *args])
    except SystemExit as left:
        code = int(left.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_models_with_nothing_registered_says_so_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "none"))
    assert _run(capsys)[:2] == (
        0,
        "No model is registered yet. A sweep registers its winners: tiltyard run jobs/first_sweep.py\n",
    )
    code, _, err = _run(capsys, "show", NAME)
    assert code == 1
    assert "No model is registered yet" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_models_listed_promoted_compared_and_rolled_back_tell_and_record_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(home))
    code, out, _ = _run(capsys)
    assert code == 0
    newest, oldest = out.splitlines()[1:3]
    assert newest.split()[:2] == [NAME, "2"]
    assert "validation_score 0.2000" in newest
    assert "@champion" in oldest
    assert "small@1" in oldest

    assert _run(capsys, "promote", NAME, "2", "--reason", "better")[1].startswith(
        f"{NAME} version 2 is @champion; version 1 is"
    )
    assert "already" in _run(capsys, "promote", NAME, "2")[1]
    told = {(v["version"], *v["aliases"]) for v in json.loads(_run(capsys, "--json")[1])}
    assert told == {(1, "previous"), (2, "champion")}
    assert json.loads(_run(capsys, "show", NAME, "--json")[1])["columns"]["colour"] == "string"
    shown = _run(capsys, "show", f"{NAME}@1")[1]
    assert "version 1  @previous" in shown
    differ = json.loads(_run(capsys, "diff", NAME, "--json")[1])
    assert differ["seed"] == ["1", "2"]
    assert "model" not in differ
    assert _run(capsys, "diff", f"{NAME}@1", f"{NAME}@1")[1] == "They are the same version.\n"

    assert "version 1 is @champion again; version 2 is @previous" in _run(capsys, "rollback", NAME)[1]
    with Journal.open(Settings.from_env().journal_uri) as journal:
        decisions = journal.decisions(subject=NAME)
    assert [(d.kind, d.evidence["version"], d.reasons) for d in decisions] == [
        ("promotion", 2, ("better",)),
        ("rollback", 1, ("by hand, no reason given",)),
    ]


@pytest.mark.slow
def test_promote_of_a_version_that_is_not_there_changes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(home))
    code, _, err = _run(capsys, "promote", NAME, "7")
    assert code == 1
    assert "no sweep.small version 7. It has of sweep.small: v2" in err


@pytest.mark.slow
def test_challenge_is_recorded_as_a_decision_and_comparisons_are_read_back_as_one(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(home))
    assert "challenge sweep.small@candidate --shadow 10%" in _run(capsys, "compare", NAME)[1]
    for wrong, told in (
        ((f"{NAME}@2",), "exactly one of --shadow SHARE, --canary SHARE and --off"),
        ((f"{NAME}@2", "--shadow", "10%", "--off"), "exactly one"),
        ((f"{NAME}@2", "--shadow", "200%"), "at most 1"),
        ((f"{NAME}@7", "--shadow", "10%"), "no sweep.small version 7"),
        ((NAME, "--canary", "10%"), "another version than the champion"),
    ):
        code, _, err = _run(capsys, "challenge", *wrong)
        assert (code, told in err) == (1, True), err
    assert "shadow of 0.1 to sweep.small@2" in _run(capsys, "challenge", f"{NAME}@2", "--shadow", "10%")[1]
    assert "its champion answers everything again" in _run(capsys, "challenge", NAME, "--off", "--reason", "seen")[1]
    pair = Pair(
        model=NAME,
        mode="shadow",
        champion_version=1,
        champion_digest="1" * 64,
        challenger_version=2,
        challenger_digest="2" * 64,
    )
    window = Comparison(
        pair=pair, requests=1, rows=4, agreed=3, champion_seconds=bucketed(0.004), challenger_seconds=bucketed(0.04)
    )
    with Journal.open(Settings.from_env().journal_uri) as journal:
        found = standing({}, [(d.subject, d.outcome, d.evidence) for d in journal.decisions(kind="traffic")])
        assert found == {}
        assert [d.outcome for d in journal.decisions(kind="traffic", subject=NAME)] == ["shadow", "off"]
        for _ in range(2):
            journal.decide(
                kind=DECISION, subject=NAME, actor="t", evidence=window.to_evidence(), reasons=["t"], outcome="compared"
            )
    (told_json,) = json.loads(_run(capsys, "compare", NAME, "--json")[1])
    assert (told_json["requests"], told_json["rows"], told_json["agreement"]) == (2, 8, 0.75)
    assert told_json["champion_p50_ms"] < 5 < 30 < told_json["challenger_p50_ms"]
    shown = _run(capsys, "compare", NAME)[1]
    assert "shadow: v1 and v2" in shown
    assert "0.75" in shown
