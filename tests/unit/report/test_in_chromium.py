"""The report as a browser shows it: no error in the console, nothing wider than the window, light and dark, soon there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded_sweep
from websocket import WebSocket, create_connection

from tiltyard.report.html import report

pytestmark = [pytest.mark.chromium, pytest.mark.slow]
WAIT_S = 60


class Tab:
    """A page of a running Chromium, driven by its DevTools protocol."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while (told := json.loads(self._socket.recv())).get("id") != self._number:
            self.events.append(told)
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    def value(self, expression: str) -> Any:
        return self.ask("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = shutil.which("chromium")
    if program is None:
        missing = "Debian's chromium is not installed: apt-get install chromium"
        if os.environ.get("TILTYARD_PARTS_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    home = tmp_path_factory.mktemp("chromium")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={home}"]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, *options, "about:blank"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while not (home / "DevToolsActivePort").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Chromium did not start: {(home / 'log').read_text()[-2000:]}")
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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    recorded = recorded_sweep.record(
        folder, trials=90, datasets=["rings", "moons", "a-dataset-with-a-rather-long-name"]
    )
    path = folder / "report.html"
    path.write_text(report(recorded.settings)[1])
    return path


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_report_in_a_browser_fits_the_window_and_logs_no_error(tab: Tab, page: Path, width: int, scheme: str) -> None:
    tab.events.clear()
    for domain in ("Page", "Log", "Runtime"):
        tab.ask(f"{domain}.enable")
    tab.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    tab.ask("Page.navigate", url=page.as_uri())
    deadline = time.monotonic() + WAIT_S
    while tab.value("document.readyState") != "complete" or not tab.value("location.href").endswith("report.html"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    wrong = [e for e in tab.events if e["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]
    assert wrong == []
    assert tab.value("document.documentElement.scrollWidth") <= width
    inside_figures = (
        "[...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().width > 200 && "
        f"s.getBoundingClientRect().right <= {width})"
    )
    assert tab.value(inside_figures) is True
    light = tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert light == (scheme == "light")
    assert tab.value("[...document.querySelectorAll('svg path')].every(p => !p.getAttribute('style')?.includes('fe0'))")
