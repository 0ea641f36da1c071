"""What goes wrong, and what is too much, on a real Ray Serve: the next request is answered all the same."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from tiltyard.registry import read_bundle
from tiltyard.testing.served import SLOW, Served, Stage, json_rows, replica_pids, wait, with_first_number

pytestmark = pytest.mark.ray


def proxy_pid() -> int:
    """Of Serve's one proxy, as Ray knows it."""
    from ray._private.state import actors

    (pid,) = (a["Pid"] for a in actors().values() if "Proxy" in a["ActorClassName"] and a["State"] == "ALIVE")
    return int(pid)


def test_replica_killed_in_mid_batch_loses_no_answer(stage: Stage, served: Served) -> None:
    from tiltyard.serving.client import stream_rows

    bundle = stage.price
    many = pa.concat_tables([bundle.rows] * 10).combine_chunks()

    replicas: list[int] = []
    wait(lambda: bool(replicas.extend(replica_pids("s.price")) or replicas))  # type: ignore[func-returns-value]

    def tables() -> Iterator[pa.Table]:
        for i in range(20):
            if i == 8:
                (pid,) = replicas
                os.kill(pid, signal.SIGKILL)
            yield many

    answers = list(stream_rows(served.handle, "s.price", tables()))
    offline = read_bundle(bundle.folder).predict_table(many).outputs
    assert len(answers) == 20
    for answer in answers:
        np.testing.assert_allclose(answer.outputs, offline, atol=1e-6)


def test_load_on_one_model_adds_replicas_up_to_the_bound_and_no_further(stage: Stage, served: Served) -> None:
    from ray import serve

    slow = with_first_number(stage.own.rows.slice(1, 1), SLOW)
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            served.handle.predict.remote("s.own", slow).result(timeout_s=60)

    def replicas() -> int:
        found = serve.status().applications["champions"].deployments["s.own@champion"].replica_states
        return sum(found.values())

    assert replicas() == 1
    seen = {1}
    with ThreadPoolExecutor(10) as clients:
        done = [clients.submit(load) for _ in range(10)]
        try:
            wait(lambda: seen.add(replicas()) or 2 in seen, 90)  # type: ignore[func-returns-value]
            deadline = time.monotonic() + 3  # at ten requests under way Serve wants five
            while time.monotonic() < deadline:
                seen.add(replicas())
                time.sleep(0.1)
        finally:
            stop.set()
        for one in done:
            one.result()
    assert seen == {1, 2}


def test_body_of_a_gigabyte_is_refused_early_with_or_without_a_length(stage: Stage, served: Served) -> None:
    import psutil

    path = "/models/s.small/predict"
    proxy = psutil.Process(proxy_pid())
    before = proxy.memory_info().rss
    with socket.create_connection(served.host, timeout=30) as told:
        told.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {1 << 30}\r\n\r\n".encode())
        assert told.recv(100).startswith(b"HTTP/1.1 413")

    sent, most = 0, before
    part = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    with socket.create_connection(served.host, timeout=30) as chunked:
        chunked.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):  # closed while we send
            while sent < 1 << 30:
                chunked.sendall(part)
                sent += 1 << 20
                most = max(most, proxy.memory_info().rss)
    assert sent < 1 << 30
    assert most - before < 300 << 20
    assert served.ask(path, json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200


def test_client_that_hangs_is_told_and_holds_up_nobody(stage: Stage, served: Served) -> None:
    with contextlib.ExitStack() as stack:
        hanging = [stack.enter_context(socket.create_connection(served.host, timeout=60)) for _ in range(20)]
        for connection in hanging:
            connection.sendall(b"POST /models/s.small/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        begun = time.monotonic()
        assert served.ask("/models/s.small/predict", json_rows(stage.small[0].rows.slice(1, 1)))[0] == 200
        assert time.monotonic() - begun < 30
        for connection in hanging:
            assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_two_thousand_connections_at_once_are_answered_or_refused_politely(stage: Stage, served: Served) -> None:
    import psutil

    host, port = served.host
    body = json_rows(stage.small[0].rows.slice(1, 1))
    head = (
        f"POST /models/s.small/predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )

    connecting = asyncio.Semaphore(32)

    async def ask(connected: asyncio.Event, gate: asyncio.Event, left: list[int]) -> tuple[int, bool]:
        async with connecting:  # what does not fit the kernel's queue would be tried again after a minute
            reader, writer = await asyncio.open_connection(host, port)
        left[0] -= 1
        if not left[0]:
            connected.set()
        await gate.wait()
        writer.write(head.encode() + body)
        answer = await reader.read()
        writer.close()
        return int(answer[9:12]), b"retry-after" in answer.lower().partition(b"\r\n\r\n")[0]

    async def flood() -> list[tuple[int, bool]]:
        connected, gate, left = asyncio.Event(), asyncio.Event(), [2000]
        async with asyncio.timeout(300):
            tasks = [asyncio.create_task(ask(connected, gate, left)) for _ in range(2000)]
            await connected.wait()
            gate.set()
            return await asyncio.gather(*tasks)

    pid = proxy_pid()
    for process in (psutil.Process(), psutil.Process(pid)):
        least, most = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (max(least, min(most, 8192)), most))
    answers = asyncio.run(flood())
    statuses = {status for status, _ in answers}
    assert statuses <= {200, 429, 503}
    assert 200 in statuses
    assert all(patient for status, patient in answers if status != 200)
    assert proxy_pid() == pid
    assert served.ask("/models/s.small/predict", body)[0] == 200


def test_proxy_killed_is_started_again_and_requests_go_on(stage: Stage, served: Served) -> None:
    url, body = "/models/s.small/predict", json_rows(stage.small[0].rows.slice(1, 1))
    pid = proxy_pid()
    os.kill(pid, signal.SIGKILL)

    def answered() -> bool:
        try:
            return served.ask(url, body)[0] == 200
        except OSError:
            return False

    wait(lambda: answered() and proxy_pid() != pid, 90)
