"""How a registered model is named on a command line, in a config file and in a request. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAddress:
    """Which model is meant: a registered name with an alias, or with a pinned version.

    Args:
        name: The registered name, e.g. ``first-sweep.wine``.
        alias: Followed as it moves; None where a version is pinned.
        version: Pinned; None where an alias is followed.
    """

    name: str
    alias: str | None = CHAMPION
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> ModelAddress:
        """Reads ``NAME@ALIAS`` or ``NAME@VERSION``; a name alone means the champion.

        >>> ModelAddress.parse("first-sweep.wine@3").version
        3
        """
        name, _, which = text.strip().partition("@")
        if which.isdigit():
            return cls(name=name, alias=None, version=int(which))
        return cls(name=name, alias=which or CHAMPION)

    def __str__(self) -> str:
        return f"{self.name}@{self.alias or self.version}"
