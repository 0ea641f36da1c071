"""What is equal in a pack, what may differ between its members, and how one configuration is split into the two. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tiltyard.errors import TrainingError
from tiltyard.types import Task

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")
LOSSES: Mapping[Task, tuple[str, ...]] = {
    Task.BINARY: ("cross_entropy", "focal"),
    Task.MULTICLASS: ("cross_entropy", "focal"),
    Task.MULTILABEL: ("binary_cross_entropy",),
    Task.REGRESSION: ("squared", "absolute", "huber"),
}
"""Losses of each task; the first is what ``auto`` means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackSpec:
    """What is equal in a pack.

    Args:
        model: A family of `tiltyard.models`, or ``package.module:ClassOrFactory`` of a user's ``nn.Module``.
        model_args: What it is built with.
        task: Decides loss and scores.
        input_shape: Of one row.
        num_outputs: Logits or targets.
        optimizer: One of `OPTIMIZERS`.
        batch_size: Rows of a step, at most: an epoch's last batch has what is left, and a smaller split is one batch.
        total_epochs: Length of the learning rate schedules.
    """

    model: str
    model_args: Mapping[str, Any]
    task: Task
    input_shape: tuple[int, ...]
    num_outputs: int
    optimizer: str = "adamw"
    batch_size: int
    total_epochs: int

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not isinstance(self.model_args, Mapping):
            raise TrainingError(
                f"A spec with model {self.model!r} and model_args {self.model_args!r}; a name or 'package.module:Class' and "
                "arguments by name are wanted."
            )
        if self.optimizer not in OPTIMIZERS:
            raise TrainingError(f"No optimizer {self.optimizer!r}; known: {', '.join(OPTIMIZERS)}.")
        for name in ("batch_size", "total_epochs", "num_outputs"):
            if not _whole(getattr(self, name)) or getattr(self, name) < 1:
                raise TrainingError(f"{name} {getattr(self, name)!r}: a whole number of 1 or more is wanted.")
        shape = self.input_shape
        if not isinstance(shape, tuple | list) or not shape or not all(_whole(n) and n >= 1 for n in shape):
            raise TrainingError(f"input_shape {shape!r}: the sizes of one row are wanted, each 1 or more, e.g. (64,).")
        object.__setattr__(self, "input_shape", tuple(shape))
        if self.task not in LOSSES:
            raise TrainingError(f"No task {self.task!r}; known: {', '.join(LOSSES)}.")
        object.__setattr__(self, "task", Task(self.task))
        if self.task is Task.BINARY and self.num_outputs != 2:
            raise TrainingError(f"A binary task with num_outputs {self.num_outputs}; wanted 2: one logit a class.")

    @property
    def num_features(self) -> int:
        """Numbers of one row."""
        return math.prod(self.input_shape)

    def difference(self, other: PackSpec) -> str:
        """The first thing in which another spec differs, with both values."""
        for one in dataclasses.fields(self):
            mine, others = getattr(self, one.name), getattr(other, one.name)
            if mine != others:
                return f"{one.name} is {mine!r} in one and {others!r} in the other"
        return "they do not differ"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**dataclasses.asdict(self), "task": str(self.task)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PackSpec:
        """Reads what `to_dict` gave."""
        fields = dict(data)
        fields["task"] = Task(fields["task"])
        fields["input_shape"] = tuple(fields["input_shape"])
        fields["model_args"] = {k: _tuples(v) for k, v in fields["model_args"].items()}
        return cls(**fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """What may differ between the members of a pack.

    Args:
        name: Unique in the pack.
        seed: Of its initialisation, dropout and noise.
        lr: Learning rate at its peak.
        schedule: ``constant``, ``cosine`` (to 0) or ``linear`` (to 0), stepped each batch.
        warmup_epochs: Epochs over which the rate rises from 0.
        weight_decay: Decoupled for adamw, added to the gradient otherwise.
        momentum: For momentum and nesterov.
        beta1: For adam and adamw.
        beta2: For adam and adamw.
        eps: For adam and adamw.
        dropout: Rate of every dropout layer.
        loss: One of `LOSSES` of the pack's task, or ``auto`` for its first.
        focal_gamma: Of the focal loss: how much less a row counts that is right already.
        huber_delta: Of the Huber loss: the error from which it grows linearly.
        label_smoothing: Share of the target spread over all classes.
        clip_norm: Largest gradient norm; None does not clip.
        class_weights: One a class.
        init_scale: Factor on the initial weights (not on biases).
        input_noise: Standard deviation of noise added to training inputs.
        feature_mask: False where the member does not see a feature.
    """

    name: str
    seed: int
    lr: float = 1e-3
    schedule: str = "constant"
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    dropout: float = 0.0
    loss: str = "auto"
    focal_gamma: float = 2.0
    huber_delta: float = 1.0
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    class_weights: tuple[float, ...] | None = None
    init_scale: float = 1.0
    input_noise: float = 0.0
    feature_mask: tuple[bool, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TrainingError(f"A member's name is {self.name!r}; wanted a text by which it is found again.")
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not (_finite(value) and low <= value < high):
                raise TrainingError(
                    f"Member {self.name[:20]}: {name} is {value!r}; wanted {low:g} <= {name} < {high:g}."
                )
        if not (_finite(self.huber_delta) and self.huber_delta > 0):
            raise TrainingError(f"Member {self.name[:20]}: huber_delta is {self.huber_delta!r}; wanted above 0.")
        if self.clip_norm is not None and not (_finite(self.clip_norm) and self.clip_norm > 0):
            raise TrainingError(f"Member {self.name[:20]}: clip_norm is {self.clip_norm!r}; wanted above 0, or None.")
        if self.schedule not in SCHEDULES:
            raise TrainingError(
                f"Member {self.name[:20]}: schedule is {self.schedule!r}; known: {', '.join(SCHEDULES)}."
            )
        known = sorted({"auto", *(name for names in LOSSES.values() for name in names)})
        if self.loss not in known:
            raise TrainingError(f"Member {self.name[:20]}: loss is {self.loss!r}; known: {', '.join(known)}.")
        if self.loss == "focal" and self.label_smoothing:
            raise TrainingError(
                f"Member {self.name[:20]}: loss is 'focal' and label_smoothing {self.label_smoothing:g}; the focal loss has "
                "no smoothed form. Leave one of the two out."
            )
        if not _whole(self.seed) or not -(1 << 63) <= self.seed < 1 << 63:
            raise TrainingError(f"Member {self.name[:20]}: seed is {self.seed!r}; wanted a whole number of 64 bits.")
        weights, mask = self.class_weights, self.feature_mask
        if weights is not None:
            if not (_listed(weights) and all(_finite(w) and w >= 0 for w in weights) and any(weights)):
                raise TrainingError(
                    f"Member {self.name[:20]}: class_weights is {weights!r}; wanted numbers of 0 or more, not all 0."
                )
            object.__setattr__(self, "class_weights", tuple(weights))
        if mask is not None:
            if not (_listed(mask) and all(isinstance(m, int) and m in {0, 1} for m in mask)):
                raise TrainingError(
                    f"Member {self.name[:20]}: feature_mask is {str(mask)[:80]}; wanted True or False for each feature."
                )
            object.__setattr__(self, "feature_mask", tuple(bool(m) for m in mask))

    @classmethod
    def from_config(cls, name: str, seed: int, config: Mapping[str, Any]) -> Member:
        """A member from the part of a configuration that may differ.

        Raises:
            TrainingError: If a name is unknown or a value is out of its range.
        """
        unknown = sorted(set(config) - MEMBER_FIELDS)
        if unknown:
            raise TrainingError(
                f"Member {name[:20]}: {unknown[0]!r} is nothing a member has. It has: {', '.join(sorted(MEMBER_FIELDS))}."
            )
        return cls(name=name, seed=seed, **config)

    def loss_of(self, task: Task) -> str:
        """Its loss in a pack of this task.

        Raises:
            TrainingError: If the task has no such loss.
        """
        if self.loss == "auto":
            return LOSSES[task][0]
        if self.loss not in LOSSES[task]:
            raise TrainingError(
                f"Member {self.name[:20]!r}: loss is {self.loss!r}, and a {task} task has {', '.join(LOSSES[task])}."
            )
        return self.loss

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Member:
        """Reads what `to_dict` gave."""
        return cls(**{k: _tuples(v) for k, v in data.items()})


def _finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _listed(value: Any) -> bool:
    return isinstance(value, tuple | list)


_INF = math.inf
_RANGES = (
    ("lr", 0.0, _INF),
    ("warmup_epochs", 0.0, _INF),
    ("weight_decay", 0.0, _INF),
    ("momentum", 0.0, 1.0),
    ("beta1", 0.0, 1.0),
    ("beta2", 0.0, 1.0),
    ("eps", 0.0, _INF),
    ("dropout", 0.0, 1.0),
    ("focal_gamma", 0.0, 100.0),
    ("label_smoothing", 0.0, 1.0),
    ("init_scale", 0.0, _INF),
    ("input_noise", 0.0, _INF),
)
MEMBER_FIELDS = frozenset(f.name for f in dataclasses.fields(Member)) - {"name", "seed"}
"""What a search space may vary without needing another pack."""


def split_config(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A trial's configuration as (equal in a pack: model arguments, optimizer, batch_size; free per member)."""
    shared = {k: v for k, v in config.items() if k not in MEMBER_FIELDS and k != "seed"}
    member = {k: v for k, v in config.items() if k in MEMBER_FIELDS}
    return shared, member


def pack_signature(config: Mapping[str, Any]) -> str:
    """What of a configuration must be equal inside a pack, as a string: trials of one signature may share a pack.

    (Besides the configuration, a pack's trials share model, dataset, ``data_seed`` and epochs.)

    >>> pack_signature({"hidden": (64, 32), "lr": 0.1}) == pack_signature({"lr": 0.3, "hidden": [64, 32]})
    True
    """
    shared = {"optimizer": "adamw", "batch_size": 64} | split_config(config)[0]
    return json.dumps(shared, sort_keys=True, default=str)


def members_of(configs: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, int]) -> list[Member]:
    """Members from whole configurations by name.

    Raises:
        TrainingError: If two configurations cannot share a pack, naming the member and what differs; a value is out of its
            range; or a seed is missing.
    """
    members: list[Member] = []
    first: tuple[str, Mapping[str, Any]] | None = None
    for name, config in configs.items():
        if first is None:
            first = name, config
        elif pack_signature(config) != pack_signature(first[1]):
            raise TrainingError(_mixed(first, (name, config)))
        if name not in seeds:
            raise TrainingError(f"Member {name[:20]!r} has no seed; one is wanted for each configuration.")
        members.append(Member.from_config(name, seeds[name], split_config(config)[1]))
    return members


def _mixed(first: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> str:
    one, two = split_config(first[1])[0], split_config(other[1])[0]
    field = next(k for k in sorted({*one, *two}) if one.get(k) != two.get(k))
    return (
        f"Member {other[0][:20]!r} has {field} = {two.get(field)!r}, member {first[0][:20]!r} has {one.get(field)!r}: a pack "
        "is of one shape. Pack trials by pack_signature."
    )


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
