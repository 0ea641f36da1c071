"""May a challenger become champion? A pure function from evidence to a verdict with reasons.

Evidence is one `Look` a night: the paired differences of challenger and champion on rows that neither was trained on.
Looks add up, and are tested again each night; whoever looks every night at noise finds something in the end. So the chance
of promoting a challenger that is no better is *spent*: ``alpha`` is the chance in a whole year of nights, over all
challengers that a champion meets one after another, and each look spends ``alpha / looks_a_year`` of it (a Bonferroni bound:
it holds however the looks depend on each other and whichever of them are made). Challengers that are looked at in the same
night share that night's part.

This module decides and never acts: no store, no clock.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from tiltyard.errors import SpecError
from tiltyard.evaluation.compare import Paired
from tiltyard.evaluation.scores import Scored

PROMOTE, WAIT, REFUSE = "promote", "wait", "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a challenger must show.

    Args:
        alpha: Chance that in a year of nights any challenger is promoted that is no better.
        looks_a_year: Nights a year on which it is looked.
        least_rows: Rows that must have been compared before the first look counts.
        least_looks: Dataset versions on which must have been compared.
        least_gain: Mean difference that must be found, in the metric's unit.
        expires_looks: Looks after which a challenger that is not promoted is refused.
        hopeless: One-sided p-value at which a challenger is refused as worse.
        most_slice_loss: How much worse than the champion a slice may surely be; None to leave slices aside.
        fair: Whether a sensitive column that is flagged refuses.
        approvals: Persons who must have approved the version before it is promoted (`governance.approvals`).
    """

    alpha: float = 0.05
    looks_a_year: int = 365
    least_rows: int = 1_000
    least_looks: int = 2
    least_gain: float = 0.0
    expires_looks: int = 30
    hopeless: float = 0.001
    most_slice_loss: float | None = 0.0
    fair: bool = True
    approvals: int = 0

    def __post_init__(self) -> None:
        shares = 0 < self.alpha < 1 and 0 <= self.hopeless < 1
        counts = min(self.looks_a_year, self.least_rows, self.least_looks, self.expires_looks) >= 1
        if not shares or not counts or self.least_looks > self.expires_looks:
            raise SpecError(
                f"{self} cannot be: wanted alpha and hopeless between 0 and 1, counts of at least 1, and no more least_looks "
                "than expires_looks."
            )

    def level(self, challengers: int = 1) -> float:
        """One-sided p-value at which one look promotes, where so many challengers share the night."""
        return self.alpha / self.looks_a_year / max(1, challengers)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """A gate as JSON has it.

        Raises:
            SpecError: If a field is unknown.
        """
        if unknown := sorted(set(data) - {f.name for f in fields(cls)}):
            raise SpecError(f"A gate has no field {unknown[0]!r}; it has {', '.join(f.name for f in fields(cls))}.")
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One night's evidence.

    Args:
        on: ``DATASET@VERSION``; the same one twice is one look.
        paired: Differences on the same rows, positive where the challenger is better.
        concerns: What speaks against the challenger whatever its mean (`concerns`).
    """

    on: str
    paired: Paired
    concerns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate says.

    Args:
        outcome: ``promote``, ``wait`` or ``refuse``.
        reasons: Why, in sentences.
        looks: Dataset versions compared on.
        rows: Rows compared on.
        difference: Mean difference, positive where the challenger is better.
        interval: Its 95% interval for one look.
        p: One-sided p-value that the challenger is no better.
        level: What it is held against.
        evidence: SHA-256 of the looks and the gate, hex: what the verdict was reached on.
    """

    outcome: str
    reasons: tuple[str, ...]
    looks: int
    rows: int
    difference: float
    interval: tuple[float, float]
    p: float
    level: float
    evidence: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def judge(gate: Gate, looks: Sequence[Look], *, challengers: int = 1) -> Verdict:
    """The verdict on all evidence so far.

    Args:
        gate: What must be shown.
        looks: Every look at this challenger and this champion, oldest first.
        challengers: How many challengers share the night's part of ``alpha``.
    """
    by_version = list({look.on: look for look in looks}.values())
    found = [look.paired for look in by_version]
    level = gate.level(challengers)
    if not found:
        return _verdict(gate, by_version, None, WAIT, ["nothing was compared yet"], 1.0, level)
    total = sum(found[1:], found[0])
    p = total.p_better()
    told = f"{total.metric} is better by {total.difference:+.4g} on {total.rows} rows of {len(found)} versions"
    if concerns := list(dict.fromkeys(by_version[-1].concerns)):
        return _verdict(gate, by_version, total, REFUSE, [*concerns, told], p, level)
    if total.p_worse() <= gate.hopeless:
        return _verdict(gate, by_version, total, REFUSE, [f"{told}: it is worse"], p, level)
    waits = []
    if total.rows < gate.least_rows:
        waits.append(f"{total.rows} rows were compared, {gate.least_rows} are wanted")
    if len(found) < gate.least_looks:
        waits.append(f"{len(found)} versions were compared on, {gate.least_looks} are wanted")
    if p > level:
        waits.append(f"{told}: p = {p:.2g}, at most {level:.2g} is wanted for one look of {gate.looks_a_year} a year")
    if total.difference < gate.least_gain:
        waits.append(f"{told}, at least {gate.least_gain:g} is wanted")
    if not waits:
        reasons = [f"{told}: p = {p:.2g} is at most {level:.2g}, one look's part of {gate.alpha:g} a year"]
        return _verdict(gate, by_version, total, PROMOTE, reasons, p, level)
    if len(found) >= gate.expires_looks:
        return _verdict(gate, by_version, total, REFUSE, [f"it expired after {len(found)} looks", *waits], p, level)
    return _verdict(gate, by_version, total, WAIT, waits, p, level)


def concerns(
    gate: Gate,
    *,
    metric: str,
    sign: float,
    champion: Mapping[str, Mapping[str, Scored]],
    challenger: Mapping[str, Mapping[str, Scored]],
    fairness: Sequence[Mapping[str, Any]] = (),
    problem: str = "",
) -> tuple[str, ...]:
    """What speaks against a challenger whatever its mean: a slice that is surely worse, unfairness, no answers at all.

    Args:
        gate: What is tolerated.
        metric: The score that slices are compared by.
        sign: 1 where larger is better, -1 where smaller is.
        champion: Column to slice to scores.
        challenger: The same of the challenger.
        fairness: The challenger's fairness, column by column, as JSON.
        problem: Why it could not answer.
    """
    found = [problem] if problem else []
    if gate.most_slice_loss is not None:
        for column, slices in challenger.items():
            for name, scored in slices.items():
                mine = scored.scores.get(metric)
                theirs = champion.get(column, {}).get(name, Scored(rows=0, labelled=0)).scores.get(metric)
                if mine is None or theirs is None or None in (mine.low, mine.high, theirs.low, theirs.high):
                    continue
                # the better end of the challenger's interval against the worse end of the champion's
                best, least = (mine.high, theirs.low) if sign > 0 else (mine.low, theirs.high)
                assert best is not None
                assert least is not None
                if sign * (least - best) > gate.most_slice_loss:
                    found.append(f"{column}={name}: {metric} {mine} is surely worse than the champion's {theirs}")
    if gate.fair:
        found += [
            f"{f['column']}: {f['lowest']} is selected at {f['ratio']['value']:.2f} of the rate of {f['highest']}"
            for f in fairness
            if f["verdict"] == "flagged"
        ]
    return tuple(found)


def _verdict(
    gate: Gate,
    looks: Sequence[Look],
    total: Paired | None,
    outcome: str,
    reasons: Sequence[str],
    p: float,
    level: float,
) -> Verdict:
    seen = [
        (
            k.on,
            k.paired.metric,
            k.paired.rows,
            k.paired.total,
            k.paired.squares,
            k.paired.won,
            k.paired.lost,
            k.concerns,
        )
        for k in looks
    ]
    evidence = {"gate": asdict(gate), "looks": seen, "level": level}
    return Verdict(
        outcome=outcome,
        reasons=tuple(reasons),
        looks=len(looks),
        rows=total.rows if total else 0,
        difference=total.difference if total else 0.0,
        interval=total.interval if total and total.rows > 1 else (0.0, 0.0),
        p=p,
        level=level,
        evidence=hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest(),
    )
