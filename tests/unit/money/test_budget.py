"""A budget is held whatever order packs start, go on and end in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import BudgetExceededError
from tiltyard.money import Budget, Seconds, reserve, settle

amounts = st.builds(Seconds, cpu_s=st.floats(0, 100), gpu_s=st.floats(0, 50))
limits = st.none() | st.floats(0, 300)
SLACK = 1e-6


@given(
    cpu=limits,
    gpu=limits,
    events=st.lists(st.tuples(st.sampled_from(["start", "extend", "end"]), amounts, st.integers(0, 9)), max_size=40),
)
def test_budget_with_any_order_of_events_never_passes_its_limit(
    cpu: float | None, gpu: float | None, events: list[tuple[str, Seconds, int]]
) -> None:
    budget = Budget(owner="vision", limit_cpu_s=cpu, limit_gpu_s=gpu)
    held: list[Seconds] = []
    for kind, amount, which in events:
        if kind == "end" and held:
            reserved = held.pop(which % len(held))
            used = Seconds(cpu_s=min(amount.cpu_s, reserved.cpu_s), gpu_s=min(amount.gpu_s, reserved.gpu_s))
            budget = settle(budget, reserved, used)
            continue
        if kind == "end":
            continue
        try:
            after = reserve(budget, amount)
        except BudgetExceededError:
            free_cpu, free_gpu = budget.free_cpu_s, budget.free_gpu_s
            assert (free_cpu is not None and amount.cpu_s > free_cpu) or (
                free_gpu is not None and amount.gpu_s > free_gpu
            )
            continue
        budget = after
        if kind == "extend" and held:
            held[which % len(held)] += amount
        else:
            held.append(amount)
        for limit, reserved_s, spent_s in (
            (cpu, budget.reserved.cpu_s, budget.spent.cpu_s),
            (gpu, budget.reserved.gpu_s, budget.spent.gpu_s),
        ):
            assert limit is None or reserved_s + spent_s <= limit + SLACK
    for reserved in held:
        budget = settle(budget, reserved, Seconds())
    assert budget.reserved.cpu_s == pytest.approx(0, abs=SLACK)
    assert budget.reserved.gpu_s == pytest.approx(0, abs=SLACK)


def test_reserve_of_more_than_is_free_says_the_arithmetic() -> None:
    budget = Budget(owner="team 'vision'", limit_gpu_s=100, spent=Seconds(gpu_s=30), reserved=Seconds(gpu_s=60))
    with pytest.raises(
        BudgetExceededError, match=r"'vision' has 10\.0 GPU-s free; 20\.0 are asked for \(limit 100, spent"
    ):
        reserve(budget, Seconds(gpu_s=20))


def test_settle_of_more_than_was_reserved_leaves_nothing_free() -> None:
    budget = reserve(Budget(owner="x", limit_cpu_s=10), Seconds(cpu_s=10))
    budget = settle(budget, Seconds(cpu_s=10), Seconds(cpu_s=12))
    assert budget.free_cpu_s == 0
    assert budget.spent.cpu_s == 12


def test_budget_without_limits_reserves_anything() -> None:
    assert reserve(Budget(owner="x"), Seconds(cpu_s=1e12, gpu_s=1e12)).free_cpu_s is None
