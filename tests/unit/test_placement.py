"""What a pack asks Ray for, by what a cluster's description says of its nodes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.experiment import Resources
from tiltyard.placement import GROUPS_ENV, NodeGroup, asked, at_once, fit, groups_of, node_offers, store_sizes, to_env


def group(name: str, most: int, cpus: float, gpus: float, store: int = 100) -> NodeGroup:
    return NodeGroup(name=name, most=most, offers=node_offers(cpus=cpus, gpus=gpus), store_bytes=store)


CPU, GPU = group("cpu", 8, 8, 0), group("gpu", 4, 7, 2, store=50)
groups = st.lists(
    st.builds(group, st.just("g"), st.integers(1, 9), st.integers(1, 16), st.integers(0, 4)), min_size=1, max_size=4
)
packs = st.builds(Resources, cpus=st.integers(1, 8), gpus=st.sampled_from([0, 0.5, 1, 2]))


def test_pack_without_gpus_fits_on_no_node_with_gpus() -> None:
    ask = asked(Resources(cpus=1), [CPU, GPU])
    assert ask == {"CPU": 1.0, "GPU": 0.0}
    assert (fit(ask, CPU.offers), fit(ask, GPU.offers)) == (8, 0)
    assert at_once(ask, [CPU, GPU]) == 64
    assert at_once(ask, [GPU]) == 0


def test_pack_with_gpus_takes_its_cpus_where_its_gpus_are() -> None:
    ask = asked(Resources(cpus=2, gpus=0.5), [CPU, GPU])
    assert ask == {"CPU": 0, "GPU": 0.5, "gpu_node_cpu": 2.0}
    assert (fit(ask, CPU.offers), fit(ask, GPU.offers)) == (0, 3)  # 7 CPUs, 2 each
    assert at_once(ask, [CPU, GPU]) == 12


@given(packs, groups)
def test_work_without_gpus_never_fits_beside_gpus_and_work_with_them_only_there(
    pack: Resources, found: list[NodeGroup]
) -> None:
    ask = asked(pack, found)
    for one in found:
        if fit(ask, one.offers):
            assert bool(one.offers.get("GPU")) == bool(pack.gpus)
    assert at_once(ask, found) == sum(g.most * fit(ask, g.offers) for g in found)


@given(groups)
def test_groups_are_read_as_they_were_written(found: list[NodeGroup]) -> None:
    assert groups_of({GROUPS_ENV: to_env(found)}) == found


def test_environment_without_groups_tells_of_none_and_a_wrong_one_is_refused() -> None:
    assert groups_of({}) == []
    for wrong in ("{", "[1]", '[{"name": "x"}]', '{"a": 1}'):
        with pytest.raises(SpecError, match="tiltyard cluster render"):
            groups_of({GROUPS_ENV: wrong})


def test_store_sizes_count_nodes_that_are_to_come() -> None:
    head = {"object_store_memory": 70.0}
    assert store_sizes([head], []) == (70, 70)
    assert store_sizes([head], [CPU, GPU]) == (50, 8 * 100 + 4 * 50)
    assert store_sizes([head, head], [group("one", 1, 1, 0)]) == (70, 140)
    assert store_sizes([], []) == (0, 0)
