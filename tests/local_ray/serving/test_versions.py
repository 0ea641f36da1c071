"""Which version serves: an alias that moves under load, a version that is broken, a registry that goes and comes back."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tiltyard.journal import Journal
from tiltyard.registry.version import cached_bundle
from tiltyard.serving.answers import Described
from tiltyard.testing.bundles import small_bundle
from tiltyard.testing.served import Served, Stage, json_rows, wait

pytestmark = pytest.mark.ray


def test_ten_switches_under_load_fail_no_request_and_end_at_the_newest(stage: Stage, served: Served) -> None:
    url = "/models/s.small/predict"
    body = json_rows(stage.small[0].rows.slice(1, 1))

    statuses: list[int] = []
    versions: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            status, answer, _ = served.ask(url, body)
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
                assert time.monotonic() - begun < 20
                time.sleep(0.02)
        stage.registry.promote("s.small", 1)
        wait(lambda: versions[-1] == 1, 10)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert set(versions) == {1, 2, 3}


def test_version_whose_bytes_are_wrong_never_serves_and_says_so(stage: Stage, served: Served) -> None:
    version = stage.registry.register("s.small", small_bundle(stage.settings.home / "broken", seed=9).folder)
    shutil.rmtree(cached_bundle(stage.settings, version.digest))
    artifact = next(Path(urllib.parse.urlparse(version.source).path).rglob("model.safetensors"))
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"\x01")
    stage.registry.set_alias("s.small", "champion", version.version)
    wait(lambda: served.ask("/models/s.small/ping")[0] == 503)
    _, answer, headers = served.ask("/models/s.small/ping")
    assert f"version {version.version} could not be loaded" in json.loads(answer)["detail"]
    assert headers["retry-after"] == "1"
    rows = stage.small[0].rows.slice(0, 3)
    told = json.loads(served.ask("/models/s.small/predict", json_rows(rows))[1])
    assert (told["version"], told["digest"]) == (1, stage.small[0].digest)

    with Journal.open(stage.settings.journal_uri) as journal:
        decisions = journal.decisions(kind="served", subject="s.small")
    assert [d.outcome for d in decisions if d.evidence["version"] == version.version] == ["refused"]
    stage.registry.set_alias("s.small", "champion", 1)
    wait(lambda: served.ask("/models/s.small/ping")[0] == 200)


@contextmanager
def _mlflow_server(stage: Stage, port: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server over the registry of the stage, started and not waited for."""
    from tiltyard.local.commands import mlflow_argv

    env = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": stage.settings.tracking_uri,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": stage.settings.artifact_root,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(mlflow_argv(port), env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_registry_away_at_the_start_then_back_then_lost_is_told_and_fails_no_request(
    stage: Stage, served: Served, tmp_path: Path
) -> None:
    from tiltyard.local.ports import choose
    from tiltyard.serving.client import deploy, described, remove
    from tiltyard.serving.deployment import champions_app

    home = (
        tmp_path / "elsewhere"
    )  # a machine that served this model before, and looks at the registry by MLflow's server
    shutil.copytree(stage.settings.home / "bundles", home / "bundles")
    port = choose(["mlflow"], seed=str(home))["mlflow"]
    settings = replace(stage.settings, home=home, tracking_uri=f"http://127.0.0.1:{port}")
    handle = deploy(champions_app(["s.small"], settings, poll_s=0.2), name="elsewhere")
    rows, versions = stage.small[0].rows, []

    def told() -> Described:
        """What is served, after one more request was answered."""
        versions.append(handle.predict.remote("s.small", rows).result(timeout_s=60).version)
        return described("elsewhere")[0]

    try:
        wait(lambda: "did not" in told().registry, 60)
        assert (told().version, told().problem) == (1, "")
        stage.registry.promote("s.small", 2)  # while it is away
        with _mlflow_server(stage, port, tmp_path) as server:
            wait(lambda: told().version == 2 or server.poll() is not None, 120)
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            assert (told().registry, told().registry_age_s, told().digest) == ("", 0, stage.small[1].digest)
            os.killpg(server.pid, signal.SIGKILL)
            wait(lambda: told().registry_age_s > 1, 60)
        lost = told()
        assert "did not" in lost.registry
        assert (lost.version, lost.problem) == (2, "")
        assert versions == sorted(versions)
        assert set(versions) == {1, 2}
    finally:
        remove("elsewhere")
        stage.registry.promote("s.small", 1)
        wait(lambda: json.loads(served.ask("/models/s.small")[1])["version"] == 1)
