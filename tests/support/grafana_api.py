"""A small Grafana for tests: the part of its HTTP API that ``tiltyard dashboards push`` uses, with its semantics.

404 for what is not there; 409 for a name that is taken, a provisioned document, a contact point that a route names; 412 for
a board whose version is not the newest or whose title is taken; versions that rise with every write; secrets that are given
back redacted; a rule group and a tree of policies that a PUT replaces whole. Every call is recorded, and every body must be
of the shape that Grafana's own types (grafana-foundation-sdk) or the models below have. What it does not model: permissions
of single documents, organisations, the evaluation of a rule.
"""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import alerting
from grafana_foundation_sdk.models import dashboard as boards
from pydantic import BaseModel, ConfigDict, Field

Json = dict[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class DataSourceBody(_Strict):
    """POST and PUT of a data source."""

    uid: str = Field(max_length=40, pattern="^[a-zA-Z0-9_-]+$")
    name: str
    type: str
    access: str = Field(pattern="^(proxy|direct)$")
    url: str
    jsonData: Json  # noqa: N815
    id: int | None = None
    version: int | None = None
    readOnly: bool = False  # noqa: N815
    isDefault: bool = False  # noqa: N815
    basicAuth: bool = False  # noqa: N815


class FolderBody(_Strict):
    """POST of a folder."""

    title: str
    uid: str = Field(max_length=40, pattern="^[a-zA-Z0-9_-]+$")


class BoardBody(_Strict):
    """POST of a board."""

    dashboard: Json
    folderUid: str  # noqa: N815
    overwrite: bool
    message: str


class RefusedError(Exception):
    """What is answered: a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def typed(model: Any, body: Json, *, beside: tuple[str, ...] = ()) -> None:
    """A body must be one of Grafana's types: read and written again it has every field that it had."""
    again = json.loads(JSONEncoder().encode(model.from_json(json.loads(json.dumps(body)))))
    lost = set(body) - set(again) - set(beside)
    if lost:
        raise RefusedError(400, f"{model.__name__} has no field {sorted(lost)}")


class Grafana:
    """Its state, and what was called."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.calls: list[tuple[str, str, Json | None]] = []
        self.sources: dict[str, Json] = {}
        self.folders: dict[str, Json] = {}
        self.boards: dict[str, Json] = {}
        self.groups: dict[tuple[str, str], Json] = {}
        self.points: dict[str, Json] = {}
        self.policies: Json = {"receiver": "grafana-default-email", "group_by": ["grafana_folder", "alertname"]}
        self.policies_provenance = ""
        self.before: Callable[[str, str], None] = lambda method, path: None
        """Called before each call is looked at: where a test lets somebody else be quicker, or the server fail."""
        self._lock, self._number = threading.Lock(), 0

    @property
    def writes(self) -> list[tuple[str, str]]:
        """Calls that may change something."""
        return [(m, p) for m, p, _ in self.calls if m != "GET"]

    def call(self, method: str, path: str, body: Json | None, headers: Mapping[str, str]) -> Any:
        """Answers a call.

        Raises:
            RefusedError: As Grafana would.
        """
        with self._lock:
            self.calls.append((method, path, body))
        if headers.get("Authorization") != f"Bearer {self.token}":
            raise RefusedError(401, "Invalid API key")
        self.before(method, path)
        with self._lock:
            parts = [urllib.parse.unquote(p) for p in path.removeprefix("/api/").split("/")]
            provenance = "" if headers.get("X-Disable-Provenance") == "true" else "api"
            match [method, *parts]:
                case ["GET", "datasources", "uid", uid]:
                    return self._there(self.sources, uid, "Data source not found")
                case ["POST", "datasources"]:
                    return self._make_source(body or {})
                case ["PUT", "datasources", "uid", uid]:
                    return self._change_source(uid, body or {})
                case ["GET", "folders", uid]:
                    return self._there(self.folders, uid, "folder not found")
                case ["POST", "folders"]:
                    return self._make_folder(body or {})
                case ["GET", "dashboards", "uid", uid]:
                    return self._there(self.boards, uid, "Dashboard not found")
                case ["POST", "dashboards", "db"]:
                    return self._save_board(body or {})
                case ["GET", "v1", "provisioning", "folder", folder, "rule-groups", group]:
                    return self._there(self.groups, (folder, group), "rule group not found")
                case ["PUT", "v1", "provisioning", "folder", folder, "rule-groups", group]:
                    return self._save_group(folder, group, body or {}, provenance)
                case ["GET", "v1", "provisioning", "contact-points"]:
                    return [self._told(p) for p in self.points.values()]
                case ["POST", "v1", "provisioning", "contact-points"]:
                    return self._save_point(None, body or {}, provenance)
                case ["PUT", "v1", "provisioning", "contact-points", uid]:
                    return self._save_point(uid, body or {}, provenance)
                case ["DELETE", "v1", "provisioning", "contact-points", uid]:
                    return self._remove_point(uid)
                case ["GET", "v1", "provisioning", "policies"]:
                    return {**self.policies, "provenance": self.policies_provenance}
                case ["PUT", "v1", "provisioning", "policies"]:
                    return self._save_policies(body or {}, provenance)
        raise RefusedError(404, "Not found")

    @staticmethod
    def _there(documents: Mapping[Any, Json], key: Any, message: str) -> Json:
        if key not in documents:
            raise RefusedError(404, message)
        return json.loads(json.dumps(documents[key]))  # type: ignore[no-any-return]

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _make_source(self, body: Json) -> Json:
        DataSourceBody.model_validate(body)
        if body["uid"] in self.sources or body["name"] in {s["name"] for s in self.sources.values()}:
            raise RefusedError(409, "data source with the same name already exists")
        self.sources[body["uid"]] = {
            **body,
            "id": self._next(),
            "version": 1,
            "readOnly": False,
            "isDefault": False,
            "basicAuth": False,
        }
        return {"message": "Datasource added"}

    def _change_source(self, uid: str, body: Json) -> Json:
        DataSourceBody.model_validate(body)
        there = self._there(self.sources, uid, "Data source not found")
        if there["readOnly"]:
            raise RefusedError(403, "Cannot update read-only data source")
        if body.get("version") not in {None, there["version"]}:
            raise RefusedError(409, "Datasource has already been updated by someone else. Please reload and try again")
        self.sources[uid] = {**there, **body, "version": there["version"] + 1}
        return {"message": "Datasource updated"}

    def _make_folder(self, body: Json) -> Json:
        FolderBody.model_validate(body)
        if body["uid"] in self.folders:
            raise RefusedError(412, "the folder has been changed by someone else")
        if body["title"] in {f["title"] for f in self.folders.values()}:
            raise RefusedError(409, "a folder with the same name already exists in the current location")
        self.folders[body["uid"]] = {**body, "id": self._next(), "version": 1}
        return self.folders[body["uid"]]

    def _save_board(self, body: Json) -> Json:
        BoardBody.model_validate(body)
        board, folder = body["dashboard"], body["folderUid"]
        typed(boards.Dashboard, board)
        if folder not in self.folders:
            raise RefusedError(400, "folder not found")
        numbers = [p["id"] for p in board["panels"]]
        if len(set(numbers)) != len(numbers):
            raise RefusedError(400, "panels with the same id")
        there = self.boards.get(board["uid"])
        if there is not None and not body["overwrite"]:
            if board.get("version") != there["dashboard"]["version"]:
                raise RefusedError(412, "The dashboard has been changed by someone else")
        elif there is None and board.get("version"):
            raise RefusedError(404, "Dashboard not found")
        for uid, other in self.boards.items():
            same = other["dashboard"]["title"] == board["title"] and other["meta"]["folderUid"] == folder
            if uid != board["uid"] and same:
                raise RefusedError(412, "A dashboard with the same name in the folder already exists")
        number = self._next() if there is None else there["dashboard"]["id"]
        version = 1 if there is None else there["dashboard"]["version"] + 1
        self.boards[board["uid"]] = {
            "meta": {"folderUid": folder, "provisioned": False},
            "dashboard": {**board, "id": number, "version": version},
        }
        return {"id": number, "uid": board["uid"], "status": "success", "version": version}

    def _save_group(self, folder: str, group: str, body: Json, provenance: str) -> Json:
        typed(alerting.RuleGroup, body)
        if body["title"] != group or body["folderUid"] != folder:
            raise RefusedError(400, "title and folder of the body are not those of the path")
        if folder not in self.folders:
            raise RefusedError(400, "folder not found")
        if body["interval"] <= 0 or body["interval"] % 10:
            raise RefusedError(400, "interval must be a multiple of 10 s")
        before = {r["uid"]: r for r in self.groups.get((folder, group), {}).get("rules", [])}
        elsewhere = {r["uid"] for k, g in self.groups.items() if k != (folder, group) for r in g["rules"]}
        titles, rules = set(), []
        for one in body["rules"]:
            typed(alerting.Rule, one, beside=("notification_settings",))
            self._check_rule(one)
            if one["uid"] in elsewhere or one["title"] in titles:
                raise RefusedError(409, "rule with the same uid or title exists")
            old = before.get(one["uid"], {}).get("provenance", "")
            if old not in {"", provenance}:
                raise RefusedError(409, f"cannot change provenance from '{old}' to '{provenance}'")
            titles.add(one["title"])
            known = {"id": self._next(), "updated": "2026-11-25T00:00:00Z"}
            rules.append({**known, **one, "provenance": old or provenance})
        self.groups[folder, group] = {**body, "rules": rules}
        return body

    @staticmethod
    def _check_rule(one: Json) -> None:
        refs = {q["refId"] for q in one["data"]}
        if one["condition"] not in refs or not one["title"] or len(one["uid"]) > 40:
            raise RefusedError(400, "invalid alert rule")
        for query in one["data"]:
            typed(alerting.Query, query, beside=("model",))
            if query["datasourceUid"] == "__expr__" and query["model"]["expression"] not in refs:
                raise RefusedError(400, "an expression names no query")

    @staticmethod
    def _told(point: Json) -> Json:
        settings = json.loads(json.dumps(point["settings"]))
        if point["type"] == "slack":
            settings["url"] = "[REDACTED]"
        if "hmacConfig" in settings:
            settings["hmacConfig"]["secret"] = "[REDACTED]"
        return {**point, "settings": settings}

    def _save_point(self, uid: str | None, body: Json, provenance: str) -> Json:
        typed(alerting.ContactPoint, body)
        needs = {"webhook": "url", "slack": "url", "email": "addresses"}
        if not body["settings"].get(needs[body["type"]]):
            raise RefusedError(400, f"{body['type']} needs {needs[body['type']]}")
        if uid is None and body["uid"] in self.points:
            raise RefusedError(409, "contact point with that uid exists")
        if uid is not None:
            old = self._there(self.points, uid, "contact point not found").get("provenance", "")
            if old not in {"", provenance}:
                raise RefusedError(409, f"cannot change provenance from '{old}' to '{provenance}'")
        self.points[uid or body["uid"]] = {**body, "provenance": provenance}
        return {"message": "contactpoint saved"}

    def _remove_point(self, uid: str) -> Json:
        point = self._there(self.points, uid, "contact point not found")
        alone = sum(p["name"] == point["name"] for p in self.points.values()) == 1
        if alone and point["name"] in json.dumps(self.policies):
            raise RefusedError(409, "contact point is in use by a notification policy")
        del self.points[uid]
        return {"message": "contactpoint deleted"}

    def _save_policies(self, body: Json, provenance: str) -> Json:
        typed(alerting.NotificationPolicy, body)
        if self.policies_provenance not in {"", provenance}:
            raise RefusedError(409, "policies are provisioned otherwise")
        known = {p["name"] for p in self.points.values()} | {"grafana-default-email"}
        for route in [body, *body.get("routes", [])]:
            if route["receiver"] not in known:
                raise RefusedError(400, f"receiver {route['receiver']} does not exist")
        self.policies = body  # the whole tree: what is not in it is gone
        return {"message": "policies updated"}


@contextmanager
def serving(grafana: Grafana) -> Iterator[str]:
    """Its address, while the block lasts."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            text = self.rfile.read(length)
            try:
                found = grafana.call(
                    self.command,
                    urllib.parse.urlsplit(self.path).path,
                    json.loads(text) if text else None,
                    dict(self.headers.items()),
                )
                status = 202 if self.command in {"POST", "PUT", "DELETE"} and "provisioning" in self.path else 200
            except RefusedError as refused:
                status, found = refused.status, {"message": refused.message}
            except (ValueError, KeyError, TypeError) as error:  # a body that is not of its model
                status, found = 400, {"message": f"bad request data: {error}"}
            sent = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
