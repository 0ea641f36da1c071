"""A small Ray head for tests of submission: the jobs API over HTTP on loopback, with faults to order.

It models: the token (401 without, 403 with a wrong one), the version, packages by name, jobs by id with "already exists",
stopping, logs as a whole. It does not model: running anything, following a log (a WebSocket), and every other page of the
dashboard; `tests/local_ray/test_submit.py` asks a real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import ray


class RayHead:
    """What the head knows, and what goes wrong next."""

    def __init__(self, *, token: str = "", version: str = ray.__version__) -> None:
        self.token, self.version = token, version
        self.jobs: dict[str, dict[str, Any]] = {}
        self.packages: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.before: Callable[[str], int | None] = lambda _: None
        """Called with ``METHOD /path`` before a request is done; a status code is answered instead, 0 hangs up."""
        self.after: Callable[[str], bool] = lambda _: True
        """Called when a request is done; where False, the answer is lost on its way."""
        self._lock = threading.Lock()

    def forget(self) -> None:
        """A restart without fault tolerance: everything is gone."""
        self.jobs.clear()
        self.packages.clear()

    def end(self, job_id: str, state: str) -> None:
        """A job ends."""
        self.jobs[job_id].update(status=state, end_time=2000, message=f"it is {state}")

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """Status and JSON."""
        parts = path.strip("/").split("/")
        if path == "/api/version":
            return 200, {"version": "4", "ray_version": self.version, "ray_commit": "x", "session_name": "s"}
        with self._lock:
            if parts[:2] == ["api", "packages"]:
                if method == "PUT":
                    self.packages[parts[3]] = body
                return (200, {}) if parts[3] in self.packages else (404, "no such package")
            if path == "/api/jobs/" and method == "GET":
                return 200, list(self.jobs.values())
            if path == "/api/jobs/" and method == "POST":
                return self._submit(json.loads(body))
            job = self.jobs.get(parts[2])
            if job is None:
                return 404, f"Job {parts[2]} does not exist"
            if parts[3:] == ["logs"]:
                return 200, {"logs": f"log of {parts[2]}\n"}
            if parts[3:] == ["stop"]:
                stopped = job["status"] in {"PENDING", "RUNNING"}
                if stopped:
                    self.end(parts[2], "STOPPED")
                return 200, {"stopped": stopped}
            return 200, job

    def _submit(self, asked: dict[str, Any]) -> tuple[int, Any]:
        job_id = asked["submission_id"]
        if job_id in self.jobs:
            return 500, f"Traceback\nValueError: Job with submission_id {job_id} already exists. Please use another."
        uri = asked["runtime_env"].get("working_dir", "")
        if uri and uri.rpartition("/")[2] not in self.packages:
            return 500, f"Traceback\nOSError: {uri} is not there"
        self.jobs[job_id] = {
            "type": "SUBMISSION",
            "submission_id": job_id,
            "status": "PENDING",
            "entrypoint": asked["entrypoint"],
            "start_time": 1000 + len(self.jobs),
            "metadata": asked["metadata"],
            "runtime_env": asked["runtime_env"],
        }
        return 200, {"job_id": job_id, "submission_id": job_id}


@contextmanager
def serving(head: RayHead) -> Iterator[str]:
    """The head on a free port of loopback; its URL."""

    class Handler(BaseHTTPRequestHandler):
        wbufsize = 1 << 16  # header and body in one packet

        def log_message(self, *_: object) -> None: ...

        def _do(self) -> None:
            what = f"{self.command} {self.path}"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            head.requests.append(what)
            head.headers.append(dict(self.headers))
            code = head.before(what)
            if code == 0:
                self.close_connection = True
                return
            answer: Any = f"told to answer {code}"
            if code is None:
                code, answer = self._checked(body)
                if not head.after(what):
                    self.close_connection = True
                    return
            data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _checked(self, body: bytes) -> tuple[int, Any]:
            given = self.headers.get("Authorization")
            if head.token and given is None:
                return 401, "Unauthorized: Missing authentication token"
            if head.token and given != f"Bearer {head.token}":
                return 403, "Forbidden: Invalid authentication token"
            return head.answer(self.command, self.path, body)

        do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815 - http.server's names

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
