"""Who has approved a model version, and is it enough? Pure.

An approval is bound to the digest of the bundle: another bundle under the same number is not approved. One person approves
once, the author never; who withdraws has not approved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One person's word.

    Args:
        by: Who.
        digest: Of the bundle that was approved.
        withdrawn: Whether it is taken back.
    """

    by: str
    digest: str
    withdrawn: bool = False


def approvers(approvals: Sequence[Approval], *, digest: str, author: str = "") -> tuple[str, ...]:
    """Who approves a bundle now, in alphabetical order.

    Args:
        approvals: In the order they were given.
        digest: Of the bundle.
        author: Who made it: cannot approve it.

    >>> approvers([Approval(by="ann", digest="d"), Approval(by="bob", digest="e")], digest="d")
    ('ann',)
    """
    standing: dict[str, bool] = {}
    for approval in approvals:
        if approval.digest == digest:
            standing[approval.by] = not approval.withdrawn
    return tuple(sorted(who for who, stands in standing.items() if stands and who != author))


def lacks(approvals: Sequence[Approval], *, needed: int, digest: str, author: str = "") -> str:
    """What is lacking, in a sentence; empty where nothing is."""
    found = approvers(approvals, digest=digest, author=author)
    if len(found) >= needed:
        return ""
    have = f"approved by {', '.join(found)}" if found else "approved by nobody"
    return f"{have}; {needed} approvals are wanted, none by its author"
