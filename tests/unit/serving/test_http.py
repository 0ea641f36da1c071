"""The HTTP face over real models and a real socket, without Ray: forms, refusals, tokens, and what the document promises."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import requests
import uvicorn

from tiltyard.registry import ModelAddress, ModelVersion
from tiltyard.registry.version import cached_bundle
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.batching import Batcher
from tiltyard.serving.holder import Holder
from tiltyard.serving.http import Guard, build_app
from tiltyard.serving.openapi import ARROW
from tiltyard.serving.requests import RequestError, table_from_arrow
from tiltyard.serving.tokens import TokenStore, WrongGuesses
from tiltyard.settings import Settings
from tiltyard.telemetry import logs
from tiltyard.testing.bundles import SmallBundle, small_bundle
from tiltyard.types import Task

LIMITS = Limits(rows=500, body_bytes=100_000, read_s=0.5, answer_s=5)


class Local:
    """A `Backend` whose models live in this process; Ray's part of it is held by tests/local_ray/serving."""

    def __init__(self, holders: list[Holder]) -> None:
        self._holders = {h.served_as: h for h in holders}
        self._batchers = {name: Batcher(self._call(h), LIMITS) for name, h in self._holders.items()}
        self.seen: list[tuple[str, int, int]] = []

    @staticmethod
    def _call(holder: Holder) -> Any:
        async def call(table: pa.Table) -> Answer:
            return holder.predict(table)

        return call

    def described(self) -> list[Described]:
        return [h.describe() for h in self._holders.values()]

    def describe(self, name: str) -> Described:
        if name not in self._holders:
            raise RequestError(404, f"No model {name!r} is served here.")
        return self._holders[name].describe()

    async def answer(self, name: str, table: pa.Table, request_id: str) -> Answer:
        return await self._batchers[name].answer(table)

    async def answer_arrow(self, name: str, body: bytes, request_id: str) -> Answer:
        holder = self._holders[name]
        return holder.predict(table_from_arrow(body, holder.columns, LIMITS))

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        assert 0 <= seconds < 30
        self.seen.append((name, status, rows))


class Served:
    """A running server."""

    def __init__(self, backend: Local, bundles: dict[str, SmallBundle], holders: list[Holder], guard: Guard) -> None:
        self.backend, self.bundles, self.holders = backend, bundles, holders
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = build_app(backend, LIMITS, guard)
        config = uvicorn.Config(self.app, port=self.port, log_level="error", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)


def _serve(home: Path, guard: Guard, *, personal: tuple[str, ...] = ()) -> Served:
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    bundles, holders = {}, []
    for name, task, model in (
        ("t.classes", Task.MULTICLASS, "mlp"),
        ("t.price", Task.REGRESSION, "lightgbm"),
        ("t.tags", Task.MULTILABEL, "mlp"),
    ):
        made = small_bundle(home / name, task=task, model=model, personal=personal)
        made.folder.rename(_parent(cached_bundle(settings, made.digest)))
        bundles[name] = made
        holder = Holder(settings, ModelAddress.parse(name))
        holder.take(
            ModelVersion(
                name=name, version=1, digest=made.digest, aliases=(), tags={}, run_id="", source="", created_ms=0
            )
        )
        holders.append(holder)
    return Served(Local(holders), bundles, holders, guard)


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = _serve(tmp_path_factory.mktemp("open"), Guard(None))
    yield running
    running.stop()


def _problem(answer: requests.Response, status: int) -> dict[str, Any]:
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told: dict[str, Any] = answer.json()
    assert told["status"] == status
    return told


@pytest.mark.parametrize("name", ["t.classes", "t.price", "t.tags"])
def test_predict_of_any_task_answers_as_offline_in_json_and_arrow(name: str, served: Served) -> None:
    rows = served.bundles[name].rows.slice(0, 30)
    holder = next(h for h in served.holders if h.served_as == name)
    offline = holder.bundle.predict_table(rows)
    url = f"{served.url}/models/{name}/predict"
    told = requests.post(url, json={"rows": rows.to_pylist()}, timeout=10).json()
    assert told["predictions"] == offline.labels
    assert ("probabilities" in told) == (offline.probabilities is not None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    answer = requests.post(url, data=bytes(sink.getvalue()), headers={"content-type": ARROW}, timeout=10)
    assert answer.headers["content-type"] == ARROW
    assert answer.headers["x-tiltyard-digest"] == served.bundles[name].digest
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table["prediction"].to_pylist() == offline.labels
    if offline.probabilities is not None:
        found = np.stack([table[c].to_numpy() for c in table.column_names[1:]], axis=1)
        np.testing.assert_allclose(found, offline.probabilities, atol=1e-6)


def test_invocations_of_every_form_are_answered_in_mlflows_words(served: Served) -> None:
    rows = served.bundles["t.classes"].rows.slice(0, 5)
    offline = served.holders[0].bundle.predict_table(rows)
    assert offline.probabilities is not None
    url = f"{served.url}/models/t.classes/invocations"
    records = rows.to_pylist()
    text = io.StringIO()
    writer = csv.DictWriter(text, rows.column_names)
    writer.writeheader()
    writer.writerows(records)
    forms: list[dict[str, Any]] = [
        {"json": {"dataframe_split": {"columns": rows.column_names, "data": [list(r.values()) for r in records]}}},
        {"json": {"dataframe_records": [{**r, "more": "ignored"} for r in records]}},
        {"json": {"instances": records}},
        {"json": {"inputs": rows.to_pydict()}},
        {"data": text.getvalue(), "headers": {"content-type": "text/csv; charset=utf-8"}},
    ]
    for form in forms:
        predictions = requests.post(url, timeout=10, **form).json()["predictions"]
        assert [p["prediction"] for p in predictions] == offline.labels
        assert predictions[0]["probability_1"] == pytest.approx(float(offline.probabilities[0, 1]), abs=1e-6)
    refused: list[dict[str, Any]] = [
        {},
        {"instances": records, "inputs": {}},
        {"dataframe_split": []},
        {"inputs": {"n0": [1], "n1": []}},
    ]
    for wrong in refused:
        _problem(requests.post(url, json=wrong, timeout=10), 422)
    _problem(requests.post(url, data=b"\xff\xfe", headers={"content-type": "text/csv"}, timeout=10), 400)


def test_wrong_value_is_refused_with_row_and_column(served: Served) -> None:
    good = served.bundles["t.classes"].rows.slice(1, 1).to_pylist()[0]
    url = f"{served.url}/models/t.classes/predict"
    told = _problem(requests.post(url, json={"rows": [good, {**good, "n1": "high"}]}, timeout=10), 422)
    assert told["problems"] == [{"row": 1, "column": "n1", "found": "'high'", "wanted": "a number or null"}]
    assert served.backend.seen[-1] == ("t.classes", 422, 0)


def test_number_far_out_of_any_range_is_answered_with_null(served: Served) -> None:
    good = served.bundles["t.classes"].rows.slice(1, 1).to_pylist()[0]
    url = f"{served.url}/models/t.classes/predict"
    told = requests.post(
        url, json={"rows": [{**good, "n1": 3.4e38, "n2": 3.4e38, "n3": 3.4e38}, good]}, timeout=10
    ).json()
    assert told["predictions"][0] is None
    assert None in told["probabilities"][0]
    assert told["predictions"][1] is not None


@pytest.mark.parametrize(
    ("path", "options", "status"),
    [
        ("/models/nobody", {}, 404),
        ("/models/nobody/predict", {"json": {"rows": [{}]}}, 404),
        ("/nowhere", {}, 404),
        ("/models/t.classes/predict", {"data": b"{"}, 400),
        ("/models/t.classes/predict", {"data": b"[" * 90_000}, 400),
        ("/models/t.classes/predict", {"data": b"\xff\xff"}, 400),
        ("/models/t.classes/predict", {"json": {"rows": [{}], "more": 1}}, 422),
        ("/models/t.classes/predict", {"data": b"x", "headers": {"content-type": "image/png"}}, 415),
        ("/models/t.classes/predict", {"data": b"garbage", "headers": {"content-type": ARROW}}, 400),
        ("/models/t.classes/predict", {"data": b" " * 100_001}, 413),
        ("/models/t.classes/predict", {"json": {"rows": [{}] * 501}}, 413),
        ("/invocations", {"json": {"instances": [{}]}}, 404),
    ],
)
def test_request_that_cannot_be_answered_is_refused_with_a_problem(
    path: str, options: dict[str, Any], status: int, served: Served
) -> None:
    call = requests.post if options else requests.get
    _problem(call(served.url + path, timeout=10, **options), status)


def test_wrong_method_says_which_is_allowed(served: Served) -> None:
    answer = requests.get(f"{served.url}/models/t.classes/predict", timeout=10)
    _problem(answer, 405)
    assert answer.headers["allow"] == "POST"


def test_endless_body_without_a_length_is_cut_off_at_the_limit(served: Served) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 16
            yield b" " * (1 << 16)

    try:
        status = requests.post(f"{served.url}/models/t.classes/predict", data=endless(), timeout=20).status_code
    except requests.ConnectionError:  # refused and closed while the client was still sending
        status = 413
    assert status == 413
    assert sent < 64 << 20


def test_client_that_hangs_in_its_body_is_told_408(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as slow:
        slow.sendall(b"POST /models/t.classes/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")


def test_header_names_the_model_where_the_path_does_not(served: Served) -> None:
    rows = served.bundles["t.price"].rows.slice(0, 2)
    answer = requests.post(
        f"{served.url}/invocations",
        json={"instances": rows.to_pylist()},
        headers={"X-Tiltyard-Model": "t.price"},
        timeout=10,
    )
    assert len(answer.json()["predictions"]) == 2


def test_tokens_let_in_who_may_and_slow_down_who_guesses(tmp_path: Path) -> None:
    store = TokenStore(tmp_path / "tokens")
    all_of_them, _ = store.create("all")
    one, _ = store.create("one", models=["t.price"])
    running = _serve(tmp_path / "home", Guard(store, WrongGuesses(most=10)))
    try:
        rows = running.bundles["t.price"].rows.slice(0, 1).to_pylist()

        def ask(name: str, token: str | None, scheme: str = "Bearer") -> requests.Response:
            headers = {"authorization": f"{scheme} {token}"} if token else {}
            url = f"{running.url}/models/{name}/predict"
            return requests.post(url, json={"rows": rows}, headers=headers, timeout=10)

        assert requests.get(f"{running.url}/ping", timeout=10).status_code == 200
        for _ in range(3):
            answer = ask("t.price", None)
            _problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        _problem(ask("t.price", one, scheme="Basic"), 401)
        assert ask("t.price", one).status_code == 200
        _problem(ask("t.tags", one), 403)
        _problem(ask("nobody", one), 403)
        assert ask("t.price", all_of_them).status_code == 200
        seen = requests.get(f"{running.url}/models", headers={"authorization": f"Bearer {one}"}, timeout=10).json()
        assert [m["name"] for m in seen["models"]] == ["t.price"]
        for path in ("/models", "/openapi.json", "/docs"):
            assert requests.get(running.url + path, timeout=10).status_code == 401

        statuses = [ask("t.price", f"tyt_{'0' * 12}_{'0' * 64}").status_code for _ in range(6)]
        assert statuses == [401, 401, 401, 429, 429, 429]
        assert int(ask("t.price", "wrong").headers["retry-after"]) > 30
        assert ask("t.price", one).status_code == 200
    finally:
        running.stop()


def test_page_and_document_name_every_model_and_load_nothing_from_elsewhere(served: Served) -> None:
    document = requests.get(f"{served.url}/openapi.json", timeout=10).json()
    page = requests.get(f"{served.url}/docs", timeout=10).text
    for name in served.bundles:
        assert f"/models/{name}/predict" in document["paths"]
        assert f"/models/{name}/predict" in page
    assert not re.findall(r"(?:src|href)=.https?://|<script", page)
    row = document["components"]["schemas"]["Row.t.classes"]
    assert row["required"] == ["n0", "n1", "n2", "n3", "colour"]


@pytest.mark.slow
def test_document_keeps_its_promises_under_schemathesis(served: Served) -> None:
    """Requests made from the document, right and wrong ones: no 5xx, no status or body that it does not name."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    statuses: list[int] = []
    operations = 0
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        operations += 1

        @given(case=operation.as_strategy())
        @settings(
            max_examples=15,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        def holds(case: Any) -> None:
            # not case.call: its session wants a urllib3 that another package has replaced
            response = requests.request(**{**case.as_transport_kwargs(base_url=served.url), "timeout": 10})
            case.validate_response(response)
            statuses.append(response.status_code)

        holds()
    assert operations >= 12
    assert 200 in statuses
    assert max(statuses) < 500


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What this process logs, with a scrubber of its own: what one test hides stays with it."""
    monkeypatch.setattr(logs, "_SCRUBBER", logs.Scrubber())
    logger, stream = logging.getLogger("tiltyard"), io.StringIO()
    before, level = list(logger.handlers), logger.level
    logs.setup(level=logging.WARNING, env={"TILTYARD_LOG": "json"}, stream=stream)
    yield stream
    logger.handlers[:] = before
    logger.setLevel(level)


def test_values_of_personal_columns_are_in_no_refusal_and_in_no_log_whatever_a_model_says_of_its_rows(
    tmp_path: Path, written: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = _serve(tmp_path, Guard(None), personal=("colour", "n1", "patient"))
    name = "Ann-Smith"
    url = f"{served.url}/models/t.classes/predict"
    row = {**served.bundles["t.classes"].rows.slice(1, 1).to_pylist()[0], "colour": name}

    def fail(x: Any) -> Any:
        try:
            return dict[str, Any]()[name]
        except KeyError as error:
            raise ValueError(f"there is no {name}; colour: {name}, n1={row['n1']}, n2={row['n2']}") from error

    try:
        wrong = _problem(requests.post(url, json={"rows": [{**row, "n1": name, "n2": "wide"}]}), 422)
        extra = _problem(requests.post(url, json={"rows": [{**row, "patient": name}]}), 422)
        missing = _problem(requests.post(url, json={"rows": [{k: v for k, v in row.items() if k != "n1"}]}), 422)
        monkeypatch.setattr(served.holders[0].bundle, "predict_matrix", fail)
        failed = _problem(requests.post(url, json={"rows": [row]}), 500)
    finally:
        served.stop()
    assert {p["column"]: p["found"] for p in wrong["problems"]} == {"n1": "a value that is not shown", "n2": "'wide'"}
    assert [(p["column"], p["found"]) for p in extra["problems"]] == [("patient", "a value that is not shown")]
    assert missing["problems"][0]["found"] == "nothing"
    assert "ValueError" in failed["detail"]
    (line,) = [told for told in map(json.loads, written.getvalue().splitlines()) if "error" in told]
    assert f"n2={row['n2']}" in line["error"]
    assert "in fail" in line["error"]
    for text in (str(wrong), str(extra), str(failed), written.getvalue()):
        assert name not in text
        assert str(row["n1"]) not in text
