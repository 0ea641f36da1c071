"""Sends a model's requests to its champion and, for a share of them, to a challenger too.

The caller's answer never waits for a comparison and never fails by one: it is made afterwards, at most ``shadows`` of them
at a time and ``shadow_bytes`` bytes of rows among them; what is more is dropped and counted. A canary that fails, or takes
longer than ``canary_s``, is answered by the champion. Pure asyncio: no Ray, no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.comparison import Comparison, Pair, compared
from tiltyard.serving.traffic import CANARY, Split

Ask = Callable[[], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class _Met:
    split: Split
    pair: Pair


class Splitter:
    """One model's traffic. Belongs to one event loop.

    Args:
        model: The name it is asked by.
        limits: ``shadows``, ``shadow_bytes``, ``canary_s`` and ``answer_s`` count.
        seen: Told of every comparison, of one request each.
        clock: Seconds.
    """

    def __init__(
        self,
        model: str,
        limits: Limits,
        seen: Callable[[Comparison], None],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model, self._limits, self._seen, self._clock = model, limits, seen, clock
        self._met: _Met | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._bytes = 0

    @property
    def under_way(self) -> int:
        """Comparisons under way."""
        return len(self._tasks)

    @property
    def meets(self) -> bool:
        """A challenger is asked."""
        return self._met is not None

    def meet(self, split: Split | None, champion: Described | None, challenger: Described | None) -> None:
        """What holds from now on; a challenger that is not ready (None), or is the champion itself, is not asked."""
        if split is None or champion is None or challenger is None or champion.digest == challenger.digest:
            self._met = None
            return
        pair = Pair(
            model=self._model,
            mode=split.mode,
            champion_version=champion.version,
            champion_digest=champion.digest,
            challenger_version=challenger.version,
            challenger_digest=challenger.digest,
        )
        self._met = _Met(split, pair)

    async def answer(self, request_id: str, champion: Ask, challenger: Ask, *, size: int) -> Answer:
        """The answer for a request of ``size`` bytes; raises what the champion raises."""
        met = self._met
        if met is None or not met.split.takes(request_id):
            return await champion()
        begun = self._clock()
        if met.split.mode != CANARY:
            answer = await champion()
            self._beside(met, answer, self._clock() - begun, challenger, size)
            return answer
        try:
            async with asyncio.timeout(self._limits.canary_s):
                answer = await challenger()
        except (
            Exception
        ):  # whatever a candidate does, the champion still answers; what the caller did wrong it says too
            answer = await champion()
            self._seen(Comparison(pair=met.pair, challenger_errors=1))
            return answer
        self._beside(met, answer, self._clock() - begun, champion, size)
        return answer

    def _beside(self, met: _Met, answer: Answer, seconds: float, ask: Ask, size: int) -> None:
        if len(self._tasks) >= self._limits.shadows or self._bytes + size > self._limits.shadow_bytes:
            self._seen(Comparison(pair=met.pair, dropped=1))
            return
        self._bytes += size
        task = asyncio.get_running_loop().create_task(self._compare(met, answer, seconds, ask, size))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, met: _Met, answer: Answer, seconds: float, ask: Ask, size: int) -> None:
        canary = met.split.mode == CANARY
        try:
            begun = self._clock()
            async with asyncio.timeout(self._limits.answer_s):
                other = await ask()
            took = self._clock() - begun
            one, two = ((other, took), (answer, seconds)) if canary else ((answer, seconds), (other, took))
            found = compared(
                one[0], two[0], mode=met.split.mode, champion_s=one[1], challenger_s=two[1], model=self._model
            )
        except Exception:  # counted: it is the comparison that failed, and nobody waits for it
            found = Comparison(pair=met.pair, champion_errors=int(canary), challenger_errors=int(not canary))
        finally:
            self._bytes -= size
        self._seen(found)
