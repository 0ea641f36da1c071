"""LightGBM as the baseline that a practitioner would insist on; trained rung by rung, one trial at a time.

An *epoch* here is ``rounds_per_epoch`` boosting rounds, so that a trial can be stopped and taken up at the same rungs as
the networks it competes with. Loaded lazily; saved as LightGBM's native text, which runs no code when it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tiltyard.errors import ModelError, TrainingError
from tiltyard.types import Task

Array = npt.NDArray[Any]
MODEL, STATE = "model.txt", "state.json"
DEFAULTS: dict[str, Any] = {"learning_rate": 0.1, "num_leaves": 31, "min_child_samples": 20, "rounds_per_epoch": 4}
KNOWN = frozenset(
    {
        "learning_rate",
        "num_leaves",
        "max_depth",
        "min_child_samples",
        "min_child_weight",
        "min_split_gain",
        "subsample",
        "subsample_freq",
        "colsample_bytree",
        "reg_alpha",
        "reg_lambda",
        "max_bin",
        "path_smooth",
        "extra_trees",
        "rounds_per_epoch",
        "seed",
    }
)
RANGES = {
    "learning_rate": (1e-12, math.inf),
    "num_leaves": (2, 131_072),
    "min_child_samples": (0, math.inf),
    "min_child_weight": (0, math.inf),
    "min_split_gain": (0, math.inf),
    "subsample": (1e-12, 1),
    "colsample_bytree": (1e-12, 1),
    "reg_alpha": (0, math.inf),
    "reg_lambda": (0, math.inf),
    "max_bin": (2, math.inf),
    "path_smooth": (0, math.inf),
    "rounds_per_epoch": (1, math.inf),
}
"""What LightGBM takes (lightgbm.readthedocs.io, "Parameters"), so that a reversed sign is refused before a sweep starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One point of a curve."""

    epoch: int
    train_loss: float
    metrics: Mapping[str, float]


def check_config(config: Mapping[str, Any]) -> None:
    """Refuses what is no parameter of LightGBM's that we pass on, and values outside LightGBM's own ranges.

    Raises:
        ModelError: Naming it.
    """
    unknown = sorted(set(config) - KNOWN)
    if unknown:
        raise ModelError(f"lightgbm has no parameter {unknown[0]!r} here; it takes: {', '.join(sorted(KNOWN))}.")
    for name, (low, high) in RANGES.items():
        value = config.get(name)
        if value is not None and not (isinstance(value, (int, float)) and low <= value <= high):
            raise ModelError(f"lightgbm: {name} is {value!r}; wanted {low:g} to {high:g}.")


class LightGBMTrial:
    """One configuration, trained as far as ``epoch``."""

    def __init__(self, config: Mapping[str, Any], *, task: Task, num_outputs: int, seed: int) -> None:
        check_config(config)
        self.config, self.task, self.num_outputs, self.seed = {**DEFAULTS, **config}, task, num_outputs, seed
        self.epoch = 0
        self._booster: Any = None

    def train(
        self, x: Array, y: Array, x_val: Array, y_val: Array, *, to_epoch: int, metrics: tuple[str, ...]
    ) -> Iterator[Point]:
        """Boosts on to ``to_epoch``, giving a point of the curve after each epoch.

        Raises:
            TrainingError: If LightGBM refuses the data or the configuration.
        """
        import lightgbm

        per_epoch = int(self.config["rounds_per_epoch"])
        try:
            data = lightgbm.Dataset(x, label=y.reshape(len(y)), free_raw_data=False, params=self._params())
            while self.epoch < to_epoch:
                self._booster = lightgbm.train(
                    self._params(),
                    data,
                    num_boost_round=per_epoch,
                    init_model=self._booster,
                    keep_training_booster=False,
                )
                self.epoch += 1
                yield self._point(x, y, x_val, y_val, metrics)
        except lightgbm.basic.LightGBMError as error:
            raise TrainingError(f"LightGBM refused: {error}") from error

    def predict_logits(self, x: Array) -> Array:
        """``(rows, outputs)`` float32: log-probabilities where there are classes, values else."""
        if self._booster is None:
            raise TrainingError("This trial has not been trained; train it first.")
        raw = np.asarray(self._booster.predict(x, num_threads=1))
        if self.task is Task.BINARY:
            raw = np.stack([1 - raw, raw], axis=1)
        if self.task is Task.REGRESSION:
            return np.asarray(raw.reshape(len(x), -1), dtype=np.float32)
        return np.asarray(np.log(np.clip(raw, 1e-12, 1.0)), dtype=np.float32)

    @property
    def model_text(self) -> str:
        """LightGBM's native text."""
        return str(self._booster.model_to_string())

    def save(self, folder: Path) -> None:
        """Writes text and state."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_text(self.model_text)
        state = {
            "schema_version": 1,
            "config": self.config,
            "task": str(self.task),
            "num_outputs": self.num_outputs,
            "seed": self.seed,
            "epoch": self.epoch,
        }
        (folder / STATE).write_text(json.dumps(state))

    @classmethod
    def load(cls, folder: Path) -> LightGBMTrial:
        """Reads what `save` wrote."""
        state = json.loads((folder / STATE).read_text())
        trial = cls(state["config"], task=Task(state["task"]), num_outputs=state["num_outputs"], seed=state["seed"])
        trial.epoch = state["epoch"]
        trial._open((folder / MODEL).read_text())
        return trial

    @classmethod
    def from_text(cls, text: str, *, task: Task, num_outputs: int) -> LightGBMTrial:
        """A trained model from its text alone, to predict with."""
        trial = cls({}, task=task, num_outputs=num_outputs, seed=0)
        trial._open(text)
        return trial

    def _open(self, text: str) -> None:
        import lightgbm

        self._booster = lightgbm.Booster(model_str=text)

    def _params(self) -> dict[str, Any]:
        objectives: dict[Task, dict[str, Any]] = {
            Task.BINARY: {"objective": "binary"},
            Task.MULTICLASS: {"objective": "multiclass", "num_class": self.num_outputs},
            Task.REGRESSION: {"objective": "regression"},
        }
        objective = objectives.get(self.task)
        if objective is None or (self.task is Task.REGRESSION and self.num_outputs > 1):
            raise TrainingError(
                f"lightgbm has no {self.task} task with {self.num_outputs} outputs here; use a network."
            )
        own = {k: v for k, v in self.config.items() if k not in {"rounds_per_epoch", "seed"}}
        return {
            **own,
            **objective,
            "seed": self.seed,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

    def _point(self, x: Array, y: Array, x_val: Array, y_val: Array, metrics: tuple[str, ...]) -> Point:
        loss = {Task.REGRESSION: "mse"}.get(self.task, "log_loss")
        return Point(
            epoch=self.epoch,
            train_loss=self._scores(x, y, (loss,))[loss],
            metrics=self._scores(x_val, y_val, metrics),
        )

    def _scores(self, x: Array, y: Array, metrics: tuple[str, ...]) -> dict[str, float]:
        import torch

        from tiltyard.training.scores import scores

        found = scores(self.task, torch.from_numpy(self.predict_logits(x))[None], torch.tensor(y), metrics)
        return {name: float(value[0]) for name, value in found.items()}
