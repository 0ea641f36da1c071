"""What a driver finds of a Ray that is up."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray
from ray._private import parameter, ray_constants

from tiltyard.errors import MachineError
from tiltyard.ray_address import port_of_its_own, probe

pytestmark = pytest.mark.ray


@pytest.fixture
def found_here(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The heads that Ray finds on this machine: by itself it takes any, so also one of another test that is just ending."""
    addresses: set[str] = set()
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: frozenset(addresses))
    return addresses


def test_probe_of_the_head_of_a_running_ray_and_of_auto_is_content(ray_session: None, found_here: set[str]) -> None:
    head = ray.get_runtime_context().gcs_address
    found_here.add(head)
    probe(head)
    probe("auto")


def test_probe_of_auto_that_finds_a_ray_just_ended_names_its_address(found_here: set[str]) -> None:
    with socket.socket() as ended:
        ended.bind(("127.0.0.1", 0))
        port = ended.getsockname()[1]
        found_here.add(f"127.0.0.1:{port}")
        with pytest.raises(MachineError, match=rf"Nothing answers at [0-9.]+:{port}, which RAY_ADDRESS auto"):
            probe("auto")


def test_ray_of_a_process_has_its_agent_listen_where_no_other_ray_wants_to(ray_session: None) -> None:
    node: Any = ray._private.worker._global_node
    assert node.dashboard_agent_listen_port not in {-1, ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT}
    before = parameter.RayParams
    with port_of_its_own():
        assert parameter.RayParams().dashboard_agent_listen_port == 0
    assert parameter.RayParams is before
