"""Training as a user writes it, and all that can go wrong in it: ``train:users_training:nearest``."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Report = Callable[..., None]


def nearest(config: Mapping[str, Any], data: Any, report: Report) -> None:
    """The nearest class centre, moved a little each epoch."""
    classes = range(data.num_outputs)
    centres = np.stack([data.x_train[data.y_train == c].mean(0) for c in classes]) * config["scale"]
    for epoch in range(1, data.epochs + 1):
        distance = ((data.x_validation[:, None, :] - centres[None]) ** 2).sum(-1)
        report(epoch, accuracy=(distance.argmin(1) == data.y_validation).mean(), log_loss=1.0 / epoch)
        centres = centres * 0.9


def chatty(config: Mapping[str, Any], data: Any, report: Report) -> None:
    """Writes lines through Tiltyard's logger, a secret of its environment in one."""
    log = logging.getLogger("tiltyard.users")
    log.warning("scale %s, token %s", config["scale"], os.environ["USERS_API_TOKEN"])
    log.warning("password=%s", "hunter22")
    report(1, accuracy=0.5, log_loss=0.7)


def tally(config: Mapping[str, Any], data: Any, report: Report) -> None:
    """Notes ``x`` in the file ``log``. The trial ``killer`` ends its worker each time, the trial ``unlucky`` once."""
    log, x = Path(config["log"]), config["x"]
    with log.open("a") as file:
        file.write(f"{x!r}\n")
    tries = log.read_text().splitlines().count(repr(x))
    if x == config["killer"] or (x == config["unlucky"] and tries == 1):
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    report(1, accuracy=x, log_loss=1.0)


class SpeechlessError(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no")


def misbehave(config: Mapping[str, Any], data: Any, report: Report) -> None:
    """Does what ``config["how"]`` says, for a trial must end in a named state whatever its function does."""
    scores: dict[str, Any] = {"accuracy": 0.5, "log_loss": 0.7}
    how = config["how"]
    if how == "well":
        report(1, **scores)
    elif how == "raise":
        raise ValueError("the learning rate is on holiday")
    elif how == "string":
        report(1, **{**scores, "accuracy": "high"})
    elif how == "nan":
        report(1, **{**scores, "accuracy": math.nan})
    elif how == "other":
        report(1, precision=0.5)
    elif how == "epoch":
        report("first", **scores)
    elif how == "object":
        report(1, **{**scores, "accuracy": object()})
    elif how == "huge":
        report(1, **{**scores, "accuracy": 10**400})
    elif how == "late":
        report(10**10, **scores)
    elif how == "loss":
        report(1, **scores, train_loss="low")
    elif how == "pipe":
        for number in range(3, 256):
            with contextlib.suppress(OSError):
                os.write(number, b"no report\n")
        report(1, **scores)
    elif how == "surrogate":
        raise ValueError("a\udce4b\0c")
    elif how == "speechless":
        raise SpeechlessError
    elif how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        os._exit(3)
    elif how == "sys-exit":
        raise SystemExit(4)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "memory":
        report(1, accuracy=float(np.ones(1 << 44).sum()), log_loss=0.0)
    elif how == "fork":
        if os.fork() == 0:
            signal.pause()
        report(1, **scores)
    elif how == "fork-away":
        if os.fork() == 0:
            os.setsid()
            signal.pause()
        report(1, **scores)
    elif how == "fork-and-exit":
        if os.fork() == 0:
            signal.pause()
        os._exit(5)
    elif how == "never":
        signal.pause()  # says nothing, and does not return
    elif how == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            report(1, **scores)
            time.sleep(0.05)
    elif how == "print":
        print("accuracy is", scores["accuracy"])  # not a report


def too_few(config: Mapping[str, Any]) -> None:
    """Takes too little."""


def sleeps(config: Mapping[str, Any], data: Any, report: Report) -> None:
    """Says who it is, and who it sent away; neither ends by itself."""
    away = os.fork()
    if away == 0:
        os.setsid()
        signal.pause()
    print(os.getpid(), away, flush=True)
    signal.pause()
