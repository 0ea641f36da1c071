"""What sweeps are measured against: plain Ray Tune, one trial a Tune trial, on the same rows in the same order."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ray import tune
from torch.nn import functional

from tiltyard.data.feed import local_feed
from tiltyard.sweep.engine.warm import Warm
from tiltyard.training import build_module
from tiltyard.training.spec import PackSpec


@dataclass(frozen=True)
class Rows:
    """A dataset's splits as arrays, and what decides the order of its batches."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]
    x_val: np.ndarray[Any, Any]
    y_val: np.ndarray[Any, Any]
    content_digest: str


def train_one(config: dict[str, Any], rows: Rows, spec: PackSpec, data_seed: int, each_epoch: bool) -> None:
    """One trial as a user of Ray Tune would write it well: fused AdamW, one thread.

    ``each_epoch``: reports after each epoch, so that there are curves as there are of a pack; else once, at the end.
    """
    torch.set_num_threads(1)
    feed = local_feed(
        rows.x,
        rows.y,
        content_digest=rows.content_digest,
        split="train",
        batch_size=spec.batch_size,
        data_seed=data_seed,
    )
    module = build_module(spec, seed=config["seed"])
    optimizer = torch.optim.AdamW(module.parameters(), lr=config["lr"], weight_decay=config["weight_decay"], fused=True)
    x_val, y_val = torch.from_numpy(rows.x_val.copy()), torch.from_numpy(rows.y_val.copy())
    accuracy = math.nan
    for epoch in range(spec.total_epochs):
        for x, y in feed.epoch(epoch):
            optimizer.zero_grad()
            functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.inference_mode():
            accuracy = float((module(x_val).argmax(1) == y_val).double().mean())
        if each_epoch and epoch < spec.total_epochs - 1:
            tune.report({"accuracy": accuracy})
    tune.report({"accuracy": accuracy})


def plain_tune(
    configs: Sequence[dict[str, Any]],
    rows: Rows,
    spec: PackSpec,
    *,
    data_seed: int,
    reuse_actors: bool,
    each_epoch: bool,
    folder: str,
) -> tuple[float, list[float]]:
    """Seconds of ``fit()``, and the accuracy of each configuration.

    Its first actors find processes that began to load torch and Ray Tune before ``fit()``, as those of our packs do.
    """
    os.environ.pop("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", None)  # our own sweeps set it; these have Ray Tune's defaults
    space = tune.grid_search([{k: c[k] for k in ("seed", "lr", "weight_decay")} for c in configs])
    tuner = tune.Tuner(
        tune.with_parameters(_unwrapped, rows=rows, spec=spec, data_seed=data_seed, each_epoch=each_epoch),
        param_space={"trial": space},
        tune_config=tune.TuneConfig(reuse_actors=reuse_actors),
        run_config=tune.RunConfig(storage_path=folder, name=f"reuse-{reuse_actors}-{each_epoch}", verbose=0),
    )
    with Warm(2, {"CPU": 1.0}).taken():
        begun = time.perf_counter()
        results = tuner.fit()
        took = time.perf_counter() - begun
    frame = results.get_dataframe()
    by_seed = dict(zip(frame["config/trial/seed"], map(float, frame["accuracy"]), strict=True))
    return took, [by_seed[c["seed"]] for c in configs]


def _unwrapped(config: dict[str, Any], rows: Rows, spec: PackSpec, data_seed: int, each_epoch: bool) -> None:
    train_one(config["trial"], rows, spec, data_seed, each_epoch)
