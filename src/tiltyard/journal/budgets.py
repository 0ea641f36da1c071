"""The budgets of teams, kept where every sweep sees them: two sweeps at once hold one budget.

What may be reserved is decided by `tiltyard.money`; here it is decided and written in one transaction. What a sweep has
reserved for a pack is a *hold*. The holds of a sweep that died are settled in full when the next one asks: its claim's
fence is old by then, or its lease has ended.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, text

from tiltyard.errors import BudgetExceededError
from tiltyard.journal.store import Store
from tiltyard.journal.values import Claim
from tiltyard.money import Budget, Seconds, reserve


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Seconds of a team's budget that are reserved for one pack."""

    id: str
    team: str
    seconds: Seconds


class TeamBudgets:
    """Reached as `Journal.budgets`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def set(self, team: str, *, limit_cpu_s: float | None, limit_gpu_s: float | None) -> Budget:
        """Sets a team's limits, None for none; what is spent and reserved stays."""
        values = {"team": team, "cpu": limit_cpu_s, "gpu": limit_gpu_s, "now": time.time()}
        with self._store.writing() as tx:
            tx.execute(
                text(
                    "INSERT INTO budgets (team, limit_cpu_s, limit_gpu_s, changed) VALUES (:team, :cpu, :gpu, :now) "
                    "ON CONFLICT (team) DO UPDATE SET limit_cpu_s = :cpu, limit_gpu_s = :gpu, changed = :now"
                ),
                values,
            )
            return self._budget(tx, team)

    def get(self, team: str) -> Budget:
        """A team's budget now.

        Raises:
            BudgetExceededError: If the team has none.
        """
        with self._store.reading() as c:
            return self._budget(c, team)

    def all(self) -> dict[str, Budget]:
        """Every team's budget, by name."""
        with self._store.reading() as c:
            teams = c.execute(text("SELECT team FROM budgets ORDER BY team")).scalars().all()
            return {team: self._budget(c, team) for team in teams}

    def hold(self, team: str, *, claim: Claim, pack_id: str, ask: Seconds) -> Hold:
        """Reserves seconds for a pack that is to start.

        Raises:
            BudgetExceededError: If more is asked for than is free, or the team has no budget.
        """
        hold = Hold(id=uuid.uuid4().hex, team=team, seconds=ask)
        with self._store.writing() as tx:
            reserve(self._locked(tx, team), ask)
            tx.execute(
                text(
                    "INSERT INTO holds (id, team, key, fence, pack_id, at, cpu_s, gpu_s, state) VALUES "
                    "(:id, :team, :key, :fence, :pack, :now, :cpu, :gpu, 'held')"
                ),
                {
                    "id": hold.id,
                    "team": team,
                    "key": claim.key,
                    "fence": claim.fence,
                    "pack": pack_id,
                    "now": time.time(),
                    "cpu": ask.cpu_s,
                    "gpu": ask.gpu_s,
                },
            )
        return hold

    def extend(self, hold: Hold, ask: Seconds) -> Hold:
        """Reserves more for a pack that runs on.

        Raises:
            BudgetExceededError: If more is asked for than is free; the hold is as it was.
        """
        with self._store.writing() as tx:
            reserve(self._locked(tx, hold.team), ask)
            tx.execute(
                text("UPDATE holds SET cpu_s = cpu_s + :cpu, gpu_s = gpu_s + :gpu, state = 'held' WHERE id = :id"),
                {"cpu": ask.cpu_s, "gpu": ask.gpu_s, "id": hold.id},
            )
        return Hold(id=hold.id, team=hold.team, seconds=hold.seconds + ask)

    def settle(self, hold: Hold, used: Seconds) -> None:
        """Gives back what was reserved and books what the meter says; a second time, the last word stands."""
        with self._store.writing() as tx:
            tx.execute(
                text("UPDATE holds SET state = 'settled', cpu_s = :cpu, gpu_s = :gpu WHERE id = :id"),
                {"cpu": used.cpu_s, "gpu": used.gpu_s, "id": hold.id},
            )

    def _locked(self, tx: Connection, team: str) -> Budget:
        """The budget, alone with it until the transaction ends; the holds of dead sweeps are settled in full first."""
        tx.execute(text(f"SELECT team FROM budgets WHERE team = :team{self._store.for_update}"), {"team": team})
        tx.execute(
            text(
                "UPDATE holds SET state = 'settled' WHERE team = :team AND state = 'held' AND NOT EXISTS "
                "(SELECT 1 FROM launches WHERE launches.key = holds.key AND launches.fence = holds.fence "
                "AND launches.lease_until > :now)"
            ),
            {"team": team, "now": time.time()},
        )
        return self._budget(tx, team)

    def _budget(self, c: Connection, team: str) -> Budget:
        row = c.execute(text("SELECT * FROM budgets WHERE team = :team"), {"team": team}).mappings().first()
        if row is None:
            raise BudgetExceededError(
                f"Team {team!r} has no budget. Give it one: tiltyard budget set {team} --cpu-hours 10, or leave "
                "budget.team out of the experiment."
            )
        sums = c.execute(
            text("SELECT state, SUM(cpu_s) AS cpu_s, SUM(gpu_s) AS gpu_s FROM holds WHERE team = :team GROUP BY state"),
            {"team": team},
        ).mappings()
        amounts = {r["state"]: _seconds(r) for r in sums}
        return Budget(
            owner=f"team {team!r}",
            limit_cpu_s=row["limit_cpu_s"],
            limit_gpu_s=row["limit_gpu_s"],
            reserved=amounts.get("held", Seconds()),
            spent=amounts.get("settled", Seconds()),
        )


def _seconds(row: RowMapping) -> Seconds:
    return Seconds(cpu_s=float(row["cpu_s"]), gpu_s=float(row["gpu_s"]))
