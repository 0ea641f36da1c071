"""What an hour of a pack costs on the worker group that it runs on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.experiment import Resources
from tiltyard.money.prices import Part, Rate, noted, of_layout, parts, rate_of
from tiltyard.placement import GROUP_ENV, GROUPS_ENV, NodeGroup, asked, fit, node_offers, to_env


def group(name: str, cpus: float, gpus: float, hourly: float | None) -> NodeGroup:
    return NodeGroup(
        name=name,
        most=4,
        offers=node_offers(cpus=cpus, gpus=gpus),
        store_bytes=1,
        hourly=hourly,
        currency="" if hourly is None else "EUR",
    )


CPU, SPOT, GPU, FREE = (
    group("cpu", 8, 0, 0.4),
    group("spot", 8, 0, 0.1),
    group("gpu", 7, 2, 1.0),
    group("own", 8, 0, None),
)


@pytest.mark.parametrize(
    ("resources", "name", "hourly"),
    [
        (Resources(cpus=2), "cpu", 0.1),
        (Resources(cpus=2), "spot", 0.025),
        (Resources(cpus=1, gpus=1), "gpu", 0.5),
        (Resources(cpus=7, gpus=0.5), "gpu", 1.0),  # it leaves no CPU to others
        (Resources(cpus=2), "gpu", None),  # it does not fit there
        (Resources(cpus=2), "own", None),
        (Resources(cpus=2), "gone", None),
        (Resources(cpus=2), "", None),  # on which of them is not known
        (Resources(cpus=1, gpus=1), "", 0.5),  # it fits on one alone
    ],
)
def test_rate_is_the_larger_share_of_a_worker_at_its_groups_price(
    resources: Resources, name: str, hourly: float | None
) -> None:
    rate = rate_of(resources, [CPU, SPOT, GPU, FREE], name)
    assert (None if rate is None else rate.hourly) == (None if hourly is None else pytest.approx(hourly))


@given(st.integers(1, 8), st.sampled_from([0, 0.25, 0.5, 1, 2]), st.integers(1, 16), st.integers(0, 4))
def test_packs_that_fill_a_worker_cost_no_more_than_it(cpus: int, gpus: float, has: int, has_gpus: int) -> None:
    worker = group("g", has, has_gpus, 2.0)
    wanted = Resources(cpus=cpus, gpus=gpus)
    rate = rate_of(wanted, [worker], "g")
    together = fit(asked(wanted, [worker]), worker.offers)
    assert (rate is None) == (together == 0)
    assert rate is None or together * rate.hourly <= 2.0 + 1e-9


def test_price_goes_from_the_description_through_the_pods_into_the_attempt_and_back() -> None:
    env = {GROUPS_ENV: to_env([CPU, SPOT]), GROUP_ENV: "spot"}
    layout = noted(env, Resources(cpus=4))
    assert of_layout(layout) == Rate(group="spot", hourly=0.05, currency="EUR")
    assert noted({}, Resources(cpus=4)) == {}
    assert of_layout({}) is None


def test_seconds_are_summed_by_group_and_those_without_a_price_take_what_is_assumed() -> None:
    def at(name: str) -> dict[str, Any]:
        return noted({GROUPS_ENV: to_env([CPU, SPOT]), GROUP_ENV: name}, Resources(cpus=2))

    found = parts([(at("spot"), 10.0), ({}, 5.0), (at("cpu"), 20.0), (at("spot"), 1.0)], 0.3)
    assert found == (
        Part(group="cpu", seconds=20.0, hourly=0.1, currency="EUR"),
        Part(group="spot", seconds=11.0, hourly=0.025, currency="EUR"),
        Part(group="", seconds=5.0, hourly=0.3, currency=""),
    )
