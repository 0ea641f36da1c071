"""The writer's process and its spool: nothing lost, nothing twice, whoever dies and however often MLflow is away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tiltyard.errors import MachineError
from tiltyard.settings import Settings
from tiltyard.tracking import LaunchRecord, Tracker, TrialRecord, drain_leftover
from tiltyard.tracking import writer as tracker_module
from tiltyard.tracking.writer import spool_folder

pytestmark = pytest.mark.slow  # each starts processes that import MLflow

KEY = "a1b2" * 16


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow for this file: making its database takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(tracking_uri=uri).search_experiments()
    return uri


@pytest.fixture
def settings(tmp_path: Path, database: str) -> Settings:
    return settings_at(tmp_path, database)


def settings_at(home: Path, tracking_uri: str) -> Settings:
    return Settings.from_env({"TILTYARD_HOME": str(home), "TILTYARD_TRACKING_URI": tracking_uri})


@pytest.fixture
def launch(request: pytest.FixtureRequest) -> LaunchRecord:
    return LaunchRecord(experiment=request.node.name.removeprefix("test_")[:90], key=KEY, launch_id="l", spec="{}")


def trial(index: int, *, state: str = "done") -> TrialRecord:
    return TrialRecord(
        cell=f"{index:04x}" * 16,
        name=f"mlp@rings/{index:03d}",
        variant="mlp",
        dataset="rings",
        dataset_version=1,
        dataset_digest="d" * 64,
        params={"lr": 0.1 * index},
        history=[(1, {"accuracy": 0.5}), (2, {"accuracy": 0.6})],
        state=state,
        reason=None,
        duration_s=1.0,
        cpu_s=1.0,
        start_ms=1_700_000_000_000,
        end_ms=1_700_000_001_000,
    )


def send(tracker: Tracker, launch: LaunchRecord, trials: range) -> None:
    tracker.open_launch(launch)
    for index in trials:
        tracker.trial(trial(index))


def assert_each_once(uri: str, launch: LaunchRecord, count: int) -> None:
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(launch.experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    children = [r for r in runs if "tiltyard.cell" in r.data.tags]
    assert len(runs) == len(children) + 1
    assert sorted(r.info.run_name for r in children) == [f"mlp@rings/{i:03d}" for i in range(count)]
    for run in children:
        assert [m.step for m in client.get_metric_history(run.info.run_id, "accuracy")] == [1, 2]
        assert run.info.status == "FINISHED"


def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def writers() -> list[psutil.Process]:
    """Writer processes below this one."""
    return [p for p in psutil.Process().children() if "tiltyard.tracking.drain" in _command_of(p)]


def _command_of(process: psutil.Process) -> str:
    """Empty for one that has ended: other tests of this session may leave such children behind for a while."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_tracker_closed_has_written_everything_and_its_process_is_gone(
    settings: Settings, launch: LaunchRecord
) -> None:
    with Tracker(settings, KEY).start() as tracker:
        send(tracker, launch, range(3))
        parent = tracker.parent_run_id()
        tracker.close_launch(status="FINISHED", metrics={"best": 0.6}, tags={"note": "x"})
        tracker.artifact("report.html", b"<!doctype html>")
        report = tracker.close()
    assert (report.written, report.pending, report.error) == (7, 0, None)  # launch, three trials, close, a file, end
    assert report.parent_run_id == parent
    assert writers() == []
    assert_each_once(settings.tracking_uri, launch, 3)
    client = MlflowClient(tracking_uri=settings.tracking_uri)
    assert set(tracker.run_ids()) == {trial(i).cell for i in range(3)}
    assert parent is not None
    assert client.get_run(parent).data.metrics == {"best": 0.6}
    assert {file.path for file in client.list_artifacts(parent)} == {"experiment.json", "report.html"}
    assert drain_leftover(settings, KEY) is None
    with pytest.raises(MachineError, match="closed"):
        tracker.trial(trial(9))


def test_tracker_left_by_an_error_says_so_on_the_parent_run(settings: Settings, launch: LaunchRecord) -> None:
    tracker = Tracker(settings, KEY)

    def fail() -> None:
        with tracker.start():
            send(tracker, launch, range(1))
            raise ZeroDivisionError("by nothing")

    with pytest.raises(ZeroDivisionError):
        fail()
    run_id = tracker.parent_run_id()
    assert run_id is not None
    run = MlflowClient(tracking_uri=settings.tracking_uri).get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["tiltyard.reason"] == "ZeroDivisionError: by nothing"


def test_second_start_that_sends_all_again_writes_only_what_is_new(settings: Settings, launch: LaunchRecord) -> None:
    with Tracker(settings, KEY).start() as first:
        send(first, launch, range(2))
    lines = len((spool_folder(settings, KEY) / "runs.jsonl").read_text().splitlines())
    with Tracker(settings, KEY).start() as second:
        send(second, launch, range(3))
        report = second.close()
    assert (report.pending, report.error) == (0, None)
    assert_each_once(settings.tracking_uri, launch, 3)
    assert lines == 2
    assert len((spool_folder(settings, KEY) / "runs.jsonl").read_text().splitlines()) == 3


def test_writer_killed_in_the_middle_loses_nothing(settings: Settings, launch: LaunchRecord) -> None:
    tracker = Tracker(settings, KEY).start()
    send(tracker, launch, range(40))
    folder = spool_folder(settings, KEY)
    until((folder / "runs.jsonl").exists)
    (writer,) = writers()
    writer.send_signal(signal.SIGKILL)
    report = tracker.close()
    assert report.pending > 0
    assert report.error is not None
    report_of_next = drain_leftover(settings, KEY)
    assert report_of_next is not None
    assert (report_of_next.pending, report_of_next.error) == (0, None)
    assert_each_once(settings.tracking_uri, launch, 40)


DRIVER = """
import json, os, signal, sys
from tiltyard.settings import Settings
from tiltyard.tracking import LaunchRecord, Tracker, TrialRecord
given = json.load(sys.stdin)
tracker = Tracker(Settings.from_env(), given["key"]).start()
tracker.open_launch(LaunchRecord(**given["launch"]))
for trial in given["trials"]:
    tracker.trial(TrialRecord(**trial))
print(tracker._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def killed_driver(settings: Settings, launch: LaunchRecord, trials: range) -> psutil.Process:
    """A driver that dies the moment it has sent these trials; its writer."""
    given = {"key": KEY, "launch": asdict(launch), "trials": [asdict(trial(i)) for i in trials]}
    environment = {"TILTYARD_HOME": str(settings.home), "TILTYARD_TRACKING_URI": settings.tracking_uri}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(given),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    return psutil.Process(int(done.stdout))


def test_writer_whose_driver_was_killed_writes_what_was_sent_and_ends(settings: Settings, launch: LaunchRecord) -> None:
    writer = killed_driver(settings, launch, range(3))
    until(lambda: not writer.is_running() or writer.status() == psutil.STATUS_ZOMBIE)
    assert_each_once(settings.tracking_uri, launch, 3)


def test_next_driver_waits_for_the_writer_of_a_killed_one_and_nothing_is_written_twice(
    settings: Settings, launch: LaunchRecord
) -> None:
    killed_driver(settings, launch, range(5))
    with Tracker(settings, KEY).start() as tracker:
        send(tracker, launch, range(8))
        report = tracker.close()
    assert (report.pending, report.error) == (0, None)
    assert_each_once(settings.tracking_uri, launch, 8)


def test_line_that_a_dying_driver_left_half_written_is_passed_over(settings: Settings, launch: LaunchRecord) -> None:
    with Tracker(settings, KEY).start() as first:
        send(first, launch, range(1))
    with (spool_folder(settings, KEY) / "spool.jsonl").open("a") as spool:
        spool.write('{"kind": "trial", "cell": "00')
    with Tracker(settings, KEY).start() as second:
        send(second, launch, range(2))
        report = second.close()
    assert (report.pending, report.error) == (0, None)
    assert_each_once(settings.tracking_uri, launch, 2)


def test_mlflow_that_is_away_keeps_the_driver_seconds_and_the_spool_whole(
    tmp_path: Path, settings: Settings, launch: LaunchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "AWAY_S", 1.0)
    away = settings_at(tmp_path, f"http://127.0.0.1:{free_port()}")
    begun = time.monotonic()
    with Tracker(away, KEY).start() as tracker:
        send(tracker, launch, range(2))
        assert tracker.parent_run_id() is None
        report = tracker.close()
    assert time.monotonic() - begun < 20
    assert (report.written, report.pending, report.parent_run_id) == (0, 4, None)
    assert "127.0.0.1" in (report.error or "")
    assert writers() == []
    later = drain_leftover(settings, KEY)
    assert later is not None
    assert (later.pending, later.error) == (0, None)
    assert_each_once(settings.tracking_uri, launch, 2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def mlflow_server(port: int, database: str, folder: Path) -> Iterator[None]:
    """A real ``mlflow server`` on loopback, answering."""
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--backend-store-uri", database]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mlflow",
                "server",
                *arguments,
                "--artifacts-destination",
                str(folder / "artifacts"),
            ],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        until(lambda: answers(port) or server.poll() is not None, timeout_s=60)
        assert server.poll() is None, (folder / "server.log").read_text()
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port: int) -> bool:
    with socket.socket() as s:
        s.settimeout(1)
        return s.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.timeout(300)
def test_mlflow_server_that_is_killed_and_comes_back_has_each_trial_once(
    tmp_path: Path, database: str, launch: LaunchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "AWAY_S", 1.0)
    port = free_port()
    settings = settings_at(tmp_path / "home", f"http://127.0.0.1:{port}")
    with Tracker(settings, KEY).start() as tracker:
        with mlflow_server(port, database, tmp_path):
            send(tracker, launch, range(6))
            until(lambda: len(tracker.run_ids()) >= 2, timeout_s=60)
        for index in range(6, 10):  # sent while it is away
            tracker.trial(trial(index))
        tracker.close_launch(status="FINISHED", metrics={}, tags={})
        said: list[str] = []
        with ThreadPoolExecutor() as pool:  # the driver closes while it is away: it is started again just then
            begun = time.monotonic()
            closing = pool.submit(tracker.close, return_s=150, say=said.append)
            until(lambda: closing.done() or time.monotonic() > begun + tracker_module.AWAY_S + 1)
            assert not closing.done()
            with mlflow_server(port, database, tmp_path):
                report = closing.result()
    assert said == ["MLflow does not answer; waiting up to 150 s for it"]
    assert (report.pending, report.error) == (0, None)
    assert_each_once(database, launch, 10)


def test_password_of_mlflow_is_in_no_command_line_and_in_no_report(
    tmp_path: Path, launch: LaunchRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "AWAY_S", 0.5)  # nothing is waited for here
    with socket.socket() as closed:  # bound and not listening: refused at once
        closed.bind(("127.0.0.1", 0))
        settings = settings_at(tmp_path, f"http://ann:s3cret@127.0.0.1:{closed.getsockname()[1]}")
        tracker = Tracker(settings, KEY).start()
        [writer] = writers()
        assert "s3cret" not in " ".join(writer.cmdline())
        send(tracker, launch, range(1))
        report = tracker.close()
    assert report.pending > 0
    assert report.error
    files = [p for p in spool_folder(settings, KEY).iterdir() if p.is_file()]
    assert "s3cret" not in report.error + "".join(p.read_text() for p in files)
