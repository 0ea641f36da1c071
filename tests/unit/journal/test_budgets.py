"""The budgets of teams: one budget, however many sweeps use it at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tiltyard.errors import BudgetExceededError
from tiltyard.journal import Claim, Journal, Owner
from tiltyard.money import Seconds

TEAM = "vision"


def claim(journal: Journal, key: str = "k" * 64, lease_s: float = 60.0) -> Claim:
    owner = Owner(host="some-other-host", pid=1, started=1.0)
    return journal.claim(key, experiment="demo", spec="{}", owner=owner, lease_s=lease_s)


def cpu(seconds: float) -> Seconds:
    return Seconds(cpu_s=seconds)


def test_budget_of_a_team_outlives_its_sweeps(journal: Journal) -> None:
    journal.budgets.set(TEAM, limit_cpu_s=100, limit_gpu_s=None)
    by = claim(journal)
    hold = journal.budgets.hold(TEAM, claim=by, pack_id="p", ask=cpu(40))
    hold = journal.budgets.extend(hold, Seconds(cpu_s=20, gpu_s=7))
    now = journal.budgets.get(TEAM)
    assert (now.reserved, now.spent, now.free_cpu_s) == (Seconds(cpu_s=60, gpu_s=7), Seconds(), 40)
    journal.budgets.settle(hold, cpu(50))
    journal.release(by, state="finished", summary={})
    now = journal.budgets.get(TEAM)
    assert (now.reserved, now.spent, now.free_cpu_s) == (Seconds(), cpu(50), 50)


def test_hold_of_more_than_is_free_is_refused_and_writes_nothing(journal: Journal) -> None:
    journal.budgets.set(TEAM, limit_cpu_s=100, limit_gpu_s=0)
    by = claim(journal)
    hold = journal.budgets.hold(TEAM, claim=by, pack_id="p", ask=cpu(90))
    with pytest.raises(BudgetExceededError, match=r"team 'vision' has 10\.0 CPU-s free; 11\.0"):
        journal.budgets.hold(TEAM, claim=by, pack_id="q", ask=cpu(11))
    with pytest.raises(BudgetExceededError, match=r"10\.0 CPU-s free"):
        journal.budgets.extend(hold, cpu(11))
    with pytest.raises(BudgetExceededError, match=r"0\.0 GPU-s free"):
        journal.budgets.hold(TEAM, claim=by, pack_id="q", ask=Seconds(gpu_s=1))
    assert journal.budgets.get(TEAM).reserved == cpu(90)
    journal.budgets.extend(hold, cpu(10))


def test_set_of_another_limit_keeps_what_is_spent(journal: Journal) -> None:
    journal.budgets.set(TEAM, limit_cpu_s=10, limit_gpu_s=None)
    by = claim(journal)
    journal.budgets.settle(journal.budgets.hold(TEAM, claim=by, pack_id="p", ask=cpu(10)), cpu(12))
    assert journal.budgets.get(TEAM).free_cpu_s == 0
    assert journal.budgets.set(TEAM, limit_cpu_s=20, limit_gpu_s=5).free_cpu_s == 8
    assert journal.budgets.set(TEAM, limit_cpu_s=None, limit_gpu_s=None).free_cpu_s is None


def test_budget_of_a_team_without_one_says_how_to_set_it(journal: Journal) -> None:
    with pytest.raises(BudgetExceededError, match="tiltyard budget set vision"):
        journal.budgets.get(TEAM)
    with pytest.raises(BudgetExceededError, match="tiltyard budget set vision"):
        journal.budgets.hold(TEAM, claim=claim(journal), pack_id="p", ask=cpu(1))


def test_budgets_of_all_teams_are_listed_by_name(journal: Journal) -> None:
    for team in ("speech", "vision", "audio"):
        journal.budgets.set(team, limit_cpu_s=1, limit_gpu_s=None)
    assert list(journal.budgets.all()) == ["audio", "speech", "vision"]


@pytest.mark.parametrize("died", ["lease ended", "taken over", "released"])
def test_holds_of_a_dead_sweep_are_settled_in_full_when_the_next_asks(journal: Journal, died: str) -> None:
    journal.budgets.set(TEAM, limit_cpu_s=100, limit_gpu_s=None)
    dead = claim(journal, lease_s=-1 if died != "released" else 60)
    journal.budgets.hold(TEAM, claim=dead, pack_id="p", ask=cpu(30))
    if died == "taken over":
        claim(journal)
    if died == "released":
        journal.release(dead, state="stopped", summary={})
    assert journal.budgets.get(TEAM).reserved == cpu(30)
    other = claim(journal, key="o" * 64)
    journal.budgets.hold(TEAM, claim=other, pack_id="q", ask=cpu(60))
    now = journal.budgets.get(TEAM)
    assert (now.reserved, now.spent) == (cpu(60), cpu(30))


def test_settle_after_the_hold_was_taken_for_dead_books_what_was_used(journal: Journal) -> None:
    journal.budgets.set(TEAM, limit_cpu_s=100, limit_gpu_s=None)
    late = claim(journal, lease_s=-1)
    hold = journal.budgets.hold(TEAM, claim=late, pack_id="p", ask=cpu(30))
    journal.budgets.hold(TEAM, claim=claim(journal, key="o" * 64), pack_id="q", ask=cpu(1))
    journal.budgets.settle(hold, cpu(12))
    assert journal.budgets.get(TEAM).spent == cpu(12)


def test_hold_by_eight_sweeps_at_once_never_passes_the_limit(uri: str) -> None:
    with Journal.open(uri) as journal:
        journal.budgets.set(TEAM, limit_cpu_s=100, limit_gpu_s=None)
    gate = threading.Barrier(8)

    def sweep(n: int) -> int:
        granted = 0
        with Journal.open(uri) as mine:
            by = claim(mine, key=f"{n}" * 64)
            gate.wait(timeout=30)
            for pack in range(6):
                try:
                    hold = mine.budgets.hold(TEAM, claim=by, pack_id=str(pack), ask=cpu(7))
                except BudgetExceededError:
                    continue
                granted += 1
                if pack % 2:
                    mine.budgets.settle(hold, cpu(7))
        return granted

    with ThreadPoolExecutor(8) as pool:
        granted = sum(pool.map(sweep, range(8)))
    with Journal.open(uri) as journal:
        now = journal.budgets.get(TEAM)
    assert granted == 14  # 14 * 7 = 98
    assert now.reserved.cpu_s + now.spent.cpu_s == 98
