"""What people ask of a running sweep: pause, continue, stop a trial, add trials. Asked here, taken up by its driver.

A request is a row; the driver answers it once, under its claim, with what it came to. Answered requests are part of the
record: a resumed launch obeys them again (`tiltyard.sweep.engine.control`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import RowMapping, text

from tiltyard.journal.store import Store, check_fence
from tiltyard.journal.values import Claim, Request


class Requests:
    """The requests of one journal; `tiltyard.journal.Journal.requests`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ask(
        self, key: str, kind: str, *, subject: str, detail: Mapping[str, Any], actor: str, reason: str = ""
    ) -> Request:
        """Asks; whoever works on the key, now or next, answers.

        Args:
            key: Of the launch.
            kind: ``pause``, ``continue``, ``stop`` or ``add``.
            subject: What it is about, for people.
            detail: What its kind needs; JSON.
            actor: Who asks.
            reason: Why.
        """
        with self._store.writing(exclusive_table="requests") as tx:
            last = tx.execute(text("SELECT COALESCE(MAX(number), 0) FROM requests")).scalar_one()
            row = {
                "number": int(last) + 1,
                "key": key,
                "at": time.time(),
                "kind": kind,
                "subject": subject,
                "detail": json.dumps(dict(detail), sort_keys=True),
                "actor": actor,
                "reason": reason,
                "state": "asked",
                "answer": "{}",
                "answered": None,
            }
            tx.execute(
                text(
                    "INSERT INTO requests (number, key, at, kind, subject, detail, actor, reason, state, answer, answered) "
                    "VALUES (:number, :key, :at, :kind, :subject, :detail, :actor, :reason, :state, :answer, :answered)"
                ),
                row,
            )
        return _request(row)

    def of(self, key: str, *, state: str | None = None) -> list[Request]:
        """The requests on a key in the order in which they were asked; of one state, or all."""
        where = "" if state is None else " AND state = :state"
        values = {"key": key} if state is None else {"key": key, "state": state}
        with self._store.reading() as c:
            rows = c.execute(text(f"SELECT * FROM requests WHERE key = :key{where} ORDER BY number"), values).mappings()
            return [_request(r) for r in rows]

    def get(self, number: int) -> Request | None:
        """The request with a number, as it stands."""
        with self._store.reading() as c:
            select = text("SELECT * FROM requests WHERE number = :number")
            row = c.execute(select, {"number": number}).mappings().first()
            return None if row is None else _request(row)

    def answer(self, claim: Claim, number: int, *, state: str, answer: Mapping[str, Any]) -> bool:
        """Answers a request once: ``done`` or ``refused``; False where it was answered before.

        Raises:
            FencedError: If the claim was taken over; nothing was changed.
        """
        with self._store.writing() as tx:
            check_fence(self._store, tx, claim.key, claim.fence)
            done = tx.execute(
                text(
                    "UPDATE requests SET state = :state, answer = :answer, answered = :now "
                    "WHERE number = :number AND key = :key AND state = 'asked'"
                ),
                {
                    "state": state,
                    "answer": json.dumps(dict(answer), sort_keys=True),
                    "now": time.time(),
                    "number": number,
                    "key": claim.key,
                },
            )
            return done.rowcount == 1

    def stopped(self, key: str) -> frozenset[str]:
        """Cells of the trials of a key that a person stopped."""
        return frozenset(str(r.detail["cell"]) for r in self.of(key, state="done") if r.kind == "stop")


def _request(row: Mapping[str, Any] | RowMapping) -> Request:
    return Request(**{**row, "detail": json.loads(row["detail"]), "answer": json.loads(row["answer"])})
