"""A front that switches its telemetry off and on while it answers: the two sides of an A/B are the same process.

Off means that nothing is counted and no id is bound for log lines. What both sides do alike: two looks at the clock, and
asking whether spans are kept. Imported by name in Serve's processes.
"""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tiltyard.serving import deployment, http
from tiltyard.serving.answers import Answer
from tiltyard.serving.meters import FLUSH_S
from tiltyard.telemetry.logs import bound

_NOTHING = nullcontext()
MODEL, IN_A_ROW = "b.small", 10


@dataclass(frozen=True, slots=True)
class Block:
    """What was answered in one stretch of time, and the CPU of the front's process meanwhile."""

    told: bool
    seconds: float
    answered: int
    cpu_s: float


class Still:
    """Has the methods of `tiltyard.serving.meters.Meters` that are called while a front answers, and counts nothing."""

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

    async def face(self, body: bytes, pairs: int) -> list[tuple[float, float]]:
        """Seconds of a request with telemetry and without, of pairs of `IN_A_ROW` requests each: this front's HTTP face alone.

        From the ASGI server's call to the last byte handed back, with an answer that is there at once: what Serve, its proxy
        and the model cost varies by more from request to request than telemetry costs.
        """
        app = http.build_app(AtOnce(self, await self.answer(MODEL, _table(body), "")), self._limits, http.Guard(None))
        found = []
        for i in range(pairs):
            took = {}
            for told in (True, False) if i % 2 else (False, True):
                self._switch(told=told)
                begun = time.perf_counter()
                for _ in range(IN_A_ROW):
                    await _ask(app, body)
                took[told] = (time.perf_counter() - begun) / IN_A_ROW
            found.append((took[True], took[False]))
            await asyncio.sleep(0)
        self._switch(told=True)
        return found

    async def flush(self) -> float:
        """CPU-seconds of this thread for handing over what was counted."""
        begun = time.thread_time()
        self._meters.flush()
        return time.thread_time() - begun


class AtOnce:
    """A `Backend` of one answer: counts what a front counts on the way to a model, and observes as it does."""

    def __init__(self, front: Any, answer: Answer) -> None:
        self._front, self._answer = front, answer
        self.described, self.describe, self.observe = front.described, front.describe, front.observe

    async def answer(self, name: str, table: pa.Table, request_id: str) -> Answer:
        """The same each time."""
        del request_id
        self._front._meters.batch(name, table.num_rows)
        return self._answer

    async def answer_arrow(self, name: str, body: bytes, request_id: str) -> Answer:
        """Nobody asks in Arrow here."""
        raise NotImplementedError


def _table(body: bytes) -> pa.Table:
    return pa.Table.from_pylist(json.loads(body)["rows"])


async def _ask(app: Any, body: bytes) -> None:
    """One request to an ASGI application."""
    path = f"/models/{MODEL}/predict"
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message

    await app(scope, receive, send)
