"""Where a trial under Ray Tune's schedulers goes on after its sweep was ended: at the last checkpoint that it saved.

A trainable reports a checkpoint (a function: ``tune.report(metrics, checkpoint=...)``) or can save one (a class with
``save_checkpoint``: asked for every few epochs). Where each lies is noted beside the trial's other files, with its curve so
far, before anything else happens; the next launch gives it to the trial, as Ray Tune does after a failure. So at most the
epochs since the last checkpoint are trained again. PBT's trials are not given theirs: what they were depends on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.fs as pafs

from tiltyard.sweep.engine.layout import Layout
from tiltyard.sweep.plan import Trial

SCHEMA_VERSION = 1
KEPT = 2
"""Checkpoints of a trial that Ray Tune keeps: the last one, and the one before it until the last one is noted."""
UNSAVED = frozenset({"pbt"})
"""Schedulers under which a resume begins anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint of one trial.

    Args:
        epoch: Reports up to it.
        path: Of its folder, in the storage's file system.
        points: The curve up to there, one entry a report.
    """

    epoch: int
    path: str
    points: Sequence[dict[str, Any]]


def pack_id_of(trial: Trial) -> str:
    """What stands for the trial among packs: it is the only one in its own."""
    return f"{trial.group}/t{trial.index:03d}"


def note(layout: Layout, trial: Trial, saved: Saved) -> None:
    """Notes the trial's newest checkpoint, in place of the one before."""
    layout.storage.write_json(_address(layout, trial), {"schema_version": SCHEMA_VERSION, **asdict(saved)})


def saved_of(layout: Layout, trial: Trial) -> Saved | None:
    """The checkpoint to go on from; None where none was noted, or where it is gone."""
    with layout.storage.opening(_address(layout, trial)) as file:
        if file is None:
            return None
    told = layout.storage.read_json(_address(layout, trial))
    saved = Saved(epoch=int(told["epoch"]), path=str(told["path"]), points=tuple(told["points"]))
    there = _filesystem(layout).get_file_info(saved.path).type == pafs.FileType.Directory
    return saved if there else None


def give(layout: Layout, tune_trial: Any, saved: Saved) -> None:
    """Ray Tune's trial, not started yet, will begin from the checkpoint and count its epochs on.

    Ray 2.60 has a name for the place (``Trial(restore_path=...)``), but counts from 0 then: the epoch goes with what stands
    behind that name.
    """
    from ray.air.constants import TRAINING_ITERATION
    from ray.train._internal.session import _TrainingResult
    from ray.tune import Checkpoint

    checkpoint = Checkpoint(saved.path, filesystem=_filesystem(layout))
    tune_trial._restore_checkpoint_result = _TrainingResult(
        checkpoint=checkpoint, metrics={TRAINING_ITERATION: saved.epoch}
    )


def _address(layout: Layout, trial: Trial) -> str:
    return f"{layout.pack(pack_id_of(trial))}/checkpoint.json"


def _filesystem(layout: Layout) -> Any:
    if layout.storage.is_local:
        return pafs.LocalFileSystem()
    return pafs.FileSystem.from_uri(layout.storage.root)[0]
