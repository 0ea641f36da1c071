"""Which checkpoint a trial under Ray Tune's schedulers goes on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import users_trainables
from ray.tune.experiment import Trial as TuneTrial

from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.stock_checkpoints import Saved, give, note, saved_of
from tiltyard.sweep.plan import Group, Trial
from tiltyard.sweep.remaining import CONTINUE, RUN, remaining
from tiltyard.types import Mode, Task

TRIAL = Trial(
    cell="c0",
    index=0,
    group="own@rings",
    variant="own",
    model="tune:users_trainables:curve",
    config={},
    dataset="rings",
    dataset_version=1,
    dataset_digest="d",
    task=Task.BINARY,
    input_shape=(2,),
    num_outputs=2,
    seed=0,
    data_seed=0,
)


def saved(folder: Path, epoch: int) -> Saved:
    path = folder / f"checkpoint_{epoch}"
    path.mkdir()
    points = [{"cell": "c0", "epoch": e + 1, "accuracy": 0.1 * e} for e in range(epoch)]
    return Saved(epoch=epoch, path=str(path), points=tuple(points))


def test_newest_checkpoint_that_was_noted_is_gone_on_from(tmp_path: Path) -> None:
    layout = Layout(Storage(str(tmp_path / "storage")), "k" * 64)
    assert saved_of(layout, TRIAL) is None
    note(layout, TRIAL, saved(tmp_path, 1))
    newest = saved(tmp_path, 3)
    note(layout, TRIAL, newest)
    assert saved_of(layout, TRIAL) == newest
    assert saved_of(layout, replace(TRIAL, index=1)) is None


def test_checkpoint_that_is_gone_is_not_gone_on_from(tmp_path: Path) -> None:
    layout = Layout(Storage(str(tmp_path / "storage")), "k" * 64)
    note(layout, TRIAL, saved(tmp_path, 2))
    (tmp_path / "checkpoint_2").rmdir()
    assert saved_of(layout, TRIAL) is None


def test_remaining_tells_from_which_epoch_a_trial_outside_of_packs_goes_on() -> None:
    trials = (TRIAL, replace(TRIAL, cell="c1", index=1))
    group = Group(
        name="own@rings",
        variant="own",
        model=TRIAL.model,
        dataset="rings",
        rungs=(9,),
        keep=1.0,
        trials=trials,
        scheduler="fifo",
    )
    steps = remaining([group], metric="accuracy", mode=Mode.MAX, known={}, saved={"c0": 3})
    assert [(s.action, s.from_epoch, s.to_epoch) for s in steps] == [(CONTINUE, 3, 9), (RUN, 0, 9)]


def test_class_that_is_given_a_checkpoint_counts_its_epochs_on(tmp_path: Path) -> None:
    layout = Layout(Storage(str(tmp_path / "storage")), "k" * 64)
    config = {"rate": 0.1, "folder": str(tmp_path), "together": 1}
    first, later = (cast("Any", users_trainables.Steps(config)) for _ in range(2))
    for _ in range(2):
        first.train()
    place = tmp_path / "checkpoint"
    place.mkdir()
    first.save_checkpoint(str(place))
    tune_trial = TuneTrial("Steps", stub=True)
    give(layout, tune_trial, Saved(epoch=2, path=str(place), points=()))
    later.restore(tune_trial.latest_checkpoint_result)
    result = later.train()
    assert result["training_iteration"] == 3
    assert result["accuracy"] == pytest.approx(0.3)
