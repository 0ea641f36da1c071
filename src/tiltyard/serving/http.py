"""The HTTP face of served models: JSON rows, Arrow IPC streams, MLflow's scoring protocol, and an OpenAPI page.

An ASGI application (Starlette) over a `Backend`: what a deployment is, here is only asked. It authenticates, reads a body
within its limits, validates it against what the model takes, and words the answer. No Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import logging
import math
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from importlib.metadata import version
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tiltyard.errors import DataError
from tiltyard.registry.bundle import labels, probabilities
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.openapi import ARROW, document, page
from tiltyard.serving.requests import RequestError, rows_from_columns, table_from_rows
from tiltyard.serving.tokens import TokenStore, WrongGuesses
from tiltyard.telemetry.logs import bound, scrubbed
from tiltyard.telemetry.traces import enabled, span

_CROWD = 64
"""Bodies that are read at once beyond which a late one is laid to the crowd, not to its client."""
_TITLES = {
    400: "Not readable",
    401: "No valid token",
    403: "Not for this token",
    404: "Not served here",
    405: "Not this method",
    408: "Too slow",
    413: "Too large",
    415: "Unknown content type",
    422: "Not what the model takes",
    429: "Too many requests",
    500: "Failed",
    503: "Not available now",
    504: "No answer in time",
}
_LOG = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]


class Backend(Protocol):
    """Who answers."""

    def described(self) -> list[Described]:
        """Every model that is served."""

    def describe(self, name: str) -> Described:
        """One of them.

        Raises:
            RequestError: 404 if it is not served, 503 if it is not ready.
        """

    async def answer(self, name: str, table: pa.Table, request_id: str) -> Answer:
        """Its answer for a validated table."""

    async def answer_arrow(self, name: str, body: bytes, request_id: str) -> Answer:
        """Its answer for an Arrow IPC stream, validated where the model is."""

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        """Told of every answered request."""


class Guard:
    """Lets a request in, or says why not. Without a store everybody is let in."""

    def __init__(self, store: TokenStore | None, guesses: WrongGuesses | None = None) -> None:
        self._store, self._guesses = store, guesses or WrongGuesses()

    def check(self, request: Request, model: str | None = None) -> None:
        """Raises RequestError: 401 or 429 for no valid token, 403 for one that is not for this model."""
        if self._store is None:
            return
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        token = self._store.find(shown.strip()) if scheme.lower() == "bearer" else None
        if token is None:
            wait = self._guesses.wait_s(request.client.host if request.client else "")
            if wait:
                raise RequestError(429, "Too many wrong tokens came from this address.", [{"retry_after_s": wait}])
            raise RequestError(
                401, "Found no valid token. Send 'Authorization: Bearer TOKEN'; make one: tiltyard token create"
            )
        if model is not None and not token.opens(model):
            raise RequestError(
                403,
                f"This token is for {', '.join(token.models)}, not for {model}. Make another: tiltyard token create",
            )

    def visible(self, request: Request, models: list[Described]) -> list[Described]:
        """Those of the models that the request's token opens."""
        if self._store is None:
            return models
        token = self._store.find(request.headers.get("authorization", "").partition(" ")[2].strip())
        return [m for m in models if token is not None and token.opens(m.model)]


def build_app(
    backend: Backend, limits: Limits, guard: Guard, *, at_end: Callable[[], object] | None = None
) -> Starlette:
    """The ASGI application; ``at_end`` is called in a thread when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        if at_end is not None:
            await asyncio.to_thread(at_end)

    face = _Face(backend, limits, guard)
    routes = [
        Route("/ping", face.ping),
        Route("/health", face.ping),
        Route("/version", face.version),
        Route("/models", face.told(face.models)),
        Route("/openapi.json", face.told(face.openapi)),
        Route("/docs", face.told(face.docs)),
        Route("/invocations", face.told(face.invocations), methods=["POST"]),
        Route("/models/{name}", face.told(face.model)),
        Route("/models/{name}/ping", face.told(face.model_ping)),
        Route("/models/{name}/predict", face.told(face.predict), methods=["POST"]),
        Route("/models/{name}/invocations", face.told(face.invocations), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={404: _no_route, 405: _no_route}, lifespan=lifespan)


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    allowed = getattr(error, "headers", None) or {}
    what = f"There is no {request.method} {request.url.path} here; see /docs."
    return _refusal(RequestError(status, what), headers=dict(allowed))


class _Face:
    def __init__(self, backend: Backend, limits: Limits, guard: Guard) -> None:
        self._backend, self._limits, self._guard = backend, limits, guard
        self._reading, self._crowded_at = 0, -math.inf

    def told(self, handler: Handler) -> Handler:
        """The handler, with its refusals as problem documents and every request observed."""

        async def answer(request: Request) -> Response:
            told = _request_id(request)
            with bound(request=told):
                response = await (traced(request, told) if enabled() else observed(request))
            response.headers["x-request-id"] = told
            return response

        async def traced(request: Request, told: str) -> Response:
            with span("request", parent=request.headers.get("traceparent", ""), request=told):
                return await observed(request)

        async def observed(request: Request) -> Response:
            begun = asyncio.get_running_loop().time()
            try:
                response = await handler(request)
            except RequestError as error:
                response = _refusal(error, retry_after_s=self._limits.retry_after_s)
            except DataError as error:
                response = _refusal(RequestError(422, scrubbed(str(error))))
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:  # a user's model may fail in any way on a row
                _LOG.exception("%s %s", request.method, request.url.path)
                what = f"The model failed on these rows ({type(error).__name__}). Its log has the reason."
                response = _refusal(RequestError(500, what))
            name = getattr(request.state, "model", None)
            if name is not None:
                seconds = asyncio.get_running_loop().time() - begun
                rows = getattr(request.state, "rows", 0)
                self._backend.observe(name, status=response.status_code, seconds=seconds, rows=rows)
            return response

        return answer

    async def ping(self, request: Request) -> Response:
        """MLflow's: 200 while every model answers."""
        del request
        return PlainTextResponse("\n")

    async def version(self, request: Request) -> Response:
        """MLflow's: the version of MLflow whose protocol this is."""
        del request
        return PlainTextResponse(version("mlflow"))

    async def models(self, request: Request) -> Response:
        """What is served."""
        self._guard.check(request)
        found = self._guard.visible(request, self._backend.described())
        return _json({"models": [m.to_json() for m in found]})

    async def model(self, request: Request) -> Response:
        """One model."""
        return _json(self._asked(request).to_json())

    async def model_ping(self, request: Request) -> Response:
        """200 while this model answers and is what its alias names, as far as is known; 503 with the reason else."""
        model = self._asked(request)
        if model.problem:
            raise RequestError(503, f"{model.served_as} serves version {model.version}, but {model.problem}")
        away = f"version {model.version} goes on serving: {model.registry}" if model.registry else ""
        return PlainTextResponse(f"{away}\n")

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document of what is served."""
        self._guard.check(request)
        found = self._guard.visible(request, self._backend.described())
        return _json(document(found, self._limits, root=request.scope.get("root_path", "")))

    async def docs(self, request: Request) -> Response:
        """The same, to read."""
        self._guard.check(request)
        found = self._guard.visible(request, self._backend.described())
        return HTMLResponse(page(document(found, self._limits, root=request.scope.get("root_path", ""))))

    async def predict(self, request: Request) -> Response:
        """Answers for JSON rows or an Arrow IPC stream, in the form they came."""
        model = self._asked(request)
        kind = _content_type(request)
        if kind == ARROW:
            body = await self._body(request)
            answer = await self._within(self._backend.answer_arrow(model.served_as, body, _request_id(request)))
            request.state.rows = len(answer.outputs)
            return self._arrow(answer)
        if kind != "application/json":
            raise RequestError(415, f"Found content type {kind!r}; wanted application/json or {ARROW}.")
        told = _parsed(await self._body(request))
        if not isinstance(told, dict) or set(told) != {"rows"}:
            raise RequestError(422, 'Wanted {"rows": [{"column": value, ...}, ...]} and nothing beside it.')
        return await self._answer_rows(request, model, told["rows"], extra="refuse", word=self._native)

    async def invocations(self, request: Request) -> Response:
        """MLflow's scoring protocol."""
        model = self._asked(request)
        kind = _content_type(request)
        body = await self._body(request)
        if kind == "text/csv":
            rows = _csv_rows(body, model)
        elif kind == "application/json":
            rows = _mlflow_rows(_parsed(body))
        else:
            raise RequestError(415, f"Found content type {kind!r}; wanted application/json or text/csv.")
        return await self._answer_rows(request, model, rows, extra="ignore", word=self._mlflow)

    async def _answer_rows(
        self,
        request: Request,
        model: Described,
        rows: Any,
        *,
        extra: str,
        word: Callable[[Answer], dict[str, Any]],
    ) -> Response:
        table = table_from_rows(rows, model.columns, self._limits, extra=extra, personal=model.personal)
        request.state.rows = table.num_rows
        answer = await self._within(self._backend.answer(model.served_as, table, _request_id(request)))
        return _json(word(answer), headers=_origin(answer))

    def _asked(self, request: Request) -> Described:
        name = request.path_params.get("name") or request.headers.get("x-tiltyard-model")
        self._guard.check(request, name)
        if name is None:
            served = self._guard.visible(request, self._backend.described())
            if len(served) != 1:
                names = ", ".join(m.served_as for m in served)
                raise RequestError(404, f"Which model? There are: {names}. Ask /models/NAME/invocations")
            name = served[0].served_as
        model = self._backend.describe(name)
        request.state.model = model.served_as
        return model

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        too_large = RequestError(413, f"The body is larger than {most} bytes. Send the rows in parts.")
        told = request.headers.get("content-length", "")
        if told.isdigit() and int(told) > most:
            raise too_large
        parts, size = [], 0
        begun = asyncio.get_running_loop().time()
        self._reading += 1
        if self._reading > _CROWD:
            self._crowded_at = begun
        try:
            async with asyncio.timeout(self._limits.read_s):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise too_large
                    parts.append(part)
        except TimeoutError as error:
            if self._crowded_at >= begun:  # it may well have arrived: nobody came to read it
                raise RequestError(503, "So many requests came at once that this one was not read in time.") from error
            raise RequestError(
                408, f"The body did not arrive within {self._limits.read_s:g} s; send it again."
            ) from error
        finally:
            self._reading -= 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _within(self, answer: Awaitable[Answer]) -> Answer:
        try:
            async with asyncio.timeout(self._limits.answer_s):
                return await answer
        except TimeoutError as error:
            raise RequestError(504, f"No answer within {self._limits.answer_s:g} s. Send fewer rows.") from error

    @staticmethod
    def _native(answer: Answer) -> dict[str, Any]:
        told = {
            "model": answer.model,
            "version": answer.version,
            "digest": answer.digest,
            "predictions": _predictions(answer),
        }
        found = probabilities(answer.task, answer.outputs)
        if found is not None:
            told |= {"classes": list(answer.classes), "probabilities": found.tolist()}
        return told

    @staticmethod
    def _mlflow(answer: Answer) -> dict[str, Any]:
        records = [{"prediction": p} for p in _predictions(answer)]
        found = probabilities(answer.task, answer.outputs)
        if found is not None:
            names = [f"probability_{c}" for c in answer.classes]
            for record, row in zip(records, found.tolist(), strict=True):
                record |= dict(zip(names, row, strict=True))
        return {"predictions": records}

    @staticmethod
    def _arrow(answer: Answer) -> Response:
        columns: dict[str, Any] = {}
        if answer.task.is_classification and answer.task.value != "multilabel":
            best = pa.array(answer.outputs.argmax(axis=1).astype(np.int32))
            columns["prediction"] = pa.array(list(answer.classes)).take(best)
        else:
            columns["prediction"] = pa.array(labels(answer.task, answer.outputs, answer.classes))
        found = probabilities(answer.task, answer.outputs)
        if found is not None:
            by_class = np.ascontiguousarray(found.T)
            columns |= {f"probability_{c}": pa.array(by_class[i]) for i, c in enumerate(answer.classes)}
        table = pa.table(columns)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return Response(sink.getvalue().to_pybytes(), media_type=ARROW, headers=_origin(answer))


def _predictions(answer: Answer) -> list[Any]:
    """Labels or values; null where the model's output is not a number, e.g. for an input far out of any range."""
    found = labels(answer.task, answer.outputs, answer.classes)
    good = np.isfinite(answer.outputs).all(axis=1)
    return found if good.all() else [p if fine else None for p, fine in zip(found, good, strict=True)]


def _origin(answer: Answer) -> dict[str, str]:
    return {"x-tiltyard-version": str(answer.version), "x-tiltyard-digest": answer.digest}


def _json(content: Any, headers: Mapping[str, str] | None = None) -> Response:
    try:
        body = json.dumps(content, allow_nan=False)
    except ValueError:
        body = json.dumps(_finite(content))
    return Response(body, media_type="application/json", headers=dict(headers or {}))


def _finite(content: Any) -> Any:
    """The same with null for what JSON has no word for."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {k: _finite(v) for k, v in content.items()}
    return [_finite(v) for v in content] if isinstance(content, list) else content


def _refusal(error: RequestError, *, retry_after_s: int = 1, headers: dict[str, str] | None = None) -> Response:
    """RFC 9457: a problem document."""
    headers = dict(headers or {})
    if error.status in {429, 503}:
        wait = next((p["retry_after_s"] for p in error.problems if "retry_after_s" in p), retry_after_s)
        headers["retry-after"] = str(math.ceil(wait))
    if error.status in {408, 413}:
        headers["connection"] = "close"  # what is still on its way is not read
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    content = {
        "type": "about:blank",
        "title": _TITLES.get(error.status, "Refused"),
        "status": error.status,
        "detail": error.message,
        "problems": [dict(p) for p in error.problems if "column" in p],
    }
    return JSONResponse(content, status_code=error.status, headers=headers, media_type="application/problem+json")


def _request_id(request: Request) -> str:
    """The caller's own, so that one who asks again meets the same version; else one of ours, the same for the whole request."""
    known: str | None = getattr(request.state, "request_id", None)
    if known is None:
        known = request.state.request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
    return known


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not JSON: {str(error)[:200]}") from error


def _mlflow_rows(told: Any) -> Any:
    """The rows in any of MLflow's four JSON forms."""
    forms = ("dataframe_split", "dataframe_records", "instances", "inputs")
    given = [f for f in forms if isinstance(told, dict) and f in told]
    if len(given) != 1:
        raise RequestError(422, f"Wanted an object with exactly one of {', '.join(forms)}.")
    value = told[given[0]]
    if given[0] == "dataframe_split":
        split = value if isinstance(value, dict) else {}
        return rows_from_columns(split.get("columns"), split.get("data"))
    if isinstance(value, dict):  # inputs: {"column": [values, ...], ...}
        lists = list(value.values())
        if not lists or not all(isinstance(v, list) and len(v) == len(lists[0]) for v in lists):
            raise RequestError(422, "The columns of 'inputs' are not lists of one length; wanted that.")
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return value


def _csv_rows(body: bytes, model: Described) -> list[dict[str, Any]]:
    kinds = {c.name: c.kind for c in model.columns}
    try:
        lines = list(csv.reader(io.StringIO(body.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestError(400, f"The body is not CSV in UTF-8: {error}") from error
    if not lines:
        raise RequestError(422, "The body has no line of column names; wanted that, and one or more rows.")
    rows = rows_from_columns(lines[0], lines[1:])
    return [{k: _csv_value(v, kinds.get(k, "category")) for k, v in row.items()} for row in rows]


def _csv_value(text: str, kind: str) -> Any:
    if text == "":
        return None
    if kind == "number":
        try:
            return float(text)
        except ValueError:
            return text
    if kind == "tensor":
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
