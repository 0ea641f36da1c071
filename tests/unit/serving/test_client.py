"""Joining a Ray for serving; the rest of the client is held by tests/local_ray/serving."""

from __future__ import annotations

import socket
import time

import pytest

from tiltyard.errors import MachineError
from tiltyard.serving.client import connect


def test_connect_to_an_address_where_no_ray_is_says_so_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, nothing answers
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr("ray.is_initialized", lambda: False)  # another test of this session may have one
        begun = time.monotonic()
        with pytest.raises(MachineError, match=r"Nothing answers at RAY_ADDRESS 127\.0\.0\.1.*tiltyard serve"):
            connect()
        assert time.monotonic() - begun < 20
