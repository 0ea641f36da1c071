"""A real Prometheus for tests, on loopback, with the committed rules evaluated every two seconds."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[2] / "dashboards" / "rules.yaml"
WAIT_S = 120
VALUES = {"$__rate_interval": "30s", "$cluster": ".*", "$team": ".*", "$experiment": ".*", "$model": ".*"}


class Prometheus:
    """A running server."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **values: str) -> Any:
        """What its API answers."""
        with urllib.request.urlopen(f"{self._root}/{path}?{urllib.parse.urlencode(values)}", timeout=30) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def ask(self, expr: str) -> list[Any]:
        """The series that a query finds now, with the variables of a board put in."""
        for name, value in VALUES.items():
            expr = expr.replace(name, value)
        found: list[Any] = self.get("query", query=expr)["result"]
        return found

    def unanswered(self, queries: dict[str, str]) -> dict[str, str]:
        """Those of the queries (with where they stand) that find nothing within `WAIT_S`."""
        deadline = time.monotonic() + WAIT_S
        while queries and time.monotonic() < deadline:
            queries = {expr: title for expr, title in queries.items() if not self.ask(expr)}
            if queries:
                time.sleep(1.0)
        return queries


def free_port() -> int:
    """One of loopback's."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def scraping(targets: Sequence[str], folder: Path) -> Iterator[Prometheus]:
    """A server that scrapes these, while the block lasts; skips where Debian's Prometheus is missing."""
    program = shutil.which("prometheus")
    if program is None:
        missing = "Debian's prometheus is not installed: apt-get install prometheus"
        if os.environ.get("TILTYARD_PARTS_REQUIRED") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    port = free_port()
    config = {
        "global": {"scrape_interval": "2s", "evaluation_interval": "2s"},
        "rule_files": [str(folder / "rules.yaml")],
        "scrape_configs": [{"job_name": "ray", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(RULES.read_text().replace("interval: 30s", "interval: 2s"))
    options = [f"--config.file={folder}/config.yaml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, *options, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    found = Prometheus(port)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                found.get("query", query="vector(1)")
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"Prometheus did not start: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.1)
        yield found
    finally:
        server.terminate()
        server.wait(timeout=30)
