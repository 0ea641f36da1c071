"""What may share a pack, how large packs are, and whether a configuration can be trained at all. No Ray."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tiltyard.errors import SpecError, TiltyardError
from tiltyard.experiment import Resources
from tiltyard.sweep.plan import Group, Trial
from tiltyard.types import trains_itself

QUEUE_MODELS = {"lightgbm": "its trees take no steps that could be shared"}
"""Models whose trials cannot step together, and why: a pack of them is a queue, one after another."""
MAX_MEMBERS = {"cpu": 256, "cuda": 4096}
"""Members of a pack by kind of device. On a CPU a pack past this gains nothing (members step in chunks that fit the cache)
and a longer pack loses more when its worker dies."""
QUEUE_MEMBERS = 8, 64
"""The fewest and the most trials of a queue: a pack costs some 0.4 s beside its trials, and each trial is recorded as it
ends, so a long queue loses no more than a short one when its worker dies. But the last queues of a group end apart."""
QUEUES_A_SLOT = 4
"""A group's trials are cut into about so many queues for each slot, within `QUEUE_MEMBERS`."""


def is_queued(model: str) -> bool:
    """A pack of this model's trials is a queue."""
    return why_queued(model) is not None


def why_queued(model: str) -> str | None:
    """Why trials of a model cannot step together, as people are told; None where they can.

    >>> why_queued("lightgbm"), why_queued("mlp")
    ('its trees take no steps that could be shared', None)
    """
    if model in QUEUE_MODELS:
        return QUEUE_MODELS[model]
    return "what trains itself shares no step" if trains_itself(model) else None


def shape_of(trial: Trial) -> str:
    """What must be equal inside a pack, as a string."""
    if is_queued(trial.model):
        return json.dumps([trial.model, trial.data_seed])
    from tiltyard.training import split_config

    shared, _ = split_config(trial.config)
    return json.dumps([trial.model, shared, trial.dataset, trial.data_seed], sort_keys=True, default=str)


def pack_size_for(
    resources: Resources, *, slots: int, groups: int, device: str, fit: Callable[[Trial], int] = lambda _: 1 << 30
) -> Callable[[Group, Sequence[Trial]], int]:
    """Members of a pack, from shapes, slots and the kind of device, never from timings.

    Groups run side by side, so a group is cut up only where there are more slots than groups, or where a larger pack would
    not fit.

    Args:
        resources: Whose ``pack`` decides where it is a number.
        slots: Packs at once.
        groups: That run side by side.
        device: Its kind.
        fit: The most members of a trial's shape that a slot's memory holds (`tiltyard.sweep.engine.memory.fitting`).
    """
    at_once = max(1, math.ceil(slots / max(1, groups)))

    def size(group: Group, trials: Sequence[Trial]) -> int:
        if resources.pack != "auto":
            return resources.pack
        most = MAX_MEMBERS.get(device, 256)
        if is_queued(group.model):
            fewest, most = QUEUE_MEMBERS
            most = min(most, max(fewest, math.ceil(len(trials) / (QUEUES_A_SLOT * at_once))))
        else:
            most = min(most, fit(trials[0]))
        return max(1, min(most, math.ceil(len(trials) / at_once)))

    return size


def check_trial(trial: Trial, validate: Callable[..., None] | None) -> None:
    """The trial's configuration can be trained.

    Args:
        trial: Which.
        validate: Builds the model and looks at its outputs; None where a trial of the same shape was built already.

    Raises:
        TiltyardError: Naming the trial's variant and what is wrong.
    """
    try:
        if trial.model in QUEUE_MODELS:
            from tiltyard.models.lightgbm import check_config

            check_config(trial.config)
            return
        if trains_itself(trial.model):
            from tiltyard.sweep.engine.own import check_own

            check_own(trial.model)
            return
        shared, member = _parts(trial.config)
        from tiltyard.training import Member

        Member.from_config(trial.cell, trial.seed, member)
        if validate is None:
            return
        args = {k: v for k, v in shared.items() if k not in {"optimizer", "batch_size"}}
        validate(trial.model, args, trial.task, trial.input_shape, trial.num_outputs)
    except TiltyardError as error:
        raise SpecError(f"Variant {trial.variant!r} cannot be trained on {trial.dataset}: {error}") from error


def _parts(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    from tiltyard.training import split_config

    return split_config(config)
