"""What was decided, spent and seen: the append-only part of the journal (`tiltyard.journal.Journal` has all of it)."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import RowMapping, text

from tiltyard.errors import JournalError
from tiltyard.journal.store import Store, check_fence
from tiltyard.journal.values import Claim, Decision, Spend

_GENESIS = "0" * 64


class Ledger:
    """Decisions in a hash chain, metered seconds, watermarks, and looks at the test split."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def decide(
        self,
        *,
        kind: str,
        subject: str,
        actor: str,
        evidence: Mapping[str, Any],
        reasons: Sequence[str],
        outcome: str,
        once: str | None = None,
        claim: Claim | None = None,
    ) -> Decision:
        """Appends a decision to the hash chain; with ``once``, the first of that name stands and is returned.

        Args:
            kind: What sort of decision.
            subject: What it is about.
            actor: Who decided.
            evidence: What it was decided on; JSON.
            reasons: Why.
            outcome: What was decided.
            once: A name that only one decision may bear.
            claim: Where a launch decides: the right to.

        Raises:
            FencedError: If the claim was taken over; nothing was recorded, and no earlier decision is returned.
        """
        with self._store.writing(exclusive_table="decisions") as tx:
            if claim is not None:
                check_fence(self._store, tx, claim.key, claim.fence)
            if once is not None:
                row = tx.execute(text("SELECT * FROM decisions WHERE once = :once"), {"once": once}).mappings().first()
                if row is not None:
                    return _decision(row)
            last = tx.execute(text("SELECT number, digest FROM decisions ORDER BY number DESC LIMIT 1")).first()
            number, previous = (last.number + 1, last.digest) if last else (1, _GENESIS)
            new: dict[str, Any] = {
                "number": number,
                "at": round(time.time(), 3),
                "kind": kind,
                "subject": subject,
                "actor": actor,
                "evidence": dump(evidence),
                "reasons": dump(list(reasons)),
                "outcome": outcome,
                "once": once,
                "previous": previous,
            }
            new["digest"] = _chain(new)
            tx.execute(
                text(
                    "INSERT INTO decisions (number, at, kind, subject, actor, evidence, reasons, outcome, once, previous, "
                    "digest) VALUES (:number, :at, :kind, :subject, :actor, :evidence, :reasons, :outcome, :once, "
                    ":previous, :digest)"
                ),
                new,
            )
            return _decision(new)

    def decisions(self, *, kind: str | None = None, subject: str | None = None) -> list[Decision]:
        """Decisions in order, of any kind and subject or of one."""
        wanted = {n: v for n, v in (("kind", kind), ("subject", subject)) if v is not None}
        where = f"WHERE {' AND '.join(f'{n} = :{n}' for n in wanted)} " if wanted else ""
        with self._store.reading() as c:
            rows = c.execute(text(f"SELECT * FROM decisions {where}ORDER BY number"), wanted).mappings()
            return [_decision(r) for r in rows]

    def outcomes(self, kind: str, *, once: str) -> list[str]:
        """Outcomes alone of the decisions of a kind whose ``once`` begins so: evidence can be long."""
        with self._store.reading() as c:
            rows = c.execute(
                text(
                    "SELECT outcome FROM decisions WHERE kind = :kind AND substr(once, 1, :size) = :once ORDER BY number"
                ),
                {"kind": kind, "once": once, "size": len(once)},
            )
            return [str(r.outcome) for r in rows]

    def verify_decisions(self, *, head: str | None = None) -> int:
        """Walks the chain over the rows as they are stored; returns how many decisions hold.

        Args:
            head: Digest of a decision, noted elsewhere earlier. A chain alone cannot tell that its end was cut off; a
                digest that is missing from it can.

        Raises:
            JournalError: Naming the first row that was changed, removed or put in.
        """
        previous, count, seen = _GENESIS, 0, head is None
        with self._store.reading() as c:
            for row in c.execute(text("SELECT * FROM decisions ORDER BY number")).mappings():
                count += 1
                if row["number"] != count or row["previous"] != previous or _chain(row) != row["digest"]:
                    raise JournalError(
                        f"Decision {row['number']} ({row['kind']} of {row['subject']}) is not the one that was recorded, "
                        "or one before it was removed. Restore the journal from a backup, and find out who wrote to it."
                    )
                previous = row["digest"]
                seen = seen or previous == head
        if not seen:
            raise JournalError(
                f"None of the {count} decisions has the digest {str(head)[:16]}, which was noted earlier: the end of the "
                "record was cut off. Restore the journal from a backup, and find out who wrote to it."
            )
        return count

    def meter(self, *, key: str, what: str, wall_s: float, cpu_s: float, gpu_s: float = 0.0) -> None:
        """Adds metered seconds to a key's spend."""
        with self._store.writing() as tx:
            tx.execute(
                text(
                    "INSERT INTO spend (id, key, what, at, wall_s, cpu_s, gpu_s) VALUES "
                    "(:id, :key, :what, :at, :wall, :cpu, :gpu)"
                ),
                {
                    "id": uuid.uuid4().hex,
                    "key": key,
                    "what": what,
                    "at": time.time(),
                    "wall": wall_s,
                    "cpu": cpu_s,
                    "gpu": gpu_s,
                },
            )

    def spend(self, key: str, *, since: float = 0.0) -> Spend:
        """Metered seconds of a key, of those that were settled at a time (seconds since 1970) or later."""
        select = (
            "SELECT what, SUM(wall_s) AS wall_s, SUM(cpu_s) AS cpu_s, SUM(gpu_s) AS gpu_s FROM spend "
            "WHERE key = :key AND at >= :since GROUP BY what ORDER BY what"
        )
        with self._store.reading() as c:
            rows = list(c.execute(text(select), {"key": key, "since": since}))
        return Spend(
            wall_s=sum(r.wall_s for r in rows),
            cpu_s=sum(r.cpu_s for r in rows),
            gpu_s=sum(r.gpu_s for r in rows),
            by_what={r.what: r.wall_s for r in rows},
        )

    def advance_watermark(self, name: str, expected: str | None, new: str) -> bool:
        """Compare-and-set: True where the watermark was ``expected`` (None: not there) and is ``new`` now."""
        with self._store.writing() as tx:
            values = {"name": name, "new": new, "expected": expected}
            if expected is None:
                statement = "INSERT INTO watermarks (name, value) VALUES (:name, :new) ON CONFLICT (name) DO NOTHING"
            else:
                statement = "UPDATE watermarks SET value = :new WHERE name = :name AND value = :expected"
            return tx.execute(text(statement), values).rowcount == 1

    def watermark(self, name: str) -> str | None:
        """The watermark, if there is one."""
        with self._store.reading() as c:
            value = c.execute(text("SELECT value FROM watermarks WHERE name = :name"), {"name": name}).scalar()
            return None if value is None else str(value)

    def record_test_look(self, key: str, dataset: str, cells: Sequence[str], *, claim: Claim | None = None) -> int:
        """Records that the test split is about to be looked at; returns how often that makes for this key and dataset.

        Raises:
            FencedError: If a claim is given and was taken over; nothing was recorded, so do not look.
        """
        with self._store.writing() as tx:
            if claim is not None:
                check_fence(self._store, tx, claim.key, claim.fence)
            tx.execute(
                text("INSERT INTO test_looks (id, key, dataset, at, cells) VALUES (:id, :key, :dataset, :at, :cells)"),
                {
                    "id": uuid.uuid4().hex,
                    "key": key,
                    "dataset": dataset,
                    "at": time.time(),
                    "cells": json.dumps(list(cells)),
                },
            )
            return int(
                tx.execute(
                    text("SELECT COUNT(*) FROM test_looks WHERE key = :key AND dataset = :dataset"),
                    {"key": key, "dataset": dataset},
                ).scalar_one()
            )


def dump(value: Any) -> str:
    """A value as canonical JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _chain(row: Mapping[str, Any] | RowMapping) -> str:
    """Digest of a decision's row as it is stored, byte for byte, and of the digest before it."""
    return hashlib.sha256(dump({n: v for n, v in row.items() if n != "digest"}).encode()).hexdigest()


def _decision(row: Mapping[str, Any] | RowMapping) -> Decision:
    return Decision(**{**row, "evidence": json.loads(row["evidence"]), "reasons": tuple(json.loads(row["reasons"]))})
