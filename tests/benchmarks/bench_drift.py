"""Drift in simulation: how often a small change is found, and how often a clean version is flagged.

A training version of 50,000 rows with 32 numbers (in blocks of eight, correlated by 0.5) and 8 categories of five values;
then 200 new versions of 5,000 rows each, clean, and 200 with one number shifted by 0.15 standard deviations and the share of
one category moved by three points (numbers and categories are corrected apart). All of it five times: two hundred versions
tell a rate to two or three points only, and share one training version. What is measured is a rate; its limit is what was promised.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from harness import Benchmark, Figure

from tiltyard.data.profile import ColumnProfile, profile
from tiltyard.evaluation.drift import DriftFold

TRAIN_ROWS, ROWS, VERSIONS, TRAININGS = 50_000, 5_000, 200, 5
NUMBERS, CATEGORICAL, BLOCK = 32, 8, 8
SHARES = np.array([0.40, 0.25, 0.20, 0.10, 0.05])
VALUES = np.array(["a", "b", "c", "d", "e"])
NUMBER_SHIFT, SHARE_MOVE = 0.15, 0.03
SEED = int(os.environ.get("TILTYARD_BENCH_SEED", "424242"))
"""Thresholds were chosen on seed 20261125; what is measured is another draw."""
Draw = npt.NDArray[np.float64]


def version(
    rng: np.random.Generator, rows: int, *, shifted: int | None = None, moved: tuple[int, int] | None = None
) -> pa.Table:
    """Rows of 40 columns; ``moved`` is which categorical column, and which of its categories gains."""
    common = rng.normal(size=(rows, NUMBERS // BLOCK))
    numbers = np.sqrt(0.5) * np.repeat(common, BLOCK, axis=1) + np.sqrt(0.5) * rng.normal(size=(rows, NUMBERS))
    if shifted is not None:
        numbers[:, shifted] += NUMBER_SHIFT
    columns = {f"n{i}": pa.array(numbers[:, i].astype(np.float32)) for i in range(NUMBERS)}
    for i in range(CATEGORICAL):
        shares = SHARES
        if moved is not None and moved[0] == i:
            shares = SHARES * (1 - SHARE_MOVE / (1 - SHARES[moved[1]]))
            shares[moved[1]] = SHARES[moved[1]] + SHARE_MOVE
        columns[f"c{i}"] = pa.array(VALUES[rng.choice(len(VALUES), size=rows, p=shares)])
    return pa.table(columns)


def drifted(references: dict[str, ColumnProfile], table: pa.Table) -> tuple[str, ...]:
    fold = DriftFold(references)
    fold.add(table)
    return fold.report().drifted


def rates() -> Iterable[Figure]:
    """Shares of the versions after five training versions."""
    rng = np.random.default_rng(SEED)
    clean, number, category = ([0] * TRAININGS for _ in range(3))
    by_share: dict[float, list[bool]] = {}
    for t in range(TRAININGS):
        references = dict(profile(version(rng, TRAIN_ROWS)).columns)
        for _ in range(VERSIONS):
            clean[t] += bool(drifted(references, version(rng, ROWS)))
            shifted = int(rng.integers(NUMBERS))
            moved = int(rng.integers(CATEGORICAL)), int(rng.integers(len(SHARES)))
            found = drifted(references, version(rng, ROWS, shifted=shifted, moved=moved))
            number[t] += f"n{shifted}" in found
            category[t] += f"c{moved[0]}" in found
            by_share.setdefault(float(SHARES[moved[1]]), []).append(f"c{moved[0]}" in found)
    told = ", ".join(f"{share:.0%}: {sum(f)}/{len(f)}" for share, f in sorted(by_share.items()))
    yield _rate("drift_shift_found", number, "promised at least", 0.90, f"{NUMBER_SHIFT} sd in one of 40 columns")
    yield _rate("drift_category_found", category, "promised at least", 0.90, f"3 points; by its share before: {told}")
    yield _rate("drift_clean_flagged", clean, "promised at most", 0.05, "any of 40 columns", most=True)


def _rate(name: str, counts: list[int], against: str, limit: float, note: str, *, most: bool = False) -> Figure:
    value = sum(counts) / VERSIONS / len(counts)
    note = f"{note}; of {VERSIONS}, by training version: {', '.join(map(str, counts))}; seed {SEED}"
    ratio = (limit / value if value else None) if most else value / limit
    return Figure(name, value, f"of {VERSIONS * len(counts)}", against, limit, ratio, note)


def benchmarks() -> list[Benchmark]:
    """What this file measures."""
    return [rates]
