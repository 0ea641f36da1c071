"""What one pack and rung costs the driver, the journal and the head: the measurements behind the sizing table of cluster/.

CPU seconds of the processes and bytes they write, not wall time, so that another load on the machine changes little. The
state machine is driven at 100, 1,000 and 10,000 concurrent packs as they are; the journal is a real PostgreSQL; the head is a
real Ray with a few actors, whose share is the difference between few and more of them.
"""

from __future__ import annotations

import gc
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from harness import Benchmark, Figure

from tiltyard.data.samples import commit_samples
from tiltyard.data.store import DatasetStore
from tiltyard.distributions import loguniform
from tiltyard.experiment import Experiment, Halving, Objective, Resources, Search, Variant
from tiltyard.journal import CellScore, Journal, Owner, TrialRow, TrialUpdate
from tiltyard.ray_token import use_own_token
from tiltyard.settings import Settings
from tiltyard.sweep.engine.launch import launch
from tiltyard.sweep.halving import Machine, PackDone
from tiltyard.sweep.plan import Group, Trial
from tiltyard.tracking.mlflow_runs import MlflowRuns
from tiltyard.tracking.records import LaunchRecord, TrialRecord
from tiltyard.types import DatasetRef, Mode, Task

MEMBERS, RUNGS = 16, (1, 3, 9)
JOURNAL_PACKS = 150
ACTORS = (2, 14)
TRACKED = 60
SWEPT = 48


def benchmarks() -> list[Benchmark]:
    return [machine, journal, runs, driver, head]


def groups(number: int) -> list[Group]:
    """Groups of one pack each, all of which train at once."""
    found = []
    for g in range(number):
        name = f"v{g}@d"
        trials = tuple(
            Trial(
                cell=f"{g:032x}{i:032x}", index=i, group=name, variant=f"v{g}", model="mlp",
                config={"lr": 0.1 + i, "weight_decay": 0.2, "dropout": 0.1, "hidden": (64, 32)}, dataset="d", dataset_version=1,
                dataset_digest="d" * 64, task=Task.MULTICLASS, input_shape=(64,), num_outputs=10, seed=i, data_seed=0,
            )
            for i in range(MEMBERS)
        )  # fmt: skip
        found.append(Group(name=name, variant=f"v{g}", model="mlp", dataset="d", rungs=RUNGS, keep=0.5, trials=trials))
    return found


def machine() -> Iterable[Figure]:
    """The state machine of a sweep, from its first pack to its last."""
    for number in (100, 1_000, 10_000):
        gc.collect()
        before = psutil.Process().memory_info().rss
        planned = groups(number)
        begun = time.process_time()
        state = Machine(
            planned,
            metric="accuracy",
            mode=Mode.MAX,
            pack_size=lambda _, trials: len(trials),
            shape=lambda _: "one",
            known={},
        )
        most = packs = 0
        while not state.done:
            running = []
            while (pack := state.next()) is not None:
                running.append(pack)
            most = max(most, len(running))
            for pack in running:
                scores = {
                    cell: CellScore(
                        cell=cell, epoch=pack.to_epoch, metrics={"accuracy": int(cell[-4:], 16) / 100}, storage_uri="s",
                        pack_id=pack.pack_id, attempt=1,
                    )
                    for cell in pack.cells
                }  # fmt: skip
                state.report(PackDone(pack.pack_id, scores))
                packs += 1
            state.drain_decisions()
        spent = time.process_time() - begun
        memory = psutil.Process().memory_info().rss - before
        assert most == number
        note = f"{packs} packs and rungs of {MEMBERS} members at most"
        yield Figure(
            f"sizing_machine_ms_at_{number}", 1e3 * spent / packs, "ms CPU", "a pack and rung", None, None, note
        )
        yield Figure(
            f"sizing_machine_kib_at_{number}", memory / number / 1024, "KiB", "a concurrent pack", None, None, note
        )
        del state, planned


def journal() -> Iterable[Figure]:
    """What the journal writes for a pack and rung: an attempt, its members' scores and their states."""
    with postgres() as (uri, server), Journal.open(uri) as record:
        claim = record.claim("k" * 64, experiment="sizing", spec="{}", owner=Owner.here())
        cells = [f"{p:032x}{i:032x}" for p in range(JOURNAL_PACKS) for i in range(MEMBERS)]
        record.add_trials(
            claim,
            [
                TrialRow(
                    cell=cell, key=claim.key, group="g", index=i, variant="v", model="mlp", dataset="d", dataset_version=1,
                    config={"lr": 0.1, "weight_decay": 0.1}, seed=i, data_seed=0,
                )
                for i, cell in enumerate(cells)
            ],
        )  # fmt: skip
        begun, theirs, wrote = time.process_time(), _cpu_s(server), _io_bytes(server)
        for p in range(JOURNAL_PACKS):
            mine = cells[p * MEMBERS : (p + 1) * MEMBERS]
            attempt = record.start_attempt(claim, f"p{p}", rung=1, cells=mine, device_kind="cpu", layout={"chunk": 16})
            record.finish_attempt(
                attempt,
                scores=[
                    CellScore(
                        cell=cell, epoch=3, metrics={"accuracy": 0.9, "log_loss": 0.3}, storage_uri="s3://bucket/a/b/c",
                        pack_id=f"p{p}", attempt=1, seconds=1.0,
                    )
                    for cell in mine
                ],
                metered_s=1.0,
                storage_uri="s3://bucket/a/b/c",
            )  # fmt: skip
            record.set_trial_states(
                claim, [TrialUpdate(cell=cell, state="waiting", epoch=3, score=0.9) for cell in mine]
            )
        spent, served = time.process_time() - begun, _cpu_s(server) - theirs
        size = _io_bytes(server) - wrote
    against = f"a pack and rung of {MEMBERS}"
    yield Figure("sizing_journal_driver_ms", 1e3 * spent / JOURNAL_PACKS, "ms CPU", against, None, None)
    yield Figure("sizing_journal_postgres_ms", 1e3 * served / JOURNAL_PACKS, "ms CPU", against, None, None)
    yield Figure("sizing_journal_kib_written", size / JOURNAL_PACKS / 1024, "KiB", against, None, None)


def runs() -> Iterable[Figure]:
    """What the writer of MLflow runs spends on a trial that has ended: SQL of its own, as where it has the database."""
    with postgres() as (uri, server), tempfile.TemporaryDirectory() as folder:
        tracked = MlflowRuns(uri.replace("postgresql://", "postgresql+psycopg://"), Path(folder).as_uri())
        parent = tracked.open_launch(LaunchRecord(experiment="sizing", key="k" * 64, launch_id="l", spec="{}", tags={}))
        tracked.trial("sizing", "k" * 64, parent, _trial_record(0))
        begun, theirs = time.process_time(), _cpu_s(server)
        for i in range(1, TRACKED + 1):
            tracked.trial("sizing", "k" * 64, parent, _trial_record(i))
        spent, served = time.process_time() - begun, _cpu_s(server) - theirs
    yield Figure("sizing_mlflow_writer_ms", 1e3 * spent / TRACKED, "ms CPU", "a trial's run, 18 points", None, None)
    yield Figure("sizing_mlflow_postgres_ms", 1e3 * served / TRACKED, "ms CPU", "a trial's run, 18 points", None, None)


def _trial_record(i: int) -> TrialRecord:
    return TrialRecord(
        cell=f"{i:064x}", name=f"v@d/{i:03d}", variant="v", dataset="d", dataset_version=1, dataset_digest="d" * 64,
        params={"lr": 0.1, "weight_decay": 0.1}, state="done", reason=None, duration_s=1.0, cpu_s=1.0, start_ms=1, end_ms=2,
        history=[(e, {"accuracy": 0.5 + e / 100, "log_loss": 1 / e}) for e in range(1, 10)],
    )  # fmt: skip


def driver() -> Iterable[Figure]:
    """What the driver of a real sweep spends on each of its Tune trials: packs of one, two rungs, on a Ray of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_env({"TILTYARD_HOME": folder})
        commit_samples(DatasetStore(settings.data_uri), ["wine"])
        figures = []
        for number in (4, 8, 8 + SWEPT):  # the first one starts Ray
            experiment = Experiment(
                name=f"sizing-{number}",
                variants=(Variant(name="one", model="logistic", space={"lr": loguniform(1e-3, 1e-1)}),),
                datasets=(DatasetRef("wine"),),
                objective=Objective(metric="accuracy"),
                search=Search(trials=number, halving=Halving(rungs=(1, 2), keep=0.5)),
                resources=Resources(pack=1),
                seed=number,  # or cells of the sweep before would be known
            )
            use_own_token(settings)
            begun, theirs = time.process_time(), _ray_cpu_s()
            launch(settings, experiment, code_digest="c" * 64)
            spent, served = time.process_time() - begun, [b - a for a, b in zip(theirs, _ray_cpu_s(), strict=True)]
            stored = sum(p.stat().st_size for p in Path(settings.storage_uri).rglob("*") if p.is_file())
            figures.append((number + number // 2, spent, stored, served))
        import ray

        ray.shutdown()
    _, (few, small, before, served_few), (many, large, after, served_many) = figures
    against = "each further pack and rung"
    yield Figure("sizing_driver_ms", 1e3 * (large - small) / (many - few), "ms CPU", against, None, None)
    gcs, raylet = (1e3 * (b - a) / (many - few) for a, b in zip(served_few, served_many, strict=True))
    yield Figure("sizing_gcs_ms", gcs, "ms CPU", against, None, None, "with the seconds that the sweep lasts")
    yield Figure("sizing_raylet_ms", raylet, "ms CPU", against, None, None, "with the seconds that the sweep lasts")
    yield Figure("sizing_stored_kib", (after - before) / many / 1024, "KiB", "a rung of one logistic model", None, None)


def _ray_cpu_s() -> tuple[float, float]:
    """CPU seconds of the GCS and of the raylet that this process started."""
    spent = {"gcs_server": 0.0, "raylet": 0.0}
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        name = Path(words[0]).name if words else ""
        if name in spent:
            times = process.cpu_times()
            spent[name] += times.user + times.system
    return spent["gcs_server"], spent["raylet"]


def head() -> Iterable[Figure]:
    """Memory of a head, alone and for each actor that holds no work."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False, object_store_memory=100 << 20)
    try:

        @ray.remote(num_cpus=0)
        class Idle:
            def here(self) -> int:
                return os.getpid()

        make: Any = Idle

        servers = ("gcs_server", "raylet", "dashboard", "agent", "monitor", "log_monitor")
        found: list[tuple[int, int, int]] = []
        actors: list[Any] = []
        for number in ACTORS:
            actors += [make.remote() for _ in range(number - len(actors))]
            pids = ray.get([a.here.remote() for a in actors])
            time.sleep(10)  # two of the dashboard's rounds
            rss = {
                p.pid: (" ".join(p.cmdline()), p.memory_info().rss) for p in psutil.Process().children(recursive=True)
            }
            serving = sum(m for c, m in rss.values() if any(s in c for s in servers) and "ray::" not in c)
            worker = sum(rss[pid][1] for pid in pids) // len(pids)
            found.append((number, serving, worker))
    finally:
        ray.shutdown()
    (few, small, _), (many, large, worker) = found
    yield Figure("sizing_head_mib", small / 2**20, "MiB", f"servers of a head with {few} actors", None, None)
    yield Figure(
        "sizing_head_kib_an_actor",
        (large - small) / (many - few) / 1024,
        "KiB",
        "servers, each further actor",
        None,
        None,
    )
    yield Figure("sizing_worker_mib", worker / 2**20, "MiB", "an idle worker process", None, None)


@contextmanager
def postgres() -> Iterator[tuple[str, psutil.Process]]:
    """A PostgreSQL of this run's own, as it is configured by default; its address and its first process."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found:
        raise SystemExit("Debian's PostgreSQL is not installed: apt-get install postgresql")
    programs, folder = found[-1].parent, Path(tempfile.mkdtemp(prefix="tiltyard-pg-", dir="/tmp"))
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses root
        entry = pwd.getpwnam("postgres")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        shutil.chown(folder, entry.pw_uid)
    common: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "HOME": str(folder)}, **user}
    init: list[str | Path] = [programs / "initdb", "-D", folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8"]
    subprocess.run(init, check=True, capture_output=True, timeout=120, **common)
    with (folder / "log").open("wb") as log:
        options = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses="]
        server = subprocess.Popen(
            [programs / "postgres", "-D", folder / "data", *options], stdout=log, stderr=log, **common
        )
    try:
        ready: list[str | Path] = [programs / "pg_isready", "-q", "-h", folder, "-U", "postgres"]
        deadline = time.monotonic() + 60
        while subprocess.run(ready, check=False, **common).returncode != 0:
            if time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text()[-1000:])
            time.sleep(0.1)
        yield f"postgresql://postgres@/postgres?host={folder}", psutil.Process(server.pid)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


def _cpu_s(server: psutil.Process) -> float:
    """CPU seconds of a server's processes that live, and of those that ended."""
    own = server.cpu_times()
    living = [p.cpu_times() for p in server.children()]
    return float(
        own.user + own.system + own.children_user + own.children_system + sum(t.user + t.system for t in living)
    )


def _io_bytes(server: psutil.Process) -> int:
    """Bytes that a server's processes handed to the system to write."""
    return sum(p.io_counters().write_chars for p in (server, *server.children()))


if __name__ == "__main__":
    for benchmark in benchmarks():
        for figure in benchmark():
            print(f"{figure.name:36} {figure.value:12.4g} {figure.unit:8} {figure.against}  {figure.note}")
