"""What goes in and out of a deployment, as values. Pure; NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tiltyard.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says about a table of rows.

    Args:
        model: Its registered name.
        version: Of the registry.
        digest: Of its bundle.
        task: What it predicts.
        classes: Label values in the order of the outputs, or names of the targets.
        outputs: ``(rows, outputs)`` float32: logits where the task is classification.
    """

    model: str
    version: int
    digest: str
    task: Task
    classes: tuple[Any, ...]
    outputs: np.ndarray[Any, Any]

    def rows(self, start: int, stop: int) -> Answer:
        """The answer for some of its rows."""
        return replace(self, outputs=self.outputs[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class InputColumn:
    """One column that a model takes: ``kind`` is ``number``, ``category`` or ``tensor`` (``width`` numbers a row)."""

    name: str
    kind: str
    width: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A served model, for those who ask it.

    Args:
        served_as: The name it is asked by here.
        model: Its registered name.
        version: Of the registry.
        digest: Of its bundle.
        task: What it predicts.
        classes: Label values in the order of the outputs, or names of the targets.
        columns: What a row must have.
        problem: Why a newer version is not served, empty where nothing is wrong.
        split: Which share of its requests a challenger meets, or why it does not; empty without one.
        registry: Why the registry does not say now which version its alias names; empty while it does.
        registry_age_s: Seconds since it said so last; 0 of a pinned version.
        personal: Columns whose values stay out of logs and refusals.
    """

    served_as: str
    model: str
    version: int
    digest: str
    task: Task
    classes: tuple[Any, ...]
    columns: tuple[InputColumn, ...]
    problem: str = ""
    split: str = ""
    registry: str = ""
    registry_age_s: float = 0.0
    personal: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "name": self.served_as,
            "model": self.model,
            "version": self.version,
            "digest": self.digest,
            "task": str(self.task),
            "classes": list(self.classes),
            "columns": [
                {"name": c.name, "kind": c.kind, **({"width": c.width} if c.kind == "tensor" else {})}
                for c in self.columns
            ],
            "problem": self.problem,
            "split": self.split,
            "registry": self.registry,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where a request is refused rather than queued or read on.

    Args:
        body_bytes: Largest body of an HTTP request.
        rows: Most rows of an HTTP request.
        waiting: Requests of one model that may wait for it; one more is refused with 429.
        in_flight: Calls under way to one model.
        merged_rows: Most rows of small requests that are merged into one call.
        read_s: Seconds in which a body must arrive.
        answer_s: Seconds in which a model must answer.
        retry_after_s: What a refused client is told to wait.
        shadows: Comparisons with a challenger under way for one model; one more is dropped and counted.
        shadow_bytes: Bytes of the rows that they hold.
        canary_s: Seconds that a challenger has for an answer before the champion gives it.
    """

    body_bytes: int = 32 << 20
    rows: int = 131_072
    waiting: int = 128
    in_flight: int = 2
    merged_rows: int = 256
    read_s: float = 10.0
    answer_s: float = 30.0
    retry_after_s: int = 1
    shadows: int = 16
    shadow_bytes: int = 64 << 20
    canary_s: float = 2.0

    @classmethod
    def parse(cls, args: Mapping[str, str]) -> Limits:
        """Limits from the string arguments of a Serve config file; those not named keep their defaults."""
        kinds: dict[str, type] = {"read_s": float, "answer_s": float, "canary_s": float}
        known = {k: v for k, v in args.items() if k in cls.__dataclass_fields__}
        return cls(**{k: kinds.get(k, int)(v) for k, v in known.items()})
