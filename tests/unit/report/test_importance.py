"""Which hyperparameters mattered, on scores whose causes are known."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.report.importance import LEAST_TRIALS, importances, standings


def trials(n: int, seed: int) -> tuple[list[dict[str, object]], np.ndarray]:
    rng = np.random.default_rng(seed)
    configs: list[dict[str, object]] = [
        {"lr": float(rng.random()), "noise": float(rng.random()), "kind": str(rng.choice(["a", "b"])), "same": 1}
        for _ in range(n)
    ]
    return configs, rng.random(n)


def test_importances_of_a_score_that_one_parameter_makes_name_it_alone() -> None:
    configs, _ = trials(200, 0)
    found = importances(configs, [abs(c["lr"] - 0.4) for c in configs])  # type: ignore[operator]
    assert found[0].parameter == "lr"
    assert found[0].share > 0.8
    assert all(i.share < 0.1 for i in found[1:])
    assert "same" not in {i.parameter for i in found}


def test_importances_of_noise_are_near_nothing_on_average() -> None:
    shares = []
    for seed in range(60):
        configs, scores = trials(40, seed)
        shares += [i.share for i in importances(configs, list(scores))]
    assert np.mean(shares) < 0.05  # below 0 is cut off, so the mean is a little above it


def test_importances_of_choices_and_missing_values_treat_each_as_a_class() -> None:
    configs: list[dict[str, object]] = [{"kind": "a", "only_a": i / 20} if i % 2 else {"kind": "b"} for i in range(20)]
    found = {i.parameter: i.share for i in importances(configs, [float(i % 2) for i in range(20)])}
    assert found["kind"] == 1.0
    assert importances(configs[: LEAST_TRIALS - 1], [0.0] * (LEAST_TRIALS - 1)) == []


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), max_size=30), st.sampled_from([1.0, -1.0]))
def test_standings_of_any_scores_lie_between_worst_and_best_and_average_a_half(
    scores: list[float | None], sign: float
) -> None:
    found = standings(scores, sign)
    assert all(0 <= s <= 1 for s in found)
    if found:
        assert np.isclose(np.mean(found), 0.5)
    usable = [(sign * s, f) for s, f in zip(scores, found, strict=True) if s is not None and np.isfinite(s)]
    assert [f for _, f in sorted(usable)] == sorted(f for _, f in usable)
