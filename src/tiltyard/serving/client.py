"""Deploys an application and streams rows through it with a bounded number of requests in flight."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from ray import serve

from tiltyard.serving.deployment import Answer

IN_FLIGHT = 2
"""One being answered, one on its way: more only takes memory, for a replica answers one at a time."""


def deploy(app: Any, *, name: str, http: bool = False) -> Any:
    """Runs an application until it is ready; returns the handle of its ingress.

    Args:
        app: A bound application.
        name: Its name; an application of the same name is replaced.
        http: Whether Serve's HTTP proxy is started too (127.0.0.1). It has no authentication of its own.
    """
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    location = "HeadOnly" if http else "Disabled"
    serve.start(proxy_location=location, http_options={"host": "127.0.0.1"})
    return serve.run(app, name=name, route_prefix=f"/{name}" if http else None)


def remove(name: str) -> None:
    """Ends an application."""
    serve.delete(name)


def stream_rows(handle: Any, model: str, tables: Iterable[pa.Table], *, in_flight: int = IN_FLIGHT) -> Iterator[Answer]:
    """Answers for tables of raw rows, in their order, with at most ``in_flight`` requests under way."""
    waiting: deque[Any] = deque()
    for table in tables:
        if len(waiting) >= in_flight:
            yield waiting.popleft().result()
        waiting.append(handle.predict.remote(model, table))
    while waiting:
        yield waiting.popleft().result()
