"""Readers of streams outlive their stream, and not for ever."""

from __future__ import annotations

import subprocess
import sys

IDLE = """
import time
from tiltyard.data import readers
readers.IDLE_S = 0.2
readers.KeptReader(None, ("digest", "train"), [])
time.sleep(60)
raise SystemExit(3)
"""


def test_reader_that_nobody_asks_for_anything_ends_its_process() -> None:
    assert subprocess.run([sys.executable, "-c", IDLE], timeout=120, check=False).returncode == 0
