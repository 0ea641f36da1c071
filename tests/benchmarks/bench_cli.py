"""How soon the command line answers, and how soon a whole local cluster is up."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

from harness import Benchmark, Figure, median_seconds

SOONEST = "import typer, rich.console, rich.table, rich.panel, typer.rich_utils"


def _python(*args: str, **env: str) -> None:
    subprocess.run([sys.executable, *args], env={**os.environ, **env}, stdout=subprocess.DEVNULL, check=True)


def help_seconds() -> Iterable[Figure]:
    """``tiltyard --help`` against an empty program that imports what prints the help."""
    value = median_seconds(lambda: _python("-m", "tiltyard.cli", "--help"))
    limit = median_seconds(lambda: _python("-c", SOONEST))
    yield Figure("cli_help_seconds", value, "s", "python importing typer and rich alone", limit, limit / value)


def up_seconds() -> Iterable[Figure]:
    """``tiltyard up`` (Ray head and MLflow server, both answering) against ``ray start`` alone; and ``tiltyard down``."""
    ups, downs, heads = [], [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as home:
            own = {"TILTYARD_HOME": f"{home}/t", "HOME": home}
            ups.append(_seconds("up", "--object-store-gib", "0.3", **own))
            downs.append(_seconds("down", **own))
            # The same head, tracked elsewhere, so that `up` starts it alone.
            own["TILTYARD_TRACKING_URI"] = "http://127.0.0.1:1"
            heads.append(_seconds("up", "--object-store-gib", "0.3", **own))
            _seconds("down", **own)
    up, down, head = (sorted(times)[1] for times in (ups, downs, heads))
    yield Figure("up_seconds", up, "s", "the Ray head of it alone", head, head / up)
    yield Figure("down_seconds", down, "s", "no rival: nothing else ends exactly these", None, None)


def _seconds(*args: str, **env: str) -> float:
    begun = time.perf_counter()
    _python("-m", "tiltyard.cli", *args, **env)
    return time.perf_counter() - begun


def benchmarks() -> list[Benchmark]:
    """Both."""
    return [help_seconds, up_seconds]
