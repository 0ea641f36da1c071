"""What is left of a sweep, trial by trial, before anything is spent. Pure.

Asks the same state machine that runs the sweep (`tiltyard.sweep.halving`), with what the record knows, and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tiltyard.sweep.halving import Known, Machine, StartPack, TrialState, Withdrawal
from tiltyard.sweep.plan import Group, Trial
from tiltyard.types import Mode

SKIP, CONTINUE, WAIT, RUN = "skip", "continue", "wait", "run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What becomes of one trial when the sweep goes on.

    ``action``: ``skip`` (it has ended), ``continue`` (trains on from ``from_epoch`` to ``to_epoch``), ``wait`` (stands at
    ``from_epoch``; goes on or stops when the others of its group are there) or ``run`` (from epoch 0).
    """

    trial: Trial
    action: str
    from_epoch: int
    to_epoch: int
    why: str


def remaining(
    groups: Sequence[Group],
    *,
    metric: str,
    mode: Mode,
    also: Sequence[str] = (),
    known: Mapping[tuple[str, int], Known],
    refused: Mapping[str, str] | None = None,
    withdrawn: Mapping[str, Withdrawal] | None = None,
    ended: Mapping[str, TrialState] | None = None,
    saved: Mapping[str, int] | None = None,
    grow: Callable[[Machine], Sequence[Group]] = lambda _: (),
) -> tuple[Step, ...]:
    """One step a trial, in the plan's order.

    Args:
        groups: From the plan.
        metric: The ranking metric.
        mode: Its direction.
        also: Scores that tell trials of equal rank apart.
        known: What is recorded of cells at epochs.
        refused: Why trials cannot be trained, by cell.
        withdrawn: Trials that a person stopped.
        ended: How trials stand that ran outside of packs.
        saved: Epochs of the checkpoints that such trials go on from, and at which packs were saved within a rung, by cell.
        grow: Adds to the machine what joins the plan, by what is known; the groups.
    """
    machine = Machine(
        groups,
        metric=metric,
        mode=mode,
        also=also,
        pack_size=lambda _, trials: len(trials),
        shape=lambda _: "",
        known=known,
        refused=refused,
        withdrawn=dict(withdrawn or {}),
        ended=ended,
    )
    groups = (*groups, *grow(machine))
    packs: dict[str, StartPack] = {}
    while (pack := machine.next()) is not None:
        packs |= dict.fromkeys(pack.cells, pack)
    return tuple(
        _step(machine, trial, packs.get(trial.cell), group.rungs[-1], (saved or {}).get(trial.cell, 0))
        for group in groups
        for trial in group.trials
    )


def _step(machine: Machine, trial: Trial, pack: StartPack | None, last_epoch: int, saved: int) -> Step:
    state = machine.state_of(trial.cell)
    if pack is not None:
        if pack.from_epoch < saved < pack.to_epoch:
            why = f"its pack saved it at epoch {saved}, in the middle of the rung"
            return Step(trial=trial, action=CONTINUE, from_epoch=saved, to_epoch=pack.to_epoch, why=why)
        action = CONTINUE if pack.from_epoch else RUN
        why = (
            f"its last rung is recorded at epoch {pack.from_epoch}" if pack.from_epoch else "nothing of it is recorded"
        )
        return Step(trial=trial, action=action, from_epoch=pack.from_epoch, to_epoch=pack.to_epoch, why=why)
    if state.state == "planned" and saved:  # outside of packs
        why = f"its last checkpoint was saved at epoch {saved}"
        return Step(trial=trial, action=CONTINUE, from_epoch=saved, to_epoch=last_epoch, why=why)
    if state.state == "planned":
        return Step(trial=trial, action=RUN, from_epoch=0, to_epoch=last_epoch, why="nothing of it is recorded")
    if state.state == "waiting":
        why = f"others of its group have yet to reach epoch {state.epoch}"
        return Step(trial=trial, action=WAIT, from_epoch=state.epoch, to_epoch=state.epoch, why=why)
    why = state.state if state.reason is None else f"{state.state}: {state.reason}"
    return Step(trial=trial, action=SKIP, from_epoch=state.epoch, to_epoch=state.epoch, why=why)
