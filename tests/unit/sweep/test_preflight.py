"""A pack that no node can hold is refused with the arithmetic; any other is let through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import PreflightError, SpecError
from tiltyard.experiment import Resources, Search
from tiltyard.sweep.preflight import OBJECT_STORE_LEAST_BYTES, Node, check_placement, object_store_bytes

SMALL = Node(name="10.0.0.1", cpus=4, gpus=0)
GPU = Node(name="10.0.0.2", cpus=2, gpus=1)
nodes = st.lists(
    st.builds(lambda c, g: Node(name="n", cpus=c, gpus=g), st.integers(0, 8), st.integers(0, 4)), max_size=4
)


def test_pack_larger_than_the_largest_node_is_refused_with_both_numbers() -> None:
    with pytest.raises(PreflightError) as refused:
        check_placement(Resources(cpus=8), [SMALL, GPU])
    told = str(refused.value)
    assert "A pack holds 8 CPUs on one node" in told
    assert "10.0.0.1: 4 CPUs, 0 GPUs; 10.0.0.2: 2 CPUs, 1 GPUs" in told
    assert "cpus to at most 4" in told


def test_pack_whose_cpus_and_gpus_are_on_different_nodes_is_refused() -> None:
    with pytest.raises(PreflightError, match="4 CPUs and 1 GPUs on one node"):
        check_placement(Resources(cpus=4, gpus=1), [SMALL, GPU])


def test_pack_with_a_gpu_where_there_is_none_is_refused() -> None:
    with pytest.raises(PreflightError, match="gpus to at most 0"):
        check_placement(Resources(cpus=1, gpus=0.5), [SMALL])


@given(nodes, st.integers(1, 8), st.integers(0, 4))
def test_pack_is_refused_exactly_where_no_node_holds_it(have: list[Node], cpus: int, gpus: int) -> None:
    fits = any(n.cpus >= cpus and n.gpus >= gpus for n in have)
    if fits:
        check_placement(Resources(cpus=cpus, gpus=gpus), have)
    else:
        with pytest.raises(PreflightError):
            check_placement(Resources(cpus=cpus, gpus=gpus), have)


def test_object_store_that_shared_memory_cannot_hold_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(PreflightError) as refused:
        object_store_bytes(memory_bytes=16 << 30, shared_bytes=64 << 20)
    told = str(refused.value)
    assert "/dev/shm has 64 MiB free, of which an object store may take 57 MiB" in told
    assert "needs at least 100 MiB, and would take 2048 MiB here" in told
    assert "--shm-size=2g" in told


@given(st.integers(1 << 28, 1 << 40), st.none() | st.integers(0, 1 << 40))
def test_object_store_fits_into_shared_memory_or_is_refused(memory: int, shared: int | None) -> None:
    try:
        found = object_store_bytes(memory_bytes=memory, shared_bytes=shared)
    except PreflightError:
        assert shared is not None
        assert shared * 0.9 < OBJECT_STORE_LEAST_BYTES
        return
    assert found <= memory * 0.25
    assert found <= 2 << 30
    assert shared is None or found <= shared * 0.9


def test_search_without_an_end_is_refused_where_it_is_written_down() -> None:
    with pytest.raises(SpecError, match="neither halving nor epochs is set"):
        Search(trials=4)
    for endless in (math.inf, None, 10**7):
        with pytest.raises(SpecError, match="trials"):
            Search(trials=endless, epochs=1)
