"""Deploys an application and streams rows through it with a bounded number of requests in flight."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray import serve
from ray.exceptions import RayActorError, RayTaskError

from tiltyard.errors import TiltyardError
from tiltyard.serving.answers import Answer

IN_FLIGHT = 3
"""One being answered, one being taken apart beside it, one on its way: more only takes memory."""
RETRIES = 3


def deploy(app: Any, *, name: str, http: bool = False, host: str = "127.0.0.1", port: int = 8000) -> Any:
    """Runs an application until it is ready; returns the handle of its ingress.

    Args:
        app: A bound application.
        name: Its name; an application of the same name is replaced.
        http: Whether Serve's HTTP proxy is started too, and the application answers under ``/``.
        host: Where the proxy listens.
        port: On which port.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    location = "HeadOnly" if http else "Disabled"
    serve.start(
        proxy_location=location,
        http_options={"host": host, "port": port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    return serve.run(app, name=name, route_prefix="/" if http else None)


def remove(name: str) -> None:
    """Ends an application."""
    serve.delete(name)


def stream_rows(handle: Any, model: str, tables: Iterable[pa.Table], *, in_flight: int = IN_FLIGHT) -> Iterator[Answer]:
    """Answers for tables of raw rows, in their order, with at most ``in_flight`` requests under way.

    A table whose replica died is sent again.

    Raises:
        TiltyardError: What the application said to a table.
    """
    waiting: deque[tuple[Any, Any]] = deque()
    for table in tables:
        if len(waiting) >= in_flight:
            yield _answer(handle, model, *waiting.popleft())
        rows = ray.put(table)  # kept until it is answered, so that sending it again costs nothing
        waiting.append((rows, handle.predict.remote(model, rows)))
    while waiting:
        yield _answer(handle, model, *waiting.popleft())


def _answer(handle: Any, model: str, rows: Any, response: Any) -> Answer:
    for attempt in range(RETRIES):
        try:
            return response.result()  # type: ignore[no-any-return]
        except RayTaskError as error:
            if isinstance(error.cause, TiltyardError):
                raise error.cause from None
            raise
        except RayActorError:
            if attempt == RETRIES - 1:
                raise
            response = handle.predict.remote(model, rows)
    raise AssertionError
