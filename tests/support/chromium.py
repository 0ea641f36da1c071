"""A headless Chromium driven by its DevTools protocol: opens pages, answers questions about them, in any window and scheme."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websocket import WebSocket, create_connection

WAIT_S = 60


class Tab:
    """A page of a running Chromium.

    Args:
        socket: Connected to the page's DevTools.
    """

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; events that come meanwhile are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (told := json.loads(self._socket.recv())).get("id") != self._number:
            self.events.append(told)
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives; a promise is waited for."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def window(self, width: int, scheme: str, *, medium: str = "") -> None:
        """A window of that width, a phone's where it is below 500, in a colour scheme, on screen or in ``print``."""
        for domain in ("Page", "Log", "Runtime"):
            self.ask(f"{domain}.enable")
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", media=medium, features=features)

    def open(self, page: Path) -> float:
        """Opens a file; seconds until it is loaded, laid out and painted."""
        self.ask("Page.navigate", url="about:blank")
        self.events.clear()
        start = time.monotonic()
        self.ask("Page.navigate", url=page.as_uri())
        while self.value("document.readyState") != "complete" or not self.value("location.href").endswith(page.name):
            assert time.monotonic() < start + WAIT_S, f"{page} did not open within {WAIT_S} s"
            time.sleep(0.005)
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return time.monotonic() - start

    @property
    def complaints(self) -> list[dict[str, Any]]:
        """What the console said of the page since it was opened, and exceptions."""
        return [e for e in self.events if e["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]


@contextmanager
def chromium(program: str, home: Path) -> Iterator[Tab]:
    """A Chromium that lives for the block.

    Args:
        program: Its executable.
        home: An empty folder for its profile and its log.
    """
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={home}"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while not (home / "DevToolsActivePort").exists():
            assert process.poll() is None and time.monotonic() < deadline, (  # noqa: PT018 - one thing: it is there
                f"Chromium did not start: {(home / 'log').read_text()[-2000:]}"
            )
            time.sleep(0.05)
        port = (home / "DevToolsActivePort").read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=WAIT_S) as answer:
            page = next(t for t in json.load(answer) if t["type"] == "page")
        socket = create_connection(page["webSocketDebuggerUrl"], timeout=WAIT_S, suppress_origin=True)
        yield Tab(socket)
        socket.close()
    finally:
        process.terminate()
        process.wait(timeout=WAIT_S)
