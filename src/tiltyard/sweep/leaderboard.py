"""The ranked result of an experiment, with its uncertainty. Pure.

Trials are ranked on the validation split. The few best of each dataset, the finalists, are then scored once on the
untouched test split, row by row, so that two of them can be compared on the same rows.

Intervals are percentile bootstrap over rows (Efron & Tibshirani 1993), seeded; for accuracy the Wilson score interval
(Wilson 1927). "Cannot be told apart from the best" is `tiltyard.sweep.comparison`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.sweep.comparison import comparison_of
from tiltyard.types import METRICS, Mode

SCHEMA_VERSION = 1
OLD_COMPARISON = "paired bootstrap of rows"
"""What ties were found with before it was written down beside them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How one trial ended, as the machine and the journal say."""

    cell: str
    name: str
    variant: str
    dataset: str
    index: int
    state: str
    epoch: int
    score: float | None
    reason: str | None
    config: Mapping[str, Any]
    beside: tuple[float, ...] = ()
    """The scores recorded beside the ranking one, in the objective's order, signed so that larger is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestScore:
    """A finalist's one look at the test split. ``low`` and ``high`` bound 95%."""

    metric: str
    value: float
    low: float
    high: float
    rows: int
    others: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of a dataset's table."""

    rank: int
    cell: str
    name: str
    variant: str
    state: str
    epoch: int
    validation: float | None
    test: TestScore | None
    tied_with_best: bool
    reason: str | None
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """Per dataset the ranked trials, best first; failed and interrupted ones last."""

    experiment: str
    key: str
    metric: str
    mode: str
    tables: Mapping[str, tuple[Row, ...]]
    test_looks: int = 1
    comparison: str = OLD_COMPARISON
    """How ties with the best were found on the test rows."""

    def best(self, dataset: str) -> Row | None:
        """The first of a dataset's table, if any trial has a score."""
        rows = self.tables[dataset]
        return rows[0] if rows and rows[0].validation is not None else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Leaderboard:
        """Reads what `to_json` gave.

        Raises:
            SpecError: If a newer Tiltyard wrote it.
        """
        if data.get("schema_version") != SCHEMA_VERSION:
            raise SpecError(
                f"This leaderboard has schema version {data.get('schema_version')}; this Tiltyard reads version "
                f"{SCHEMA_VERSION}. Read it with the Tiltyard that wrote it, or newer."
            )
        fields = {k: v for k, v in data.items() if k != "schema_version"}
        fields["tables"] = {dataset: tuple(_row(r) for r in rows) for dataset, rows in fields["tables"].items()}
        return cls(**fields)


def _row(data: Mapping[str, Any]) -> Row:
    test = TestScore(**data["test"]) if data["test"] else None
    return Row(**{**data, "test": test, "config": {k: _tuples(v) for k, v in data["config"].items()}})


def _tuples(value: Any) -> Any:
    """Lists of JSON as the tuples that a configuration has."""
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


def beside(metrics: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    """Scores that tell equal ones apart, in their order, signed so that larger is better; a missing one is the worst."""
    signed = ((METRICS[name].mode.sign, metrics.get(name, math.nan)) for name in names)
    return tuple(sign * value if math.isfinite(value) else -math.inf for sign, value in signed)


def rank(results: Sequence[Result], mode: Mode) -> list[Result]:
    """Best first: by how far training went, score, the scores beside it, then the trial's place in the plan.

    A trial that was stopped early is below every trial that trained longer, whatever its score then was. On a small
    validation split many trials have the very same accuracy; the scores beside it (log loss) tell them apart.
    """
    return sorted(
        results,
        key=lambda r: (
            r.score is None or r.state in {"failed", "interrupted"},
            -r.epoch,
            -mode.sign * r.score if r.score is not None else 0.0,
            tuple(-value for value in r.beside),
            r.dataset,
            r.variant,
            r.index,
        ),
    )


def finalists(results: Sequence[Result], mode: Mode, count: int) -> list[Result]:
    """The best ``count`` of one dataset's results that trained to the end."""
    return [r for r in rank(results, mode) if r.state == "done" and r.score is not None][:count]


def leaderboard(
    *,
    experiment: str,
    key: str,
    metric: str,
    mode: Mode,
    results: Sequence[Result],
    tests: Mapping[str, TestScore],
    tied: frozenset[str],
    test_looks: int = 1,
) -> Leaderboard:
    """Puts the tables together.

    Args:
        experiment: Its name.
        key: Its key.
        metric: The ranking metric.
        mode: Its direction.
        results: Every trial of every dataset.
        tests: Test scores of the finalists, by cell.
        tied: Cells that cannot be told apart from the best of their dataset on the test split.
        test_looks: How often the test split has been looked at for this key.
    """
    tables = {}
    for dataset in dict.fromkeys(r.dataset for r in results):
        ordered = rank([r for r in results if r.dataset == dataset], mode)
        tables[dataset] = tuple(
            Row(
                rank=i,
                cell=r.cell,
                name=r.name,
                variant=r.variant,
                state=r.state,
                epoch=r.epoch,
                validation=r.score,
                test=tests.get(r.cell),
                tied_with_best=r.cell in tied,
                reason=r.reason,
                config=dict(r.config),
            )
            for i, r in enumerate(ordered, start=1)
        )
    return Leaderboard(
        experiment=experiment,
        key=key,
        metric=metric,
        mode=str(mode),
        tables=tables,
        test_looks=test_looks,
        comparison=comparison_of(metric).value,
    )


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a share.

    >>> tuple(round(v, 3) for v in wilson(95, 100))
    (0.888, 0.978)
    """
    p = successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


def dumps(board: Leaderboard) -> str:
    """As JSON text."""
    return json.dumps(board.to_json(), sort_keys=True)
