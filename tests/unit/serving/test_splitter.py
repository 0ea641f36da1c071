"""A challenger in shadow and in canary, without Ray: it never delays, fails or grows what the caller gets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiltyard.journal import Journal
from tiltyard.registry import ModelAddress
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.comparison import DECISION, Comparison, Pair, together
from tiltyard.serving.recorder import Recorder
from tiltyard.serving.requests import RequestError
from tiltyard.serving.splitter import Splitter
from tiltyard.serving.traffic import Split
from tiltyard.types import Task

LIMITS = Limits(shadows=2, shadow_bytes=100, canary_s=0.1, answer_s=5)
Ask = Callable[[], Awaitable[Answer]]


def _said(version: int) -> Answer:
    return Answer(
        model="a.b",
        version=version,
        digest=str(version) * 64,
        task=Task.BINARY,
        classes=("no", "yes"),
        outputs=np.array([[0.0, version]], np.float32),
    )


def _described(version: int) -> Described:
    return Described(
        served_as="a.b",
        model="a.b",
        version=version,
        digest=str(version) * 64,
        task=Task.BINARY,
        classes=("no", "yes"),
        columns=(),
    )


def _gives(version: int) -> Ask:
    async def ask() -> Answer:
        return _said(version)

    return ask


def _fails(error: Exception) -> Ask:
    async def ask() -> Answer:
        raise error

    return ask


class Run:
    """A splitter with what it saw."""

    def __init__(self, mode: str, share: float = 1.0, limits: Limits = LIMITS) -> None:
        self.seen: list[Comparison] = []
        self.splitter = Splitter("a.b", limits, self.seen.append)
        self.split = Split(mode=mode, challenger=ModelAddress.parse("a.b@2"), share=share)
        self.splitter.meet(self.split, _described(1), _described(2))

    async def ask(self, champion: Ask, challenger: Ask, *, number: int = 0, size: int = 1) -> Answer:
        return await self.splitter.answer(f"id{number}", champion, challenger, size=size)

    async def settle(self) -> Comparison:
        async with asyncio.timeout(60):
            while self.splitter.under_way:
                await asyncio.sleep(0.001)
        (found,) = together(self.seen)
        return found


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize(("mode", "answered"), [("shadow", 1), ("canary", 2)])
def test_share_of_requests_is_answered_by_one_and_compared_with_the_other(mode: str, answered: int) -> None:
    async def work() -> None:
        run = Run(mode, share=0.3, limits=replace(LIMITS, shadows=1000, shadow_bytes=10_000))
        versions = [(await run.ask(_gives(1), _gives(2), number=i)).version for i in range(300)]
        found = await run.settle()
        taken = [run.split.takes(f"id{i}") for i in range(300)]
        assert versions == [answered if t else 1 for t in taken]
        assert (found.requests, found.agreed) == (sum(taken), sum(taken))
        assert sum(found.champion_seconds) == sum(found.challenger_seconds) == sum(taken)
        assert (found.pair.champion_version, found.pair.challenger_version) == (1, 2)

    _run(work())


def test_shadow_that_hangs_delays_nobody_and_holds_no_more_than_its_bound() -> None:
    async def work() -> None:
        run = Run("shadow")
        gate = asyncio.Event()

        async def hangs() -> Answer:
            await gate.wait()
            return _said(2)

        async with asyncio.timeout(60):
            for i in range(50):
                assert (await run.ask(_gives(1), hangs, number=i)).version == 1
                assert run.splitter.under_way <= LIMITS.shadows
        gate.set()
        found = await run.settle()
        assert (found.requests, found.dropped) == (2, 48)
        await run.ask(_gives(1), _gives(2), size=LIMITS.shadow_bytes + 1)
        assert (await run.settle()).dropped == 49

    _run(work())


def test_shadow_that_fails_is_counted_and_the_caller_has_the_champions_answer() -> None:
    async def work() -> None:
        run = Run("shadow")
        assert (await run.ask(_gives(1), _fails(ZeroDivisionError()))).version == 1
        found = await run.settle()
        assert (found.requests, found.challenger_errors, found.champion_errors) == (0, 1, 0)

    _run(work())


def test_canary_that_fails_or_hangs_is_answered_by_the_champion() -> None:
    async def work() -> None:
        run = Run("canary")

        async def hangs() -> Answer:
            await asyncio.sleep(60)
            raise AssertionError

        assert (await run.ask(_gives(1), _fails(ZeroDivisionError()))).version == 1
        assert (await run.ask(_gives(1), hangs)).version == 1
        found = await run.settle()
        assert (found.requests, found.challenger_errors) == (0, 2)

    _run(work())


def test_canary_whose_champion_fails_beside_it_is_answered_and_counted() -> None:
    async def work() -> None:
        run = Run("canary")
        assert (await run.ask(_fails(RequestError(503, "away")), _gives(2))).version == 2
        assert (await run.settle()).champion_errors == 1

    _run(work())


@pytest.mark.parametrize("mode", ["shadow", "canary"])
def test_request_that_both_refuse_is_refused_and_nobodys_error(mode: str) -> None:
    async def work() -> None:
        run = Run(mode)
        refused = _fails(RequestError(422, "row 0"))
        with pytest.raises(RequestError, match="row 0"):
            await run.ask(refused, refused)
        assert run.seen == []

    _run(work())


def test_challenger_that_is_not_ready_or_is_the_champion_is_not_asked() -> None:
    async def work() -> None:
        run = Run("canary")
        for challenger in (None, _described(1)):
            run.splitter.meet(run.split, _described(1), challenger)
            assert not run.splitter.meets
            assert (await run.ask(_gives(1), _fails(AssertionError()))).version == 1
        assert run.seen == []

    _run(work())


def test_recorder_appends_windows_that_add_up_and_keeps_what_the_journal_does_not_take(tmp_path: Path) -> None:
    pair = Pair(
        model="a.b",
        mode="shadow",
        champion_version=1,
        champion_digest="1" * 64,
        challenger_version=2,
        challenger_digest="2" * 64,
    )
    folder = tmp_path / "place"
    folder.write_text("a file where a folder is wanted")
    recorder = Recorder(f"sqlite:///{folder / 'journal.db'}", 1)
    recorder.add(Comparison(pair=pair, requests=2, dropped=1))
    assert recorder.write()
    recorder.add(Comparison(pair=pair, requests=3))
    folder.unlink()
    folder.mkdir()
    assert recorder.write()
    recorder.add(Comparison(pair=pair, requests=5))
    assert not recorder.write()
    assert not recorder.write()
    with Journal.open(f"sqlite:///{folder / 'journal.db'}") as journal:
        found = [Comparison.from_evidence(d.evidence) for d in journal.decisions(kind=DECISION, subject="a.b")]
        assert journal.verify_decisions() == 2
    assert [c.requests for c in found] == [5, 5]
    assert together(found)[0].dropped == 1


def test_recorder_that_was_idle_records_the_first_comparison_as_soon_as_a_busy_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'journal.db'}"
    Journal.open(uri).close()

    async def work() -> None:
        recorder = Recorder(uri, 0.01)
        keeping = asyncio.create_task(recorder.keep())
        await asyncio.sleep(0.5)  # windows that doubled would be minutes long soon: the next is in a hundredth
        run = Run("shadow")
        await run.ask(_gives(1), _gives(2))
        recorder.add(await run.settle())
        with Journal.open(uri) as journal:
            async with asyncio.timeout(60):
                while not journal.decisions(kind=DECISION):
                    await asyncio.sleep(0.01)
        keeping.cancel()

    _run(work())
