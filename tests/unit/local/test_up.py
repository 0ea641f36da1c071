"""The order of things in up and down: locks, stale records, failures while starting.

The servers here are small programs that answer HTTP and nothing else, so that a start takes a fraction of a second.
They do not model ports, tokens and Ray's process tree: tests/local_ray/test_up_down.py has the real ones.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiltyard.errors import MachineError
from tiltyard.local import commands, processes, state
from tiltyard.local import up as local
from tiltyard.settings import Settings
from tiltyard.telemetry.alerts import rules_file

ANSWER = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *a): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_env({"TILTYARD_HOME": str(tmp_path / "home")})


@pytest.fixture(autouse=True)
def small_servers(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> Iterator[dict[str, str]]:
    """Replaces both servers' programs; a test changes the code of one by name. What is up is ended afterwards."""
    code = {"ray": ANSWER, "mlflow": ANSWER}
    monkeypatch.setattr(commands, "prometheus_program", lambda: None)

    def ray(_cluster: Any, ports: Mapping[str, int], **_: Any) -> list[str]:
        return [sys.executable, "-S", "-c", code["ray"], str(ports["dashboard"])]

    monkeypatch.setattr(commands, "ray_argv", ray)
    monkeypatch.setattr(commands, "mlflow_argv", lambda port: [sys.executable, "-S", "-c", code["mlflow"], str(port)])
    yield code
    code.update(ray=ANSWER, mlflow=ANSWER)
    local.down(settings)


def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_up_then_down_starts_both_and_leaves_logs_alone(settings: Settings) -> None:
    outcome = local.up(settings)
    assert outcome.started
    assert [s.service.name for s in local.status_of(outcome.cluster) if s.running and s.answers] == ["ray", "mlflow"]
    ended = local.down(settings)
    assert ended is not None
    assert (ended.processes, ended.services) == (2, ("ray", "mlflow"))
    assert sorted(p.name for p in settings.cluster_state.iterdir()) == ["lock", "logs"]
    assert not Path(outcome.cluster.temp_dir).exists()
    assert local.down(settings) is None


def test_up_twice_gives_the_same_cluster(settings: Settings) -> None:
    first, second = local.up(settings), local.up(settings)
    assert not second.started
    assert second.cluster == first.cluster


def test_up_again_gets_the_same_addresses_and_another_token(settings: Settings) -> None:
    first = local.up(settings).cluster
    token = Path(first.token_path).read_text()
    local.down(settings)
    second = local.up(settings).cluster
    assert [s.url for s in second.services] == [s.url for s in first.services]
    assert Path(second.token_path).read_text() != token


def test_up_after_a_server_was_killed_says_so_and_starts_anew(settings: Settings) -> None:
    first = local.up(settings).cluster
    os.kill(first.services[0].process.pid, signal.SIGKILL)
    until(lambda: not processes.alive(first.services[0].process))
    told: list[str] = []
    second = local.up(settings, say=told.append)
    assert second.started
    assert "does not run as a whole" in told[0]
    assert processes.belonging(first) == []


def test_up_after_one_that_never_finished_clears_it_by_its_record(settings: Settings) -> None:
    settings.ensure_home()
    log = settings.cluster_state / "logs" / "x.log"
    env = {**os.environ, state.MARK_ENV: "cut-short"}
    orphan = processes.spawn([sys.executable, "-S", "-c", "import time; time.sleep(60)"], env, log)
    keep = settings.home / "precious"  # a record that names a folder which up did not make must not have it removed
    keep.mkdir()
    cluster = state.Cluster(
        id="cut-short",
        home=str(settings.home),
        ready=False,
        started_at="",
        token_path=str(settings.cluster_state / "token"),
        temp_dir=str(keep),
    )
    state.write(settings.cluster_state, cluster)
    until(lambda: orphan.pid in processes.marked())
    assert local.up(settings).started
    assert not processes.alive(orphan)
    assert keep.exists()


def test_up_with_a_server_that_ends_tells_the_end_of_its_log(settings: Settings, small_servers: dict[str, str]) -> None:
    small_servers["mlflow"] = "import sys; sys.exit('unable to open database file')"
    with pytest.raises(MachineError, match=r"(?s)mlflow server ended while it started.*unable to open database file"):
        local.up(settings)
    assert local.status(settings) is None


@pytest.mark.slow
def test_up_with_a_server_that_never_answers_ends_all_and_names_it(
    settings: Settings, small_servers: dict[str, str]
) -> None:
    small_servers["ray"] = "import time; time.sleep(60)"
    with pytest.raises(MachineError, match=r"No answer from ray within 1 s"):
        local.up(settings, timeout_s=1.0)
    assert local.status(settings) is None
    assert not [home for _, _, home in processes.marked().values() if home == str(settings.home)]


def test_up_and_down_while_another_is_at_work_are_refused(settings: Settings) -> None:
    settings.cluster_state.mkdir(parents=True)
    with (settings.cluster_state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (local.up, local.down):
            with pytest.raises(MachineError, match="is at work on"):
                command(settings)


def test_up_on_a_tracking_server_of_ones_own_starts_no_other(tmp_path: Path) -> None:
    settings = Settings.from_env({"TILTYARD_HOME": str(tmp_path / "h"), "TILTYARD_TRACKING_URI": "http://mlflow:5000"})
    try:
        assert [s.name for s in local.up(settings).cluster.services] == ["ray"]
    finally:
        local.down(settings)


def test_up_where_prometheus_is_installed_starts_it_on_the_ray_of_this_home_and_rays_dashboard_asks_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(port: int) -> list[str]:
        return [sys.executable, "-S", "-c", ANSWER, str(port)]

    monkeypatch.setattr(commands, "prometheus_program", lambda: "/usr/bin/prometheus")
    monkeypatch.setattr(commands, "prometheus_argv", lambda program, folder, port: small(port))
    monkeypatch.setattr(commands, "record_argv", small)
    cluster = local.up(settings).cluster
    assert [s.service.name for s in local.status_of(cluster) if s.answers] == ["ray", "mlflow", "prometheus", "record"]
    urls = {s.name: s.url for s in cluster.services}
    folder = settings.cluster_state / "prometheus"
    config = yaml.safe_load((folder / "prometheus.yaml").read_text())
    ray, record = config["scrape_configs"]
    assert ray["file_sd_configs"][0]["files"] == [f"{cluster.temp_dir}/prom_metrics_service_discovery.json"]
    assert f"http://{record['static_configs'][0]['targets'][0]}/metrics" == urls["record"]
    assert yaml.safe_load(Path(config["rule_files"][0]).read_text()) == rules_file()
    env = processes.find(cluster.services[0].process).environ()  # type: ignore[union-attr]
    assert env["RAY_PROMETHEUS_HOST"] == urls["prometheus"]
    told = processes.find(cluster.services[3].process).environ()  # type: ignore[union-attr]
    assert told["TILTYARD_TRACKING_URI"] == urls["mlflow"]
    ended = local.down(settings)
    assert ended is not None
    assert ended.processes == 4
    assert [s.name for s in local.up(settings, prometheus=False).cluster.services] == ["ray", "mlflow"]


def test_submit_line_names_mode_token_file_address_and_job(settings: Settings) -> None:
    line = local.submit_line(local.up(settings).cluster, "jobs/x.py")
    assert line.startswith(f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={settings.cluster_state / 'token'} ")
    assert line.endswith("--working-dir . -- python jobs/x.py")
    assert " job submit --address http://127.0.0.1:" in line


def test_join_of_what_is_up_gives_address_and_token_and_refuses_where_nothing_is(settings: Settings) -> None:
    with pytest.raises(MachineError, match="Start it: tiltyard up"):
        local.join(settings)
    cluster = local.up(settings).cluster
    env = local.join(settings)
    assert env["RAY_ADDRESS"] == f"127.0.0.1:{cluster.services[0].ports['gcs']}"
    assert env["RAY_AUTH_TOKEN_PATH"] == cluster.token_path


def test_fits_sockets_with_a_long_folder_says_no(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    assert not local.fits_sockets(str(long))
    assert local.fits_sockets("/tmp")
