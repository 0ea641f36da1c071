"""A small Kubernetes API server for tests: objects over HTTP on loopback, with faults to order.

It models: objects by path with uid, resourceVersion and generation; create (409 where there), get, list by labels, delete
with a precondition; server-side apply with one set of leaf fields a manager, conflicts between managers, removal of what a
manager no longer applies, dry run, and no new version where nothing changes; watches of one object as a chunked stream; a
bearer token.

It does not model: schemas, defaults, admission, quotas, controllers (a test sets the status itself), lists merged by key
(every list is one value), RBAC, paging, other patches. What these do to the manifests only a real server shows.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tiltyard.kuberay.api import KINDS

Object = dict[str, Any]
PLURALS = {kind.plural for kind in KINDS.values()}
TOKEN = "kubernetes-token-of-the-test"


class KubeApi:
    """The objects, and what goes wrong next."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], tuple[int, str, str] | None] = lambda *_: None
        """Called with method and path; (code, reason, message) is answered instead; code 0 hangs up."""
        self.retry_after: str | None = None
        self.watch_closes_after: int | None = None
        """Events after which each watch is closed."""
        self.on_watch: Callable[[str], None] = lambda _: None
        """Called with the path of each watch that opens, after it has."""
        self._version = 100
        self._watchers: list[tuple[str, queue.Queue[tuple[str, Object]]]] = []
        self._lock = threading.RLock()

    # -- what a test does ---------------------------------------------------------------------------------------------

    def put(self, path: str, body: Object) -> Object:
        """Puts an object there, as another manager or a controller would."""
        with self._lock:
            there = self.objects.get(path)
            found = copy.deepcopy(body)
            metadata = found.setdefault("metadata", {})
            metadata.setdefault("uid", there["metadata"]["uid"] if there else str(uuid.uuid4()))
            metadata.setdefault("generation", 1)
            self._store(path, found, "MODIFIED" if there else "ADDED")
            return found

    def set_status(self, path: str, **status: Any) -> None:
        """A controller reports."""
        with self._lock:
            found = copy.deepcopy(self.objects[path])
            found["status"] = {"observedGeneration": found["metadata"]["generation"], **status}
            self._store(path, found, "MODIFIED")

    def remove(self, path: str) -> None:
        """Somebody deletes it."""
        with self._lock:
            self._tell(path, "DELETED", self.objects.pop(path))

    def named(self, kind: str, name: str) -> str:
        """Path of the object."""
        (path,) = [p for p, o in self.objects.items() if o["kind"] == kind and o["metadata"]["name"] == name]
        return path

    # -- what a client asks -------------------------------------------------------------------------------------------

    def answer(self, method: str, path: str, query: Mapping[str, str], body: bytes) -> tuple[int, Object]:
        """Status code and JSON."""
        with self._lock:
            there = self.objects.get(path)
            if method == "GET" and there is not None:
                return 200, there
            if method == "GET":
                return self._list(path, query)
            if method == "POST":
                return self._create(path, json.loads(body))
            if method == "PATCH":
                return self._apply(path, yaml.safe_load(body), query)
            if there is None:
                return 404, status(404, "NotFound", f"{path.rpartition('/')[2]} not found")
            wanted = (json.loads(body or b"{}").get("preconditions") or {}).get("uid")
            if wanted not in {None, there["metadata"]["uid"]}:
                return 409, status(409, "Conflict", "the UID in the precondition does not match")
            self.remove(path)
            return 200, status(200, "Success", "")

    def _list(self, path: str, query: Mapping[str, str]) -> tuple[int, Object]:
        plural = path.rpartition("/")[2]
        if plural not in PLURALS:  # an object of which there is none
            return 404, status(404, "NotFound", f"{plural} not found")
        wanted = [pair.partition("=") for pair in query.get("labelSelector", "").split(",") if pair]
        items = [
            o
            for p, o in sorted(self.objects.items())
            if p.startswith(f"{path}/") and all((o["metadata"].get("labels") or {}).get(k) == v for k, _, v in wanted)
        ]
        return 200, {"kind": "List", "metadata": {"resourceVersion": str(self._version)}, "items": items}

    def _create(self, path: str, body: Object) -> tuple[int, Object]:
        at = f"{path}/{body['metadata']['name']}"
        if at in self.objects:
            return 409, status(409, "AlreadyExists", f"{body['kind']} {body['metadata']['name']!r} already exists")
        body["metadata"] |= {"uid": str(uuid.uuid4()), "generation": 1}
        body["metadata"]["managedFields"] = [{"manager": "tiltyard", "operation": "Update"}]
        self._store(at, body, "ADDED")
        return 201, body

    def _apply(self, path: str, wanted: Object, query: Mapping[str, str]) -> tuple[int, Object]:
        manager = query["fieldManager"]
        there = self.objects.get(path)
        found = copy.deepcopy(there) if there else {"apiVersion": wanted["apiVersion"], "kind": wanted["kind"]}
        metadata = found.setdefault(
            "metadata", {k: v for k, v in wanted["metadata"].items() if k in {"name", "namespace"}}
        )
        owned: dict[str, set[tuple[str, ...]]] = {
            e["manager"]: {tuple(f) for f in e["fields"]} for e in metadata.get("managedFields", []) if "fields" in e
        }
        mine = dict(leaves(wanted))
        for other, fields in owned.items():
            clash = [f for f in fields & mine.keys() if other != manager and _at(found, f) != mine[f]]
            if clash and query.get("force") != "true":
                message = f'Apply failed with 1 conflict: conflict with "{other}": .{".".join(clash[0])}'
                cause = {
                    "reason": "FieldManagerConflict",
                    "message": f'conflict with "{other}"',
                    "field": ".".join(clash[0]),
                }
                return 409, {**status(409, "Conflict", message), "details": {"causes": [cause]}}
            owned[other] = fields - set(clash)
        for field in owned.get(manager, set()) - mine.keys():
            if not any(field in fields for other, fields in owned.items() if other != manager):
                _remove(found, field)
        for field, value in mine.items():
            _set(found, field, value)
        owned[manager] = set(mine)
        before = {k: v for k, v in (there or {}).items() if k != "metadata"}
        same = there is not None and before == {k: v for k, v in found.items() if k != "metadata"}
        plain = {k: v for k, v in metadata.items() if k != "managedFields"}
        same_metadata = there is not None and plain == {
            k: v for k, v in there["metadata"].items() if k != "managedFields"
        }
        metadata["managedFields"] = [
            *(e for e in metadata.get("managedFields", []) if "fields" not in e),
            *({"manager": m, "operation": "Apply", "fields": sorted(map(list, f))} for m, f in sorted(owned.items())),
        ]
        if same and same_metadata and metadata["managedFields"] == (there or found)["metadata"].get("managedFields"):
            return 200, there or found
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata["generation"] = metadata.get("generation", 0) + (0 if same else 1)
        if query.get("dryRun"):
            return 200, found
        self._store(path, found, "MODIFIED" if there else "ADDED")
        return 201 if there is None else 200, found

    def _store(self, path: str, body: Object, event: str) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.objects[path] = body
        self._tell(path, event, body)

    def _tell(self, path: str, event: str, body: Object) -> None:
        for watched, events in self._watchers:
            if watched == path:
                events.put((event, copy.deepcopy(body)))

    def open_watch(self, path: str, version: str) -> queue.Queue[tuple[str, Object]]:
        """Events of a path from a version on."""
        with self._lock:
            events: queue.Queue[tuple[str, Object]] = queue.Queue()
            there = self.objects.get(path)
            if there is not None and int(there["metadata"]["resourceVersion"]) > int(version or 0):
                events.put(("MODIFIED", copy.deepcopy(there)))
            self._watchers.append((path, events))
            return events


def status(code: int, reason: str, message: str) -> Object:
    """A ``Status``, as an API server answers an error."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def leaves(value: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Fields that a manager owns: every value that is no mapping, but for what names the object."""
    for key, item in value.items():
        path = (*at, str(key))
        if path in {("apiVersion",), ("kind",), ("metadata", "name"), ("metadata", "namespace")}:
            continue
        if isinstance(item, dict) and item:
            yield from leaves(item, path)
        else:
            yield path, item


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _set(value: Any, path: tuple[str, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value.setdefault(key, {})
    value[path[-1]] = new


def _remove(value: Any, path: tuple[str, ...]) -> None:
    for key in path[:-1]:
        value = value.get(key, {})
    value.pop(path[-1], None)


@contextmanager
def serving(api: KubeApi) -> Iterator[str]:
    """The server on a free port of loopback; its URL."""
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # header and body in one packet: 40 ms an answer less

        def log_message(self, *_: object) -> None: ...

        def _do(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.requests.append((self.command, self.path))
            fault = api.before(self.command, parts.path)
            if fault is not None and fault[0] == 0:
                self.close_connection = True
                return
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                fault = fault or (401, "Unauthorized", "Unauthorized")
            if fault is not None:
                self._send(fault[0], status(*fault))
            elif query.get("watch") == "true":
                self._watch(f"{parts.path}/{query['fieldSelector'].partition('=')[2]}", query)
            else:
                path = parts.path
                if self.command == "PATCH":
                    name = yaml.safe_load(body)["metadata"]["name"]
                    path = f"{path.rpartition('/')[0]}/{name}"
                self._send(*self._told(path, query, body))

        def _told(self, path: str, query: Mapping[str, str], body: bytes) -> tuple[int, Object]:
            code, answer = api.answer(self.command, path, query, body)
            return code, copy.deepcopy(answer)

        def _send(self, code: int, answer: Object) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            if code in {429, 503} and api.retry_after is not None:
                self.send_header("Retry-After", api.retry_after)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _watch(self, path: str, query: Mapping[str, str]) -> None:
            events = api.open_watch(path, query.get("resourceVersion", ""))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.flush()
            api.on_watch(path)
            left, sent = float(query.get("timeoutSeconds", 30)), 0
            while left > 0 and not ending.is_set():
                try:
                    kind, body = events.get(timeout=0.05)
                except queue.Empty:
                    left -= 0.05
                    continue
                line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
                try:
                    self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                    self.wfile.flush()
                except OSError:
                    return
                sent += 1
                if sent == api.watch_closes_after:
                    self.close_connection = True
                    return  # without the last chunk: cut off
            try:
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                return

        do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815 - http.server's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        ending.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def kubeconfig(path: Path, url: str, *, namespace: str = "tiltyard", token: str = TOKEN, context: str = "test") -> str:
    """A kubeconfig that names the server as a context that is not the current one, and one that leads nowhere."""
    text = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "elsewhere",
        "clusters": [
            {"name": "here", "cluster": {"server": url}},
            {"name": "nowhere", "cluster": {"server": "http://127.0.0.1:9"}},
        ],
        "users": [{"name": "me", "user": {"token": token}}],
        "contexts": [
            {"name": context, "context": {"cluster": "here", "user": "me", "namespace": namespace}},
            {"name": "elsewhere", "context": {"cluster": "nowhere", "user": "me"}},
        ],
    }
    path.write_text(yaml.safe_dump(text))
    path.chmod(0o600)
    return str(path)
