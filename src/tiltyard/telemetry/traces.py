"""Traces: submit -> sweep -> pack, and request -> replica, as OpenTelemetry spans. Off unless ``TILTYARD_TRACES`` says where to.

``TILTYARD_TRACES`` is a folder, in which each process writes its spans as JSON lines, or ``otlp``: to the collector of
OpenTelemetry's own variables (``OTEL_EXPORTER_OTLP_ENDPOINT``), which wants the package
``opentelemetry-exporter-otlp-proto-http``. A span that another process goes on under travels as a W3C ``traceparent``: in the
environment of a job, in what a worker is told, in the header of a request, in the call of a replica.

Where it is off nothing of OpenTelemetry is imported, and a span costs less than a microsecond. Attributes are scrubbed as
log lines are, and errors.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.telemetry.logs import scrubbed

TRACES_ENV, PARENT_ENV = "TILTYARD_TRACES", "TRACEPARENT"
OTLP = "otlp"


def enabled() -> bool:
    """Whether spans are kept."""
    return bool(_sink())


@lru_cache(maxsize=1)
def _sink() -> str:
    return os.environ.get(TRACES_ENV, "").strip()


_NOTHING = nullcontext()


def span(name: str, *, parent: str = "", **attributes: Any) -> AbstractContextManager[None]:
    """What is done inside is one span; an error that leaves it is recorded with it.

    Args:
        name: E.g. ``sweep``.
        parent: A ``traceparent`` from another process; without one the span around it, or that of this process's
            environment.
        attributes: Few and short.
    """
    return _kept(name, parent, attributes) if _sink() else _NOTHING


@contextmanager
def _kept(name: str, parent: str, attributes: Mapping[str, Any]) -> Iterator[None]:
    values = {f"tiltyard.{k}": scrubbed(str(v)) for k, v in attributes.items()}
    with _tracer().start_as_current_span(
        name, context=_context(parent), attributes=values, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except Exception as error:
            _record(current, error)
            raise


def _record(current: Any, error: Exception) -> None:
    """The error on its span, as OpenTelemetry would have it, scrubbed."""
    from opentelemetry.trace import Status, StatusCode

    told = scrubbed(f"{type(error).__name__}: {error}")
    where = scrubbed("".join(traceback.format_exception(error)))
    current.add_event(
        "exception",
        {
            "exception.type": type(error).__qualname__,
            "exception.message": scrubbed(str(error)),
            "exception.stacktrace": where,
        },
    )
    current.set_status(Status(StatusCode.ERROR, told))


def carrier() -> str:
    """The ``traceparent`` of the span at work here; empty where there is none."""
    if not _sink():
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return found.get("traceparent", "")


def environment() -> dict[str, str]:
    """Variables under which another process goes on under the span at work here; empty where traces are off."""
    if not _sink():
        return {}
    parent = carrier()
    return {TRACES_ENV: _sink(), **({PARENT_ENV: parent} if parent else {})}


def adopt(told: Mapping[str, str]) -> None:
    """Keeps spans as the process does that gave its `environment`; where it gave none nothing changes."""
    sink = told.get(TRACES_ENV, "")
    if sink and sink != _sink():
        os.environ[TRACES_ENV] = sink
        _sink.cache_clear()
        _tracer.cache_clear()


def _context(parent: str) -> Any:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    told = parent
    if not told and not trace.get_current_span().get_span_context().is_valid:
        told = os.environ.get(PARENT_ENV, "")
    return TraceContextTextMapPropagator().extract({"traceparent": told}) if told else None


@lru_cache(maxsize=1)
def _tracer() -> Any:
    """A tracer of its own: Ray and MLflow may have set the global provider, and keep it."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": "tiltyard"}))
    if _sink() == OTLP:
        provider.add_span_processor(BatchSpanProcessor(_otlp()))
    else:
        provider.add_span_processor(SimpleSpanProcessor(_file(Path(_sink()))))
    return provider.get_tracer("tiltyard")


def _file(folder: Path) -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    out = (folder / f"spans-{os.getpid()}.jsonl").open("a", buffering=1)
    return ConsoleSpanExporter(out=out, formatter=lambda s: s.to_json(indent=None) + "\n")


def _otlp() -> Any:
    import importlib

    try:
        module = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise SpecError(
            f"{TRACES_ENV} is otlp, and the exporter is not installed: pip install opentelemetry-exporter-otlp-proto-http. "
            "Or name a folder: each process then writes its spans there."
        ) from error
    return module.OTLPSpanExporter()


def read(folder: Path) -> list[Mapping[str, Any]]:
    """The spans of every process in a folder, in order of their start."""
    import json

    lines = [line for path in sorted(folder.glob("spans-*.jsonl")) for line in path.read_text().splitlines()]
    return sorted((json.loads(line) for line in lines), key=lambda s: s["start_time"])
