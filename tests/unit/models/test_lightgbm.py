"""LightGBM rung by rung: the same twice, the same resumed, the same from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiltyard.errors import ModelError, TrainingError
from tiltyard.models.lightgbm import LightGBMTrial, check_config
from tiltyard.types import Task

CONFIG = {"learning_rate": 0.2, "num_leaves": 7, "subsample": 0.7, "subsample_freq": 1, "colsample_bytree": 0.6}


def problem(task: Task, rows: int = 160) -> tuple[Any, Any]:
    draw = np.random.default_rng(3)
    x = draw.normal(size=(rows, 6)).astype(np.float32)
    raw = x[:, 0] + x[:, 1] * x[:, 2]
    if task is Task.REGRESSION:
        return x, raw[:, None].astype(np.float32)
    return x, np.digitize(raw, [0.0] if task is Task.BINARY else [-0.5, 0.5])


def trained(task: Task, *stops: int, folder: Path | None = None, seed: int = 5) -> tuple[LightGBMTrial, list[Any]]:
    x, y = problem(task)
    outputs = {Task.BINARY: 2, Task.MULTICLASS: 3}.get(task, 1)
    trial = LightGBMTrial(CONFIG, task=task, num_outputs=outputs, seed=seed)
    points = []
    metric = "mse" if task is Task.REGRESSION else "accuracy"
    for stop in stops:
        points += list(trial.train(x, y, x[:40], y[:40], to_epoch=stop, metrics=(metric,)))
        if folder is not None:
            trial.save(folder)
            trial = LightGBMTrial.load(folder)
    return trial, points


@pytest.mark.parametrize("task", [Task.BINARY, Task.MULTICLASS, Task.REGRESSION])
def test_trial_resumed_from_disk_at_every_rung_equals_a_straight_run(task: Task, tmp_path: Path) -> None:
    x, _ = problem(task)
    straight, points = trained(task, 6)
    again, same = trained(task, 6)
    resumed, rungs = trained(task, 1, 3, 6, folder=tmp_path)
    assert np.array_equal(straight.predict_logits(x), again.predict_logits(x))
    assert points == same
    np.testing.assert_allclose(resumed.predict_logits(x), straight.predict_logits(x), rtol=1e-6, atol=1e-7)
    assert [p.epoch for p in rungs] == [p.epoch for p in points] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(rungs, points, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-6)
        assert a.metrics == pytest.approx(b.metrics, rel=1e-6)


def test_trials_of_other_seeds_are_other_trials() -> None:
    x, _ = problem(Task.MULTICLASS)
    one, two = (trained(Task.MULTICLASS, 2, seed=s)[0].predict_logits(x) for s in (1, 2))
    assert not np.array_equal(one, two)


def test_trial_learns_more_with_every_epoch_of_its_curve() -> None:
    _, points = trained(Task.MULTICLASS, 8)
    losses = [p.train_loss for p in points]
    assert losses == sorted(losses, reverse=True)
    assert points[-1].metrics["accuracy"] > 0.9


@pytest.mark.parametrize(("task", "outputs"), [(Task.BINARY, 2), (Task.MULTICLASS, 3), (Task.REGRESSION, 1)])
def test_trial_rebuilt_from_its_text_predicts_the_same(task: Task, outputs: int) -> None:
    x, _ = problem(task)
    trial, _ = trained(task, 2)
    opened = LightGBMTrial.from_text(trial.model_text, task=task, num_outputs=outputs)
    logits = trial.predict_logits(x)
    assert logits.shape == (len(x), outputs)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(opened.predict_logits(x), logits, rtol=1e-6, atol=1e-7)


def test_trial_of_a_parameter_unknown_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"no parameter 'num_leafs'.*num_leaves"):
        LightGBMTrial({"num_leafs": 3}, task=Task.BINARY, num_outputs=2, seed=0)


def test_trial_that_is_not_trained_refuses_to_predict() -> None:
    with pytest.raises(TrainingError, match="not been trained"):
        LightGBMTrial({}, task=Task.BINARY, num_outputs=2, seed=0).predict_logits(np.zeros((1, 2)))


def test_trial_of_a_task_it_has_not_is_refused() -> None:
    x, y = problem(Task.REGRESSION)
    trial = LightGBMTrial({}, task=Task.MULTILABEL, num_outputs=3, seed=0)
    with pytest.raises(TrainingError, match=r"no multilabel task"):
        list(trial.train(x, y, x, y, to_epoch=1, metrics=()))
    trial = LightGBMTrial({"max_depth": "deep"}, task=Task.REGRESSION, num_outputs=1, seed=0)
    with pytest.raises(TrainingError, match=r"LightGBM refused"):
        list(trial.train(x, y, x, y, to_epoch=1, metrics=()))


@pytest.mark.parametrize(
    "config", [{"num_leaves": -5}, {"learning_rate": -0.1}, {"subsample": 1.5}, {"max_bin": 1}, {"reg_lambda": "much"}]
)
def test_configuration_outside_lightgbms_ranges_is_refused_by_name(config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"{next(iter(config))} is .*; wanted"):
        check_config(config)
