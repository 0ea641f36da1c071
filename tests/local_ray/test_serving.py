"""Champions on a real Ray Serve: by handle and by HTTP, swapped, broken, killed. One deployment for the module."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tiltyard.errors import RegistryError, ServingError, TiltyardError
from tiltyard.registry import read_bundle
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import cached_bundle
from tiltyard.settings import Settings
from tiltyard.testing.bundles import SmallBundle, small_bundle
from tiltyard.types import Task

pytestmark = pytest.mark.ray
ARROW = "application/vnd.apache.arrow.stream"
ASKED: Counter[tuple[str, int]] = Counter()
"""Requests of this module by model and status."""


@dataclass(frozen=True)
class Stage:
    """A registry with two models, three versions of one of them."""

    settings: Settings
    registry: ModelRegistry
    small: list[SmallBundle]
    price: SmallBundle
    own: SmallBundle


OWN = b"""
import time
from torch import nn

class Moody(nn.Module):
    # Linear; a first number far above all is poison, one far below takes 0.3 s.
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = nn.Linear(input_shape[0], num_outputs)

    def forward(self, x):
        if float(x[:, 0].max()) > 1e5:
            raise ZeroDivisionError("poison")
        if float(x[:, 0].min()) < -1e5:
            time.sleep(0.3)
        return self.layer(x)
"""
POISON, SLOW = 1e9, -1e9


def _own_bundle(folder: Path) -> SmallBundle:
    """Of a class whose module is nowhere but in the bundle when this returns."""
    source = folder.with_suffix(".source")
    source.mkdir()
    (source / "moody_model.py").write_bytes(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(source))
        made = small_bundle(folder, model="moody_model:Moody", user_code={"moody_model.py": OWN}, seed=5)
    sys.modules.pop("moody_model", None)
    shutil.rmtree(source)
    return made


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    home = tmp_path_factory.mktemp("serving")
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    registry = ModelRegistry(settings)
    small = [small_bundle(home / f"small{seed}", seed=seed) for seed in range(3)]
    for bundle in small:
        registry.register("s.small", bundle.folder)
    price = small_bundle(home / "price", task=Task.REGRESSION, model="lightgbm")
    registry.promote("s.small", 1)
    registry.promote("s.price", registry.register("s.price", price.folder).version)
    own = _own_bundle(home / "own")
    registry.promote("s.own", registry.register("s.own", own.folder).version)
    return Stage(settings, registry, small, price, own)


@pytest.fixture(scope="module")
def served(stage: Stage, ray_session: None) -> Iterator[tuple[Any, str]]:
    """The handle and the address of the application that `serve/champion.py` builds, behind Serve's proxy."""
    from ray import serve

    from tiltyard.local.ports import choose
    from tiltyard.serving.client import deploy
    from tiltyard.serving.deployment import app_from_args

    port = choose(["serve"], seed=str(stage.settings.home))["serve"]
    args = {
        "models": "s.small,s.price,s.own",
        "max_replicas": "2",
        "scale_up_s": "1",
        "record_s": "0.5",
        "auth": "off",
        "poll_s": "0.2",
        "rows": "5000",
        "body_bytes": "2000000",
        "read_s": "2",
    }
    handle = deploy(app_from_args(args, stage.settings), name="champions", http=True, port=port)
    url = f"http://127.0.0.1:{port}"
    _wait(lambda: _http(f"{url}/models/s.price")[0] == 200, 60)
    for _ in range(20):  # what the scrape finds later
        assert _http(f"{url}/models/s.price/predict", _json_rows(stage.price.rows.slice(1, 5)))[0] == 200
    for _ in range(3):
        assert _http(f"{url}/models/s.price/predict", b'{"rows": [{}]}')[0] == 422
    yield handle, url
    serve.shutdown()  # type: ignore[no-untyped-call]


def _wait(what: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "not within the deadline"
        time.sleep(0.05)


def _http(
    url: str, body: bytes | None = None, content_type: str = "application/json", **headers: str
) -> tuple[int, bytes, dict[str, str]]:
    request = urllib.request.Request(url, data=body, headers={"content-type": content_type, **headers})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            found = error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}
    if "/models/" in url and found[0] not in {404, 503}:  # those of a model that has no description yet
        ASKED[url.partition("/models/")[2].partition("/")[0], found[0]] += 1
    return found


def _json_rows(table: pa.Table) -> bytes:
    return json.dumps({"rows": table.to_pylist()}).encode()


def _stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def test_rows_streamed_by_handle_are_answered_as_offline_with_version_and_digest(
    stage: Stage, served: tuple[Any, str]
) -> None:
    from tiltyard.serving.client import stream_rows

    for name, bundle in (("s.small", stage.small[0]), ("s.price", stage.price)):
        slices = [bundle.rows.slice(i, 33) for i in range(0, len(bundle.rows), 33)]
        answers = list(stream_rows(served[0], name, slices))
        assert {(a.model, a.version, a.digest) for a in answers} == {(name, 1, bundle.digest)}
        offline = read_bundle(bundle.folder).predict_table(bundle.rows).outputs
        np.testing.assert_allclose(np.concatenate([a.outputs for a in answers]), offline, atol=1e-6)


def test_unknown_model_by_handle_says_which_there_are(stage: Stage, served: tuple[Any, str]) -> None:
    from tiltyard.serving.client import stream_rows

    with pytest.raises(ServingError, match=r"No model 'nobody' is served here; there are: s\.own, s\.price, s\.small"):
        list(stream_rows(served[0], "nobody", [stage.price.rows]))


def test_rows_by_http_in_every_form_are_answered_as_offline(stage: Stage, served: tuple[Any, str]) -> None:
    _, url = served
    bundle = stage.small[0]
    rows = bundle.rows.slice(0, 40)
    offline = read_bundle(bundle.folder).predict_table(rows)
    assert offline.probabilities is not None
    _wait(lambda: _http(f"{url}/models/s.small")[0] == 200)

    status, body, headers = _http(f"{url}/models/s.small/predict", _json_rows(rows))
    told = json.loads(body)
    assert status == 200
    assert (told["model"], told["version"], told["digest"]) == ("s.small", 1, bundle.digest)
    assert headers["x-tiltyard-digest"] == bundle.digest
    assert told["predictions"] == offline.labels
    np.testing.assert_allclose(told["probabilities"], offline.probabilities, atol=1e-6)

    status, body, headers = _http(f"{url}/models/s.small/predict", _stream(rows), ARROW)
    assert (status, headers["x-tiltyard-version"]) == (200, "1")
    answered = pa.ipc.open_stream(body).read_all()
    assert answered["prediction"].to_pylist() == offline.labels
    np.testing.assert_allclose(answered["probability_2"].to_numpy(), offline.probabilities[:, 2], atol=1e-6)

    split = {"columns": rows.column_names, "data": [list(r.values()) for r in rows.to_pylist()]}
    for form in (
        {"dataframe_split": split},
        {"dataframe_records": rows.to_pylist()},
        {"instances": [{**r, "ignored": 1} for r in rows.to_pylist()]},
        {"inputs": rows.to_pydict()},
    ):
        status, body, _ = _http(f"{url}/models/s.small/invocations", json.dumps(form).encode())
        assert status == 200, body
        assert [r["prediction"] for r in json.loads(body)["predictions"]] == offline.labels
    status, body, _ = _http(f"{url}/invocations", _json_rows(rows))
    assert (status, "Which model" in json.loads(body)["detail"]) == (404, True)


def test_ping_version_models_and_pages_answer(served: tuple[Any, str]) -> None:
    _, url = served
    from importlib.metadata import version

    assert _http(f"{url}/ping")[:2] == (200, b"\n")
    assert _http(f"{url}/version")[1].decode() == version("mlflow")
    _wait(lambda: len(json.loads(_http(f"{url}/models")[1])["models"]) == 3)
    assert set(json.loads(_http(f"{url}/openapi.json")[1])["paths"]) >= {"/models/s.small/predict", "/ping"}
    assert b"/models/s.price/predict" in _http(f"{url}/docs")[1]


@pytest.mark.parametrize(
    ("body", "kind", "status", "told"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 100_000, "application/json", 400, "not JSON"),
        (b"garbage", ARROW, 400, "not an Arrow IPC stream"),
        (b"", ARROW, 400, "not an Arrow IPC stream"),
        (b'{"rows": []}', "application/json", 422, "an empty list"),
        (b'{"rows": [{"n0": "x"}]}', "application/json", 422, "row 0, column 'n0'"),
        (b"x", "text/plain", 415, "text/plain"),
        (b" " * 2_000_001, "application/json", 413, "larger than 2000000 bytes"),
        (json.dumps({"rows": [{}] * 5001}).encode(), "application/json", 413, "at most 5000"),
    ],
    ids=["half-json", "deep-json", "garbage-arrow", "no-arrow", "no-rows", "wrong-value", "text", "large", "many-rows"],
)
def test_bad_request_is_refused_with_a_problem_and_the_next_one_answered(
    body: bytes, kind: str, status: int, told: str, stage: Stage, served: tuple[Any, str]
) -> None:
    url = f"{served[1]}/models/s.small/predict"
    found, answer, headers = _http(url, body, kind)
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert told in json.loads(answer)["detail"]
    assert _http(url, _json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200


def test_ten_switches_under_load_fail_no_request_and_end_at_the_newest(stage: Stage, served: tuple[Any, str]) -> None:
    url = f"{served[1]}/models/s.small/predict"
    body = _json_rows(stage.small[0].rows.slice(1, 1))

    statuses: list[int] = []
    versions: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, answer, _ = _http(url, body)
            statuses.append(status)
            if status == 200:
                versions.append(json.loads(answer)["version"])

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for switch in range(10):
            wanted = switch % 2 + 2
            stage.registry.promote("s.small", wanted)
            begun = time.monotonic()
            while not versions or versions[-1] != wanted:
                assert time.monotonic() - begun < 5
                time.sleep(0.02)
        stage.registry.promote("s.small", 1)
        _wait(lambda: versions[-1] == 1, 10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert set(versions) == {1, 2, 3}


def test_version_whose_bytes_are_wrong_never_serves_and_says_so(stage: Stage, served: tuple[Any, str]) -> None:
    _, url = served
    version = stage.registry.register("s.small", small_bundle(stage.settings.home / "broken", seed=9).folder)
    import urllib.parse

    shutil.rmtree(cached_bundle(stage.settings, version.digest))
    artifact = next(Path(urllib.parse.urlparse(version.source).path).rglob("model.safetensors"))
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\x01")
    stage.registry.set_alias("s.small", "champion", version.version)
    _wait(lambda: _http(f"{url}/models/s.small/ping")[0] == 503)
    _, answer, headers = _http(f"{url}/models/s.small/ping")
    assert f"version {version.version} could not be loaded" in json.loads(answer)["detail"]
    assert headers["retry-after"] == "1"
    rows = stage.small[0].rows.slice(0, 3)
    told = json.loads(_http(f"{url}/models/s.small/predict", _json_rows(rows))[1])
    assert (told["version"], told["digest"]) == (1, stage.small[0].digest)

    from tiltyard.journal import Journal

    with Journal.open(stage.settings.journal_uri) as journal:
        decisions = journal.decisions(kind="served", subject="s.small")
    assert [d.outcome for d in decisions if d.evidence["version"] == version.version] == ["refused"]
    stage.registry.set_alias("s.small", "champion", 1)
    _wait(lambda: _http(f"{url}/models/s.small/ping")[0] == 200)


def test_replica_killed_in_mid_batch_loses_no_answer(stage: Stage, served: tuple[Any, str]) -> None:
    import os
    import signal

    import psutil

    from tiltyard.serving.client import stream_rows

    handle, _ = served
    bundle = stage.price
    many = pa.concat_tables([bundle.rows] * 10).combine_chunks()

    # Found before the stream: a process that is read in the moment Ray rewrites its title shows none.
    replicas: list[int] = []

    def found() -> bool:
        replicas.extend(p.pid for p in psutil.process_iter() if _is_replica(p, "s.price"))
        return bool(replicas)

    _wait(found)

    def tables() -> Iterator[pa.Table]:
        for i in range(20):
            if i == 8:
                (pid,) = replicas
                os.kill(pid, signal.SIGKILL)
            yield many

    answers = list(stream_rows(handle, "s.price", tables()))
    offline = read_bundle(bundle.folder).predict_table(many).outputs
    assert len(answers) == 20
    for answer in answers:
        np.testing.assert_allclose(answer.outputs, offline, atol=1e-6)


def _is_replica(process: Any, model: str) -> bool:
    with contextlib.suppress(Exception):
        return f"ServeReplica:champions:{model}@champion" in " ".join(process.cmdline())
    return False


def test_evaluation_wants_pinned_versions_and_serves_them_on_replicas_of_their_own(
    stage: Stage, served: tuple[Any, str]
) -> None:
    from tiltyard.serving.client import deploy, remove, stream_rows, stream_rows_through_all
    from tiltyard.serving.deployment import evaluation_app

    with pytest.raises(ServingError, match=r"pinned versions.*s\.small@champion"):
        evaluation_app(["s.small"], stage.settings)
    handle = deploy(evaluation_app(["s.small@1", "s.small@3"], stage.settings), name="evaluation")
    try:
        for version in (1, 3):
            bundle = stage.small[version - 1]
            (answer,) = stream_rows(handle, f"s.small@{version}", [bundle.rows])
            assert (answer.version, answer.digest) == (version, bundle.digest)
            np.testing.assert_allclose(
                answer.outputs, read_bundle(bundle.folder).predict_table(bundle.rows).outputs, atol=1e-6
            )
        both = list(stream_rows_through_all(handle, ["s.small@3", "s.small@1"], [stage.small[0].rows] * 2))
        assert [[a.version for a in answers] for answers in both] == [[3, 1], [3, 1]]
        offline = read_bundle(stage.small[2].folder).predict_table(stage.small[0].rows).outputs
        np.testing.assert_allclose(both[1][0].outputs, offline, atol=1e-5)
        with pytest.raises(ServingError, match=r"No model .s\.small. is served here"):
            list(stream_rows(handle, "s.small", [stage.small[0].rows]))
        with pytest.raises(TiltyardError, match="'colour'"):
            list(stream_rows(handle, "s.small@1", [stage.small[0].rows.drop_columns("colour")]))
    finally:
        remove("evaluation")


def test_traffic_and_evaluation_with_the_registry_away_start_from_the_local_cache_and_go_on(
    stage: Stage, served: tuple[Any, str]
) -> None:
    from dataclasses import replace

    from tiltyard.serving.client import deploy, described, remove, stream_rows
    from tiltyard.serving.deployment import champions_app, evaluation_app
    from tiltyard.serving.holder import find

    away = replace(stage.settings, tracking_uri="http://127.0.0.1:9")
    handle = deploy(evaluation_app(["s.price@1"], away), name="away")
    try:
        (answer,) = stream_rows(handle, "s.price", [stage.price.rows])
        assert answer.digest == stage.price.digest
    finally:
        remove("away")
    handle = deploy(champions_app(["s.price"], away, poll_s=0.1), name="traffic-away")
    try:
        for _ in range(20):
            (answer,) = stream_rows(handle, "s.price", [stage.price.rows])
            assert (answer.version, answer.digest) == (1, stage.price.digest)
        assert [d.problem for d in described("traffic-away")] == [""]
    finally:
        remove("traffic-away")
    from tiltyard.registry import ModelAddress

    with pytest.raises(RegistryError, match=r"did not answer for s\.price@7, and this machine has no copy"):
        find(away, ModelAddress.parse("s.price@7"))


def test_users_class_that_travelled_in_its_bundle_serves_and_a_poison_row_fails_only_itself(
    stage: Stage, served: tuple[Any, str]
) -> None:
    url = f"{served[1]}/models/s.own/predict"
    rows = stage.own.rows.slice(1, 8).to_pylist()
    offline = read_bundle(stage.own.folder).predict_table(stage.own.rows.slice(1, 8))
    _wait(lambda: _http(f"{served[1]}/models/s.own")[0] == 200)
    sent: list[Any] = [{"rows": rows}, {"rows": [rows[0], {**rows[1], "n0": POISON}]}, {"rows": rows[:3]}]
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(lambda told: _http(url, json.dumps(told).encode()), sent))
    assert [status for status, _, _ in answers] == [200, 500, 200]
    assert json.loads(answers[0][1])["digest"] == stage.own.digest
    assert json.loads(answers[0][1])["predictions"] == offline.labels
    assert json.loads(answers[2][1])["predictions"] == offline.labels[:3]
    assert answers[1][2]["content-type"] == "application/problem+json"
    assert "The model failed on these rows" in json.loads(answers[1][1])["detail"]


def test_challenger_in_shadow_then_canary_then_off_answers_what_it_should_and_is_compared(
    stage: Stage, served: tuple[Any, str]
) -> None:
    from tiltyard.journal import Journal
    from tiltyard.serving.comparison import DECISION, Comparison, together
    from tiltyard.serving.traffic import DECISION as TRAFFIC
    from tiltyard.serving.traffic import OFF, Split

    url = f"{served[1]}/models/s.small"
    body = _json_rows(stage.small[0].rows.slice(1, 5))

    def decide(split: Split | None) -> None:
        with Journal.open(stage.settings.journal_uri) as journal:
            journal.decide(
                kind=TRAFFIC,
                subject="s.small",
                actor="test",
                evidence=split.to_evidence() if split else {},
                reasons=["test"],
                outcome=split.mode if split else OFF,
            )

    def split_told() -> str:
        return str(json.loads(_http(url)[1])["split"])

    def ask(number: int) -> int:
        status, answer, _ = _http(f"{url}/predict", body, **{"x-request-id": f"id{number}"})
        assert status == 200
        return int(json.loads(answer)["version"])

    def recorded(mode: str) -> Comparison | None:
        with Journal.open(stage.settings.journal_uri) as journal:
            found = together(
                Comparison.from_evidence(d.evidence) for d in journal.decisions(kind=DECISION, subject="s.small")
            )
        return next((c for c in found if c.pair.mode == mode), None)

    _wait(lambda: _http(url)[0] == 200)
    stage.registry.set_alias("s.small", "candidate", 2)
    shadow = Split.parse("s.small@candidate:50%", "shadow")
    decide(shadow)
    _wait(lambda: split_told() == "shadow of 0.5 to s.small@candidate", 90)
    assert {ask(i) for i in range(30)} == {1}
    taken = sum(shadow.takes(f"id{i}") for i in range(30))
    _wait(lambda: (c := recorded("shadow")) is not None and c.requests + c.dropped == taken, 60)
    found = recorded("shadow")
    assert found is not None
    assert 5 < taken < 25
    assert (found.champion_errors, found.challenger_errors) == (0, 0)
    assert (found.pair.champion_digest, found.pair.challenger_digest) == (stage.small[0].digest, stage.small[1].digest)
    answers = [read_bundle(b.folder).predict_table(stage.small[0].rows.slice(1, 5)).labels for b in stage.small[:2]]
    same = sum(a == b for a, b in zip(*answers, strict=True))
    assert (found.rows, found.agreed) == (5 * found.requests, same * found.requests)

    canary = Split.parse("s.small@candidate:0.5", "canary")
    decide(canary)
    _wait(lambda: split_told() == "canary of 0.5 to s.small@candidate", 60)
    assert [ask(i) for i in range(30)] == [2 if canary.takes(f"id{i}") else 1 for i in range(30)]
    _wait(lambda: (c := recorded("canary")) is not None and c.requests + c.dropped == taken, 60)

    decide(None)
    _wait(lambda: split_told() == "")
    assert {ask(i) for i in range(30)} == {1}


def test_load_on_one_model_adds_replicas_up_to_the_bound_and_no_further(stage: Stage, served: tuple[Any, str]) -> None:
    from ray import serve

    handle, _ = served
    slow = _with_first_number(stage.own.rows.slice(1, 1), SLOW)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            handle.predict.remote("s.own", slow).result(timeout_s=60)

    def replicas() -> int:
        found = serve.status().applications["champions"].deployments["s.own@champion"].replica_states
        return sum(found.values())

    assert replicas() == 1
    seen = {1}
    with ThreadPoolExecutor(10) as clients:
        done = [clients.submit(load) for _ in range(10)]
        try:
            _wait(lambda: seen.add(replicas()) or 2 in seen, 90)  # type: ignore[func-returns-value]
            deadline = time.monotonic() + 3  # at ten requests under way Serve wants five
            while time.monotonic() < deadline:
                seen.add(replicas())
                time.sleep(0.1)
        finally:
            stop.set()
        for one in done:
            one.result()
    assert seen == {1, 2}


def _with_first_number(rows: pa.Table, value: float) -> pa.Table:
    return rows.set_column(0, "n0", pa.array([value] * rows.num_rows, pa.float32()))


def test_scrape_of_rays_own_endpoint_finds_every_model_metric_with_its_value(
    stage: Stage, served: tuple[Any, str]
) -> None:
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    port = ray.nodes()[0]["MetricsExportPort"]  # type: ignore[no-untyped-call]
    found: dict[tuple[str, str, str], float] = {}

    def scrape() -> None:
        """Sums over processes by name, model and whatever tells the series of one model apart."""
        found.clear()
        text = _http(f"http://127.0.0.1:{port}/metrics")[1].decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.startswith("ray_tiltyard_serving_"):
                    labels = sample.labels
                    which = labels.get("status") or labels.get("le") or ""
                    key = (sample.name.removeprefix("ray_tiltyard_serving_"), labels["model"], which)
                    found[key] = found.get(key, 0) + sample.value

    def value(name: str, which: str = "") -> float:
        return found.get((name, "s.price", which), -1)

    def exported() -> bool:
        scrape()
        return all(value("requests_total", str(s)) == n for (m, s), n in ASKED.items() if m == "s.price")

    _wait(exported, 60)
    assert value("requests_total", "422") == 3
    assert value("rows_total") == 100
    assert value("request_rows_count") == 20
    assert value("request_rows_bucket", "8.0") - value("request_rows_bucket", "4.0") == 20
    assert 1 <= value("batch_rows_count") <= 20
    total = sum(n for (model, _), n in ASKED.items() if model == "s.price")
    assert value("request_seconds_count") == total
    ends = {le for name, model, le in found if (name, model) == ("request_seconds_bucket", "s.price")}
    counts = [value("request_seconds_bucket", le) for le in sorted(ends, key=float)]
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert len(ends) > 10  # what p50, p95 and p99 are read from
    for model in ("s.price", "s.small", "s.own"):
        assert found["version", model, ""] == 1
        assert found["stale", model, ""] == 0
        assert found["waiting_requests", model, ""] == 0


def test_body_of_a_gigabyte_is_refused_early_with_or_without_a_length(stage: Stage, served: tuple[Any, str]) -> None:
    import socket

    import psutil

    host, port = served[1].removeprefix("http://").split(":")
    path = "/models/s.small/predict"
    proxy = psutil.Process(_proxy_pid())
    before = proxy.memory_info().rss
    with socket.create_connection((host, int(port)), timeout=30) as told:
        told.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 30}\r\n\r\n".encode())
        assert told.recv(100).startswith(b"HTTP/1.1 413")

    sent, most = 0, before
    part = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as chunked:
        chunked.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):  # closed while we send
            while sent < 1 << 30:
                chunked.sendall(part)
                sent += 1 << 20
                most = max(most, proxy.memory_info().rss)
    assert sent < 1 << 30
    assert most - before < 300 << 20
    assert _http(served[1] + path, _json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200


def test_client_that_hangs_is_told_and_holds_up_nobody(stage: Stage, served: tuple[Any, str]) -> None:
    import socket

    host, port = served[1].removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(20)]
        for connection in hanging:
            connection.sendall(b"POST /models/s.small/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        begun = time.monotonic()
        assert _http(f"{served[1]}/models/s.small/predict", _json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200
        assert time.monotonic() - begun < 30
        for connection in hanging:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_two_thousand_connections_at_once_are_answered_or_refused_politely(
    stage: Stage, served: tuple[Any, str]
) -> None:
    import asyncio

    import psutil

    host, port = served[1].removeprefix("http://").split(":")
    body = _json_rows(stage.small[0].rows.slice(1, 1))
    head = (
        f"POST /models/s.small/predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    connecting = asyncio.Semaphore(32)

    async def ask(connected: asyncio.Event, gate: asyncio.Event, left: list[int]) -> tuple[int, bool]:
        async with connecting:  # what does not fit the kernel's queue would be tried again after a minute
            reader, writer = await asyncio.open_connection(host, int(port))
        left[0] -= 1
        if not left[0]:
            connected.set()
        await gate.wait()
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        return int(answer[9:12]), b"retry-after" in answer.lower().partition(b"\r\n\r\n")[0]

    async def flood() -> list[tuple[int, bool]]:
        connected, gate, left = asyncio.Event(), asyncio.Event(), [2000]
        async with asyncio.timeout(300):
            tasks = [asyncio.create_task(ask(connected, gate, left)) for _ in range(2000)]
            await connected.wait()
            gate.set()
            return await asyncio.gather(*tasks)

    pid = _proxy_pid()
    for process in (psutil.Process(), psutil.Process(pid)):
        least, most = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (max(least, min(most, 8192)), most))
    answers = asyncio.run(flood())
    statuses = {status for status, _ in answers}
    assert statuses <= {200, 429, 503}
    assert 200 in statuses
    assert all(patient for status, patient in answers if status != 200)
    assert _proxy_pid() == pid
    assert _http(f"{served[1]}/models/s.small/predict", body)[0] == 200


def test_proxy_killed_is_started_again_and_requests_go_on(stage: Stage, served: tuple[Any, str]) -> None:
    import os
    import signal

    url, body = f"{served[1]}/models/s.small/predict", _json_rows(stage.small[0].rows.slice(1, 1))
    pid = _proxy_pid()
    os.kill(pid, signal.SIGKILL)

    def answered() -> bool:
        try:
            return _http(url, body)[0] == 200
        except OSError:
            return False

    _wait(lambda: answered() and _proxy_pid() != pid, 90)


def _proxy_pid() -> int:
    """Of Serve's one proxy, as Ray knows it."""
    from ray._private.state import actors

    (pid,) = (a["Pid"] for a in actors().values() if "Proxy" in a["ActorClassName"] and a["State"] == "ALIVE")
    return int(pid)
