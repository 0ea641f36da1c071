"""What sweeps saved, on recorded ones whose figures can be worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import recorded_sweep

from tiltyard import cli
from tiltyard.errors import SpecError
from tiltyard.journal import Journal
from tiltyard.report.saved import Assumptions, Saved, of_journal, read, text_of, together, told


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> recorded_sweep.Recorded:
    return recorded_sweep.record(tmp_path_factory.mktemp("saved"), trials=36)


def test_saved_of_a_sweep_counts_every_trial_to_its_full_length(recorded: recorded_sweep.Recorded) -> None:
    with Journal.open(recorded.settings.journal_uri) as journal:
        rows, spend = journal.trials(recorded.key), journal.spend(recorded.key)
        ((launch, found),) = of_journal(journal, Assumptions(minutes_a_trial=3, alone_factor=2))
    rungs = recorded_sweep.RUNGS
    by_hand = 0.0
    for row in rows:
        seconds = 2.0 * sum(r <= row.epoch for r in rungs)  # 2 s a rung
        by_hand += seconds * rungs[-1] / row.epoch * 2
    assert launch.key == recorded.key
    assert found.trials == 36
    assert found.by_hand_cpu_s == pytest.approx(by_hand)
    assert found.cpu_s == pytest.approx(spend.cpu_s)
    assert found.by_hand_person_s == 36 * 180
    assert launch.ended is not None
    assert found.insight_s == pytest.approx(launch.ended - launch.started + 30 * 60)
    assert found.by_hand_insight_s == pytest.approx(by_hand + 36 * 180)
    both = together("both", [found, found])
    assert (both.launches, both.trials) == (2, 72)
    assert both.insight_s == pytest.approx(found.insight_s)
    assert found.worth(Assumptions()) == 0
    assert found.worth(Assumptions(hourly_researcher=60)) == pytest.approx(36 * 3 - 30)


def test_told_of_a_launch_that_cost_more_says_so_and_hides_no_sign() -> None:
    seconds = {"person_s": 1800.0, "by_hand_person_s": 3600.0, "cpu_s": 7200.0, "by_hand_cpu_s": 3600.0}
    s = Saved(
        what="x",
        launches=1,
        trials=30,
        **seconds,
        gpu_s=0.0,
        by_hand_gpu_s=7200.0,
        insight_s=7200.0,
        by_hand_insight_s=3600.0,
    )
    assert told(s) == (
        "Over one launch and 30 trials it saved 0.5 hours of people and 2.0 GPU-hours and took 1.0 CPU-hours more; "
        "an answer came 2.0 times later."
    )


def test_read_of_written_assumptions_gives_them_back_and_refuses_others(tmp_path: Path) -> None:
    path = tmp_path / "roi.toml"
    assert read(path) == Assumptions()
    mine = Assumptions(minutes_a_trial=7.5, hourly_gpu=2.0)
    path.write_text(text_of(mine))
    assert read(path) == mine
    for wrong, said in (("minutes = 3", "no assumption"), ("alone_factor = -1", "0 or more"), ("x", "not TOML")):
        path.write_text(wrong)
        with pytest.raises(SpecError, match=said):
            read(path)


def test_roi_command_tells_experiments_months_and_what_is_assumed(
    recorded: recorded_sweep.Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(recorded.settings.home))

    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit) as done:
            cli.main(["roi", *arguments])
        assert done.value.code == 0
        return capsys.readouterr().out

    assert "minutes_a_trial = 2" in said()
    assert "Over one launch and 36 trials it saved 0.7 hours of people" in said()  # 36 x 2 minutes less 30
    path = Path(said("--write-assumptions").strip())
    path.write_text(path.read_text().replace("minutes_a_trial = 2.0", "minutes_a_trial = 4"))
    as_json = json.loads(said("--json"))
    assert as_json["assumptions"]["minutes_a_trial"] == 4
    assert [s["trials"] for s in as_json["saved"]] == [36, 36]  # the experiment, and its month
