"""Whole sweeps: against plain Ray Tune on the same trials, from empty state to leaderboard, again, resumed, and tracked."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from harness import Benchmark, Figure

HERE = Path(__file__).parent
TRIALS, EPOCHS, SAMPLE, LEAN = 512, 20, 32, 1
BIG = """
from tiltyard import DatasetRef, Experiment, Halving, Objective, Search, Variant, choice, loguniform, main, uniform


def experiment():
    return Experiment(
        name="thousand",
        variants=(
            Variant(
                name="logistic", model="logistic", fixed={"batch_size": 64}, trials=334,
                space={"lr": loguniform(1e-3, 1e-1), "weight_decay": loguniform(1e-6, 1e-1)},
            ),
            Variant(
                name="mlp", model="mlp", fixed={"batch_size": 64, "schedule": "cosine"}, trials=666,
                space={
                    "hidden": choice((64, 32), (128,)), "lr": loguniform(5e-4, 5e-2),
                    "weight_decay": loguniform(1e-6, 1e-1), "dropout": uniform(0.0, 0.5),
                },
            ),
        ),
        datasets=(DatasetRef("digits"), DatasetRef("breast-cancer"), DatasetRef("wine")),
        samples=("digits", "breast-cancer", "wine"),
        objective=Objective(metric="accuracy"),
        search=Search(trials=TRIALS_EACH, halving=Halving(rungs=(3, 9, 27))),
    )


if __name__ == "__main__":
    main(__file__)
"""


@contextmanager
def one_ray() -> Iterator[Path]:
    """A Ray of two CPUs whose workers find these files, and an empty folder."""
    import logging

    import ray

    with tempfile.TemporaryDirectory(prefix="ty-bench-") as folder:
        os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL
        )
        try:
            yield Path(folder)
        finally:
            ray.shutdown()


def digits_experiment(seed: int = 0) -> Any:
    """512 MLPs, 64-32 wide, AdamW, batches of 64, 20 epochs, nothing stopped early."""
    from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, loguniform

    return Experiment(
        name=f"mlps-{seed}",
        variants=(
            Variant(
                name="mlp",
                model="mlp",
                fixed={"hidden": (64, 32), "optimizer": "adamw", "batch_size": 64},
                space={"lr": loguniform(1e-4, 3e-2), "weight_decay": loguniform(1e-6, 1e-2)},
            ),
        ),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=TRIALS, epochs=EPOCHS),
        seed=seed,
    )


def sweep(
    folder: Path, experiment: Any, *, tracked: bool = True, begins: list[float] | None = None
) -> tuple[Any, float]:
    """A launch in this process; what came out, and the seconds from ``fit()`` to its last result.

    The time of day at each ``fit()`` is added to ``begins``.
    """
    from tiltyard.data.samples import commit_samples
    from tiltyard.data.store import DatasetStore
    from tiltyard.settings import Settings
    from tiltyard.sweep.engine import launch as engine
    from tiltyard.sweep.engine.driver import run_packs

    settings = Settings.from_env({"TILTYARD_HOME": str(folder)})
    commit_samples(DatasetStore(settings.data_uri), ["digits"])
    took: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> None:
        begun = time.perf_counter()
        if begins is not None:
            begins.append(time.time())
        run_packs(*args, **kwargs)
        took.append(time.perf_counter() - begun)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(engine, "run_packs", timed))
        if not tracked:
            patches.enter_context(mock.patch.object(engine, "Tracker", _NoTracker))
        outcome = engine.launch(settings, experiment, code_digest="b" * 64)
    return outcome, took[0]


class _NoTracker:
    """A sweep that records nothing in MLflow: what the writer's cost is measured against."""

    def __init__(self, *_: Any) -> None:
        pass

    def __enter__(self) -> _NoTracker:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def start(self) -> _NoTracker:
        return self

    def run_ids(self) -> dict[str, str]:
        return {}

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@dataclass(frozen=True)
class Packed:
    """The 512 trials as sweeps of ours, and what a rival needs to train the very same."""

    seconds: float
    outcome: Any
    configs: list[dict[str, Any]]
    common: dict[str, Any]
    """Arguments of `sweep_rivals.plain_tune`."""

    waited: float
    """Seconds that processes loaded for, asked for ahead of ``fit()``; the rival's load so too, and no clock counts it."""

    def told(self, theirs: float) -> str:
        """What was trained, and the ratio if the wait counted on both sides."""
        counted = (theirs + self.waited) / (self.seconds + self.waited)
        return (
            f"{TRIALS} MLPs on digits, {EPOCHS} epochs; whole launch {self.outcome.seconds:.1f} s. Before each fit(), on both "
            f"sides, {self.waited:.1f} s for the first processes to load torch and Ray Tune; with that counted {counted:.1f}x."
        )


@contextmanager
def waits() -> Iterator[list[float]]:
    """Seconds that each launch waits for warm processes."""
    from tiltyard.sweep.engine.warm import Warm

    found: list[float] = []
    wait = Warm._wait

    def timed(warm: Warm) -> None:
        begun = time.perf_counter()
        wait(warm)
        found.append(time.perf_counter() - begun)

    with mock.patch.object(Warm, "_wait", timed):
        yield found


def packed(folder: Path) -> Packed:
    """Two sweeps of 512 MLPs, the second with the experiment that the rival is given; their median."""
    from sweep_rivals import Rows

    from tiltyard.data.store import DatasetStore
    from tiltyard.settings import Settings
    from tiltyard.training import PackSpec

    with waits() as waited:
        runs = [sweep(folder / f"ours{seed}", digits_experiment(seed)) for seed in (1, 0)]
    outcome = runs[-1][0]
    prepared = outcome.prepared["digits"]
    store = DatasetStore(Settings.from_env({"TILTYARD_HOME": str(folder / "ours0")}).data_uri)
    splits = {s: store.read(prepared.version, split=s) for s in ("train", "validation")}
    x = {s: prepared.preprocessor.transform(t) for s, t in splits.items()}
    y = {s: prepared.preprocessor.transform_label(t) for s, t in splits.items()}
    trial = outcome.plan.trials[0]
    spec = PackSpec(
        model="mlp",
        model_args={"hidden": (64, 32)},
        task=trial.task,
        input_shape=trial.input_shape,
        num_outputs=trial.num_outputs,
        optimizer="adamw",
        batch_size=64,
        total_epochs=EPOCHS,
    )
    return Packed(
        seconds=statistics.median(took for _, took in runs),
        outcome=outcome,
        configs=[{**t.config, "seed": t.seed} for t in outcome.plan.trials],
        common={
            "rows": Rows(x["train"], y["train"], x["validation"], y["validation"], prepared.version.content_digest),
            "spec": spec,
            "data_seed": trial.data_seed,
            "folder": str(folder / "tune"),
        },
        waited=statistics.median(waited),
    )


def mlp_vs_tune_reuse() -> Iterable[Figure]:
    """The same 512 trials packed and one a Tune trial; clocks from ``fit()`` to the last result, ``ray.init`` excluded."""
    from sweep_rivals import plain_tune

    with one_ray() as folder:
        ours = packed(folder)
        reused, theirs = plain_tune(ours.configs, reuse_actors=True, each_epoch=True, **ours.common)
        drawn = random.Random(0).sample(ours.configs, SAMPLE)
        lean, _ = plain_tune(drawn * LEAN, reuse_actors=True, each_epoch=False, **ours.common)
    seeds = {t.cell: t.seed for t in ours.outcome.plan.trials}
    by_seed = {seeds[r.cell]: r.score for r in ours.outcome.results}
    apart = sorted(abs(by_seed[c["seed"]] - a) for c, a in zip(ours.configs, theirs, strict=True))
    told = (
        f"{ours.told(reused)} Final accuracies packed and alone: median difference {apart[len(apart) // 2]:.4f}, largest "
        f"{apart[-1]:.4f} (one row is {1 / len(ours.common['rows'].y_val):.4f}). The rival trains with fused AdamW and "
        f"reports each epoch, for curves as ours has them; reporting once a trial it took {lean:.1f} s for "
        f"{SAMPLE * LEAN} ({lean * TRIALS / SAMPLE / LEAN / ours.seconds:.1f}x)."
    )
    against = f"Ray Tune, reuse_actors=True, all {TRIALS}"
    yield Figure("pack_mlp_vs_tune_reuse_actors", ours.seconds, "s", against, reused, reused / ours.seconds, told)


def mlp_vs_tune_default() -> Iterable[Figure]:
    """As `mlp_vs_tune_reuse`, against Ray Tune as it comes, on some of the trials."""
    from sweep_rivals import plain_tune

    with one_ray() as folder:
        ours = packed(folder)
        drawn = random.Random(0).sample(ours.configs, SAMPLE)
        default, _ = plain_tune(drawn, reuse_actors=False, each_epoch=True, **ours.common)
    scaled = default * TRIALS / SAMPLE
    yield Figure(
        "pack_mlp_vs_tune_default",
        ours.seconds,
        "s",
        f"Ray Tune as it comes, {SAMPLE} of them x {TRIALS // SAMPLE}",
        scaled,
        scaled / ours.seconds,
        f"{ours.told(scaled)} {SAMPLE} trials drawn at random took {default:.1f} s as Ray Tune comes; scaled linearly.",
    )


def tracking() -> Iterable[Figure]:
    """Training with the MLflow writer on against without it, and what a trial costs to have it all in MLflow."""
    on: list[float] = []
    off: list[float] = []
    cost: list[float] = []
    with one_ray() as folder:
        sweep(folder / "warm", digits_experiment(9), tracked=False)
        for run, is_on in enumerate((True, False, False, True)):  # neither side is always the first
            home = folder / f"run{run}"
            outcome, took = sweep(home, digits_experiment(run // 2), tracked=is_on)
            (on if is_on else off).append(took)
            if is_on:
                assert outcome.tracker.pending == 0, outcome.tracker.error
                cost.append(_drain_ms_per_trial(home))
    yield Figure(
        "tracking_slowdown",
        statistics.median(on) / statistics.median(off),
        "x",
        "the most that it may be",
        1.10,
        1.10 * statistics.median(off) / statistics.median(on),
        f"seconds of training with the writer {_list(on)}, without {_list(off)}; {TRIALS} trials of {EPOCHS} epochs",
    )
    value = statistics.median(cost)
    yield Figure("tracking_ms_per_trial", value, "ms", "the most that it may be", 30.0, 30.0 / value)


def _drain_ms_per_trial(home: Path) -> float:
    """Writes the very spool of a sweep once more, to a new MLflow, with nothing beside it."""
    from tiltyard.settings import Settings
    from tiltyard.tracking import Tracker, drain_leftover

    (old,) = (home / "spool").iterdir()
    fresh = Settings.from_env({"TILTYARD_HOME": str(home / "again")})
    warm = Tracker(fresh, "0" * 64).start()
    warm.open_launch(_launch_of(old))
    warm.close()
    to = fresh.home / "spool" / old.name
    to.mkdir(parents=True)
    (to / "spool.jsonl").write_bytes((old / "spool.jsonl").read_bytes())
    begun = time.perf_counter()
    report = drain_leftover(fresh, old.name)
    assert report is not None
    assert report.pending == 0
    return 1000 * (time.perf_counter() - begun) / TRIALS


def _launch_of(spool: Path) -> Any:
    import json

    from tiltyard.tracking import LaunchRecord

    first = json.loads((spool / "spool.jsonl").open().readline())
    return LaunchRecord(**{k: v for k, v in first.items() if k != "kind"})


def sweep_1000() -> Iterable[Figure]:
    """1,002 trials, two variants, three datasets, from an empty folder; the same again; and after a kill in the middle."""
    with tempfile.TemporaryDirectory(prefix="ty-bench-") as name:
        folder = Path(name)
        (folder / "job.py").write_text(BIG.replace("TRIALS_EACH", "334"))
        took = _job(folder, "whole")
        unchanged = _job(folder, "whole")
        resumed = _killed_and_resumed(folder)
    told = "process start, datasets, Ray, 1,002 trials with halving at 3, 9 and 27 epochs, test scores, all in MLflow"
    yield Figure("sweep_1000_seconds", took, "s", "the most that it may take", 60.0, 60.0 / took, told)
    yield Figure("sweep_unchanged_seconds", unchanged, "s", "the most that it may take", 5.0, 5.0 / unchanged)
    told = "from the start of the process to the first new pack, Ray's start included"
    yield Figure("resume_seconds_1000_trials", resumed, "s", "the most that it may take", 10.0, 10.0 / resumed, told)


CHILD = """
import json, sys
sys.path.insert(0, {here!r})
import bench_sweep
bench_sweep.scaled({trials}, {folder!r})
"""


def scaled(trials: int, folder: str) -> None:
    """Runs so many cheap trials in this process, in a Ray that is up, and prints seconds and peak bytes of it."""
    import json

    import psutil

    from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, loguniform

    wanted = Experiment(
        name=f"scale-{trials}",
        variants=(
            Variant(
                name="logistic",
                model="logistic",
                fixed={"batch_size": 64},
                space={"lr": loguniform(1e-4, 1e-1), "weight_decay": loguniform(1e-6, 1e-1)},
            ),
        ),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=trials, epochs=2),
    )
    with one_ray():
        before = psutil.Process().memory_info().rss
        begun = time.perf_counter()
        outcome, _ = sweep(Path(folder) / str(trials), wanted)
        took = time.perf_counter() - begun
    assert len(outcome.results) == trials
    assert outcome.tracker.pending == 0, outcome.tracker.error
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print("SCALED", json.dumps([took, peak - before]))


def scaling() -> Iterable[Figure]:
    """The same sweep with 100, 1,000 and 10,000 trials: what a trial costs, and what the driver holds."""
    import json

    seconds: dict[int, float] = {}
    grown: dict[int, int] = {}
    with tempfile.TemporaryDirectory(prefix="ty-bench-") as folder:
        for trials in (100, 1_000, 10_000):
            code = CHILD.format(here=str(HERE), trials=trials, folder=folder)
            env = {**os.environ, "HOME": folder}
            done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
            told = [line for line in done.stdout.splitlines() if line.startswith("SCALED ")]
            if not told:
                raise RuntimeError(f"{trials} trials: {done.stdout[-500:]} {done.stderr[-2000:]}")
            seconds[trials], grown[trials] = json.loads(told[0].removeprefix("SCALED "))
    curve = ", ".join(f"{n:,}: {seconds[n]:.1f} s and {grown[n] >> 20} MiB" for n in seconds)
    told_ = f"logistic regression, two epochs, all in MLflow; driver's memory above its start: {curve}"
    cost = seconds[10_000] / seconds[1_000]
    yield Figure("sweep_scaling", cost, "x", "10,000 trials for the cost of 1,000, at most", 11.0, 11.0 / cost, told_)
    more = (grown[10_000] - grown[1_000]) / 1e6
    yield Figure(
        "sweep_driver_growth", more, "MB", "from 1,000 to 10,000 trials, at most", 200.0, 200.0 / max(more, 1.0)
    )


def solo_vs_ideal() -> Iterable[Figure]:
    """1,000 trials of a user's own training, 0.2 s each, one after another on each of two cores."""
    from solo_training import SECONDS

    from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, uniform

    trials = 1_000
    wanted = Experiment(
        name="solo",
        variants=(Variant(name="solo", model="train:solo_training:train", space={"x": uniform(0.0, 1.0)}),),
        datasets=(DatasetRef("digits"),),
        objective=Objective(metric="accuracy"),
        search=Search(trials=trials, epochs=1),
    )
    with one_ray() as folder:
        outcome, took = sweep(folder / "solo", wanted)
    assert {r.state for r in outcome.results} == {"done"}
    ideal = trials * SECONDS / 2
    note = "each trial keeps a core busy for 0.2 s; the driver and the writer share the two cores with them"
    yield Figure("sweep_solo_vs_ideal", took, "s", "1,000 x 0.2 s on two cores", ideal, ideal / took, note)


def halving_vs_none() -> Iterable[Figure]:
    """The same 243 trials with and without early stopping: seconds until one is known that is within 1% of the best."""
    from tiltyard import Halving, Search

    took: dict[str, tuple[float, float]] = {}
    best = 0.0
    with one_ray() as folder:
        sweep(folder / "warm", digits_experiment(9).with_options(trials=16), tracked=False)
        swept = {}
        for name, search in (
            ("none", Search(trials=243, epochs=27)),
            ("halving", Search(trials=243, halving=Halving(rungs=(3, 9, 27)))),
        ):
            begins: list[float] = []
            wanted = digits_experiment(0).model_copy(update={"search": search})
            outcome, whole = sweep(folder / name, wanted, tracked=False, begins=begins)
            swept[name] = outcome, whole, begins[0]
            best = max(best, *(r.score for r in outcome.results if r.score is not None))
        for name, (outcome, whole, begun) in swept.items():
            took[name] = _first_at(folder / name, outcome, 0.99 * best) - begun, whole
    (first, whole), (first_none, whole_none) = took["halving"], took["none"]
    note = (
        f"best validation accuracy {best:.4f} of both; whole sweep {whole:.1f} s and {whole_none:.1f} s; 243 MLPs on digits, "
        "27 epochs, rungs at 3, 9 and 27; from fit() to the record of the pack"
    )
    yield Figure(
        "halving_seconds_to_1_percent", first, "s", "the same without halving", first_none, first_none / first, note
    )


def _first_at(home: Path, outcome: Any, wanted: float) -> float:
    """When the first score that is as good as wanted was recorded, as time of day."""
    from tiltyard.journal import Journal

    with Journal.open(f"sqlite:///{home / 'journal.db'}") as journal:
        ended = {(a.pack_id, a.number): a.ended for a in journal.attempts(outcome.claim.key) if a.ended is not None}
    good = [s for s in outcome.scores.values() if s.metrics.get("accuracy", 0.0) >= wanted]
    return min(ended[s.pack_id, s.attempt] for s in good)


def _environment(folder: Path, home: str) -> dict[str, str]:
    return {**os.environ, "TILTYARD_HOME": str(folder / home), "HOME": str(folder)}


def _job(folder: Path, home: str) -> float:
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "job.py"],
        cwd=folder,
        env=_environment(folder, home),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the job ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-2000:]}")
    return time.perf_counter() - begun


def _killed_and_resumed(folder: Path) -> float:
    """Seconds from the second start to its first new pack."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
    command, env = [sys.executable, "job.py"], _environment(folder, "killed")
    first = subprocess.Popen(command, env=env, **quiet)
    while _packs(folder / "killed", "done") < 3:
        time.sleep(0.1)
    first.kill()
    first.wait()
    before = _packs(folder / "killed", "done", "running", "fenced")
    begun = time.perf_counter()
    second = subprocess.Popen(command, env=env, **quiet)
    try:
        while _packs(folder / "killed", "done", "running", "fenced") == before:
            time.sleep(0.1)
        return time.perf_counter() - begun
    finally:
        second.send_signal(signal.SIGINT)
        second.wait()


def _packs(home: Path, *states: str) -> int:
    """Attempts in these states, as recorded now; asked so that it takes next to nothing of the two cores."""
    marks = ", ".join("?" * len(states))
    try:
        with closing(sqlite3.connect(f"file:{home / 'journal.db'}?mode=ro", uri=True)) as journal:
            found = journal.execute(f"SELECT COUNT(*) FROM attempts WHERE state IN ({marks})", states).fetchone()
    except sqlite3.OperationalError:  # it is not there yet
        return 0
    return int(found[0])


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{s:.1f}" for s in seconds)


def benchmarks() -> list[Benchmark]:
    """All of them."""
    return [mlp_vs_tune_reuse, mlp_vs_tune_default, tracking, sweep_1000, scaling, solo_vs_ideal, halving_vs_none]
