"""Small values that every room shares: what kind of task, which dataset, which direction is better.

Nothing here computes, reads or starts anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from tiltyard.errors import DataError, SpecError

NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")
"""Names of experiments, variants and datasets; they become file and alias names."""

OWN_TRAINING = "train:"
"""Begins the model of a variant whose training is a user's own function: ``train:package.module:function``."""
TUNE_TRAINABLE = "tune:"
"""Begins the model of a variant that is a Ray Tune trainable: ``tune:package.module:function`` or ``...:Class``."""


def trains_itself(model: str) -> bool:
    """The model of a variant is training of the user's own: it cannot share a pack and leaves no model of ours."""
    return model.startswith((OWN_TRAINING, TUNE_TRAINABLE))


class Task(StrEnum):
    """What a model predicts. Decides the loss, the scores it has, and the shape of its output."""

    BINARY = "binary"
    """Two classes. Output ``(rows, 2)`` logits; label int64 ``(rows,)`` in {0, 1}."""
    MULTICLASS = "multiclass"
    """C > 2 classes. Output ``(rows, C)`` logits; label int64 ``(rows,)``."""
    REGRESSION = "regression"
    """Output ``(rows, targets)``; label float32 ``(rows, targets)``."""
    MULTILABEL = "multilabel"
    """C independent yes/no labels. Output ``(rows, C)`` logits; label float32 ``(rows, C)`` of 0 and 1."""

    @property
    def is_classification(self) -> bool:
        """True where the output is logits."""
        return self is not Task.REGRESSION


class Mode(StrEnum):
    """Which direction of a metric is better."""

    MAX = "max"
    MIN = "min"

    def better(self, a: float, b: float) -> bool:
        """True where ``a`` is strictly better than ``b``."""
        return a > b if self is Mode.MAX else a < b

    @property
    def sign(self) -> float:
        """Multiply a score by this and larger is better."""
        return 1.0 if self is Mode.MAX else -1.0


@dataclass(frozen=True, slots=True)
class Metric:
    """One score: its name, its direction, and the tasks that have it."""

    name: str
    mode: Mode
    tasks: frozenset[Task]


_CLASSES = frozenset({Task.BINARY, Task.MULTICLASS})
METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("accuracy", Mode.MAX, _CLASSES),
        Metric("balanced_accuracy", Mode.MAX, _CLASSES),
        Metric("f1_macro", Mode.MAX, _CLASSES | {Task.MULTILABEL}),
        Metric("log_loss", Mode.MIN, _CLASSES | {Task.MULTILABEL}),
        Metric("roc_auc", Mode.MAX, frozenset({Task.BINARY})),
        Metric("brier", Mode.MIN, _CLASSES),
        Metric("subset_accuracy", Mode.MAX, frozenset({Task.MULTILABEL})),
        Metric("mse", Mode.MIN, frozenset({Task.REGRESSION})),
        Metric("rmse", Mode.MIN, frozenset({Task.REGRESSION})),
        Metric("mae", Mode.MIN, frozenset({Task.REGRESSION})),
        Metric("r2", Mode.MAX, frozenset({Task.REGRESSION})),
    )
}
"""Every score that training, evaluation and serving know, by name. Definitions follow scikit-learn's."""


def check_schema_version(found: object, newest: int, what: str) -> None:
    """Raises where a stored form cannot be read by this Tiltyard.

    Args:
        found: Its schema version, as it stands in the record.
        newest: The newest one that is known.
        what: What was stored, for the message.

    Raises:
        DataError: If a newer Tiltyard wrote it, or it has none.
    """
    if not isinstance(found, int) or found > newest:
        raise DataError(
            f"{what} was stored with schema version {found!r}; this Tiltyard reads up to {newest}. "
            "Install the newer Tiltyard that wrote it."
        )


def check_name(name: str, what: str) -> str:
    """Returns ``name``, or raises ``SpecError`` where it cannot be a file name, an alias and a label at once.

    Raises:
        SpecError: If the name is empty, longer than 100 characters, or has other characters than NAME_PATTERN's.
    """
    if len(name) > 100 or not NAME_PATTERN.fullmatch(name):
        raise SpecError(
            f"{what} {name!r} is not a name Tiltyard can use. Wanted: 1 to 100 lower case letters, digits, "
            "'.', '_' or '-', starting and ending with a letter or digit. Rename it."
        )
    return name


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """A dataset by name and, once resolved, by Tiltyard's own version number.

    Args:
        name: The dataset's name.
        version: 1, 2, ...; None means the newest when the experiment is planned, and is then pinned.

    >>> str(DatasetRef.parse("digits@3"))
    'digits@3'
    """

    name: str
    version: int | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "Dataset")
        number = self.version is None or (isinstance(self.version, int) and not isinstance(self.version, bool))
        if not number or (self.version is not None and self.version < 1):
            raise SpecError(
                f"Dataset {self.name!r} was asked for at version {self.version!r}; versions count from 1. "
                f"See them: tiltyard data show {self.name}"
            )

    @classmethod
    def parse(cls, text: str) -> DatasetRef:
        """Reads ``NAME`` or ``NAME@VERSION``.

        Raises:
            SpecError: If the version is not a whole number above 0, or the name is not usable.
        """
        name, at, version = text.partition("@")
        if at and not (version.isascii() and version.isdigit()):
            raise SpecError(f"{text!r} is not NAME or NAME@VERSION: {version!r} is not a whole number above 0.")
        return cls(name, int(version) if at else None)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version is not None else self.name
