"""Work that is done once, however often and however concurrently it is started: an evaluation, a night.

A *work* has a key, which says what it is, and a kind and a subject, by which it is found. Who claims it works on it, with a
fence and a lease as launches have; a finished work is not done again. Its *results* are revisions that are only ever
appended: the first with its end, in one transaction, later ones by compare-and-set (labels that came late).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from tiltyard.errors import FencedError, JournalError
from tiltyard.journal.store import Store
from tiltyard.journal.values import Owner


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkClaim:
    """The right to do a work, as long as its fence is the newest.

    ``outcome`` is ``new``, ``taken_over`` (it had failed, or its holder was dead or its lease had ended), ``held`` or
    ``finished``.
    """

    key: str
    fence: int
    outcome: str
    holder: Owner | None = None
    lease_s: float = 60.0

    @property
    def is_ours(self) -> bool:
        """Whether there is something to do."""
        return self.outcome in {"new", "taken_over"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A work as recorded: ``state`` is ``running``, ``finished`` or ``failed``."""

    key: str
    kind: str
    subject: str
    about: Mapping[str, Any]
    state: str
    fence: int
    started: float
    ended: float | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """One revision of a work's result, from 1; ``cause`` says what made it."""

    key: str
    revision: int
    at: float
    cause: str
    result: Mapping[str, Any]


class Works:
    """Reached as `Journal.works`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(
        self,
        key: str,
        *,
        kind: str,
        subject: str,
        about: Mapping[str, Any],
        owner: Owner,
        lease_s: float = 60.0,
    ) -> WorkClaim:
        """Claims a work, takes it over from a dead or late holder, or says who holds it or that it is finished.

        Args:
            key: What it is; 64 characters at most.
            kind: E.g. ``evaluation``.
            subject: What it is found by, e.g. a model's name.
            about: What it is about; JSON. The first one stands.
            owner: Who would do it.
            lease_s: Seconds after which a holder on another host counts as dead.
        """
        now = time.time()
        values = {
            "key": key,
            "kind": kind,
            "subject": subject,
            "about": _dump(about),
            "owner": json.dumps(asdict(owner)),
            "until": now + lease_s,
            "now": now,
        }
        with self._store.writing() as tx:
            made = tx.execute(
                text(
                    "INSERT INTO works (key, kind, subject, about, state, fence, owner, lease_until, started) VALUES "
                    "(:key, :kind, :subject, :about, 'running', 1, :owner, :until, :now) ON CONFLICT (key) DO NOTHING"
                ),
                values,
            )
            if made.rowcount == 1:
                return WorkClaim(key=key, fence=1, outcome="new", lease_s=lease_s)
            found = self._locked(tx, key)
            holder = Owner(**json.loads(found["owner"]))
            held = WorkClaim(key=key, fence=found["fence"], outcome="held", holder=holder, lease_s=lease_s)
            if found["state"] == "finished":
                return replace(held, outcome="finished")
            if _is_held(found, holder, now):
                return held
            tx.execute(
                text(
                    "UPDATE works SET state = 'running', fence = fence + 1, owner = :owner, lease_until = :until, "
                    "started = :now, ended = NULL, reason = NULL WHERE key = :key"
                ),
                values,
            )
            return replace(held, fence=found["fence"] + 1, outcome="taken_over")

    def renew(self, claim: WorkClaim) -> None:
        """Extends the lease.

        Raises:
            FencedError: If somebody took the work over.
        """
        with self._store.writing() as tx:
            self._update(tx, claim, "lease_until = :until", {"until": time.time() + claim.lease_s})

    def finish(self, claim: WorkClaim, result: Mapping[str, Any], *, cause: str) -> WorkResult:
        """Records the first result and the end, in one transaction.

        Raises:
            FencedError: If somebody took the work over; nothing is recorded.
        """
        now = time.time()
        with self._store.writing() as tx:
            self._update(tx, claim, "state = 'finished', ended = :now, lease_until = 0, reason = NULL", {"now": now})
            return self._append(tx, claim.key, cause, result, now)

    def fail(self, claim: WorkClaim, reason: str) -> None:
        """Gives the work back with the reason; who comes next does it. No error where it was taken over meanwhile."""
        try:
            with self._store.writing() as tx:
                values = {"now": time.time(), "reason": reason[:5000]}
                self._update(tx, claim, "state = 'failed', ended = :now, lease_until = 0, reason = :reason", values)
        except FencedError:
            return

    def revise(self, key: str, result: Mapping[str, Any], *, cause: str, after: int) -> WorkResult | None:
        """Appends a revision, unless another came after revision ``after`` meanwhile (None then).

        Raises:
            JournalError: If the work is not finished.
        """
        with self._store.writing() as tx:
            found = self._locked(tx, key)
            if found["state"] != "finished":
                raise JournalError(
                    f"Work {key[:16]} is {found['state']}, and only the result of a finished one can be revised. "
                    "Let it finish first."
                )
            newest = tx.execute(
                text("SELECT MAX(revision) FROM work_results WHERE key = :key"), {"key": key}
            ).scalar_one()
            return self._append(tx, key, cause, result, time.time()) if newest == after else None

    def get(self, key: str) -> Work | None:
        """A work, if there is one."""
        with self._store.reading() as c:
            row = c.execute(text("SELECT * FROM works WHERE key = :key"), {"key": key}).mappings().first()
            return _work(row) if row else None

    def find(self, kind: str, subject: str | None = None) -> list[Work]:
        """Works of a kind, of one subject or of all, in order of start."""
        more = "" if subject is None else " AND subject = :subject"
        with self._store.reading() as c:
            rows = c.execute(
                text(f"SELECT * FROM works WHERE kind = :kind{more} ORDER BY started, key"),
                {"kind": kind} | ({} if subject is None else {"subject": subject}),
            ).mappings()
            return [_work(r) for r in rows]

    def results(self, key: str) -> list[WorkResult]:
        """Every revision, oldest first."""
        with self._store.reading() as c:
            rows = c.execute(
                text("SELECT * FROM work_results WHERE key = :key ORDER BY revision"), {"key": key}
            ).mappings()
            return [_result(r) for r in rows]

    def newest(self, keys: Iterable[str]) -> dict[str, WorkResult]:
        """The newest revision of each of these works that has one."""
        found = {}
        for key in keys:
            results = self.results(key)
            if results:
                found[key] = results[-1]
        return found

    def _locked(self, tx: Connection, key: str) -> RowMapping:
        row = tx.execute(text(f"SELECT * FROM works WHERE key = :key{self._store.for_update}"), {"key": key})
        found = row.mappings().first()
        if found is None:
            raise JournalError(f"There is no work {key[:16]} in this journal. Look at another, or do it first.")
        return found

    def _update(self, tx: Connection, claim: WorkClaim, what: str, values: Mapping[str, Any]) -> None:
        done = tx.execute(
            text(f"UPDATE works SET {what} WHERE key = :key AND fence = :fence AND state = 'running'"),
            {**values, "key": claim.key, "fence": claim.fence},
        )
        if done.rowcount != 1:
            raise FencedError(
                f"Work {claim.key[:16]} (fence {claim.fence}) was taken over by another process, or has ended; nothing was "
                "written. Nothing needs doing."
            )

    def _append(self, tx: Connection, key: str, cause: str, result: Mapping[str, Any], now: float) -> WorkResult:
        number = tx.execute(
            text("SELECT COALESCE(MAX(revision), 0) + 1 FROM work_results WHERE key = :key"), {"key": key}
        ).scalar_one()
        row = {"key": key, "revision": int(number), "at": now, "cause": cause, "result": _dump(result)}
        tx.execute(
            text(
                "INSERT INTO work_results (key, revision, at, cause, result) VALUES "
                "(:key, :revision, :at, :cause, :result)"
            ),
            row,
        )
        return _result(row)


def _is_held(work: RowMapping, owner: Owner, now: float) -> bool:
    """Its owner works on it: by the process where that can be seen, by the lease elsewhere."""
    if work["state"] != "running":
        return False
    alive = owner.is_alive()
    return bool(work["lease_until"] > now) if alive is None else alive


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _work(row: RowMapping) -> Work:
    fields = {k: v for k, v in row.items() if k not in {"owner", "lease_until"}}
    return Work(**{**fields, "about": json.loads(row["about"])})


def _result(row: Mapping[str, Any] | RowMapping) -> WorkResult:
    return WorkResult(**{**row, "result": json.loads(row["result"])})
