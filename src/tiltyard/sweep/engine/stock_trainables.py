"""What Ray Tune runs of trials that share no pack (`tiltyard.sweep.engine.stock`), and the configurations that it gets.

A user's ``tune:`` trainable, a function or a class, in Ray Tune's actor; a user's ``train:`` function in a process of its own,
each report passed on.
"""

from __future__ import annotations

import inspect
import logging
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune

from tiltyard.data.stream import open_feed
from tiltyard.experiment import Experiment
from tiltyard.models import builder
from tiltyard.sweep.engine.own import Child, wrong_report
from tiltyard.sweep.engine.own_child import Data
from tiltyard.sweep.engine.worker import Post
from tiltyard.sweep.plan import Group, Trial
from tiltyard.telemetry import logs
from tiltyard.types import OWN_TRAINING, TUNE_TRAINABLE

TRIAL = "tiltyard_trial"
"""Key of a trainable's configuration under which its trial's cell stands."""


def param_space(trials: list[Trial]) -> dict[str, Any]:
    """Each trial once, with its own configuration."""
    configs = {t.cell: {**t.config, "seed": t.seed, "data_seed": t.data_seed} for t in trials}
    names = sorted({name for config in configs.values() for name in config})
    space: dict[str, Any] = {TRIAL: tune.grid_search(list(configs))}
    for name in names:
        space[name] = tune.sample_from(_Of(configs, name))
    return space


class _Of:
    """One parameter of the trial that is being made; None where a condition leaves it out."""

    def __init__(self, configs: Mapping[str, Mapping[str, Any]], name: str) -> None:
        self._values = {cell: config.get(name) for cell, config in configs.items()}

    def __call__(self, spec: Any) -> Any:
        return self._values[spec.config[TRIAL]]


def trainable_of(group: Group, experiment: Experiment, post: Post) -> Any:
    """What Ray Tune is to run for each trial of a group: the user's own, found and fed as everywhere."""
    data, paths = _data(group, experiment, post), post.import_paths
    about = About(experiment=post.experiment, job=post.job, personal=post.personal)
    if group.model.startswith(OWN_TRAINING):
        function, metrics = group.model.removeprefix(OWN_TRAINING), experiment.objective.metrics
        return tune.with_parameters(
            _own, data=data, function=function, metrics=metrics, import_paths=paths, about=about
        )
    model = group.model.removeprefix(TUNE_TRAINABLE)
    guest = _Guest if inspect.isclass(builder(model)) else _guest
    return tune.with_parameters(guest, data=data, model=model, import_paths=paths, about=about)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What log lines of a trainable bear beside its trial, and columns whose values they do not show."""

    experiment: str
    job: str
    personal: tuple[str, ...]

    def bear(self, config: Mapping[str, Any]) -> None:
        """This process, which Ray Tune gave to one trial, logs as that trial."""
        logs.setup(level=logging.WARNING)
        logs.personal(self.personal)
        logs.belongs(experiment=self.experiment, trial=str(config[TRIAL])[:12], job=self.job)


def _guest(config: dict[str, Any], data: Data, model: str, import_paths: tuple[str, ...], about: About) -> None:
    """A user's function trainable, found where the driver finds it."""
    about.bear(config)
    _find_also(import_paths)
    found: Any = builder(model)
    found(config, **({"data": data} if "data" in inspect.signature(found).parameters else {}))


class _Guest(tune.Trainable):
    """A user's class trainable, found where the driver finds it: becomes it when it is set up."""

    def setup(  # type: ignore[override]
        self, config: dict[str, Any], data: Data, model: str, import_paths: tuple[str, ...], about: About
    ) -> None:
        """Becomes the user's class, and sets that up."""
        about.bear(config)
        _find_also(import_paths)
        found: Any = builder(model)
        self.__class__ = found
        found.setup(self, config, **({"data": data} if "data" in inspect.signature(found.setup).parameters else {}))


def _find_also(import_paths: tuple[str, ...]) -> None:
    sys.path += [path for path in import_paths if path not in sys.path]


def _data(group: Group, experiment: Experiment, post: Post) -> Data:
    """The splits as arrays; Ray keeps them once a node."""
    arrays: dict[str, Any] = {}
    first = group.trials[0]
    for split in ("train", "validation"):
        feed = open_feed(
            post.splits[group.dataset], split=split, batch_size=64, data_seed=first.data_seed, device="cpu"
        )
        x, y = feed.all()
        arrays |= {f"x_{split}": x.numpy(), f"y_{split}": y.numpy()}
    return Data(
        **arrays,
        task=str(first.task),
        num_outputs=first.num_outputs,
        epochs=experiment.search.max_epochs,
        seed=first.seed,
    )


def _own(
    config: dict[str, Any],
    data: Data,
    function: str,
    metrics: tuple[str, ...],
    import_paths: tuple[str, ...],
    about: About,
) -> None:
    """Training of a user's own as a Ray Tune trainable: in a process of its own, each report passed on."""
    about.bear(config)
    _find_also(import_paths)
    given = {k: v for k, v in config.items() if k not in {TRIAL, "seed", "data_seed"} and v is not None}
    asked = {
        "train": function,
        "config": given,
        "seed": config["seed"],
        "epochs": data.epochs,
        "task": data.task,
        "num_outputs": data.num_outputs,
        "ids": dict(logs.ids()),
    }

    def on_report(epoch: Any, scores: dict[str, Any]) -> str | None:
        wrong = wrong_report(epoch, scores, metrics)
        if wrong is None:
            tune.report({name: float(value) for name, value in scores.items()})
        return wrong

    with tempfile.TemporaryDirectory(prefix="tiltyard-") as name:
        for what in ("x_train", "y_train", "x_validation", "y_validation"):
            np.save(Path(name) / f"{what}.npy", getattr(data, what))
        with Child(Path(name)) as child:
            failed = child.train(asked, on_report, _never)
    if failed is not None:
        raise RuntimeError(failed)


def _never() -> None:
    return None
