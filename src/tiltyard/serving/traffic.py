"""Which share of a model's requests a challenger meets too. Pure.

In **shadow** the champion answers and the challenger is asked the same afterwards; in **canary** the challenger answers and
the champion is asked the same afterwards, or instead where the challenger fails. Who is in the share is decided by the
request's id alone: the same id always is or is not, and a larger share keeps everyone of a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tiltyard.errors import ServingError
from tiltyard.registry.address import CHAMPION, ModelAddress

SHADOW, CANARY, OFF = "shadow", "canary", "off"
DECISION = "traffic"
"""Kind of the journal's decisions that set a split; the newest of a model holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """One model's share for a challenger.

    Args:
        mode: ``shadow`` or ``canary``.
        challenger: Another version of the same model, by alias or pinned.
        share: Above 0, at most 1.
    """

    mode: str
    challenger: ModelAddress
    share: float

    def __post_init__(self) -> None:
        """Raises ServingError where it says nothing sensible."""
        if self.mode not in {SHADOW, CANARY} or not 0 < self.share <= 1 or self.challenger.alias == CHAMPION:
            raise ServingError(
                f"Found {self.mode} of {self.share:g} to {self.challenger}; wanted shadow or canary, a share above 0 and at "
                "most 1, and another version than the champion: NAME@candidate or NAME@VERSION."
            )

    @classmethod
    def parse(cls, text: str, mode: str) -> Split:
        """Reads ``NAME@ALIAS:SHARE`` or ``NAME@VERSION:SHARE``, the share as ``0.1`` or ``10%``.

        >>> Split.parse("first-sweep.wine@candidate:10%", "shadow").share
        0.1

        Raises:
            ServingError: If it cannot be read.
        """
        address, _, share = text.strip().rpartition(":")
        if "@" not in address:
            raise ServingError(f"Found {text.strip()!r} for a {mode}; wanted NAME@ALIAS:SHARE or NAME@VERSION:SHARE.")
        return cls(mode=mode, challenger=ModelAddress.parse(address), share=parse_share(share))

    def takes(self, request_id: str) -> bool:
        """The request of this id is in the share."""
        told = hashlib.blake2b(f"{self.challenger.name}\0{request_id}".encode(), digest_size=8).digest()
        return int.from_bytes(told) < self.share * 2**64

    def to_evidence(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {"mode": self.mode, "challenger": str(self.challenger), "share": self.share}

    @classmethod
    def from_evidence(cls, told: Mapping[str, Any]) -> Split:
        """Reads what `to_evidence` gave."""
        return cls(mode=told["mode"], challenger=ModelAddress.parse(told["challenger"]), share=told["share"])

    def __str__(self) -> str:
        return f"{self.mode} of {self.share:.3g} to {self.challenger}"


def parse_share(text: str) -> float:
    """``0.1`` and ``10%`` are the same.

    Raises:
        ServingError: If it is no number.
    """
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError as error:
        raise ServingError(f"Found {text!r} for a share; wanted a number such as 0.1 or 10%.") from error


def splits_from_args(args: Mapping[str, str]) -> dict[str, Split]:
    """Splits by registered model, from the arguments ``shadow`` and ``canary`` of a Serve config.

    Raises:
        ServingError: If one cannot be read, or a model has two.
    """
    found: dict[str, Split] = {}
    for mode in (SHADOW, CANARY):
        for text in filter(None, (part.strip() for part in args.get(mode, "").split(","))):
            split = Split.parse(text, mode)
            if split.challenger.name in found:
                raise ServingError(
                    f"{split.challenger.name} has two challengers: {found[split.challenger.name]}, and {split}; wanted one."
                )
            found[split.challenger.name] = split
    return found


def standing(
    configured: Mapping[str, Split], decisions: Iterable[tuple[str, str, Mapping[str, Any]]]
) -> dict[str, Split]:
    """The splits that hold: of the config, each replaced or ended by what was decided about its model later.

    Args:
        configured: By model, from the Serve config.
        decisions: ``(model, outcome, evidence)``, oldest first; the outcome is ``shadow``, ``canary`` or ``off``.
    """
    found = dict(configured)
    for model, outcome, evidence in decisions:
        found.pop(model, None)
        if outcome != OFF:
            found[model] = Split.from_evidence(evidence)
    return found
