"""Boards and rules: committed as they would be made, made of metrics that exist, and alerts that fire and stay silent."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tiltyard import cli
from tiltyard.telemetry.alerts import ALERTS, RECORDED
from tiltyard.telemetry.boards import BOARDS, onward
from tiltyard.telemetry.boards.shapes import OF_ONE, VARIABLES
from tiltyard.telemetry.dashboards import differing, files, model, write
from tiltyard.telemetry.instruments import DECLARED, exposed_series

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "dashboards"
EXPRESSIONS = (
    [q.expr for b in BOARDS for p in b.panels for q in p.queries] + [a.expr for a in ALERTS] + [*RECORDED.values()]
)


def names_in(expr: str) -> set[str]:
    """Names of series in PromQL: what stands before a brace, a bracket or an operator, labels and functions left out."""
    bare = re.sub(r'"[^"]*"', "", re.sub(r"\{[^}]*\}", "", expr))
    bare = re.sub(r"\b(by|on)\s*\([^)]*\)", "", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", bare))
    return {w for w in words if w.startswith(("ray_", "tiltyard", "autoscaler_", "node_"))}


def test_committed_files_are_what_would_be_made_now() -> None:
    assert differing(FOLDER) == [], "write them anew: tiltyard dashboards render"


def test_queries_of_boards_and_rules_name_declared_metrics_or_rays_own() -> None:
    declared = exposed_series()
    used = set().union(*map(names_in, EXPRESSIONS))
    ours = {n for n in used if n.startswith(("ray_tiltyard", "tiltyard_"))}
    assert ours <= set(declared), f"{sorted(ours - set(declared))} are not in telemetry/instruments.py"
    assert {n for n in used if n.startswith("tiltyard:")} <= set(RECORDED)
    unshown = {i.name for i in DECLARED.values()} - {declared[n].name for n in ours}
    assert not unshown, f"exported and on no board: {sorted(unshown)}"
    for expr in EXPRESSIONS:
        assert not re.search(r"_sum\{", expr), f"Ray guesses the sums of histograms: {expr}"


def test_labels_that_queries_match_and_sum_by_are_declared() -> None:
    rays = {"ray_io_cluster", "instance", "le", "Location", "Name", "State", "application", "deployment", "dataset"}
    for expr in EXPRESSIONS:
        labels = {label for name in names_in(expr) if (i := exposed_series().get(name)) for label in i.labels}
        asked = {
            la for inside in re.findall(r"\{([^}]*)\}", expr) for la in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)
        }
        asked |= {
            la.strip()
            for inside in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr)
            for la in inside.split(",")
            if la.strip()
        }
        recorded = set().union(*(_labels_of_recorded(n) for n in names_in(expr) if n in RECORDED), set())
        assert asked <= labels | rays | recorded, f"{sorted(asked - labels - rays - recorded)} in {expr}"


def _labels_of_recorded(name: str) -> set[str]:
    return {label for n in names_in(RECORDED[name]) if (i := exposed_series().get(n)) for label in i.labels}


def test_panels_of_every_board_have_title_unit_meaning_links_and_a_place_of_their_own() -> None:
    assert len({b.uid for b in BOARDS}) == len(BOARDS)
    for board in BOARDS:
        made = model(board)
        variables = {v["name"] for v in made["templating"]["list"]}
        assert {"datasource", "mlflow", "ray", *board.variables} == variables
        panels = [p for p in made["panels"] if p["type"] != "row"]
        assert [p["title"] for p in panels] == [p.title for p in board.panels]
        assert len({p["id"] for p in made["panels"]}) == len(made["panels"])
        for panel in panels:
            assert panel["description"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert {link["title"] for link in panel["links"]} == {"MLflow", "Ray dashboard"}
            for target in panel["targets"]:
                used = set(re.findall(r"\$(\w+)", target["expr"])) - {"__rate_interval"}
                assert used <= set(board.variables), f"{panel['title']} uses {used}, which {board.uid} has not"
        spots = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in made["panels"]]
        assert len(set(spots)) == len(spots)
    assert {v for b in BOARDS for v in b.variables} == {*VARIABLES, *OF_ONE}
    for expr, label in OF_ONE.values():
        assert names_in(expr) <= set(exposed_series())
        assert label in {la for name in names_in(expr) for la in exposed_series()[name].labels}


MLFLOW_PAGES = r"#/(experiments|models|models/[^/?]+/versions/[^/?]+|runs/[^/?]+)"
RAY_PAGES = r"#/(overview|jobs|jobs/[^/?]+|serve|serve/applications/[^/?]+/[^/?]+|cluster)"
"""Routes of the two programs' pages."""


def test_links_of_panels_lead_to_pages_that_there_are_and_use_labels_and_variables_that_the_board_has() -> None:
    for board in BOARDS:
        for panel in board.panels:
            of_panel, of_series = onward.of_panel(board, panel), onward.of_series(board, panel)
            for _, url in (*of_panel, *of_series):
                page = re.sub(r"\$\{[^}]*\}", "x", url)
                assert re.fullmatch(rf"x/({MLFLOW_PAGES}|{RAY_PAGES})", page) or page.startswith(
                    "/d/tiltyard-sweep?"
                ), url
                used = set(re.findall(r"\$\{(\w+)\}", url))
                assert used <= {"mlflow", "ray", "datasource", *board.variables}, f"{url} on {board.uid}"
            labels = onward.labels_of(panel)
            assert set(re.findall(r"__field\.labels\.(\w+)", str(of_series))) <= labels


def test_lines_of_models_lead_to_their_version_and_a_sweep_to_its_run_and_job() -> None:
    boards = {b.uid: b for b in BOARDS}
    scored = {q: p for p in boards["tiltyard-models"].panels for q in [p.title]}
    version = "${mlflow}/#/models/${__field.labels.model}/versions/${__field.labels.version}"
    for title in (
        "Score with its interval",
        "Score by slice",
        "Since training",
        "Below its bound",
        "Columns that drifted",
    ):
        panel = next(p for p in model(boards["tiltyard-models"])["panels"] if p["title"] == title)
        assert [link["url"] for link in panel["fieldConfig"]["defaults"]["links"]] == [version]
    assert onward.of_series(boards["tiltyard-models"], scored["Version that serves"]) == (
        ("This version in MLflow", "${mlflow}/#/models/${__field.labels.registered}/versions/${__value.raw}"),
    )
    made = model(boards["tiltyard-sweep"])
    for panel in made["panels"]:
        if panel["type"] != "row":
            assert [link["url"] for link in panel["links"]] == ["${mlflow}/#/runs/${run}", "${ray}/#/jobs/${ray_job}"]
    by_name = {v["name"]: v for v in made["templating"]["list"]}
    assert (by_name["run"]["hide"], by_name["ray_job"]["hide"]) == (2, 2)
    assert (by_name["experiment"]["multi"], by_name["experiment"]["includeAll"]) == (False, False)


@pytest.mark.slow
def test_every_alert_is_driven_to_fire_and_to_stay_silent_with_promtool() -> None:
    text = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())
    cases = [case for test in text["tests"] for case in test["alert_rule_test"]]
    names = {a.name for a in ALERTS}
    assert {c["alertname"] for c in cases if c["exp_alerts"]} == names
    assert {c["alertname"] for c in cases if not c["exp_alerts"]} == names
    program = shutil.which("promtool")
    if program is None:
        missing = "Debian's prometheus is not installed: apt-get install prometheus"
        if os.environ.get("TILTYARD_PARTS_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    for step in (
        ["check", "rules", "rules.yaml"],
        ["test", "rules", "rules_test.yaml"],
        ["check", "config", "prometheus.yaml"],
    ):
        done = subprocess.run([program, *step], cwd=FOLDER, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_say_how_grave_what_it_means_and_which_command_helps() -> None:
    commands = set(cli.COMMANDS)
    for alert in ALERTS:
        assert alert.severity in {"critical", "warning"}
        assert alert.meaning.endswith(".")
        for command in re.findall(r"tiltyard ([a-z]+)", alert.action):
            assert command in commands, f"{alert.name} names tiltyard {command}, which is no command"


def test_dashboards_command_renders_checks_and_refuses_what_is_old(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as done:
            cli.main(["dashboards", *arguments, "--folder", str(tmp_path)])
        return int(done.value.code or 0)

    assert run("render") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(files())
    assert run("render") == 0
    assert "is current" in capsys.readouterr().out
    assert run("check") == 0
    (tmp_path / "tiltyard-sweep.json").write_text("{}")
    (tmp_path / "tiltyard-gone.json").write_text("{}")
    assert run("check") == 1
    assert "tiltyard-gone.json, tiltyard-sweep.json" in capsys.readouterr().err
    assert write(tmp_path) == ["tiltyard-gone.json", "tiltyard-sweep.json"]
    assert differing(tmp_path) == []
