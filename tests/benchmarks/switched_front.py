"""A front that switches its telemetry off and on while it answers: the two sides of an A/B are the same process.

Off means that nothing is counted and no id is bound for log lines. What both sides do alike: two looks at the clock, and
asking whether spans are kept. Imported by name in Serve's processes.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tiltyard.serving import deployment, http
from tiltyard.serving.meters import FLUSH_S, Meters
from tiltyard.telemetry.logs import bound

_NOTHING = nullcontext()


@dataclass(frozen=True, slots=True)
class Block:
    """What was answered in one stretch of time, and the CPU of the front's process meanwhile."""

    told: bool
    seconds: float
    answered: int
    cpu_s: float


class Still:
    """Has the methods of `Meters` that are called while a front answers, and counts nothing."""

    def batch(self, model: str, rows: int) -> None:
        """Nothing."""

    def state(self, found: Any, waiting: int) -> None:
        """Nothing."""


def _no_context(**_: object) -> Any:
    return _NOTHING


class SwitchedFront(deployment.Front.func_or_class):  # type: ignore[misc,name-defined]
    """The front as it is, and a switch."""

    answered = 0

    async def _hand_over(self) -> None:
        """Nothing: blocks that are told do it, so that all of its cost falls into them."""

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        """Counts for this benchmark, and as the front does while it is told."""
        self.answered += 1
        if self.told:
            super().observe(name, status=status, seconds=seconds, rows=rows)

    told = True

    def _switch(self, *, told: bool) -> None:
        me: Any = self
        if not hasattr(me, "real"):
            me.real = me._meters
        me.told, me._meters = told, me.real if told else Still()
        module: Any = http
        module.bound = bound if told else _no_context

    async def alternate(self, pairs: int, block_s: float) -> list[Block]:
        """Answers so many pairs of blocks, one with telemetry and one without; every other pair the other way round."""
        blocks, flushed = [], time.monotonic()
        for i in range(pairs):
            for told in (True, False) if i % 2 else (False, True):
                self._switch(told=told)
                begun, cpu_s, answered = time.perf_counter(), time.process_time(), self.answered
                if told and time.monotonic() - flushed > FLUSH_S:
                    flushed = time.monotonic()
                    self._meters.flush()
                await asyncio.sleep(block_s)
                blocks.append(
                    Block(
                        told=told,
                        seconds=time.perf_counter() - begun,
                        answered=self.answered - answered,
                        cpu_s=time.process_time() - cpu_s,
                    )
                )
        self._switch(told=True)
        return blocks

    async def cost(self, model: str, rounds: int) -> tuple[float, float]:
        """CPU-seconds of this thread for all that is counted and bound for one request of one row, alone; and to hand it over."""
        meters: Meters = self._meters
        start = time.thread_time()
        for _ in range(rounds):
            with bound(request="3f2a"):
                meters.request(model, 200, 0.004, 1)
            meters.batch(model, 1)
        middle = time.thread_time()
        meters.flush()
        return (middle - start) / rounds, time.thread_time() - middle
