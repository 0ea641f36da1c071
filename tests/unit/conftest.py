"""What holds for every unit test."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """What a command or a worker sets up for its process would decide what the tests that follow can hear."""
    logger = logging.getLogger("tiltyard")
    level, handlers, passes_on = logger.level, list(logger.handlers), logger.propagate
    yield
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, passes_on


@pytest.fixture(autouse=True)
def no_ray_is_started() -> Iterator[None]:
    """Ray starts by itself at the first call that needs one, and stays for the tests that follow."""
    before = _is_up()
    yield
    if _is_up() and not before:
        sys.modules["ray"].shutdown()
        pytest.fail("this unit test started a Ray; tests that need one stand in tests/local_ray")


def _is_up() -> bool:
    asked = getattr(sys.modules.get("ray"), "is_initialized", None)
    return asked is not None and bool(asked())
