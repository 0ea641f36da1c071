"""Pushing to a Grafana: what arrives, that a second push writes nothing, and that what people added stays."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_api import Grafana, RefusedError, serving

from tiltyard.errors import SpecError
from tiltyard.telemetry import provisioning
from tiltyard.telemetry.alerts import ALERTS, RECORDED
from tiltyard.telemetry.boards import BOARDS
from tiltyard.telemetry.grafana import GrafanaError, Pusher, token_of
from tiltyard.telemetry.notices import Mail, Receiver, Webhook

FOLDER = Path(__file__).parents[3] / "dashboards"
TOKEN = "glsa_not_to_be_seen_2f1c"
PROMETHEUS = "http://prometheus.monitoring.svc:9090"
RECEIVERS: dict[str, Receiver] = {
    "chat": Webhook(url="https://hooks.slack.example/services/T0/B0/verysecretpath", slack=True),
    "hook": Webhook(url="https://example.org/hook", secret_env="HOOK_SECRET"),
    "mail": Mail(host="smtp.example.org", sender="tiltyard@example.org", to=("ann@example.org", "bob@example.org")),
}


@pytest.fixture
def grafana() -> Grafana:
    return Grafana(TOKEN)


@pytest.fixture
def url(grafana: Grafana, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("HOOK_SECRET", "s3cret-of-the-hook")
    with serving(grafana) as found:
        yield found


def push(url: str, receivers: dict[str, Receiver] | None = RECEIVERS, prometheus: str = PROMETHEUS) -> list[str]:
    changes = Pusher(url, TOKEN, sleep=lambda _: None).push(prometheus=prometheus, receivers=receivers)
    return [f"{c.how} {c.what}" for c in changes]


def test_push_into_an_empty_grafana_makes_every_document_and_the_second_writes_nothing(
    grafana: Grafana, url: str
) -> None:
    told = push(url)
    assert [t for t in told if "board" in t] == [f"made board {b.uid}" for b in BOARDS]
    assert grafana.sources["tiltyard-prometheus"]["url"] == PROMETHEUS
    assert set(grafana.boards) == {b.uid for b in BOARDS}
    rules = grafana.groups["tiltyard", "tiltyard-alerts"]["rules"]
    assert [r["title"] for r in rules] == [a.name for a in ALERTS]
    assert {p["type"] for p in grafana.points.values()} == {"slack", "webhook", "email"}
    assert len(grafana.policies["routes"]) == 3
    state = copy.deepcopy((grafana.sources, grafana.boards, grafana.groups, grafana.points, grafana.policies))
    grafana.calls.clear()
    assert push(url) == []
    assert grafana.writes == []
    assert (grafana.sources, grafana.boards, grafana.groups, grafana.points, grafana.policies) == state


def test_push_beside_what_people_added_keeps_all_of_it(grafana: Grafana, url: str) -> None:
    push(url)
    board = grafana.boards["tiltyard-sweep"]["dashboard"]
    theirs = {"id": max(p["id"] for p in board["panels"]) + 1, "title": "mine", "type": "text"}
    board["panels"].append({**theirs, "gridPos": {"x": 0, "y": 90, "w": 12, "h": 4}})
    board["templating"]["list"].append({"name": "mine", "type": "constant", "query": "1"})
    board["panels"][1]["title"] = "somebody's title"  # one of ours, changed: set back
    board["version"] += 1
    group = grafana.groups["tiltyard", "tiltyard-alerts"]
    group["rules"].append({**copy.deepcopy(group["rules"][0]), "uid": "mine", "title": "Mine"})
    group["rules"][2]["isPaused"] = True
    grafana.points["mine"] = {
        **grafana.points[next(iter(grafana.points))],
        "uid": "mine",
        "name": "mine",
        "type": "webhook",
        "settings": {"url": "https://mine.example"},
    }
    grafana.policies["routes"].append({"receiver": "mine", "object_matchers": [["team", "=", "vision"]]})
    grafana.policies["repeat_interval"] = "8h"
    grafana.sources["tiltyard-prometheus"]["jsonData"]["manageAlerts"] = True
    grafana.folders["tiltyard"]["title"] = "Our models"
    assert push(url) == ["changed board tiltyard-sweep"]
    board = grafana.boards["tiltyard-sweep"]["dashboard"]
    assert [p["title"] for p in board["panels"] if p["type"] == "text"] == ["mine"]
    assert "mine" in {v["name"] for v in board["templating"]["list"]}
    assert "somebody's title" not in {p.get("title") for p in board["panels"]}
    rules = grafana.groups["tiltyard", "tiltyard-alerts"]["rules"]
    assert [r["title"] for r in rules] == [*(a.name for a in ALERTS), "Mine"]
    assert rules[2]["isPaused"]
    assert grafana.policies["repeat_interval"] == "8h"
    assert grafana.policies["routes"][-1]["receiver"] == "mine"
    assert "mine" in grafana.points
    assert grafana.folders["tiltyard"]["title"] == "Our models"
    grafana.calls.clear()
    assert push(url) == []
    assert grafana.writes == []


def test_push_of_a_newer_board_renumbers_a_persons_panel_and_removes_what_is_ours_no_more() -> None:
    old = {
        "panels": [{"id": 1, "title": "a", "gridPos": {"x": 0, "y": 0, "w": 8, "h": 8}}, {"id": 2, "title": "gone"}],
        "templating": {"list": [{"name": provisioning.OURS, "query": "1,2"}]},
    }
    old["panels"].append({"id": 3, "title": "mine", "gridPos": {"x": 0, "y": 8, "w": 8, "h": 8}})  # type: ignore[attr-defined]
    new = {
        "panels": [
            {"id": i, "title": t, "gridPos": {"x": 0, "y": i * 8, "w": 8, "h": 8}} for i, t in enumerate("axyz", 1)
        ],
        "templating": {"list": []},
    }
    merged = provisioning.merged_board(old, new)
    assert merged is not None
    assert [(p["id"], p["title"]) for p in merged["panels"]] == [(1, "a"), (2, "x"), (3, "y"), (4, "z"), (5, "mine")]
    assert merged["panels"][-1]["gridPos"]["y"] >= 40


def test_push_while_somebody_else_saves_the_board_reads_it_again_and_keeps_their_panel(
    grafana: Grafana, url: str
) -> None:
    push(url)
    grafana.boards["tiltyard-cost"]["dashboard"]["panels"][1]["title"] = "old"
    raced: list[str] = []

    def somebody(method: str, path: str) -> None:
        if method == "POST" and not raced:
            raced.append(path)
            board = grafana.boards["tiltyard-cost"]["dashboard"]
            board["panels"].append(
                {"id": 77, "title": "mine", "type": "text", "gridPos": {"x": 0, "y": 50, "w": 8, "h": 8}}
            )
            board["version"] += 1

    grafana.before = somebody
    assert push(url) == ["changed board tiltyard-cost"]
    assert raced == ["/api/dashboards/db"]
    titles = [p.get("title") for p in grafana.boards["tiltyard-cost"]["dashboard"]["panels"]]
    assert "mine" in titles
    assert "old" not in titles


def test_push_through_a_server_that_fails_for_a_moment_succeeds_and_one_that_stays_so_is_told(
    grafana: Grafana, url: str
) -> None:
    failures = iter(range(3))

    def flaky(method: str, path: str) -> None:
        if path.endswith("/policies") and next(failures, None) is not None:
            raise RefusedError(503, "database is locked")

    grafana.before = flaky
    assert "changed routes of alerts" in push(url)

    def broken(method: str, path: str) -> None:
        if "folders" in path:
            raise RefusedError(500, "no space left")

    grafana.before = broken
    with pytest.raises(GrafanaError, match=r"answered 500 to the folder: no space left"):
        push(url)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prometheus": "http://elsewhere:9090"}, ["changed data source"]),
        ({"receivers": {}}, ["changed routes of alerts", "removed contact point"]),
        (
            {"receivers": {**RECEIVERS, "chat": Webhook(url="https://hooks.slack.example/other", slack=True)}},
            ["made contact point Tiltyard chat", "removed contact point"],
        ),
    ],
)
def test_push_of_something_changed_writes_that_alone(
    grafana: Grafana, url: str, change: dict[str, Any], told: list[str]
) -> None:
    push(url)
    found = push(url, **change)
    assert {f.split(" tiltyard-")[0] for f in found} == set(told)
    assert push(url, **change) == []
    if change.get("receivers") == {}:
        assert grafana.points == {}
        assert grafana.policies["routes"] == []


def test_push_over_documents_that_files_provision_is_refused_with_what_to_do(grafana: Grafana, url: str) -> None:
    push(url)
    for one in grafana.groups["tiltyard", "tiltyard-alerts"]["rules"]:
        one["provenance"] = "file"
    grafana.groups["tiltyard", "tiltyard-alerts"]["rules"][0]["for"] = "9m"
    with pytest.raises(GrafanaError, match=r"409.*provenance.*take it out there"):
        push(url)


def test_push_with_a_wrong_token_or_a_name_that_is_taken_says_so_without_the_token(
    grafana: Grafana, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(GrafanaError, match=r"401.*Look at the token") as refused:
        Pusher(url, "wrong-token-9", sleep=lambda _: None).push(prometheus=PROMETHEUS)
    assert "wrong-token-9" not in str(refused.value) + caplog.text
    grafana.sources["other"] = {"uid": "other", "name": "Tiltyard Prometheus"}
    with pytest.raises(GrafanaError, match=r"409 to the data source.*rename it"):
        push(url)
    assert TOKEN not in caplog.text


def test_push_uses_a_data_source_that_is_there_and_refuses_one_that_is_not(grafana: Grafana, url: str) -> None:
    grafana.sources["prom"] = {"uid": "prom", "name": "Our Prometheus", "type": "prometheus", "url": "http://p"}
    before = copy.deepcopy(grafana.sources)
    Pusher(url, TOKEN).push(prometheus=None, data_source="prom")
    assert grafana.sources == before
    rule = grafana.groups["tiltyard", "tiltyard-alerts"]["rules"][0]
    assert rule["data"][0]["datasourceUid"] == "prom"
    chosen = next(
        v for v in grafana.boards["tiltyard-data"]["dashboard"]["templating"]["list"] if v["name"] == "datasource"
    )
    assert chosen["current"]["value"] == "prom"
    assert grafana.points == {}
    with pytest.raises(SpecError, match="no data source with the uid 'gone'"):
        Pusher(url, TOKEN).push(prometheus=None, data_source="gone")
    with pytest.raises(SpecError, match="--prometheus URL"):
        Pusher(url, TOKEN).push(prometheus=None)


def test_address_with_a_password_and_a_missing_token_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="holds a user or password"):
        Pusher("http://admin:hunter2@localhost:3000", TOKEN)
    with pytest.raises(SpecError, match="no address of a Grafana"):
        Pusher("localhost:3000", TOKEN)
    with pytest.raises(SpecError, match="GRAFANA_TOKEN"):
        token_of(None, {})
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert token_of(tmp_path / "token", {}) == TOKEN
    with pytest.raises(SpecError, match="HOOK_SECRET, which is not set"):
        provisioning.contact_points(RECEIVERS, {})


@pytest.mark.slow
def test_rules_for_grafana_are_true_where_those_of_prometheus_fire_without_recorded_series(tmp_path: Path) -> None:
    rules = []
    for alert in ALERTS:
        made = provisioning.rule(alert, "prom")
        asked = {q["refId"]: q["model"].get("expr", "") for q in made["data"]}
        assert not [n for n in RECORDED if n in asked["A"] + asked["B"]]
        assert "$value" not in made["annotations"]["summary"].replace("$values.A.Value", "")
        one = {"severity": alert.severity}
        rules.append({"alert": alert.name, "expr": f"({asked['B']}) > 0", "for": made["for"], "labels": one})
    assert len({provisioning.rule_uid(a.name) for a in ALERTS}) == len(ALERTS)
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("Debian's prometheus is not installed: apt-get install prometheus")
    # the committed cases, but for the texts: where Prometheus' rules fire, Grafana's condition must be true
    cases = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())
    for case in (c for t in cases["tests"] for c in t["alert_rule_test"]):
        for expected in case["exp_alerts"]:
            expected.pop("exp_annotations", None)
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "g", "rules": rules}]}))
    (tmp_path / "cases.yaml").write_text(yaml.safe_dump(cases))
    done = subprocess.run(
        [program, "test", "rules", "cases.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_push_command_takes_the_token_from_the_environment_and_shows_it_nowhere(
    grafana: Grafana, url: str, tmp_path: Path
) -> None:
    (tmp_path / "receivers.json").write_text(json.dumps({"team": {"kind": "webhook", "url": "https://example.org/h"}}))
    env = {**os.environ, "TILTYARD_HOME": str(tmp_path), "GRAFANA_TOKEN": TOKEN, "GRAFANA_URL": url}
    command = [sys.executable, "-m", "tiltyard.cli", "dashboards", "push", "--prometheus", PROMETHEUS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "made: board tiltyard-overview" in done.stdout
    assert "made: contact point Tiltyard team" in done.stdout
    assert TOKEN not in done.stdout + done.stderr
    assert set(grafana.boards) == {b.uid for b in BOARDS}
