"""Small requests that arrive while a model is busy, merged into one call; every request gets its own answer.

While fewer than ``in_flight`` calls are under way a request goes out at once, alone: an idle model adds no waiting. What
arrives meanwhile is merged up to ``merged_rows`` rows. More than ``waiting`` requests in the queue are refused, so that an
overloaded model answers "later" instead of growing a queue. Where a merged call fails its requests go out again one by
one: a poison row fails only itself. Pure asyncio: no Ray, no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tiltyard.serving.answers import Answer, Limits
from tiltyard.serving.requests import RequestError

Call = Callable[[pa.Table], Awaitable[Answer]]


@dataclass(slots=True)
class _Waiting:
    table: pa.Table
    done: asyncio.Future[Answer] = field(repr=False)


class Batcher:
    """Sends tables of rows to one model. Belongs to one event loop."""

    def __init__(self, call: Call, limits: Limits) -> None:
        self._call, self._limits = call, limits
        self._queue: deque[_Waiting] = deque()
        self._under_way = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def answer(self, table: pa.Table) -> Answer:
        """The answer for a table.

        Raises:
            RequestError: 429 if the queue is full.
        """
        if len(self._queue) >= self._limits.waiting:
            raise RequestError(
                429, f"{len(self._queue)} requests wait for this model already. Try again, or send more rows a request."
            )
        item = _Waiting(table, asyncio.get_running_loop().create_future())
        self._queue.append(item)
        self._send()
        return await item.done

    def _send(self) -> None:
        while self._queue and self._under_way < self._limits.in_flight:
            items = self._take()
            if not items:
                continue
            self._under_way += 1
            task = asyncio.get_running_loop().create_task(self._work(items))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Waiting]:
        """The next requests that fit into one call and have one schema; those whose client went away are dropped."""
        items: list[_Waiting] = []
        rows = 0
        while self._queue:
            item = self._queue[0]
            if item.done.done():
                self._queue.popleft()
                continue
            rows += item.table.num_rows
            if items and (rows > self._limits.merged_rows or item.table.schema != items[0].table.schema):
                break
            items.append(self._queue.popleft())
        return items

    async def _work(self, items: Sequence[_Waiting]) -> None:
        try:
            await self._answer(items)
        finally:
            self._under_way -= 1
            self._send()

    async def _answer(self, items: Sequence[_Waiting]) -> None:
        if len(items) == 1:
            await self._answer_one(items[0])
            return
        try:
            answer = await self._call(pa.concat_tables([i.table for i in items]))
        except Exception:
            for item in items:
                await self._answer_one(item)
            return
        start = 0
        for item in items:
            stop = start + item.table.num_rows
            if not item.done.done():
                item.done.set_result(answer.rows(start, stop))
            start = stop

    async def _answer_one(self, item: _Waiting) -> None:
        if item.done.done():
            return
        try:
            answer = await self._call(item.table)
        except Exception as error:
            if not item.done.done():
                item.done.set_exception(error)
        else:
            if not item.done.done():
                item.done.set_result(answer)
