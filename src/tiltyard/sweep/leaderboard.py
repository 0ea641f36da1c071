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
from dataclasses import asdict, dataclass, replace
from typing import Any

from tiltyard.errors import SpecError
from tiltyard.sweep.comparison import comparison_of
from tiltyard.sweep.plan import replicate_number
from tiltyard.sweep.replicates import Difference, Replicates, Spread, difference, not_apart, spread
from tiltyard.types import METRICS, Mode

SCHEMA_VERSION = 2
"""2: rows have ``replicates``, which those of 1 have not."""
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

    @property
    def replicate(self) -> int:
        """Which replicate of the finalist with this variant, dataset and index it is; 0 for a trial of the search."""
        return replicate_number(self.name.rpartition("/")[0])

    @property
    def place(self) -> tuple[str, str, int]:
        """What a finalist and its replicates share."""
        return self.dataset, self.variant, self.index


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
    replicates: Replicates | None = None
    """Of a finalist, what training it again came to; None where it was not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """Per dataset the ranked trials, best first; failed and interrupted ones last.

    Where finalists were trained again, they are ranked by the mean of their replicates on the validation split; and
    ``tied_with_best`` says that the test rows or the replicates cannot tell a finalist apart from the best.
    """

    experiment: str
    key: str
    metric: str
    mode: str
    tables: Mapping[str, tuple[Row, ...]]
    test_looks: int = 1
    comparison: str = OLD_COMPARISON
    """How ties with the best were found on the test rows."""
    order_dependent: tuple[str, ...] = ()
    """Variants whose trials end otherwise when events come in another order: a stock scheduler of Ray Tune stopped them."""

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
        if data.get("schema_version") not in range(1, SCHEMA_VERSION + 1):
            raise SpecError(
                f"This leaderboard has schema version {data.get('schema_version')}; this Tiltyard reads up to version "
                f"{SCHEMA_VERSION}. Read it with the Tiltyard that wrote it, or newer."
            )
        fields = {k: v for k, v in data.items() if k != "schema_version"}
        fields["tables"] = {dataset: tuple(_row(r) for r in rows) for dataset, rows in fields["tables"].items()}
        fields["order_dependent"] = tuple(fields.get("order_dependent", ()))
        return cls(**fields)


def _row(data: Mapping[str, Any]) -> Row:
    test = TestScore(**data["test"]) if data["test"] else None
    again = _replicates(data["replicates"]) if data.get("replicates") else None
    config = {k: _tuples(v) for k, v in data["config"].items()}
    return Row(**{**data, "test": test, "replicates": again, "config": config})


def _replicates(data: Mapping[str, Any]) -> Replicates:
    spreads = {name: Spread(**data[name]) if data[name] else None for name in ("validation", "test")}
    behind = Difference(**data["behind_best"]) if data["behind_best"] else None
    return Replicates(**{**data, **spreads, "behind_best": behind})


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


def standing(results: Sequence[Result], mode: Mode) -> list[Result]:
    """The trials of the search, best first: by `rank`, those with replicates among themselves by the mean of these.

    They keep the places that they have together. The mean is that of the ranking metric on the validation split, without
    the run that was picked; one whose replicates all failed comes after the others. While replicates have yet to end, the
    places are those of `rank`.
    """
    ordered = rank([r for r in results if not r.replicate], mode)
    again = _by_place(results)
    if any(r.state not in {"done", "failed"} for replicates in again.values() for r in replicates):
        return ordered
    places = [i for i, r in enumerate(ordered) if r.place in again]

    def mean(r: Result) -> tuple[bool, float]:
        found = spread(list(_scores(again[r.place]).values()))
        return found is None, 0.0 if found is None else -mode.sign * found.mean

    for i, r in zip(places, sorted((ordered[i] for i in places), key=mean), strict=True):
        ordered[i] = r
    return ordered


def finalists(results: Sequence[Result], mode: Mode, count: int) -> list[Result]:
    """The best ``count`` of one dataset's results that trained to the end, best first."""
    picked = [r.cell for r in rank([r for r in results if not r.replicate], mode) if _trained(r)][:count]
    return [r for r in standing(results, mode) if r.cell in picked]


def _trained(result: Result) -> bool:
    return result.state == "done" and result.score is not None


def _by_place(results: Sequence[Result]) -> dict[tuple[str, str, int], list[Result]]:
    found: dict[tuple[str, str, int], list[Result]] = {}
    for r in results:
        if r.replicate:
            found.setdefault(r.place, []).append(r)
    return found


def _scores(replicates: Sequence[Result]) -> dict[int, float]:
    """Validation scores by number of the replicate."""
    return {r.replicate: r.score for r in replicates if r.state == "done" and r.score is not None}


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
    replicate_tests: Mapping[str, float] | None = None,
    order_dependent: Sequence[str] = (),
) -> Leaderboard:
    """Puts the tables together.

    Args:
        experiment: Its name.
        key: Its key.
        metric: The ranking metric.
        mode: Its direction.
        results: Every trial of every dataset, replicates of finalists too.
        tests: Test scores of the finalists, by cell.
        tied: Cells that cannot be told apart from the best of their dataset on the test split.
        test_looks: How often the test split has been looked at for this key.
        replicate_tests: The ranking metric of replicates on the test split, by cell.
        order_dependent: Variants that a stock scheduler of Ray Tune stopped early.
    """
    tables = {}
    for dataset in dict.fromkeys(r.dataset for r in results):
        of_dataset = [r for r in results if r.dataset == dataset]
        ordered = standing(of_dataset, mode)
        again, untold = _told_apart(ordered, of_dataset, mode, replicate_tests or {})
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
                tied_with_best=r.cell in tied or r.cell in untold,
                reason=r.reason,
                config=dict(r.config),
                replicates=again.get(r.cell),
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
        order_dependent=tuple(order_dependent),
    )


def _told_apart(
    ordered: Sequence[Result], results: Sequence[Result], mode: Mode, tests: Mapping[str, float]
) -> tuple[dict[str, Replicates], frozenset[str]]:
    """What the replicates of one dataset's finalists say, by the finalists' cells, and who cannot be told from the best.

    They are compared on the test split where each of them was looked at there, else on the validation split.
    """
    by_place = _by_place(results)
    validation: dict[str, dict[int, float]] = {}
    test: dict[str, dict[int, float]] = {}
    told: dict[str, Replicates] = {}
    for own in (r for r in ordered if r.place in by_place):
        ended = [r for r in by_place[own.place] if r.state in {"done", "failed"}]
        scores = validation[own.cell] = _scores(ended)
        test[own.cell] = {r.replicate: tests[r.cell] for r in ended if r.cell in tests}
        mean = spread(list(scores.values()))
        told[own.cell] = Replicates(
            num=len(ended),
            failed=len(ended) - len(scores),
            validation=mean,
            test=spread(list(test[own.cell].values())),
            luck=None if mean is None or own.score is None else mode.sign * (own.score - mean.mean),
        )
    if not told:
        return {}, frozenset()
    on = test if all(len(test[c]) == len(validation[c]) for c in told) else validation
    best, *others = told
    behind = {cell: difference(on[best], on[cell], mode) for cell in others}
    told |= {cell: replace(told[cell], behind_best=d) for cell, d in behind.items()}
    return told, not_apart(behind)


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
