"""Merged requests: each gets its own answer, whatever order and size they come in; a poison row fails only itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import DataError
from tiltyard.serving.answers import Answer, Limits
from tiltyard.serving.batching import Batcher
from tiltyard.serving.requests import RequestError
from tiltyard.types import Task

POISON = -1.0


class Model:
    """Answers each row with itself, after some turns of the loop; refuses a table with a poison row."""

    def __init__(self, turns: int = 3) -> None:
        self.calls: list[int] = []
        self.at_once = self.most_at_once = 0
        self._turns = turns

    async def __call__(self, table: pa.Table) -> Answer:
        self.calls.append(table.num_rows)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        for _ in range(self._turns):
            await asyncio.sleep(0)
        self.at_once -= 1
        values = table["x"].to_numpy()
        if (values == POISON).any():
            raise DataError("a poison row")
        return Answer(
            model="m", version=1, digest="d", task=Task.REGRESSION, classes=("y",), outputs=values[:, None].copy()
        )


def _rows(*values: float) -> pa.Table:
    return pa.table({"x": np.array(values, dtype=np.float64)})


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    poison=st.sets(st.integers(0, 39)),
    in_flight=st.integers(1, 3),
    merged=st.integers(1, 20),
    turns=st.integers(0, 5),
)
def test_requests_of_any_size_and_order_get_their_own_answers(
    sizes: list[int], poison: set[int], in_flight: int, merged: int, turns: int
) -> None:
    model = Model(turns)
    limits = Limits(in_flight=in_flight, merged_rows=merged, waiting=100)

    async def all_of_them() -> list[Answer | BaseException]:
        batcher = Batcher(model, limits)
        tables = [
            _rows(*([POISON] if i in poison else [float(i)]), *[float(i)] * (size - 1)) for i, size in enumerate(sizes)
        ]
        return await asyncio.gather(*(batcher.answer(t) for t in tables), return_exceptions=True)

    for i, (size, found) in enumerate(zip(sizes, asyncio.run(all_of_them()), strict=True)):
        if i in poison:
            assert isinstance(found, DataError)
        else:
            assert isinstance(found, Answer)
            assert found.outputs[:, 0].tolist() == [float(i)] * size
    assert model.most_at_once <= in_flight
    assert max(model.calls) <= max(merged, *sizes)


def test_idle_model_is_called_at_once_and_a_busy_one_with_what_came_meanwhile() -> None:
    model = Model()

    async def nine() -> None:
        batcher = Batcher(model, Limits(in_flight=1))
        await asyncio.gather(*(batcher.answer(_rows(float(i))) for i in range(9)))

    asyncio.run(nine())
    assert model.calls == [1, 8]


def test_full_queue_refuses_with_429_and_empties_again() -> None:
    model = Model()

    async def many() -> tuple[list[Answer | BaseException], Answer]:
        batcher = Batcher(model, Limits(in_flight=1, waiting=3))
        first = await asyncio.gather(*(batcher.answer(_rows(float(i))) for i in range(10)), return_exceptions=True)
        return first, await batcher.answer(_rows(5.0))

    found, after = asyncio.run(many())
    refused = [f for f in found if isinstance(f, RequestError)]
    assert len(refused) == 6
    assert {r.status for r in refused} == {429}
    assert after.outputs.tolist() == [[5.0]]


def test_client_that_goes_away_costs_no_call_and_no_other_its_answer() -> None:
    model = Model(turns=10)

    async def leaving() -> Answer:
        batcher = Batcher(model, Limits(in_flight=1))
        busy = asyncio.create_task(batcher.answer(_rows(0.0)))
        await asyncio.sleep(0)
        gone = asyncio.create_task(batcher.answer(_rows(1.0)))
        stays = asyncio.create_task(batcher.answer(_rows(2.0)))
        await asyncio.sleep(0)
        gone.cancel()
        await busy
        return await stays

    assert asyncio.run(leaving()).outputs.tolist() == [[2.0]]
    assert model.calls == [1, 1]


def test_tables_of_other_columns_are_not_merged() -> None:
    model = Model()

    async def two_kinds(make: Callable[[], pa.Table]) -> list[Answer]:
        batcher = Batcher(model, Limits(in_flight=1))
        return await asyncio.gather(*(batcher.answer(t) for t in (_rows(0.0), _rows(1.0), make(), _rows(2.0))))

    other = asyncio.run(two_kinds(lambda: pa.table({"x": pa.array([7.0], pa.float32())})))
    assert [a.outputs[0, 0] for a in other] == [0.0, 1.0, 7.0, 2.0]
    assert model.calls == [1, 1, 1, 1]


def test_model_that_fails_for_another_reason_tells_every_request() -> None:
    async def broken(table: pa.Table) -> Answer:
        await asyncio.sleep(0)
        raise RuntimeError("gone")

    async def some() -> list[Answer | BaseException]:
        batcher = Batcher(broken, Limits(in_flight=1))
        return await asyncio.gather(*(batcher.answer(_rows(1.0)) for _ in range(4)), return_exceptions=True)

    found = asyncio.run(some())
    assert [str(f) for f in found] == ["gone"] * 4
    with pytest.raises(RuntimeError):
        raise found[0]  # type: ignore[misc]
