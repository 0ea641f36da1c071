"""The report of a recorded sweep: what it says, that it is one sound file, and that it is made at the end of a sweep."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import recorded_sweep

from tiltyard import cli
from tiltyard.experiment import Champion, Experiment
from tiltyard.journal import CellScore, Journal
from tiltyard.report.findings import gather, time_of
from tiltyard.report.html import drawing_at_end, report
from tiltyard.report.page import render
from tiltyard.sweep.engine.layout import Layout, Storage

VOID = {"meta", "link", "br", "img", "hr", "input", "wbr"}


class Sound(HTMLParser):
    """Notes ids and links, and fails where a tag is closed that was not open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.links += [v for k, v in attrs if k in {"href", "src"} and v]
        if values.get("role") in {"img", "region"}:
            assert values["aria-label"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Sound:
    sound = Sound()
    sound.feed(page)
    assert sound.open == []
    return sound


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> recorded_sweep.Recorded:
    made = recorded_sweep.record(tmp_path_factory.mktemp("recorded"), trials=90)
    recorded_sweep.evaluate_champion(made, versions=3)
    (made.settings.home / "roi.toml").write_text("hourly_cpu = 3.6\n")
    return made


@pytest.fixture(scope="module")
def page(recorded: recorded_sweep.Recorded) -> str:
    return report(recorded.settings)[1]


@pytest.mark.slow
def test_report_of_a_sweep_is_one_sound_file_that_needs_no_network(page: str) -> None:
    sound = parsed(page)
    assert len(sound.ids) == len(set(sound.ids))
    inside = {f"#{i}" for i in sound.ids}
    assert all(link == "data:," or link in inside for link in sound.links)
    assert "<script" not in page
    assert len(page) < 1_000_000
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ET.fromstring(svg)


def test_report_of_a_sweep_says_the_answer_with_its_uncertainty(page: str, recorded: recorded_sweep.Recorded) -> None:
    text = " ".join("".join(parsed(page).text).split())
    for dataset in ("rings", "moons"):
        best, second, *_ = recorded.board.tables[dataset]
        assert best.test is not None
        expected = (
            f"On {dataset}@1 {best.name} is best, with accuracy {best.test.value:.4f} on 500 test rows "
            f"(95% interval {best.test.low:.4f} to {best.test.high:.4f}); it cannot be told apart from {second.name}."
        )
        assert expected in text
    assert "lr mattered most" in text
    assert "tiltyard serve recorded.rings" in text
    assert recorded.key in text


def test_report_of_a_sweep_tells_slices_groups_and_what_became_of_champions(
    page: str, recorded: recorded_sweep.Recorded
) -> None:
    sound = parsed(page)
    text = " ".join(" ".join(sound.text).split())
    assert {"slices", "groups", "since", "time"} <= set(sound.ids)
    assert "site = <east> 60 weak 0.7000" in text
    assert "<east>" not in page
    assert "sex = f sensitive 240" in text
    assert "unsure: the interval holds four fifths ; ratio 0.85" in text
    with Journal.open(recorded.settings.journal_uri) as journal:
        f = gather(recorded.settings, journal, journal.launches()[0], recorded.board)
        spent = journal.spend(recorded.key).cpu_s
    (champion,) = f.champions
    assert champion.model == "recorded.rings@1"
    assert [r.dataset_version for r in champion.results] == [1, 2, 3]
    for result in champion.results[1:]:
        assert result.drift is not None
        assert result.drift.columns[0].drifted
        assert f"{result.drift.columns[0].effect:.1%}" in text
    assert f"That cost {spent * 3.6 / 3600:.2f}, " in text  # 3.6 an hour is 0.001 a second


def test_report_at_the_end_already_says_how_to_serve_what_is_about_to_be_crowned(
    recorded: recorded_sweep.Recorded,
) -> None:
    with Journal.open(recorded.settings.journal_uri) as journal:
        f = gather(recorded.settings, journal, journal.launches()[0], recorded.board)
    bare = replace(f, decisions=(), studies=(), curves={}, details={})
    crowns = f.experiment.model_copy(update={"champion": Champion()})
    assert "tiltyard serve recorded.moons recorded.rings" in render(replace(bare, experiment=crowns))
    assert "tiltyard serve" not in render(replace(bare, experiment=crowns.model_copy(update={"champion": None})))


def test_report_of_a_sweep_pins_the_versions_that_it_was_run_on(page: str) -> None:
    text = "".join(parsed(page).text)
    found = Experiment.from_json(text[text.index('{\n "name"') : text.rindex("}") + 1])
    assert [(d.name, d.version) for d in found.datasets] == [("rings", 1), ("moons", 1)]


def test_findings_of_a_sweep_hold_what_the_journal_and_the_curves_say(recorded: recorded_sweep.Recorded) -> None:
    with Journal.open(recorded.settings.journal_uri) as journal:
        launch = journal.launches()[0]
        rows = {row.cell: row for row in journal.trials(launch.key)}
        f = gather(recorded.settings, journal, launch, recorded.board)
    assert sum(f.states.values()) == len(rows)
    assert f.rungs == recorded_sweep.RUNGS
    for lines in f.curves.values():
        assert all(line.epochs == tuple(range(1, rows[line.cell].epoch + 1)) for line in lines)
        assert all(line.scores[-1] == pytest.approx(rows[line.cell].score) for line in lines)
        assert all(line.stopped == (line.epochs[-1] < recorded_sweep.RUNGS[-1]) for line in lines)
    for study in f.studies:
        assert study.importance[0].parameter == "lr"
        assert {i.parameter: i.share for i in study.importance}["weight_decay"] < 0.2
    t = f.time
    assert t.wasted_s == pytest.approx(3.0)  # a lost attempt of 1.5 s on each dataset
    assert t.trained_s + t.wasted_s + t.waited_s == pytest.approx(t.held_s)
    assert t.reused == 0
    for dataset, table in recorded.board.tables.items():
        best = table[0]
        assert f.matrix[best.variant][dataset].verdict == "best"
        assert sum(cells[dataset].trials for cells in f.matrix.values()) == len(table)


def test_scores_of_queued_members_are_this_launchs_own_and_not_reused(tmp_path: Path) -> None:
    made = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"])
    with Journal.open(made.settings.journal_uri) as journal:
        launch = journal.launches()[0]
        attempts, scores = (
            journal.attempts(launch.key),
            journal.cell_scores([r.cell for r in journal.trials(launch.key)]),
        )
        spend = journal.spend(launch.key)
    queued: dict[str, list[CellScore]] = {}
    for score in scores.values():  # each in a folder below its attempt's
        queued.setdefault(score.cell, []).append(replace(score, storage_uri=f"{score.storage_uri}/{score.cell[:16]}"))
    found = time_of(launch, attempts, spend, queued, now=0.0)
    assert (found.reused, found.reused_s) == (0, 0.0)
    foreign = {cell: [replace(s, storage_uri="/elsewhere/0123/packs/x") for s in of] for cell, of in queued.items()}
    assert time_of(launch, attempts, spend, foreign, now=0.0).reused == len(queued)


def test_cost_is_at_the_price_of_the_worker_group_that_packs_ran_on_and_the_report_says_so(tmp_path: Path) -> None:
    on_gpus = {"rate": {"group": "a10", "hourly": 3.6, "currency": "EUR"}}
    made = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"], layout_of={"mlp": on_gpus})
    with Journal.open(made.settings.journal_uri) as journal:
        launch = journal.launches()[0]
        attempts = journal.attempts(launch.key)
        f = gather(made.settings, journal, launch, made.board)
    priced_s = sum(a.metered_s for a in attempts if a.pack_id.startswith("mlp"))
    every_s = sum(a.metered_s for a in attempts)
    assert 0 < priced_s < every_s
    assert f.second_costs * every_s == pytest.approx(priced_s * 3.6 / 3600)
    text = render(f)
    assert f"3.60 EUR an hour of a pack on a10 ({priced_s / every_s:.0%} of the time)" in text
    assert f"workers without a price there ({1 - priced_s / every_s:.0%} of the time) counted as nothing" in text
    (made.settings.home / "roi.toml").write_text("hourly_cpu = 7.2\n")
    with Journal.open(made.settings.journal_uri) as journal:
        f = gather(made.settings, journal, launch, made.board)
    assert f.second_costs * every_s == pytest.approx((priced_s * 3.6 + (every_s - priced_s) * 7.2) / 3600)


def test_report_of_scores_that_an_earlier_experiment_left_counts_them_as_reused(
    tmp_path: Path, recorded: recorded_sweep.Recorded
) -> None:
    first = recorded_sweep.record(tmp_path, trials=24, name="first")
    with Journal.open(first.settings.journal_uri) as journal:
        from tiltyard.journal import Owner

        key = "ee" * 32
        claim = journal.claim(key, experiment="later", spec=first.experiment.to_json(), owner=Owner.here())
        journal.add_trials(claim, journal.trials(first.key))
        launch = journal.launch(key)
        assert launch is not None
        f = gather(first.settings, journal, launch, first.board)
    assert f.time.reused == 24
    assert f.time.reused_s > 0
    assert f.time.trained_s == 0


def test_report_of_a_sweep_that_runs_says_so_far(tmp_path: Path) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=12, datasets=["rings"], finished=False)
    launch, page = report(recorded.settings)
    assert launch.state == "running"
    assert "is best so far, with accuracy" in " ".join(page.split())
    assert "optimistic" in page


def test_report_of_hostile_names_shows_them_and_obeys_none(tmp_path: Path) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=36, datasets=["rings"], name="hostile")
    with Journal.open(recorded.settings.journal_uri) as journal:
        f = gather(recorded.settings, journal, journal.launches()[0], recorded.board)
    evil = "\"><script>alert('x')</script>&amp;{{ 7 * 6 }}$\\frac{$\u6f22\u5b57\u0000"
    (study, *others), cells = f.studies, [row.cell for row in recorded.board.tables["rings"]]
    odd = [{**c, "hidden": evil if i % 2 else "plain", evil: i} for i, c in enumerate(study.configs)]
    details = {
        cell: {
            **detail,
            "classes": [evil, "b"],
            "slices": [{**s, "column": evil, "name": evil} for s in detail["slices"]],
            "fairness": [{**of, "column": evil, "too_few": {evil: 3}} for of in detail["fairness"]],
        }
        for cell, detail in f.details.items()
    }
    rows = [replace(row, reason=evil, state="failed") for row in recorded.board.tables["rings"][4:]]
    page = render(
        replace(
            f,
            studies=(replace(study, configs=tuple(odd), importance=()), *others),
            details=details,
            board=replace(f.board, tables={"rings": (*recorded.board.tables["rings"][:4], *rows)}),
            experiment=f.experiment.model_copy(update={"description": evil}),
            launch=replace(f.launch, summary={"reason": evil}),
        )
    )
    assert len(cells) == 36
    sound = parsed(page)
    assert "<script" not in page
    assert "onerror" not in page
    assert "{{ 7 * 6 }}" in "".join(sound.text)
    assert page.count("&lt;script&gt;alert(") >= 8
    assert all(link == "data:," or link.startswith("#") for link in sound.links)


@pytest.mark.slow
def test_report_command_writes_a_file_or_beside_the_leaderboard(
    recorded: recorded_sweep.Recorded,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TILTYARD_HOME", str(recorded.settings.home))
    for arguments in (["report", "recorded", "--out", str(tmp_path / "in" / "x.html")], ["report"]):
        with pytest.raises(SystemExit) as done:
            cli.main(arguments)
        assert done.value.code == 0
        where = Path(capsys.readouterr().out.strip())
        assert where.read_text().startswith("<!doctype html>")
    assert str(where) == Layout(Storage(recorded.settings.storage_uri), recorded.key).report


def test_drawing_at_the_end_keeps_the_page_and_a_failure_only_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorded = recorded_sweep.record(tmp_path, trials=6, datasets=["rings"], finished=False)
    draw = drawing_at_end(recorded.settings)
    page = draw(recorded.key, recorded.board, None)
    assert page is not None
    assert b"is best, with accuracy" in b" ".join(page.split())
    layout = Layout(Storage(recorded.settings.storage_uri), recorded.key)
    assert Path(layout.report).read_bytes() == page
    assert draw("0" * 64, recorded.board, None) is None
    assert "tiltyard report 000000000000" in caplog.text
