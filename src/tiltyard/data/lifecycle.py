"""After the commit: which versions are kept and why, and what takes the place of those that are not.

A *tag* is a name for a version. A *pin* keeps a version, with a reason. A *tombstone* stands where a version was: it says
why it is gone and what to use instead. Kept are the newest versions, what a tag names, what is pinned, and what somebody
outside needs (a registered model, say), which is handed in as plain values: this room does not know the registry.

This module decides and never acts: values with a JSON form in, values out. `tiltyard.data.upkeep` and
`tiltyard.data.deletion` act.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from tiltyard.errors import DataError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A small file of a dataset's folder."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """What ``to_json`` wrote.

        Raises:
            DataError: If it was written by a newer Tiltyard, or is damaged.
        """
        what = cls.__name__.lower()
        if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
            raise DataError(f"The file of a {what} is damaged: it holds no object with a schema version.")
        if data["schema_version"] > SCHEMA_VERSION:
            raise DataError(
                f"A {what} was stored with schema version {data['schema_version']}; this Tiltyard reads up to "
                f"{SCHEMA_VERSION}. Install the newer Tiltyard that wrote it."
            )
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k != "schema_version"}
        try:
            return cls(**values)
        except TypeError as error:
            raise DataError(f"The file of a {what} is damaged: {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag(_Stored):
    """A name for a version; ``before`` are the versions it named earlier, oldest first."""

    name: str
    version: int
    at: str
    message: str = ""
    before: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin(_Stored):
    """A version that is kept, and why."""

    version: int
    at: str
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone(_Stored):
    """What stands where a version was.

    Args:
        name: The dataset.
        version: The version that is gone.
        kind: ``deleted`` (rows of a person had to go) or ``removed`` (nobody needed it).
        at: When; ISO 8601, UTC.
        reason: Why, in words. Never names the person.
        successor: What to use instead; None where there is nothing.
        content_digest: Of the version that is gone: what a model's lineage names.
        num_rows: Rows it had.
        committed_at: When it was committed.
        files: What has to be gone, relative to the dataset's folder.
        models: Registered models that learned from it.
    """

    name: str
    version: int
    kind: Literal["deleted", "removed"]
    at: str
    reason: str
    successor: int | None
    content_digest: str
    num_rows: int
    committed_at: str
    files: tuple[str, ...]
    models: tuple[str, ...] = ()

    @property
    def told(self) -> str:
        """Why the version cannot be had, and what to do."""
        use = (
            f"{'Its successor without those rows' if self.kind == 'deleted' else 'The newest version'} is "
            f"{self.name}@{self.successor}; use that one."
            if self.successor is not None
            else f"See what there is: tiltyard data history {self.name}"
        )
        return f"Dataset {self.name}@{self.version} was {self.kind} on {self.at[:10]}: {self.reason}. {use}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent(_Stored):
    """A deletion that was begun: kept until it is done, so that whoever comes next can finish it.

    ``values`` are the keys, as texts; they are forgotten with this file.
    """

    column: str
    values: tuple[str, ...]
    reason: str
    at: str


Needs = Mapping[int, tuple[str, ...]]
"""Version to what needs it, in words."""


def keepers(
    versions: Collection[int],
    newest: int,
    tags: Iterable[Tag],
    pins: Iterable[Pin],
    others: Mapping[int, Collection[str]],
    keep_last: int = 1,
) -> Needs:
    """The versions that must stay, each with everything that keeps it.

    Args:
        versions: Numbers of all versions there are.
        newest: The one that a bare name means.
        tags: All tags.
        pins: All pins.
        others: Version to what else needs it (``model digits.mlp version 3``).
        keep_last: So many of the newest numbers stay as well.

    >>> keepers({1, 2, 3}, 3, [Tag(name="gold", version=1, at="")], [], {})
    {1: ('tag gold',), 3: ('the newest',)}
    """
    found: dict[int, list[str]] = {v: [] for v in sorted(versions)}
    found[newest].append("the newest")
    told = [
        *((t.version, f"tag {t.name}") for t in tags),
        *((p.version, f"pin ({p.reason})" if p.reason else "pin") for p in pins),
        *((v, who) for v, all_of_them in others.items() for who in all_of_them),
        *((v, f"one of the last {keep_last}") for v in sorted(versions)[-keep_last:] if keep_last > 1),
    ]
    for version, why in told:
        if version in found:
            found[version].append(why)
    return {v: tuple(why) for v, why in found.items() if why}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionPlan:
    """What a deletion by key does with the versions that hold the rows.

    Args:
        publish: Versions that get a successor of their own, in the order to publish: the newest one last.
        standing: Version to its successor that an interrupted deletion published already.
        bury: All versions that hold the rows, ascending.
    """

    publish: tuple[int, ...]
    standing: Mapping[int, int]
    bury: tuple[int, ...]


def plan_deletion(
    holding: Collection[int], kept: Collection[int], newest: int, successor_of: Mapping[int, int]
) -> DeletionPlan:
    """Which versions get a successor: those that would be kept; the others become tombstones alone.

    Args:
        holding: Versions that hold the rows.
        kept: Versions that are kept (`keepers`).
        newest: The one that a bare name means.
        successor_of: Living version to the one whose successor it is.

    >>> plan_deletion({1, 2, 3}, {1, 3}, 3, {}).publish
    (1, 3)
    """
    standing = {old: new for new, old in sorted(successor_of.items()) if old in holding and new not in holding}
    wanted = [v for v in sorted(holding) if v in kept and v not in standing]
    ordered = [v for v in wanted if v != newest] + [v for v in wanted if v == newest]
    return DeletionPlan(publish=tuple(ordered), standing=standing, bury=tuple(sorted(holding)))


def successor_for(version: int, made: Mapping[int, int], newest: int) -> int:
    """What to use instead of a version: its own successor, else that of the next later version, else the newest."""
    later = sorted(old for old in made if old >= version)
    return made[later[0]] if later else newest
