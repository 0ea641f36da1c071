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
from tiltyard.telemetry.boards import BOARDS, VARIABLES
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
    assert {v for b in BOARDS for v in b.variables} <= set(VARIABLES)


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
