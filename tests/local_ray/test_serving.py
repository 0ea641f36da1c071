"""Champions on a real Ray Serve: by handle and by HTTP, swapped, broken, killed. One deployment for the module."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
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


@dataclass(frozen=True)
class Stage:
    """A registry with two models, three versions of one of them."""

    settings: Settings
    registry: ModelRegistry
    small: list[SmallBundle]
    price: SmallBundle


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
    return Stage(settings, registry, small, price)


@pytest.fixture(scope="module")
def served(stage: Stage, ray_session: None) -> Iterator[tuple[Any, str]]:
    """The handle and the address of the application that `serve/champion.py` builds, behind Serve's proxy."""
    from ray import serve

    from tiltyard.local.ports import choose
    from tiltyard.serving.client import deploy
    from tiltyard.serving.deployment import app_from_args

    port = choose(["serve"], seed=str(stage.settings.home))["serve"]
    args = {
        "models": "s.small,s.price",
        "auth": "off",
        "poll_s": "0.2",
        "rows": "5000",
        "body_bytes": "2000000",
        "read_s": "2",
    }
    handle = deploy(app_from_args(args, stage.settings), name="champions", http=True, port=port)
    yield handle, f"http://127.0.0.1:{port}"
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
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}


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

    with pytest.raises(ServingError, match=r"No model 'nobody' is served here; there are: s\.price, s\.small"):
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
    _wait(lambda: len(json.loads(_http(f"{url}/models")[1])["models"]) == 2)
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
    import shutil
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
    _wait(lambda: bool(replicas.extend(p.pid for p in psutil.process_iter() if _is_replica(p, "s.price")) or replicas))

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


def test_evaluation_with_the_registry_away_starts_from_the_local_cache(stage: Stage, served: tuple[Any, str]) -> None:
    from dataclasses import replace

    from tiltyard.serving.client import deploy, remove, stream_rows
    from tiltyard.serving.deployment import evaluation_app
    from tiltyard.serving.holder import find

    away = replace(stage.settings, tracking_uri="http://127.0.0.1:9")
    handle = deploy(evaluation_app(["s.price@1"], away), name="away")
    try:
        (answer,) = stream_rows(handle, "s.price", [stage.price.rows])
        assert answer.digest == stage.price.digest
    finally:
        remove("away")
    from tiltyard.registry import ModelAddress

    with pytest.raises(RegistryError, match=r"did not answer for s\.price@7, and this machine has no copy"):
        find(away, ModelAddress.parse("s.price@7"))
