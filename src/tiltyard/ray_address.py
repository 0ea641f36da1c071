"""Is there a Ray at the address that the environment names? Asked before Ray is, which tries for minutes and says nothing.

And what a Ray that is started for one process must not share with others of the machine.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from tiltyard.errors import MachineError

PROBE_S = 5.0
"""How long a Ray that is to be joined may take to accept a connection."""
CLIENT_PORT = 10001
"""Where a Ray Client server listens unless told otherwise."""
FOR_A_JOB = (
    "Start one here and join it (tiltyard up, then tiltyard run --address up), correct the address (--address or "
    "RAY_ADDRESS), or run without one: a Ray then starts and ends with the job."
)


def probe(address: str, *, instead: str = FOR_A_JOB) -> None:
    """Something accepts a connection at an address of Ray within `PROBE_S`.

    ``host:port`` is tried as it stands; ``auto`` stands for the Ray that is found on this machine, ``ray://host`` for a
    Ray Client server; ``local`` starts one, so nothing is tried.

    Args:
        address: As ``RAY_ADDRESS`` has it.
        instead: What to do where nothing is there, for the error.

    Raises:
        MachineError: If nothing answers there, no Ray is found, or the address is none that a driver can join.
    """
    if address == "local":
        return
    found = address
    if address == "auto":
        from ray._private.services import canonicalize_bootstrap_address_or_die

        try:
            found = canonicalize_bootstrap_address_or_die("auto")
        except ConnectionError as error:
            raise MachineError(
                _no_ray("RAY_ADDRESS is 'auto', and no Ray was found on this machine", instead)
            ) from error
    scheme, _, rest = found.rpartition("://")
    if scheme in {"http", "https"}:
        raise MachineError(
            f"RAY_ADDRESS is {address!r}, which is where jobs are submitted; a driver cannot join there. Wanted: host:port "
            f"of the head (port 6379 unless set otherwise). Or submit the job: ray job submit --address {address} -- ..."
        )
    if scheme not in {"", "ray"}:  # a provider of clusters that Ray loads by that name: only it knows
        return
    host, port = _host_and_port(address, rest, CLIENT_PORT if scheme else None)
    try:
        socket.create_connection((host, port), timeout=PROBE_S).close()
    except OSError as error:
        there = f"RAY_ADDRESS {address}" if found == address else f"{found}, which RAY_ADDRESS {address} found here"
        raise MachineError(_no_ray(f"Nothing answers at {there} ({error})", instead)) from error


def _host_and_port(address: str, rest: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{rest}")
        host, port = parts.hostname, parts.port or default_port
    except ValueError:
        host, port = None, None
    if not host or not port:
        raise MachineError(
            f"RAY_ADDRESS is {address!r}. Wanted: host:port of the head of a running Ray, e.g. 10.0.0.5:6379, or "
            "ray://host:port, or auto."
        )
    return host, port


def _no_ray(found: str, instead: str) -> str:
    return f"{found}. Wanted: the head of a running Ray. {instead}"


@contextmanager
def port_of_its_own() -> Iterator[None]:
    """A Ray that ``ray.init`` starts within the block has its agent listen where there is room.

    ``ray.init`` of 2.60 has no argument for it: every Ray's agent wants port 52365. Where another Ray of the machine has it,
    be it one whose driver was just killed, the agent tries for 4 s, during which nothing can start, and does without.
    """
    from ray._private import parameter

    named = parameter.RayParams
    parameter.RayParams = functools.partial(named, dashboard_agent_listen_port=0)  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        parameter.RayParams = named  # type: ignore[misc]
