"""Spans: off unless asked for, one tree over processes, and nothing in them that nobody is to read."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tiltyard.errors import SpecError
from tiltyard.telemetry import traces


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("TILTYARD_TRACES", str(tmp_path / "spans"))
    monkeypatch.delenv("TRACEPARENT", raising=False)
    for cached in (traces._sink, traces._tracer):
        cached.cache_clear()
    yield tmp_path / "spans"
    monkeypatch.undo()
    for cached in (traces._sink, traces._tracer):
        cached.cache_clear()


def tree(folder: Path) -> list[tuple[str, str]]:
    """Name of each span and of the one that it is under."""
    spans = traces.read(folder)
    names = {s["context"]["span_id"]: s["name"] for s in spans}
    assert len({s["context"]["trace_id"] for s in spans}) == 1, "one trace"
    return [(s["name"], names.get(s["parent_id"], "")) for s in spans]


def test_nothing_is_kept_or_imported_where_traces_are_off() -> None:
    code = (
        "import sys; from tiltyard.telemetry import traces\n"
        "with traces.span('x', a=1): assert traces.carrier() == '' and traces.environment() == {}\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')], 'OpenTelemetry was imported'"
    )
    env = {k: v for k, v in os.environ.items() if k != "TILTYARD_TRACES"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_submit_sweep_and_pack_are_one_trace_over_three_processes(folder: Path) -> None:
    """As the parts do it: the environment of a job, and what a worker is told (`Post.trace`)."""
    worker = (
        "import json, sys; from tiltyard.telemetry import traces\n"
        "told = json.loads(sys.argv[1]); traces.adopt(told)\n"
        "with traces.span('pack', parent=told['TRACEPARENT'], pack='p0'): pass"
    )
    driver = (
        "import json, subprocess, sys; from tiltyard.telemetry import traces\n"
        "import os\n"
        "with traces.span('sweep', experiment='e'):\n"
        "    told = json.dumps(traces.environment())\n"
        "    env = {k: v for k, v in os.environ.items() if k not in {'TILTYARD_TRACES', 'TRACEPARENT'}}\n"
        f"    subprocess.run([sys.executable, '-c', {worker!r}, told], check=True, env=env)"
    )
    with traces.span("submit", job="e-1"):
        env = {**os.environ, **traces.environment()}
        subprocess.run([sys.executable, "-c", driver], check=True, env=env, timeout=120)
    assert tree(folder) == [("submit", ""), ("sweep", "submit"), ("pack", "sweep")]
    assert [s["attributes"] for s in traces.read(folder)][1] == {"tiltyard.experiment": "e"}
    assert len(list(folder.glob("spans-*.jsonl"))) == 3


def test_request_and_replica_are_one_trace_under_the_callers_span(folder: Path) -> None:
    """The HTTP face, the front's call and the replica's method; Ray's transport is not between them here."""
    import pyarrow as pa
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response

    from tiltyard.serving.answers import Limits
    from tiltyard.serving.deployment import _asked
    from tiltyard.serving.http import Guard, _Face
    from tiltyard.serving.replicas import _Replica
    from tiltyard.serving.requests import packed

    replica = object.__new__(_Replica)
    replica._computing = threading.Lock()
    replica._holder = cast(Any, SimpleNamespace(address="m@3", predict=lambda table, turn: table.num_rows))

    async def remote(*arguments: Any) -> Any:
        return replica.predict(*arguments)

    async def ask(request: Request) -> Response:
        return PlainTextResponse(str(await _asked(remote, packed(pa.table({"a": [1, 2]})))))

    caller = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = [(b"traceparent", caller), (b"x-request-id", b"r7")]
    face = _Face(cast(Any, None), Limits(), Guard(None))
    asked = Request({"type": "http", "headers": headers, "method": "GET", "path": "/"})

    async def through() -> Response:
        return await face.told(ask)(asked)

    answer = asyncio.run(through())
    assert (answer.body, answer.headers["x-request-id"]) == (b"2", "r7")
    assert tree(folder) == [("request", ""), ("replica", "request")]
    request = traces.read(folder)[0]
    assert request["context"]["trace_id"] == "0x0af7651916cd43dd8448eb211c80319c"
    assert request["parent_id"] == "0xb7ad6b7169203331"
    assert request["attributes"] == {"tiltyard.request": "r7"}


def test_error_inside_a_span_is_recorded_and_goes_on_and_attributes_are_scrubbed(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), traces.span("x", where="postgresql://ann:s3cret77@db/x"):
        1 / 0  # noqa: B018
    (span,) = traces.read(folder)
    assert span["status"]["status_code"] == "ERROR"
    assert "s3cret77" not in json.dumps(span["attributes"])


def test_error_on_a_span_says_what_and_where_and_is_scrubbed(folder: Path) -> None:
    def fail() -> None:
        raise ValueError("postgresql://ann:s3cret77@db/x was away")

    with pytest.raises(ValueError, match="s3cret77"), traces.span("x"):
        fail()
    (span,) = traces.read(folder)
    (event,) = span["events"]
    assert event["attributes"]["exception.type"] == "ValueError"
    assert event["attributes"]["exception.message"].endswith("@db/x was away")
    assert "in fail" in event["attributes"]["exception.stacktrace"]
    assert "s3cret77" not in json.dumps(span)


def test_collector_without_its_exporter_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILTYARD_TRACES", "otlp")
    traces._sink.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(SpecError, match="opentelemetry-exporter-otlp-proto-http"), traces.span("x"):
        pass
