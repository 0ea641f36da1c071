"""Readers of streams outlive their stream, and not for ever."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from ray._private.log import PlainRayHandler

from tiltyard.data.readers import _wants_more, hush
from tiltyard.data.windows import Request

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


def test_reader_reads_on_for_the_holder_of_its_lease_while_that_lives(tmp_path: Path) -> None:
    lease, holder = tmp_path / "lease", f"{os.getpid()} stream"
    asked = Request(data_seed=0, epoch=0, rank=0, world=1, num_windows=1, lease=str(lease), holder=holder)
    lease.write_text(holder)
    assert _wants_more(asked)
    lease.write_text(f"{os.getpid()} another stream")
    assert not _wants_more(asked)
    lease.write_text("")  # given up
    assert not _wants_more(asked)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lease.write_text(f"{gone.pid} stream")
    assert not _wants_more(replace(asked, holder=f"{gone.pid} stream"))


def test_ray_data_tells_the_terminal_errors_alone() -> None:
    log, terminal, told = logging.getLogger("ray.data"), PlainRayHandler(), io.StringIO()  # type: ignore[no-untyped-call]
    terminal.setStream(told)
    log.addHandler(terminal)
    try:
        hush()
        log.warning("progress bars are off")
        log.error("a block is lost")
    finally:
        log.removeHandler(terminal)
    assert told.getvalue() == "a block is lost\n"
