"""Champions on a real Ray Serve answer by handle and by HTTP as they do offline, and refuse what is wrong."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tiltyard.errors import RegistryError, ServingError, TiltyardError
from tiltyard.registry import ModelAddress, read_bundle
from tiltyard.testing.served import ARROW, POISON, Served, Stage, arrow_stream, json_rows, wait

pytestmark = pytest.mark.ray


def test_rows_streamed_by_handle_are_answered_as_offline_with_version_and_digest(stage: Stage, served: Served) -> None:
    from tiltyard.serving.client import stream_rows

    for name, bundle in (("s.small", stage.small[0]), ("s.price", stage.price)):
        slices = [bundle.rows.slice(i, 33) for i in range(0, len(bundle.rows), 33)]
        answers = list(stream_rows(served.handle, name, slices))
        assert {(a.model, a.version, a.digest) for a in answers} == {(name, 1, bundle.digest)}
        offline = read_bundle(bundle.folder).predict_table(bundle.rows).outputs
        np.testing.assert_allclose(np.concatenate([a.outputs for a in answers]), offline, atol=1e-6)


def test_unknown_model_by_handle_says_which_there_are(stage: Stage, served: Served) -> None:
    from tiltyard.serving.client import stream_rows

    with pytest.raises(ServingError, match=r"No model 'nobody' is served here; there are: s\.own, s\.price, s\.small"):
        list(stream_rows(served.handle, "nobody", [stage.price.rows]))


def test_rows_by_http_in_every_form_are_answered_as_offline(stage: Stage, served: Served) -> None:
    bundle = stage.small[0]
    rows = bundle.rows.slice(0, 40)
    offline = read_bundle(bundle.folder).predict_table(rows)
    assert offline.probabilities is not None

    status, body, headers = served.ask("/models/s.small/predict", json_rows(rows))
    told = json.loads(body)
    assert status == 200
    assert (told["model"], told["version"], told["digest"]) == ("s.small", 1, bundle.digest)
    assert headers["x-tiltyard-digest"] == bundle.digest
    assert told["predictions"] == offline.labels
    np.testing.assert_allclose(told["probabilities"], offline.probabilities, atol=1e-6)

    status, body, headers = served.ask("/models/s.small/predict", arrow_stream(rows), ARROW)
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
        status, body, _ = served.ask("/models/s.small/invocations", json.dumps(form).encode())
        assert status == 200, body
        assert [r["prediction"] for r in json.loads(body)["predictions"]] == offline.labels
    status, body, _ = served.ask("/invocations", json_rows(rows))
    assert (status, "Which model" in json.loads(body)["detail"]) == (404, True)


def test_ping_version_models_and_pages_answer(served: Served) -> None:
    from importlib.metadata import version

    assert served.ask("/ping")[:2] == (200, b"\n")
    assert served.ask("/version")[1].decode() == version("mlflow")
    assert len(json.loads(served.ask("/models")[1])["models"]) == 3
    assert set(json.loads(served.ask("/openapi.json")[1])["paths"]) >= {"/models/s.small/predict", "/ping"}
    assert b"/models/s.price/predict" in served.ask("/docs")[1]


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
    body: bytes, kind: str, status: int, told: str, stage: Stage, served: Served
) -> None:
    path = "/models/s.small/predict"
    found, answer, headers = served.ask(path, body, kind)
    assert (found, headers["content-type"]) == (status, "application/problem+json")
    assert told in json.loads(answer)["detail"]
    assert served.ask(path, json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200


def test_evaluation_with_the_registry_away_serves_pinned_versions_from_the_local_cache_on_replicas_of_their_own(
    stage: Stage, served: Served
) -> None:
    from tiltyard.serving.client import deploy, remove, stream_rows, stream_rows_through_all
    from tiltyard.serving.deployment import evaluation_app
    from tiltyard.serving.holder import find

    with pytest.raises(ServingError, match=r"pinned versions.*s\.small@champion"):
        evaluation_app(["s.small"], stage.settings)
    away = replace(stage.settings, tracking_uri="http://127.0.0.1:9")
    handle = deploy(evaluation_app(["s.small@1", "s.small@3", "s.price@1"], away), name="evaluation")
    try:
        for name, version, bundle in (
            ("s.small", 1, stage.small[0]),
            ("s.small", 3, stage.small[2]),
            ("s.price", 1, stage.price),
        ):
            (answer,) = stream_rows(handle, f"{name}@{version}", [bundle.rows])
            assert (answer.model, answer.version, answer.digest) == (name, version, bundle.digest)
            offline = read_bundle(bundle.folder).predict_table(bundle.rows).outputs
            np.testing.assert_allclose(answer.outputs, offline, atol=1e-6)
        both = list(stream_rows_through_all(handle, ["s.small@3", "s.small@1"], [stage.small[0].rows] * 2))
        assert [[a.version for a in answers] for answers in both] == [[3, 1], [3, 1]]
        offline = read_bundle(stage.small[2].folder).predict_table(stage.small[0].rows).outputs
        np.testing.assert_allclose(both[1][0].outputs, offline, atol=1e-5)
        (answer,) = stream_rows(handle, "s.price", [stage.price.rows])  # its one version here
        assert answer.digest == stage.price.digest
        with pytest.raises(ServingError, match=r"No model .s\.small. is served here"):
            list(stream_rows(handle, "s.small", [stage.small[0].rows]))
        with pytest.raises(TiltyardError, match="'colour'"):
            list(stream_rows(handle, "s.small@1", [stage.small[0].rows.drop_columns("colour")]))
    finally:
        remove("evaluation")
    nowhere = replace(stage.settings, tracking_uri="nowhere://")
    with pytest.raises(RegistryError, match=r"did not answer for s\.price@7, and this machine has no copy"):
        find(nowhere, ModelAddress.parse("s.price@7"))


def test_users_class_that_travelled_in_its_bundle_serves_and_a_poison_row_fails_only_itself(
    stage: Stage, served: Served
) -> None:
    path = "/models/s.own/predict"
    rows = stage.own.rows.slice(1, 8).to_pylist()
    offline = read_bundle(stage.own.folder).predict_table(stage.own.rows.slice(1, 8))
    sent: list[Any] = [{"rows": rows}, {"rows": [rows[0], {**rows[1], "n0": POISON}]}, {"rows": rows[:3]}]
    with ThreadPoolExecutor(3) as clients:
        answers = list(clients.map(lambda told: served.ask(path, json.dumps(told).encode()), sent))
    assert [status for status, _, _ in answers] == [200, 500, 200]
    assert json.loads(answers[0][1])["digest"] == stage.own.digest
    assert json.loads(answers[0][1])["predictions"] == offline.labels
    assert json.loads(answers[2][1])["predictions"] == offline.labels[:3]
    assert answers[1][2]["content-type"] == "application/problem+json"
    assert "The model failed on these rows" in json.loads(answers[1][1])["detail"]


def test_scrape_of_rays_own_endpoint_finds_every_model_metric_with_its_value(stage: Stage, served: Served) -> None:
    import urllib.request

    import ray
    from prometheus_client.parser import text_string_to_metric_families

    port = ray.nodes()[0]["MetricsExportPort"]  # type: ignore[no-untyped-call]
    found: dict[tuple[str, str, str], float] = {}

    def scrape() -> None:
        """Sums over processes by name, model and whatever tells the series of one model apart."""
        found.clear()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
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
        return all(value("requests_total", str(s)) == n for (m, s), n in served.asked.items() if m == "s.price")

    wait(exported, 60)
    assert value("requests_total", "422") == 3
    assert value("rows_total") == 100
    assert value("request_rows_count") == 20
    assert value("request_rows_bucket", "8.0") - value("request_rows_bucket", "4.0") == 20
    assert 1 <= value("batch_rows_count") <= 20
    total = sum(n for (model, _), n in served.asked.items() if model == "s.price")
    assert value("request_seconds_count") == total
    ends = {le for name, model, le in found if (name, model) == ("request_seconds_bucket", "s.price")}
    counts = [value("request_seconds_bucket", le) for le in sorted(ends, key=float)]
    assert counts == sorted(counts)
    assert counts[-1] == total
    assert len(ends) > 10  # what p50, p95 and p99 are read from
    for model in ("s.price", "s.small", "s.own"):
        assert found["version", model, ""] == 1
        assert found["stale", model, ""] == 0
        assert found["registry_age_seconds", model, ""] == 0
        assert found["waiting_requests", model, ""] == 0
