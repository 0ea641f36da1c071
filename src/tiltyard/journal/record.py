"""The journal: what was claimed, tried, decided and spent, by compare-and-set on SQLite or PostgreSQL.

Every write that depends on what was read happens in one transaction (`tiltyard.journal.store`). Many processes may write
to one journal at once.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, RowMapping, text

from tiltyard.errors import FencedError
from tiltyard.journal.budgets import TeamBudgets
from tiltyard.journal.ledger import Ledger, dump
from tiltyard.journal.requests import Requests
from tiltyard.journal.store import Store, check_fence, taken_over
from tiltyard.journal.values import (
    Attempt,
    AttemptRow,
    CellScore,
    Claim,
    Launch,
    Owner,
    TrialRow,
    TrialUpdate,
    storable,
)
from tiltyard.journal.works import Works

CHUNK = 400
"""Values of one IN (...): SQLite takes 32,766 parameters, and long statements are slow to parse."""


class Journal(Ledger):
    """An open journal. Use `open`; close it, or use it as a context manager."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.requests = Requests(store)
        """What people ask of running sweeps."""
        self.budgets = TeamBudgets(store)
        """The budgets of teams; they outlive sweeps."""
        self.works = Works(store)
        """Work that is done once: evaluations, nights."""

    @classmethod
    def open(cls, uri: str) -> Journal:
        """Opens, creates or migrates the journal at a SQLAlchemy URL.

        Raises:
            JournalError: If it cannot be opened, or a newer Tiltyard wrote it.
        """
        return cls(Store.open(uri))

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives its connections back."""
        self._store.close()

    # -- claims -------------------------------------------------------------------------------------------------------

    def claim(self, key: str, *, experiment: str, spec: str, owner: Owner, lease_s: float = 60.0) -> Claim:
        """Claims a key, takes it over from a dead or late holder, or says who holds it or that it is finished.

        A holder on this host is dead or alive whatever its lease says (a laptop that slept wakes with a late one);
        of a holder elsewhere the lease alone is known.
        """
        now = time.time()
        select = text(f"SELECT * FROM launches WHERE key = :key{self._store.for_update}")
        with self._store.writing() as tx:
            found = tx.execute(select, {"key": key}).mappings().first()
            if found is None:
                launch_id = uuid.uuid4().hex
                inserted = tx.execute(
                    text(
                        "INSERT INTO launches (key, experiment, launch_id, state, fence, owner, lease_until, started, "
                        "spec, summary) VALUES (:key, :experiment, :launch_id, 'running', 1, :owner, :until, :now, "
                        ":spec, '{}') ON CONFLICT (key) DO NOTHING"
                    ),
                    {
                        "key": key,
                        "experiment": experiment,
                        "launch_id": launch_id,
                        "owner": json.dumps(asdict(owner)),
                        "until": now + lease_s,
                        "now": now,
                        "spec": spec,
                    },
                )
                if inserted.rowcount == 1:
                    return Claim(key=key, launch_id=launch_id, fence=1, outcome="new", lease_s=lease_s)
                found = tx.execute(select, {"key": key}).mappings().one()
            holder = Owner(**json.loads(found["owner"]))
            same = {
                "key": key,
                "launch_id": found["launch_id"],
                "parent_run_id": found["parent_run_id"],
                "lease_s": lease_s,
            }
            if found["state"] == "finished":
                return Claim(**same, fence=found["fence"], outcome="finished", holder=holder)
            if _is_held(found, holder):
                return Claim(**same, fence=found["fence"], outcome="held", holder=holder)
            tx.execute(
                text(
                    "UPDATE launches SET state = 'running', fence = fence + 1, owner = :owner, lease_until = :until, "
                    "ended = NULL WHERE key = :key"
                ),
                {"owner": json.dumps(asdict(owner)), "until": now + lease_s, "key": key},
            )
            return Claim(**same, fence=found["fence"] + 1, outcome="taken_over", holder=holder)

    def renew(self, claim: Claim) -> None:
        """Extends the lease; that of a claim which was released already stays ended.

        Raises:
            FencedError: If somebody took the key over.
        """
        self._fenced_update(
            claim,
            "lease_until = CASE WHEN state = 'running' THEN :until ELSE lease_until END",
            {"until": time.time() + claim.lease_s},
        )

    def check(self, claim: Claim) -> None:
        """The claim, released or not, is still the newest on its key.

        Raises:
            FencedError: If somebody took the key over.
        """
        with self._store.reading() as c:
            fence = c.execute(text("SELECT fence FROM launches WHERE key = :key"), {"key": claim.key}).scalar()
        if fence != claim.fence:
            raise FencedError(taken_over(claim.key, claim.fence))

    def set_parent_run(self, claim: Claim, run_id: str) -> None:
        """Records the MLflow run of the launch."""
        self._fenced_update(claim, "parent_run_id = :run_id", {"run_id": run_id})

    def release(self, claim: Claim, *, state: str, summary: Mapping[str, Any]) -> None:
        """Ends the claim: ``finished``, ``stopped`` or ``failed``."""
        self._fenced_update(
            claim,
            "state = :state, ended = :ended, summary = :summary, lease_until = 0",
            {"state": state, "ended": time.time(), "summary": dump(summary)},
        )

    def launches(self, experiment: str | None = None) -> list[Launch]:
        """Newest first."""
        where = "WHERE experiment = :experiment " if experiment else ""
        with self._store.reading() as c:
            rows = c.execute(
                text(f"SELECT * FROM launches {where}ORDER BY started DESC"),
                {"experiment": experiment} if experiment else {},
            ).mappings()
            return [_launch(r) for r in rows]

    def launch(self, key: str) -> Launch | None:
        """The launch of a key, if there is one."""
        with self._store.reading() as c:
            row = c.execute(text("SELECT * FROM launches WHERE key = :key"), {"key": key}).mappings().first()
            return _launch(row) if row else None

    def holder(self, key: str) -> Owner | None:
        """Who works on a key now, as `claim` sees it; None where nobody does."""
        with self._store.reading() as c:
            select = text("SELECT owner, state, lease_until FROM launches WHERE key = :key")
            row = c.execute(select, {"key": key}).mappings().first()
        owner = None if row is None else Owner(**json.loads(row["owner"]))
        return owner if row is not None and owner is not None and _is_held(row, owner) else None

    def _fenced_update(self, claim: Claim, what: str, values: Mapping[str, Any]) -> None:
        with self._store.writing() as tx:
            done = tx.execute(
                text(f"UPDATE launches SET {what} WHERE key = :key AND fence = :fence"),
                {**values, "key": claim.key, "fence": claim.fence},
            )
            if done.rowcount != 1:
                raise FencedError(taken_over(claim.key, claim.fence))

    # -- trials -------------------------------------------------------------------------------------------------------

    def add_trials(self, claim: Claim, rows: Sequence[TrialRow]) -> None:
        """Records the trials of a plan; those already there stay as they are.

        Raises:
            FencedError: If the claim was taken over.
        """
        with self._store.writing() as tx:
            self._check_fence(tx, claim.key, claim.fence)
            if rows:
                tx.execute(
                    text(
                        "INSERT INTO trials (key, cell, grp, idx, variant, model, dataset, dataset_version, config, "
                        "seed, data_seed, state, epoch, score, reason) VALUES (:key, :cell, :group, :index, :variant, "
                        ":model, :dataset, :dataset_version, :config, :seed, :data_seed, :state, :epoch, :score, :reason) "
                        "ON CONFLICT (key, cell) DO NOTHING"
                    ),
                    [{**asdict(r), "config": dump(r.config), "key": claim.key} for r in rows],
                )

    def trials(self, key: str) -> list[TrialRow]:
        """The trials of a key, in the plan's order."""
        with self._store.reading() as c:
            rows = c.execute(text("SELECT * FROM trials WHERE key = :key ORDER BY grp, idx"), {"key": key}).mappings()
            return [_trial(r) for r in rows]

    def find_trials(self, cell_prefix: str) -> list[TrialRow]:
        """Trials whose cell begins so, of any key."""
        with self._store.reading() as c:
            rows = c.execute(
                text("SELECT * FROM trials WHERE substr(cell, 1, :size) = :prefix ORDER BY cell, key LIMIT 100"),
                {"prefix": cell_prefix, "size": len(cell_prefix)},
            ).mappings()
            return [_trial(r) for r in rows]

    def set_trial_states(self, claim: Claim, updates: Sequence[TrialUpdate]) -> None:
        """Records new states; where epoch or score is None the recorded one stays.

        Raises:
            FencedError: If the claim was taken over.
        """
        if not updates:
            return
        with self._store.writing() as tx:
            self._check_fence(tx, claim.key, claim.fence)
            tx.execute(
                text(
                    "UPDATE trials SET state = :state, epoch = COALESCE(:epoch, epoch), score = COALESCE(:score, score), "
                    "reason = :reason WHERE key = :key AND cell = :cell"
                ),
                [{**asdict(u), "key": claim.key, "reason": _storable(u.reason)} for u in updates],
            )

    def cell_scores(
        self, cells: Iterable[str], epochs: Iterable[int] | None = None
    ) -> dict[tuple[str, int], CellScore]:
        """What is known of these cells, at these epochs or at any."""
        cells, wanted = list(cells), None if epochs is None else set(epochs)
        found: dict[tuple[str, int], CellScore] = {}
        with self._store.reading() as c:
            for start in range(0, len(cells), CHUNK):
                part = cells[start : start + CHUNK]
                names = {f"c{i}": cell for i, cell in enumerate(part)}
                marks = ", ".join(f":{n}" for n in names)
                for r in c.execute(text(f"SELECT * FROM cell_scores WHERE cell IN ({marks})"), names).mappings():
                    if wanted is None or r["epoch"] in wanted:
                        found[r["cell"], r["epoch"]] = CellScore(**{**r, "metrics": json.loads(r["metrics"])})
        return found

    # -- packs --------------------------------------------------------------------------------------------------------

    def start_attempt(
        self,
        claim: Claim,
        pack_id: str,
        *,
        rung: int,
        cells: Sequence[str],
        device_kind: str,
        layout: Mapping[str, Any],
    ) -> Attempt:
        """Numbers a new try at a pack; older tries are fenced from then on.

        Raises:
            FencedError: If the claim was taken over.
        """
        with self._store.writing() as tx:
            self._check_fence(tx, claim.key, claim.fence, alone=True)
            last = tx.execute(
                text("SELECT COALESCE(MAX(number), 0) FROM attempts WHERE key = :key AND pack_id = :pack"),
                {"key": claim.key, "pack": pack_id},
            ).scalar_one()
            tx.execute(
                text("UPDATE attempts SET state = 'fenced' WHERE key = :key AND pack_id = :pack AND state = 'running'"),
                {"key": claim.key, "pack": pack_id},
            )
            tx.execute(
                text(
                    "INSERT INTO attempts (key, pack_id, number, fence, rung, state, started, metered_s, cells, layout, "
                    "device_kind) VALUES (:key, :pack, :number, :fence, :rung, 'running', :now, 0, :cells, :layout, :kind)"
                ),
                {
                    "key": claim.key,
                    "pack": pack_id,
                    "number": last + 1,
                    "fence": claim.fence,
                    "rung": rung,
                    "now": time.time(),
                    "cells": json.dumps(list(cells)),
                    "layout": dump(layout),
                    "kind": device_kind,
                },
            )
            return Attempt(key=claim.key, pack_id=pack_id, number=last + 1, fence=claim.fence)

    def finish_attempt(
        self, attempt: Attempt, *, scores: Sequence[CellScore], metered_s: float, storage_uri: str
    ) -> None:
        """Records every score of a pack and its completion, in one transaction.

        Raises:
            FencedError: If a newer attempt or a newer claim exists; nothing is recorded.
        """
        with self._store.writing() as tx:
            self._check_fence(tx, attempt.key, attempt.fence)
            self._end_attempt(tx, attempt, "done", metered_s, storage_uri=storage_uri)
            self._add_scores(tx, scores)

    def record_scores(self, attempt: Attempt, scores: Sequence[CellScore]) -> None:
        """Records members of a pack that have ended while others still train; the attempt goes on.

        Raises:
            FencedError: If a newer attempt or a newer claim exists; nothing is recorded.
        """
        with self._store.writing() as tx:
            self._check_fence(tx, attempt.key, attempt.fence)
            still = tx.execute(
                text(
                    "UPDATE attempts SET state = 'running' "
                    "WHERE key = :key AND pack_id = :pack AND number = :number AND state = 'running'"
                ),
                {"key": attempt.key, "pack": attempt.pack_id, "number": attempt.number},
            )
            if still.rowcount != 1:
                raise FencedError(_too_late(attempt))
            self._add_scores(tx, scores)

    def save_attempt(self, attempt: Attempt, *, metered_s: float, storage_uri: str) -> None:
        """Records that an attempt ended in the middle of its rung, and where it left its checkpoint; no scores.

        Raises:
            FencedError: If a newer attempt or a newer claim exists; nothing is recorded.
        """
        with self._store.writing() as tx:
            self._check_fence(tx, attempt.key, attempt.fence)
            self._end_attempt(tx, attempt, "saved", metered_s, storage_uri=storage_uri)

    def fail_attempt(self, attempt: Attempt, reason: str, metered_s: float) -> None:
        """Records that an attempt failed; it is no error where it was fenced meanwhile."""
        try:
            with self._store.writing() as tx:
                self._end_attempt(tx, attempt, "failed", metered_s, reason=reason)
        except FencedError:
            return

    def attempts(self, key: str, pack_id: str | None = None) -> list[AttemptRow]:
        """Every attempt of a key, or at one of its packs, in order of start."""
        of_pack = "" if pack_id is None else "AND pack_id = :pack "
        select = f"SELECT * FROM attempts WHERE key = :key {of_pack}ORDER BY started, pack_id, number"
        with self._store.reading() as c:
            rows = c.execute(text(select), {"key": key, "pack": pack_id} if of_pack else {"key": key}).mappings()
            return [
                AttemptRow(
                    **{
                        **{k: v for k, v in r.items() if k not in {"fence", "device_kind"}},
                        "cells": tuple(json.loads(r["cells"])),
                        "layout": json.loads(r["layout"]),
                    }
                )
                for r in rows
            ]

    def _end_attempt(
        self,
        tx: Connection,
        attempt: Attempt,
        state: str,
        metered_s: float,
        *,
        reason: str | None = None,
        storage_uri: str | None = None,
    ) -> None:
        done = tx.execute(
            text(
                "UPDATE attempts SET state = :state, ended = :now, metered_s = :metered, reason = :reason, "
                "storage_uri = :uri WHERE key = :key AND pack_id = :pack AND number = :number AND state = 'running'"
            ),
            {
                "state": state,
                "now": time.time(),
                "metered": metered_s,
                "reason": _storable(reason),
                "uri": storage_uri,
                "key": attempt.key,
                "pack": attempt.pack_id,
                "number": attempt.number,
            },
        )
        if done.rowcount != 1:
            raise FencedError(_too_late(attempt))

    def _add_scores(self, tx: Connection, scores: Sequence[CellScore]) -> None:
        if not scores:
            return
        tx.execute(
            text(
                "INSERT INTO cell_scores (cell, epoch, metrics, storage_uri, pack_id, attempt, seconds, failed) VALUES "
                "(:cell, :epoch, :metrics, :storage_uri, :pack_id, :attempt, :seconds, :failed) "
                "ON CONFLICT (cell, epoch) DO NOTHING"
            ),
            [{**asdict(s), "metrics": dump(s.metrics), "failed": _storable(s.failed)} for s in scores],
        )

    def _check_fence(self, tx: Connection, key: str, fence: int, *, alone: bool = False) -> None:
        check_fence(self._store, tx, key, fence, alone=alone)


def _storable(told: str | None) -> str | None:
    return None if told is None else storable(told)


def _too_late(attempt: Attempt) -> str:
    return (
        f"Attempt {attempt.number} at pack {attempt.pack_id} came too late: a newer attempt took over. "
        "Nothing more of it is recorded; nothing needs doing."
    )


def _is_held(launch: RowMapping, owner: Owner) -> bool:
    """Its owner works on it: by the process where that can be seen, by the lease elsewhere."""
    if launch["state"] != "running":
        return False
    alive = owner.is_alive()
    return bool(launch["lease_until"] > time.time()) if alive is None else alive


def _launch(row: RowMapping) -> Launch:
    fields = {k: v for k, v in row.items() if k not in {"owner", "lease_until"}}
    return Launch(**{**fields, "summary": json.loads(row["summary"])})


def _trial(row: RowMapping) -> TrialRow:
    fields = {k: v for k, v in row.items() if k not in {"grp", "idx", "config"}}
    return TrialRow(**fields, group=row["grp"], index=row["idx"], config=_tuples(json.loads(row["config"])))


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that a configuration has."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
