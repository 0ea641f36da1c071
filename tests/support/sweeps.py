"""Small datasets and sweeps: a launch takes seconds, most of it Ray Tune's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec, SplitSpec
from tiltyard.distributions import loguniform, randint, uniform
from tiltyard.experiment import Experiment, Halving, Objective, Search, Variant
from tiltyard.journal import Journal
from tiltyard.settings import Settings
from tiltyard.sweep.engine.launch import launch
from tiltyard.sweep.engine.outcome import Outcome, Watch
from tiltyard.sweep.leaderboard import Leaderboard
from tiltyard.types import DatasetRef, Task

DIGEST = "c" * 64
"""Stands for the digest of a job's code."""
MLP = Variant(
    name="mlp",
    model="mlp",
    fixed={"hidden": (8,), "batch_size": 32},
    space={"lr": loguniform(1e-3, 1e-1), "dropout": uniform(0.0, 0.3)},
)
LIGHTGBM = Variant(
    name="lightgbm",
    model="lightgbm",
    fixed={"min_child_samples": 5},
    space={"learning_rate": loguniform(0.05, 0.3), "num_leaves": randint(2, 8)},
)


def commit_small_datasets(root: Path) -> str:
    """``rings`` (three classes, 240 rows) and ``flips`` (two classes, 200 rows), committed below ``root``; its URI."""
    rng = np.random.default_rng(7)
    store = DatasetStore(str(root))
    for name, rows, classes in (("rings", 240, 3), ("flips", 200, 2)):
        x = rng.normal(size=(rows, 5)).astype(np.float32)
        y = np.digitize(np.hypot(x[:, 0], x[:, 1]), [0.9, 1.6][: classes - 1]).astype(np.int64)
        columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(5)}
        task = Task.MULTICLASS if classes > 2 else Task.BINARY
        spec = DatasetSpec(task=task, label="y", split=SplitSpec(train=0.5, validation=0.25, test=0.25))
        store.commit(name, pa.table({**columns, "y": y}), spec=spec)
    return str(root)


def settings_at(home: Path, data_uri: str, **uris: str) -> Settings:
    """Settings of a home of its own over shared datasets."""
    env = {f"TILTYARD_{name.upper()}": value for name, value in uris.items()}
    return Settings.from_env({"TILTYARD_HOME": str(home), "TILTYARD_DATA_URI": data_uri, **env})


def experiment(**changes: Any) -> Experiment:
    """Two variants on two datasets, three trials each, compared at epochs 1 and 2."""
    fields: dict[str, Any] = {
        "name": "small",
        "variants": (MLP, LIGHTGBM),
        "datasets": (DatasetRef("rings"), DatasetRef("flips")),
        "objective": Objective(metric="accuracy", also=("log_loss",)),
        "search": Search(trials=6, halving=Halving(rungs=(1, 2), keep=1 / 2), finalists=2),
    }
    return Experiment(**{**fields, **changes})


def gated(gate: Path, *, steps: int = 0, **changes: Any) -> Experiment:
    """Four trials of a user's model that waits while ``gate`` exists, after ``steps`` training steps of a pack."""
    variant = Variant(
        name="own",
        model="users_models:Gated",
        fixed={"gate": str(gate), "steps": steps, "batch_size": 32},
        space={"lr": loguniform(1e-3, 1e-1)},
    )
    fields = {"name": "gated", "datasets": (DatasetRef("rings"),), "search": SEARCH_OF_FOUR, **changes}
    return experiment(variants=(variant,), **fields)


SEARCH_OF_FOUR = Search(trials=4, halving=Halving(rungs=(1, 3), keep=1 / 2), finalists=2)


def run_launch(settings: Settings, wanted: Experiment, watch: Watch | None = None, digest: str = DIGEST) -> Outcome:
    """One launch, as `tiltyard.run` makes it."""
    return launch(settings, wanted, code_digest=digest, watch=watch)


@dataclass(frozen=True)
class Standing:
    """One trial's line of a leaderboard: what must be equal between two runs of the same sweep."""

    rank: int
    name: str
    state: str
    epoch: int
    validation: float | None
    test: Mapping[str, Any] | None


def standings(board: Leaderboard) -> dict[str, list[Standing]]:
    """The leaderboard, dataset by dataset, to the last bit."""
    return {
        dataset: [Standing(r.rank, r.name, r.state, r.epoch, r.validation, _test(r.test)) for r in rows]
        for dataset, rows in board.tables.items()
    }


def _test(score: Any) -> Mapping[str, Any] | None:
    return None if score is None else {"value": score.value, "low": score.low, "high": score.high, **score.others}


def until(condition: Callable[[], Any], timeout_s: float = 150.0, what: str = "the condition") -> Any:
    """Waits for something to come true and returns it."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true in {timeout_s:g} s"
        time.sleep(0.02)
    return value


def marks(gate: Path) -> list[int]:
    """Processes that wait at the gate now; one that was killed there left its mark behind."""
    return [pid for p in gate.parent.glob(f"{gate.name}.*") if psutil.pid_exists(pid := int(p.suffix[1:]))]


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Runs ``work`` in a thread beside the block; what went wrong there is raised at the block's end."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


def attempts(settings: Settings, key: str) -> list[Any]:
    """The attempts of a key, as recorded now."""
    with Journal.open(settings.journal_uri) as journal:
        return journal.attempts(key)
