"""A real ``tiltyard up``: on loopback, behind a token, on the same stores, beside another, down to the last process."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import sweeps
import users_models

from tiltyard.journal import Journal
from tiltyard.local import processes, state
from tiltyard.local import up as local
from tiltyard.local.state import Cluster
from tiltyard.settings import Settings
from tiltyard.submit.clusters import find_target
from tiltyard.submit.ray_jobs import RayJobs
from tiltyard.sweep.engine.execute import CURVES, read_curves
from tiltyard.sweep.engine.saving import LOOK_EVERY_S
from tiltyard.training import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = """
import json, os, sys
import ray
from tiltyard.settings import Settings
from tiltyard.sweep.engine.ray_runtime import check_address, submitted_job
check_address()
ray.init()
@ray.remote
def home():
    return str(Settings.from_env().home)
s = Settings.from_env()
found = {"home": str(s.home), "journal": s.journal_uri, "tracking": s.tracking_uri, "python": sys.executable,
         "in_worker": ray.get(home.remote()), "cpus": ray.cluster_resources()["CPU"], "job": submitted_job()}
print("FOUND " + json.dumps(found))
"""


class Cli:
    """``tiltyard`` as a shell runs it, for one home."""

    def __init__(self, home: Path, user_home: Path, **env: str) -> None:
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TILTYARD_", "MLFLOW_TRACKING"))},
            "HOME": str(user_home),
            "TILTYARD_HOME": str(home),
            "COLUMNS": "300",
            "NO_COLOR": "1",
            **env,
        }
        self.settings = Settings.from_env(self.env)

    def __call__(self, *args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tiltyard.cli", *args], env=self.env, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
        return done.stdout

    @property
    def cluster(self) -> Cluster:
        cluster = state.read(self.settings.cluster_state)
        assert cluster is not None
        return cluster

    def url(self, service: str) -> str:
        found = self.cluster.service(service)
        assert found is not None
        return found.url


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One cluster for this file; ended at its end whatever happens."""
    folder = tmp_path_factory.mktemp("up")
    cli = Cli(folder / "home", folder)
    assert "Up, in" in cli("up", "--cpus", "2", "--object-store-gib", "0.3")
    yield cli
    cli("down")


def status_code(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)


def test_up_listens_on_loopback_alone(up: Cli) -> None:
    ours = {p.pid for p in processes.belonging(up.cluster)}
    listening = [
        c.laddr.ip.removeprefix("::ffff:")
        for c in psutil.net_connections("inet")
        if c.status == psutil.CONN_LISTEN and c.pid in ours and c.laddr
    ]
    assert len(listening) >= 10
    assert set(listening) == {"127.0.0.1"}


def test_up_asks_for_the_token_and_keeps_it_private(up: Cli) -> None:
    token = Path(up.cluster.token_path)
    jobs = f"{up.url('ray')}/api/jobs/"
    assert status_code(jobs) == 401
    assert status_code(jobs, Authorization="Bearer wrong") == 403
    assert status_code(jobs, Authorization=f"Bearer {token.read_text()}") == 200
    for private in (token, state.state_file(up.settings.cluster_state)):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert token.read_text() not in state.state_file(up.settings.cluster_state).read_text()
    for process in processes.belonging(up.cluster):
        assert token.read_text() not in " ".join(process.cmdline())
    assert not (Path(up.env["HOME"]) / ".ray" / "auth_token").exists(), "Ray wrote a token of its own"


def test_up_a_second_time_finds_it_up_and_starts_nothing(up: Cli) -> None:
    before = up.cluster
    assert "up already" in up("up")
    assert up.cluster == before


@pytest.mark.filterwarnings("ignore:The ..noload.. loader strategy")  # MLflow 3.17 on SQLAlchemy 2.1
def test_mlflow_of_up_shows_what_a_sweep_writes_to_the_store(up: Cli) -> None:
    from mlflow import MlflowClient

    direct = MlflowClient(tracking_uri=up.settings.tracking_uri)
    experiment = direct.create_experiment("written-beside", artifact_location=up.settings.artifact_root)
    served = MlflowClient(tracking_uri=up.url("mlflow"))
    assert served.get_experiment(experiment).name == "written-beside"
    assert status_code(up.url("mlflow"), Host="evil.example") == 403


@pytest.mark.prometheus
def test_prometheus_of_up_scrapes_this_ray_and_the_record(up: Cli) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("Debian's prometheus is not installed: apt-get install prometheus")
    told = up("status")
    assert up.url("prometheus") in told
    asked = f"{up.url('prometheus')}/api/v1/query?query="
    up_now = {"ray": 3, "tiltyard-record": 1}  # Ray's: its metrics, its autoscaler's and its dashboard's

    def scraped() -> bool:
        with urllib.request.urlopen(asked + "sum%20by%20(job)%20(up)", timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return {s["metric"]["job"]: int(s["value"][1]) for s in found} == up_now

    until(scraped, timeout_s=120)
    environment = next(s for s in up.cluster.services if s.name == "ray").process
    assert psutil.Process(environment.pid).environ()["RAY_PROMETHEUS_HOST"] == up.url("prometheus")


def test_submit_line_of_status_runs_a_job_that_finds_the_same_stores(up: Cli, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(JOB)
    line = next(row for row in up("status").splitlines() if " job submit " in row)
    env = {k: v for k, v in up.env.items() if not k.startswith("TILTYARD_")}  # as from another shell
    program = str(Path(sys.executable).parent / "ray")
    command = line.strip().replace("jobs/first_sweep.py", "job.py")
    words = [program if Path(w).name == "ray" and "=" not in w else w for w in shlex.split(command)]
    done = subprocess.run(
        ["env", *words], env=env, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.split("FOUND ")[1].splitlines()[0])
    job = found.pop("job")
    assert job.startswith("raysubmit_")
    assert f"'{job}' submitted successfully" in done.stdout
    assert found == {
        "home": str(up.settings.home),
        "journal": up.settings.journal_uri,
        "tracking": up.settings.tracking_uri,
        "python": sys.executable,
        "in_worker": str(up.settings.home),
        "cpus": 2.0,
    }


def test_driver_on_this_machine_joins_by_the_environment_of_join(up: Cli) -> None:
    code = (
        "import ray; from tiltyard.sweep.engine.ray_runtime import check_address; check_address(); "
        "ray.init(log_to_driver=False); print('CPUS', ray.cluster_resources()['CPU'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**up.env, **local.join(up.settings)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CPUS 2.0" in done.stdout, done.stderr


def test_two_homes_are_up_at_once_and_down_ends_one(up: Cli, tmp_path: Path) -> None:
    # The second tracks to the first one's server: `up` then starts none.
    other = Cli(tmp_path / "other", tmp_path, TILTYARD_TRACKING_URI=up.url("mlflow"))
    other("up", "--cpus", "1", "--object-store-gib", "0.1", "--no-prometheus")
    try:
        assert [s.name for s in other.cluster.services] == ["ray"], "no MLflow, and no Prometheus"
        theirs = other.cluster
        theirs_alive, ours = processes.belonging(theirs), {p.pid for p in processes.belonging(up.cluster)}
        assert not ours & {p.pid for p in theirs_alive}
    finally:
        told = other("down")
    assert "processes of ray ended" in told
    assert processes.belonging(theirs) == []
    assert not Path(theirs.temp_dir).exists()
    assert all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in theirs_alive)
    up("status")  # exit code 0: every server of the first still answers


def test_up_stopped_by_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "home", tmp_path)
    starting = subprocess.Popen(
        [sys.executable, "-m", "tiltyard.cli", "up"], env=cli.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    folder = cli.settings.cluster_state
    until(lambda: (found := state.read(folder)) is not None and len(found.services) >= 2)
    cluster = cli.cluster
    starting.send_signal(signal.SIGINT)
    assert starting.wait(timeout=30) == 130
    assert processes.belonging(cluster) == []
    assert state.read(folder) is None
    assert not Path(cluster.temp_dir).exists()
    assert not Path(cluster.token_path).exists()


SWEEP = """
from tiltyard import DatasetRef, Experiment, Halving, Objective, Resources, Search, Variant, loguniform, main


def experiment():
    return Experiment(
        name="sent",
        variants=[Variant(name="own", model="my_models:Gated", fixed={{"gate": {gate!r}, "steps": 2, "batch_size": 32}},
                          space={{"lr": loguniform(1e-3, 1e-1)}})],
        datasets=[DatasetRef("rings")],
        objective=Objective(metric="accuracy"),
        search=Search(trials=4, halving=Halving(rungs=(2, 3), keep=0.5), finalists=1),
        resources=Resources(max_concurrent=1),
    )


if __name__ == "__main__":
    main(__file__)
"""


def test_submitted_sweep_is_cancelled_in_order_and_the_same_submit_goes_on_where_it_was(
    up: Cli, tmp_path: Path
) -> None:
    """The folder travels with the user's model; cancelling saves the pack in mid-rung; twice the same is one job."""
    sweeps.commit_small_datasets(Path(up.settings.data_uri))
    gate = tmp_path / "gate"
    gate.touch()
    work = tmp_path / "work"
    work.mkdir()
    (work / "sweep.py").write_text(SWEEP.format(gate=str(gate)))
    shutil.copy(users_models.__file__, work / "my_models.py")

    def told(*args: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tiltyard.cli", *args],
            env=up.env, cwd=work, capture_output=True, text=True, check=False, timeout=240,
        )  # fmt: skip
        assert done.returncode == code, (args, done.stdout, done.stderr)
        return done.stdout + done.stderr

    ray_jobs = RayJobs(find_target(up.settings, cluster="up", env=up.env))

    def jobs() -> dict[str, str]:
        return {job.id: job.state for job in ray_jobs.jobs() if job.id.startswith("sent-")}

    assert "Submitted: " in told("submit", "--detach", "sweep.py")
    until(lambda: any(tmp_path.glob("gate.*")), timeout_s=240)  # in the first of the two epochs of its rung
    began = time.monotonic()
    cancelling = threading.Thread(target=lambda: answers.append(told("cancel", "sent")))
    answers: list[str] = []
    cancelling.start()
    with Journal.open(up.settings.journal_uri) as journal:
        until(lambda: bool(journal.decisions(kind="cancel")), timeout_s=90)
        (cancelled,) = journal.decisions(kind="cancel")
        assert [cancelled.subject] == list(jobs())
        (launch,) = journal.launches("sent")
        until(lambda: bool(journal.requests.of(launch.key, state="done")), timeout_s=90)  # its packs are told to save
        until(lambda: time.monotonic() - began > LOOK_EVERY_S)  # the pack looks at its epoch's end
        gate.unlink()
        cancelling.join(timeout=180)
        assert "STOPPED" in answers[0]
        (launch,) = journal.launches("sent")
        assert (launch.state, launch.summary) == ("stopped", {"reason": "stopped by SIGTERM"})
        (saved,) = journal.attempts(launch.key)
        assert (saved.state, saved.rung) == ("saved", 0)
        assert journal.cell_scores(saved.cells, [2]) == {}, "its rung, of two epochs, is not done"
        assert json.loads((Path(saved.storage_uri or "") / checkpoint.META).read_text())["epoch"] == 1
        followed = told("submit", "sweep.py")
        (launch,) = journal.launches("sent")
        assert (launch.state, launch.fence) == ("finished", 2)
        (claimed,) = journal.decisions(kind="submission")
        assert claimed.subject.startswith("sent-")
        tries = [a for a in journal.attempts(launch.key) if a.pack_id == saved.pack_id]
        assert [(a.state, a.layout["goes_on_from"]) for a in tries] == [("saved", None), ("done", saved.storage_uri)]
        before, after = (read_curves(Path(a.storage_uri or "") / CURVES) for a in tries)
        assert set(before["epoch"]) == {1}
        assert set(after["epoch"]) == {1, 2}
        kept = after["epoch"] == 1
        assert sorted(after["train_loss"][kept]) == sorted(before["train_loss"]), "epoch 1 was not trained again"
    assert "SUCCEEDED" in followed
    assert "own@rings" in followed, "the log was followed to the leaderboard"
    states = jobs()
    assert sorted(states.values()) == ["STOPPED", "SUCCEEDED"]
    assert "was submitted before" in told("submit", "sweep.py")
    assert jobs() == states


def test_down_after_a_server_died_ends_the_rest_exactly(up: Cli) -> None:
    # The last test of this file: it takes the shared cluster down.
    cluster = up.cluster
    mlflow = cluster.service("mlflow")
    assert mlflow is not None
    everything = processes.belonging(cluster)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    try:
        os.kill(mlflow.process.pid, signal.SIGKILL)
        until(lambda: not processes.alive(mlflow.process))
        assert "ended; see" in up("status", code=1)
        told = up("down")
        assert "processes of ray and mlflow" in told
        assert processes.belonging(cluster) == []
        assert all(not p.is_running() or p.status() == psutil.STATUS_ZOMBIE for p in everything)
        assert bystander.poll() is None
        assert "Nothing was up" in up("down")
        assert (up.settings.cluster_state / "logs" / "ray-session").is_dir()
    finally:
        bystander.kill()
        bystander.wait()
