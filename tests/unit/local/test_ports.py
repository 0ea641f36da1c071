"""Free ports: really free, stable for a home, and a clear refusal where there are none."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import MachineError
from tiltyard.local import ports


@given(seed=st.text(max_size=20), taken=st.sets(st.integers(ports.FIRST, ports.LAST), max_size=50))
def test_choose_with_any_ports_taken_gives_distinct_free_ones(seed: str, taken: set[int]) -> None:
    names = [f"p{i}" for i in range(12)]
    chosen = ports.choose(names, seed=seed, free=lambda port: port not in taken)
    assert list(chosen) == names
    assert len(set(chosen.values())) == 12
    assert not set(chosen.values()) & taken
    assert all(ports.FIRST <= port <= ports.LAST for port in chosen.values())
    assert chosen == ports.choose(names, seed=seed, free=lambda port: port not in taken)


def test_choose_for_two_homes_begins_at_different_places() -> None:
    first, second = (ports.choose(["a"], seed=home, free=lambda _: True) for home in ("/home/a/x", "/home/b/x"))
    assert first != second


def test_choose_with_every_port_taken_says_how_many_are_free() -> None:
    with pytest.raises(MachineError, match="1 of the 2 ports needed are free"):
        ports.choose(["a", "b"], seed="s", free=lambda port: port == ports.FIRST)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_is_free_with_a_listener_says_no_and_after_it_yes(host: str) -> None:
    with socket.socket() as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not ports.is_free(port)
    assert ports.is_free(port)
