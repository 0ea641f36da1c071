"""What is put into a Grafana: bodies of its API for the data source, boards, alert rules, contact points and routes. Pure.

Grafana's documents are shared with people, so each function takes what is there and gives what is to be there: ours as it
would be made now, and everything that somebody added by hand. Ours are known by names of their own: uids that begin with
`PREFIX`, routes that match the label `MARK`, and on a board the panels whose numbers stand in the hidden variable
`OURS`. What somebody *changed* on ours is set back, but for whether a rule is paused.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.telemetry.alerts import ALERTS, RECORDED, Alert
from tiltyard.telemetry.notices import Mail, Receiver

Json = dict[str, Any]
PREFIX = "tiltyard-"
FOLDER_UID, FOLDER_TITLE = "tiltyard", "Tiltyard"
DATA_SOURCE_UID, DATA_SOURCE_NAME = "tiltyard-prometheus", "Tiltyard Prometheus"
GROUP, INTERVAL_S = "tiltyard-alerts", 60
OURS = "tiltyard_panels"
"""Hidden constant of a board: the numbers of the panels that were pushed last, so that others are known as somebody's own."""
MARK = ("source", "tiltyard")
"""Label of every alert of ours, and what our routes match."""
_REDACTED = "[REDACTED]"


# -- data source ----------------------------------------------------------------------------------------------------------


def data_source(url: str) -> Json:
    """Prometheus as Grafana asks it: through its own server (``proxy``)."""
    return {
        "uid": DATA_SOURCE_UID,
        "name": DATA_SOURCE_NAME,
        "type": "prometheus",
        "access": "proxy",
        "url": url,
        "jsonData": {"httpMethod": "POST", "timeInterval": "10s"},
    }


def merged_data_source(there: Mapping[str, Any], wanted: Json) -> Json | None:
    """What is to be written over a data source: ours, and settings that somebody added. None where nothing changes."""
    merged = {**there, **wanted, "jsonData": {**there.get("jsonData", {}), **wanted["jsonData"]}}
    return None if merged == dict(there) else merged


# -- boards ---------------------------------------------------------------------------------------------------------------


def merged_board(
    there: Mapping[str, Any] | None, wanted: Json, *, source: tuple[str, str] | None = None
) -> Json | None:
    """A board as it is to be: ours, then the panels and variables that somebody added. None where nothing changes.

    Args:
        there: The board in Grafana; None where there is none.
        wanted: As it is rendered now.
        source: Name and uid of the data source that the board shows first.
    """
    board = copy.deepcopy(wanted)
    variables: list[Json] = board["templating"]["list"]
    if source is not None:
        chosen = next(v for v in variables if v["name"] == "datasource")
        chosen["current"] = {"text": source[0], "value": source[1], "selected": True}
    variables.append(_mark(board["panels"]))
    if there is None:
        return board
    ours = _pushed(there, wanted)
    taken = {p["id"] for p in board["panels"]}
    bottom = max((p["gridPos"]["y"] + p["gridPos"]["h"] for p in board["panels"]), default=0)
    added = [copy.deepcopy(p) for p in there.get("panels", []) if p.get("id") not in ours]
    shift = bottom - min((p.get("gridPos", {}).get("y", 0) for p in added), default=0)
    for panel in added:
        if panel.get("id") in taken:
            panel["id"] = max(taken) + 1
        taken.add(panel["id"])
        panel.setdefault("gridPos", {"x": 0, "y": 0, "w": 12, "h": 8})["y"] += max(0, shift)
    board["panels"] += added
    known = {v["name"] for v in variables}
    variables += [v for v in there.get("templating", {}).get("list", []) if v["name"] not in known]
    notes = board.get("annotations", {}).get("list", [])
    theirs = [n for n in there.get("annotations", {}).get("list", []) if n not in notes]
    if theirs:
        board["annotations"] = {"list": [*notes, *theirs]}
    return None if _plain_board(there) == _plain_board(board) else board


def _mark(panels: Iterable[Mapping[str, Any]]) -> Json:
    told = ",".join(str(p["id"]) for p in panels)
    return {"name": OURS, "type": "constant", "hide": 2, "query": told, "skipUrlSync": True}


def _pushed(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> set[int]:
    """Numbers of the panels that a push put there; on a board that was imported by hand, of those with our titles."""
    for variable in there.get("templating", {}).get("list", []):
        if variable["name"] == OURS:
            return {int(n) for n in re.findall(r"\d+", variable.get("query", ""))}
    titles = {p.get("title") for p in wanted["panels"]}
    return {p["id"] for p in there.get("panels", []) if p.get("title") in titles}


def _plain_board(board: Mapping[str, Any]) -> Json:
    """Without what Grafana itself writes: its number, its version, and what a viewer chose last."""
    plain: Json = json.loads(json.dumps({k: v for k, v in board.items() if k not in {"id", "version"}}))
    for variable in plain.get("templating", {}).get("list", []):
        variable.pop("current", None)
        variable.pop("options", None)
    return plain


# -- alert rules ----------------------------------------------------------------------------------------------------------


def rule_uid(name: str) -> str:
    """A rule's uid: at most 40 letters, digits and ``-``."""
    return (PREFIX + re.sub(r"(?<!^)(?=[A-Z])", "-", name.removeprefix("Tiltyard")).lower())[:40]


def rule(alert: Alert, source_uid: str) -> Json:
    """An alert as a rule that Grafana evaluates itself; recorded series are written out, so it needs no rules file.

    A Prometheus rule fires on every series that its query leaves, whatever the value; Grafana's on values. So the value is
    asked as A, 1 for each such series as B, and C is true where B is above 0.
    """
    expr = written_out(alert.expr)
    return {
        "uid": rule_uid(alert.name),
        "title": alert.name,
        "ruleGroup": GROUP,
        "folderUID": FOLDER_UID,
        "orgID": 1,
        "condition": "C",
        "for": alert.lasting,
        "noDataState": "OK",
        "execErrState": "Error",
        "isPaused": False,
        "labels": {"severity": alert.severity, MARK[0]: MARK[1]},
        "annotations": {
            "summary": alert.summary.replace("$value", "$values.A.Value"),
            "meaning": alert.meaning,
            "action": alert.action,
        },
        "data": [
            _asked("A", source_uid, {"expr": expr, "instant": True, "range": False}),
            _asked("B", source_uid, {"expr": f"({expr}) * 0 + 1", "instant": True, "range": False}),
            _asked(
                "C",
                "__expr__",
                {"type": "threshold", "expression": "B", "conditions": [{"evaluator": {"type": "gt", "params": [0]}}]},
            ),
        ],
    }


def _asked(ref: str, source_uid: str, model: Json) -> Json:
    return {
        "refId": ref,
        "datasourceUid": source_uid,
        "queryType": "",
        "relativeTimeRange": {"from": 600, "to": 0},
        "model": {"refId": ref, **model},
    }


def written_out(expr: str) -> str:
    """PromQL without recorded series."""
    for name in sorted(RECORDED, key=len, reverse=True):
        expr = re.sub(rf"{re.escape(name)}(?![\w:])", lambda _, n=name: f"({RECORDED[n]})", expr)  # type: ignore[misc]
    return expr


def merged_group(there: Mapping[str, Any] | None, source_uid: str, alerts: Sequence[Alert] = ALERTS) -> Json | None:
    """The rule group as it is to be: somebody's own rules stay, and ours that are paused stay so. None: nothing changes.

    Grafana's call replaces the whole group: what is not in it is deleted.
    """
    before: list[Json] = list((there or {}).get("rules", []))
    paused = {r["uid"] for r in before if r.get("isPaused")}
    ours = [rule(a, source_uid) for a in alerts]
    for one in ours:
        one["isPaused"] = one["uid"] in paused
    others = [r for r in before if not str(r.get("uid", "")).startswith(PREFIX)]
    wanted = {
        "title": GROUP,
        "folderUid": FOLDER_UID,
        "interval": (there or {}).get("interval", INTERVAL_S),
        "rules": ours + others,
    }
    return None if there is not None and _same_rules(before, wanted["rules"]) else wanted


def _same_rules(before: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each wanted rule is there as wanted; fields that Grafana adds are not looked at, nor the order."""
    there = {r.get("uid"): r for r in before}
    return set(there) == {r.get("uid") for r in wanted} and all(_holds(there[r.get("uid")], r) for r in wanted)


def _holds(there: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(there, Mapping) and all(_holds(there.get(k), v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(there, list)
            and len(there) == len(wanted)
            and all(_holds(a, b) for a, b in zip(there, wanted, strict=True))
        )
    return bool(there == wanted)


# -- contact points and routes ------------------------------------------------------------------------------------------------


def contact_points(receivers: Mapping[str, Receiver], env: Mapping[str, str] = os.environ) -> list[Json]:
    """Each receiver of ``receivers.json`` as a contact point; secrets come from the environment variables that it names.

    A uid holds a digest of the settings: Grafana gives secrets back as ``[REDACTED]``, and only a name can say that one
    has changed.

    Raises:
        SpecError: If a variable is not set.
    """
    return [_contact_point(name, receiver, env) for name, receiver in sorted(receivers.items())]


def _contact_point(name: str, receiver: Receiver, env: Mapping[str, str]) -> Json:
    if isinstance(receiver, Mail):
        kind, settings = "email", {"addresses": ";".join(receiver.to), "singleEmail": True}
    elif receiver.slack:
        kind, settings = "slack", {"url": receiver.url}
    else:
        kind, settings = "webhook", {"url": receiver.url, "httpMethod": "POST"}
        if receiver.secret_env:
            secret = env.get(receiver.secret_env)
            if not secret:
                raise SpecError(
                    f"Receiver {name!r} names the environment variable {receiver.secret_env}, which is not set here. Set it "
                    "to the secret of the signature and push again."
                )
            settings["hmacConfig"] = {
                "secret": secret,
                "header": "X-Tiltyard-Signature-Grafana",
                "timestampHeader": "X-Tiltyard-Timestamp",
            }
    digest = hashlib.sha256(json.dumps([name, kind, settings], sort_keys=True).encode()).hexdigest()[:12]
    return {
        "uid": f"{_stem(name)}{digest}",
        "name": f"Tiltyard {name}",
        "type": kind,
        "settings": settings,
        "disableResolveMessage": False,
    }


def _stem(name: str) -> str:
    return f"{PREFIX}{hashlib.sha256(name.encode()).hexdigest()[:8]}-"


def changed_points(there: Sequence[Mapping[str, Any]], wanted: Sequence[Json]) -> tuple[list[Json], list[str]]:
    """Contact points to make, and uids of ours that are not wanted any more; one that somebody changed is made anew."""
    by_uid = {str(p.get("uid")): p for p in there}
    new = [w for w in wanted if w["uid"] not in by_uid]
    kept = {w["uid"] for w in wanted}
    return new, [uid for uid in by_uid if uid.startswith(PREFIX) and uid not in kept]


def turned_points(there: Sequence[Mapping[str, Any]], wanted: Sequence[Json]) -> list[Json]:
    """Contact points of ours whose settings somebody turned; secrets, which Grafana does not tell, are not compared."""
    by_uid = {str(p.get("uid")): p for p in there}
    return [w for w in wanted if (found := by_uid.get(w["uid"])) is not None and not _same_point(found, w)]


def _same_point(there: Mapping[str, Any], wanted: Json) -> bool:
    def plain(settings: Any, told: Any) -> Any:
        if told == _REDACTED:
            return _REDACTED
        if isinstance(settings, dict) and isinstance(told, dict):
            return {k: plain(v, told.get(k)) for k, v in settings.items()}
        return settings

    told = there.get("settings", {})
    return there.get("name") == wanted["name"] and _holds(told, plain(wanted["settings"], told))


def merged_policies(there: Mapping[str, Any], names: Sequence[str]) -> Json | None:
    """The whole tree of notification policies, ours first and somebody's own as they were. None where nothing changes.

    Args:
        there: The tree in Grafana: its call replaces all of it.
        names: Of our contact points: each gets every alert of ours.
    """
    before: list[Json] = list(there.get("routes") or [])
    ours = [
        {
            "receiver": name,
            "object_matchers": [[MARK[0], "=", MARK[1]]],
            "group_by": ["alertname", "grafana_folder"],
            "continue": True,
        }
        for name in names
    ]
    others = [r for r in before if [MARK[0], "=", MARK[1]] not in (r.get("object_matchers") or [])]
    mine = [r for r in before if r not in others]
    if len(mine) == len(ours) and all(_holds(a, b) for a, b in zip(mine, ours, strict=True)):
        return None
    tree = {k: v for k, v in there.items() if k != "provenance"}
    return {**tree, "routes": ours + others}
