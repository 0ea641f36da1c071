"""Ray comes up while this process loads what a sweep needs.

Ray's start is seconds of waiting for its processes; torch and the rest are seconds of this one. A sweep that a record
answers starts nothing, so its key is worked out first: from light modules, without torch, Ray or a connection.

The packages load on a thread and Ray starts on the main one, for it sets signal handlers, and its processes end with the
thread that started them. The thread loads nothing of Ray's, which the main one is loading.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tiltyard.data.store import DatasetStore
from tiltyard.experiment import Experiment
from tiltyard.journal import Journal
from tiltyard.placement import asked
from tiltyard.progress import work
from tiltyard.settings import Settings
from tiltyard.sweep.engine.prepare import Prepared, check_models, prepare
from tiltyard.sweep.plan import DatasetFacts, Plan, plan

if TYPE_CHECKING:
    from tiltyard.sweep.engine.warm import Warm

LOADED = ("torch", "tiltyard.training", "tiltyard.models", "sqlalchemy.dialects.sqlite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What an experiment came to before anything was started.

    Args:
        prepared: By dataset, its version and what turns its columns into features.
        facts: By dataset, what the plan was made from.
        plan: The trials.
        checked: Every model of it was built and can be trained.
        warm: Processes that load what packs need, where they were asked for already.
    """

    prepared: Mapping[str, Prepared]
    facts: Mapping[str, DatasetFacts]
    plan: Plan
    checked: bool = False
    warm: Warm | None = None


def planned(settings: Settings, experiment: Experiment, *, code_digest: str) -> Planned:
    """Pins the versions and draws the trials.

    Raises:
        SpecError, DataError: If the experiment cannot be planned as it stands.
    """
    prepared, facts = prepare(experiment, DatasetStore(settings.data_uri))
    return Planned(prepared=prepared, facts=facts, plan=plan(experiment, facts, code_digest=code_digest))


def start_ahead(settings: Settings, experiment: Experiment, *, code_digest: str) -> Planned:
    """Plans, and starts a local Ray and the processes of its packs where there is something to do.

    On a cluster nothing is started ahead: joining one takes no time. Models are built first, so that one that cannot be
    trained is refused with nothing started; those of a key that the record has were built by its first launch.

    Args:
        settings: Where everything lives.
        experiment: What to do.
        code_digest: From `tiltyard.codedigest`.

    Raises:
        SpecError, DataError: If the experiment cannot be planned as it stands; nothing was started.
    """
    found = planned(settings, experiment, code_digest=code_digest)
    if os.environ.get("RAY_ADDRESS") or _is_answered(settings, found.plan.key):
        return found
    if not _is_known(settings, found.plan.key):
        check_models(found.plan.trials)
        _check_room(experiment)
    found = replace(found, checked=True)
    with work(f"starting Ray for {experiment.name}"), _loading():
        from tiltyard.sweep.engine import ray_runtime

        if not ray_runtime.ensure_ray():
            return found
    from tiltyard.sweep.engine.warm import Warm

    resources = experiment.resources
    slots = ray_runtime.slots(resources)
    packs = min(slots, resources.max_concurrent or slots, len(found.plan.trials))
    warm = Warm(packs, asked(resources, []))
    return replace(found, warm=warm)


def _check_room(experiment: Experiment) -> None:
    from tiltyard.sweep.engine import ray_runtime

    ray_runtime.check_nodes(experiment.resources)


def is_finished(settings: Settings, key: str) -> bool:
    """The record answers: nothing will be started. Makes no journal where there is none."""
    with _there(settings) as journal:
        found = None if journal is None else journal.launch(key)
        return found is not None and found.state == "finished"


def _is_known(settings: Settings, key: str) -> bool:
    """A launch of it began."""
    with _there(settings) as journal:
        return journal is not None and journal.launch(key) is not None


def _is_answered(settings: Settings, key: str) -> bool:
    """By the record, or by whoever works on it now."""
    with _there(settings) as journal:
        return is_finished(settings, key) or (journal is not None and journal.holder(key) is not None)


@contextlib.contextmanager
def _there(settings: Settings) -> Iterator[Journal | None]:
    """The journal; None where there is none yet."""
    scheme, _, path = settings.journal_uri.partition(":///")
    if scheme.startswith("sqlite") and not Path(path).exists():
        yield None
        return
    with Journal.open(settings.journal_uri) as journal:
        yield journal


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Loads packages beside the block; one that cannot be loaded says so where it is used."""

    def load() -> None:
        for name in LOADED:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    thread = threading.Thread(target=load, name="tiltyard-loading")
    thread.start()
    try:
        yield
    finally:
        thread.join()
