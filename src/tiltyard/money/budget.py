"""Budgets in metered seconds: may this pack start, and may it go on?

One CPU held for one second, busy or idle, is one CPU-second (``cpu_s``); ``gpu_s`` likewise. Seconds are reserved before a
pack starts, reserved again while it runs longer than was thought, and settled when it ends with what the meter says. So
reserved plus spent stays within the limit whatever order events arrive in; a pack for which no more can be reserved is to
be ended.

This module decides and never acts: no clock, no I/O. `tiltyard.sweep.engine` asks and obeys; the budgets of teams are kept
by `tiltyard.journal`, which asks too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tiltyard.errors import BudgetExceededError


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """CPU- and GPU-seconds, both at least 0."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(cpu_s=self.cpu_s + other.cpu_s, gpu_s=self.gpu_s + other.gpu_s)

    def __sub__(self, other: Seconds) -> Seconds:
        """What is left, never below 0."""
        return Seconds(cpu_s=max(0.0, self.cpu_s - other.cpu_s), gpu_s=max(0.0, self.gpu_s - other.gpu_s))

    @property
    def any(self) -> bool:
        """True where there is more than a rounding of either."""
        return self.cpu_s > 1e-6 or self.gpu_s > 1e-6

    def __mul__(self, factor: float) -> Seconds:
        return Seconds(cpu_s=self.cpu_s * factor, gpu_s=self.gpu_s * factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What one sweep or team may use; a limit of None is none.

    Invariant of `reserve`: ``reserved + spent <= limit``. `settle` takes what the meter says, also where that is more than
    was reserved: seconds that are gone cannot be refused.
    """

    owner: str
    limit_cpu_s: float | None = None
    limit_gpu_s: float | None = None
    reserved: Seconds = Seconds()
    spent: Seconds = Seconds()

    @property
    def free_cpu_s(self) -> float | None:
        """CPU-seconds that are neither spent nor reserved; None where there is no limit."""
        return _free(self.limit_cpu_s, self.reserved.cpu_s, self.spent.cpu_s)

    @property
    def free_gpu_s(self) -> float | None:
        """GPU-seconds that are neither spent nor reserved; None where there is no limit."""
        return _free(self.limit_gpu_s, self.reserved.gpu_s, self.spent.gpu_s)


def reserve(budget: Budget, ask: Seconds) -> Budget:
    """Sets seconds aside for a pack that is to start or to go on; returns the new budget.

    Raises:
        BudgetExceededError: If more is asked for than is free; nothing was reserved.

    >>> reserve(Budget(owner="vision", limit_cpu_s=7200), Seconds(cpu_s=1800)).free_cpu_s
    5400.0
    """
    for what, free, asked in (
        ("CPU", budget.free_cpu_s, ask.cpu_s),
        ("GPU", budget.free_gpu_s, ask.gpu_s),
    ):
        if free is not None and asked > free:
            raise BudgetExceededError(
                f"The budget of {budget.owner} has {free:.1f} {what}-s free; {asked:.1f} are asked for "
                f"({_amounts(budget, what)}). Raise the limit, or wait for what runs to be settled."
            )
    return replace(budget, reserved=budget.reserved + ask)


def settle(budget: Budget, reserved: Seconds, used: Seconds) -> Budget:
    """Gives back what was reserved for a pack, and books what the meter says it used; returns the new budget."""
    return replace(budget, reserved=budget.reserved - reserved, spent=budget.spent + used)


def _free(limit: float | None, reserved: float, spent: float) -> float | None:
    return None if limit is None else max(0.0, limit - reserved - spent)


def _amounts(budget: Budget, what: str) -> str:
    limit, reserved, spent = (
        (budget.limit_cpu_s, budget.reserved.cpu_s, budget.spent.cpu_s)
        if what == "CPU"
        else (budget.limit_gpu_s, budget.reserved.gpu_s, budget.spent.gpu_s)
    )
    return f"limit {limit:g}, spent {spent:.1f}, reserved {reserved:.1f}"
