"""What the HTTP face says where the model cannot answer now; asked as ASGI asks, without a socket."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from tiltyard.serving.answers import Answer, Described, InputColumn, Limits
from tiltyard.serving.http import Guard, build_app
from tiltyard.serving.requests import RequestError
from tiltyard.types import Task

MODEL = Described(
    served_as="a.b",
    model="a.b",
    version=7,
    digest="d" * 64,
    task=Task.REGRESSION,
    classes=("y",),
    columns=(InputColumn(name="x", kind="number"),),
)


class Failing:
    """A `Backend` of one model that raises what it is given, or never answers."""

    def __init__(self, error: Exception | None = None, model: Described = MODEL) -> None:
        self._error, self._model = error, model
        self.seen: list[int] = []

    def described(self) -> list[Described]:
        return [self._model]

    def describe(self, name: str) -> Described:
        return self._model

    async def answer(self, name: str, table: pa.Table, request_id: str) -> Answer:
        if self._error is not None:
            raise self._error
        await asyncio.Event().wait()
        raise AssertionError

    async def answer_arrow(self, name: str, body: bytes, request_id: str) -> Answer:
        raise NotImplementedError

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        self.seen.append(status)


def _ask(backend: Failing, path: str, body: bytes = b"", method: str = "POST") -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    app = build_app(backend, Limits(answer_s=0.05, retry_after_s=3), Guard(None))
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(_scope(path, method), receive, send))
    headers = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(m.get("body", b"") for m in sent[1:])


def _scope(path: str, method: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        "scheme": "http",
        "http_version": "1.1",
    }


@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (RequestError(429, "128 requests wait for this model already."), 429, "3"),
        (RequestError(503, "No replica of this model can answer now."), 503, "3"),
        (None, 504, None),
        (ZeroDivisionError("a user's model"), 500, None),
    ],
)
def test_model_that_cannot_answer_is_told_with_when_to_ask_again(
    error: Exception | None, status: int, retry_after: str | None
) -> None:
    backend = Failing(error)
    found, headers, body = _ask(backend, "/models/a.b/predict", b'{"rows": [{"x": 1}]}')
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert headers.get("retry-after") == retry_after
    assert json.loads(body)["status"] == status
    assert b"a user's model" not in body
    assert backend.seen == [status]


@pytest.mark.parametrize(("clients", "status", "retry_after"), [(20, 408, None), (200, 503, "3")])
def test_body_that_is_late_is_laid_to_its_client_but_in_a_crowd(
    clients: int, status: int, retry_after: str | None
) -> None:
    app = build_app(Failing(), Limits(read_s=0.05, retry_after_s=3), Guard(None))
    starts: list[Any] = []

    async def never() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Any) -> None:
        starts.extend([message] if message["type"] == "http.response.start" else [])

    async def ask_all() -> None:
        await asyncio.gather(*(app(_scope("/models/a.b/predict", "POST"), never, send) for _ in range(clients)))

    asyncio.run(ask_all())
    told = [(m["status"], dict(m["headers"]).get(b"retry-after")) for m in starts]
    assert told == [(status, None if retry_after is None else retry_after.encode())] * clients


def test_ping_of_a_model_tells_a_registry_that_is_away_from_a_version_that_is_stale() -> None:
    assert _ask(Failing(), "/models/a.b/ping", method="GET")[::2] == (200, b"\n")
    away = replace(MODEL, registry="the registry did not answer: refused", registry_age_s=12.0)
    status, _, body = _ask(Failing(model=away), "/models/a.b/ping", method="GET")
    assert (status, body) == (200, b"version 7 goes on serving: the registry did not answer: refused\n")
    assert json.loads(_ask(Failing(model=away), "/models/a.b", method="GET")[2])["registry"] == away.registry
    stale = replace(MODEL, problem="version 8 could not be loaded: its digest is another")
    status, headers, body = _ask(Failing(model=stale), "/models/a.b/ping", method="GET")
    assert (status, headers["retry-after"]) == (503, "3")
    assert "serves version 7, but version 8 could not be loaded" in json.loads(body)["detail"]
