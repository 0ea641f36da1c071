"""Ray Tune trainables as a user has them: ``tune:users_trainables:curve``."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

WAIT_S = 60.0
LOG = logging.getLogger("tiltyard.users")


def curve(config: Mapping[str, Any], data: Any) -> None:
    """Rises to its height, slower and slower; looks at the rows it was given."""
    assert len(data.x_train) == len(data.y_train) > 0
    LOG.warning("it rises to %s", config["height"])
    for epoch in range(1, data.epochs + 1):
        tune.report(
            {"accuracy": config["height"] * (1 - 0.5**epoch), "log_loss": 1 - config["height"], "train_loss": 0.5}
        )


def misbehave(config: Mapping[str, Any]) -> None:
    """Does what ``config["how"]`` says."""
    how, scores = config["how"], {"accuracy": 0.5, "log_loss": 0.5}
    if how == "string":
        tune.report({**scores, "accuracy": "high"})
    elif how == "nan":
        tune.report({**scores, "accuracy": math.nan})
    elif how == "exit":
        os._exit(3)
    elif how == "raise":
        raise ValueError("no such thing")
    elif how == "never":
        time.sleep(600)


class Plain(tune.Trainable):
    """A class that cannot save itself."""

    def step(self) -> dict[str, Any]:
        if self.config["how"] == "raise":
            raise ValueError("no such thing")
        return {"accuracy": 0.25, "log_loss": 0.5}


class Steps(tune.Trainable):
    """Learns as fast as its rate says; begins when as many are there as ``config["together"]`` says."""

    def setup(self, config: dict[str, Any]) -> None:
        self.rate, self.value = config["rate"], 0.0
        LOG.warning("Ray Tune's %s learns in %s", self.trial_id, config["folder"])
        self.folder = Path(config["folder"])
        (self.folder / f"here.{os.getpid()}").touch()

    def step(self) -> dict[str, Any]:
        deadline = time.monotonic() + WAIT_S
        while len(list(self.folder.glob("here.*"))) < self.config["together"] and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)
        with (self.folder / "steps").open("a") as file:
            file.write(f"{self.training_iteration + 1}\n")
        if self.training_iteration + 1 == self.config.get("interrupt_at") and not (self.folder / "asked").exists():
            (self.folder / "asked").touch()
            os.kill(self.config["driver"], signal.SIGINT)
            time.sleep(2)
        self.value += self.rate
        return {"accuracy": self.value, "log_loss": 1 - self.value}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        (Path(checkpoint_dir) / "value.json").write_text(json.dumps(self.value))

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.value = float(json.loads((Path(checkpoint) / "value.json").read_text()))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.rate = new_config["rate"]
        return True
