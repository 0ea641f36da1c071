"""What an hour of a pack costs: its share of a worker, at the price that the cluster's description gives the worker. Pure.

A pack holds a part of a worker: of its CPUs, of its GPUs. It is charged the larger of the two shares, for that is what
others cannot use meanwhile. What a worker is paid for while no pack is on it is nobody's, and in no trial's cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tiltyard.experiment import Resources
from tiltyard.placement import GROUP_ENV, NodeGroup, asked, fit, groups_of

NOTED = "rate"
"""Where an attempt's layout in the journal has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What a pack costs where it runs.

    Args:
        group: The worker group.
        hourly: Of the pack's share of one worker.
        currency: Of the cluster's description.
    """

    group: str
    hourly: float
    currency: str


def rate_of(resources: Resources, groups: Sequence[NodeGroup], name: str) -> Rate | None:
    """The rate of a pack on a group's workers; None where the group is unknown, has no price, or the pack does not fit.

    Args:
        resources: What a pack holds.
        groups: All of the cluster.
        name: The group that it runs on; where it is empty and the pack fits on one group alone, that one.

    >>> a10 = NodeGroup(
    ...     name="a10", most=4, offers={"GPU": 2, "gpu_node_cpu": 7}, store_bytes=1, hourly=1.0, currency="EUR"
    ... )
    >>> rate_of(Resources(cpus=1, gpus=0.5), [a10], "a10")
    Rate(group='a10', hourly=0.25, currency='EUR')
    """
    ask = asked(resources, groups)
    fitting = [g for g in groups if fit(ask, g.offers)]
    here = [g for g in fitting if g.name == name] if name else fitting
    if len(here) != 1 or here[0].hourly is None:
        return None
    offers = here[0].offers
    share = max(need / offers[what] for what, need in ask.items() if need)
    return Rate(group=here[0].name, hourly=here[0].hourly * share, currency=here[0].currency)


def noted(environ: Mapping[str, str], resources: Resources) -> dict[str, Any]:
    """What an attempt's layout says of its price, where it is known; of the process whose environment it is."""
    rate = rate_of(resources, groups_of(environ), environ.get(GROUP_ENV, ""))
    return {} if rate is None else {NOTED: asdict(rate)}


def of_layout(layout: Mapping[str, Any]) -> Rate | None:
    """The rate that an attempt's layout says, if it does."""
    found = layout.get(NOTED)
    return None if found is None else Rate(**found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Seconds of packs on one group. ``group`` is empty where no price is described: ``hourly`` is what was assumed."""

    group: str
    seconds: float
    hourly: float
    currency: str


def parts(held: Sequence[tuple[Mapping[str, Any], float]], assumed_hourly: float) -> tuple[Part, ...]:
    """Seconds by group and rate, those without a price last.

    Args:
        held: Of each attempt, its layout and its seconds.
        assumed_hourly: What an hour of a pack costs where no price is described.
    """
    seconds: dict[Rate | None, float] = {}
    for layout, taken_s in held:
        rate = of_layout(layout)
        seconds[rate] = seconds.get(rate, 0.0) + taken_s
    found = [
        Part(group=rate.group, seconds=s, hourly=rate.hourly, currency=rate.currency)
        for rate, s in seconds.items()
        if rate is not None
    ]
    if None in seconds:
        found.append(Part(group="", seconds=seconds[None], hourly=assumed_hourly, currency=""))
    return tuple(sorted(found, key=lambda p: (not p.group, p.group, p.hourly)))
