"""What the packs of a launch are given before the first one starts: a cut, shared splits, their post."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from tiltyard.data.store import DatasetStore
from tiltyard.data.stream import Shared, share
from tiltyard.experiment import Experiment
from tiltyard.journal import Claim, Journal
from tiltyard.placement import groups_of
from tiltyard.settings import Settings
from tiltyard.sweep.engine import ray_runtime
from tiltyard.sweep.engine.memory import sizes_of
from tiltyard.sweep.engine.packing import is_queued
from tiltyard.sweep.engine.prepare import Prepared
from tiltyard.sweep.engine.worker import Post, import_paths
from tiltyard.telemetry import logs
from tiltyard.telemetry.traces import environment

SHARED_AT_ONCE = 4
"""Datasets that are read at the same time: each needs a few processes and the memory of what it reads."""


def cut_of_first(
    settings: Settings, experiment: Experiment, journal: Journal, claim: Claim, *, slots: int, device: str
) -> Mapping[str, Any]:
    """How the key's first launch cut its packs, and in which chunks: the same packs give the same leaderboard."""
    sizes = sizes_of(settings, device)
    memory = ray_runtime.slot_bytes(experiment.resources, groups_of(os.environ))
    measured = f"; chunks as measured on {sizes['measured_on']}" if sizes else ""
    first = journal.decide(
        kind="packs",
        subject=experiment.name,
        actor="driver",
        evidence={"slots": slots, "sizes": sizes, "slot_bytes": memory},
        reasons=[
            f"the cluster holds {slots} packs at once{measured}",
            *([] if memory is None else [f"each has {memory >> 20} MiB, and no pack is larger than fits"]),
        ],
        outcome=f"packs are cut for {slots} at once, in every launch of this key",
        once=f"packs/{claim.key}",
        claim=claim,
    )
    return first.evidence


def post_of(
    settings: Settings,
    experiment: Experiment,
    claim: Claim,
    prepared: Mapping[str, Prepared],
    *,
    device: str,
    slots: int,
    sizes: Mapping[str, Any] | None,
) -> Post:
    """Shares the splits of every dataset with the packs; whoever asks closes them."""
    store = DatasetStore(settings.data_uri)
    queued = ", ".join(v.name for v in experiment.variants if is_queued(v.model))
    whole = {"train": f"by {queued}, which cannot be streamed"} if queued else {}
    splits = _all_at_once(
        {
            name: partial(
                share,
                p.version,
                store,
                preprocessor=p.preprocessor,
                memory_share=experiment.resources.memory_share / len(prepared),
                whole=whole | {"validation": "by scoring"},
                consumers=slots,
                consumer_cpus=experiment.resources.cpus,
            )
            for name, p in prepared.items()
        }
    )
    return Post(
        claim=claim,
        journal_uri=settings.journal_uri,
        storage_uri=settings.storage_uri,
        splits=splits,
        device=device,
        threads=max(1, int(experiment.resources.cpus)),
        cpus=experiment.resources.cpus,
        gpus=experiment.resources.gpus,
        since=time.time(),
        trial_s=experiment.budget.trial_s,
        import_paths=import_paths(),
        sizes=sizes,
        trace=environment(),
        experiment=experiment.name,
        job=logs.ids().get("job", ""),
        personal=personal_columns(prepared),
    )


def _all_at_once(reads: Mapping[str, Callable[[], Shared]]) -> dict[str, Shared]:
    """Shares datasets side by side: a small one takes seconds, nearly all of it the start of the processes that read it.

    Raises:
        TiltyardError: Of the first that cannot be shared; the others are ended.
    """
    with ThreadPoolExecutor(max_workers=SHARED_AT_ONCE) as pool:
        found = {name: pool.submit(read) for name, read in reads.items()}
    errors = [error for f in found.values() if (error := f.exception()) is not None]
    if errors:
        for f in found.values():
            if f.exception() is None:
                f.result().close()
        raise errors[0]
    return {name: f.result() for name, f in found.items()}


def personal_columns(prepared: Mapping[str, Prepared]) -> tuple[str, ...]:
    """Columns of any of the datasets whose values stay out of logs."""
    return tuple(sorted({c for p in prepared.values() for c in p.version.spec.personal}))
