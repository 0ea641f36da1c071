"""Scores by declared slices: the values of a category, or ranges of a number. Pure."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.data.profile import ColumnProfile, category
from tiltyard.errors import SpecError
from tiltyard.evaluation.scores import Array, Scored, ScoreFold
from tiltyard.types import Task

MOST_VALUES = 32
"""Slices a column has at most; the rarest values in training are one slice together."""
OTHER, MISSING = "(other)", "(missing)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A column that scores are split by.

    Args:
        column: Its name; it need not be an input of the model.
        edges: For numbers: where ranges end, ascending; ``(30, 50)`` makes below 30, 30 to below 50, and 50 or more.
    """

    column: str
    edges: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if list(self.edges) != sorted(set(self.edges)) or len(self.edges) >= MOST_VALUES:
            raise SpecError(
                f"Slice {self.column!r} has edges {self.edges}; wanted fewer than {MOST_VALUES}, ascending, each once."
            )

    @classmethod
    def parse(cls, text: str) -> Slice:
        """Reads ``COLUMN`` or ``COLUMN:30,50``.

        >>> Slice.parse("age:30,50").edges
        (30.0, 50.0)
        """
        column, _, edges = text.partition(":")
        try:
            return cls(column=column, edges=tuple(float(e) for e in edges.split(",") if e))
        except ValueError as error:
            raise SpecError(f"Slice {text!r} is not COLUMN or COLUMN:30,50: {error}.") from error

    def names(self, profile: ColumnProfile) -> tuple[str, ...]:
        """The slices' names, from what the training split looked like.

        Raises:
            SpecError: If the column is neither a category nor has edges.
        """
        if self.edges:
            inner = [f"{a:g} to {b:g}" for a, b in zip(self.edges, self.edges[1:], strict=False)]
            return (f"below {self.edges[0]:g}", *inner, f"{self.edges[-1]:g} or more", MISSING)
        if not profile.categories:
            raise SpecError(
                f"Slice {self.column!r} is {profile.type} with no few values to split by; give edges: {self.column}:30,50."
            )
        return (*list(profile.categories)[:MOST_VALUES], OTHER, MISSING)

    def codes(self, array: pa.Array, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Which slice each row is in, by place in ``names``."""
        if self.edges:
            values = array.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            codes = np.searchsorted(np.array(self.edges), values, side="right")
            return np.asarray(np.where(np.isnan(values), len(names) - 1, codes), dtype=np.int64)
        encoded = array.dictionary_encode()
        place = {n: i for i, n in enumerate(names)}
        of = [place.get(category(v), len(names) - 2) for v in encoded.dictionary.to_pylist()]
        codes = encoded.indices.fill_null(len(of)).to_numpy(zero_copy_only=False)
        return np.asarray(np.array([*of, len(names) - 1], dtype=np.int64)[codes])


class SlicedFold:
    """One `ScoreFold` a slice.

    Args:
        slices: What is split by.
        profiles: Of their columns, in the training split.
        task: What the model predicts.
        num_outputs: Its outputs.
        centre: See `ScoreFold`.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        profiles: Mapping[str, ColumnProfile],
        *,
        task: Task,
        num_outputs: int,
        centre: float = 0.0,
    ) -> None:
        self._slices = tuple(slices)
        self._names = {s.column: s.names(_profile(s, profiles)) for s in slices}
        self._task, self._num_outputs, self._centre = task, num_outputs, centre
        self._folds: dict[tuple[str, str], ScoreFold] = {}

    def add(self, table: pa.Table, outputs: Array, y: Array) -> None:
        """The next rows, with their slice columns; a column that is not there has no slices."""
        for s in self._slices:
            if s.column not in table.column_names:
                continue
            column = table[s.column]
            array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            names = self._names[s.column]
            codes = s.codes(array, names)
            for code in np.unique(codes):
                chosen = codes == code
                self._fold(s.column, names[code]).add(outputs[chosen], y[chosen])

    def _fold(self, column: str, name: str) -> ScoreFold:
        if (column, name) not in self._folds:
            self._folds[column, name] = ScoreFold(self._task, self._num_outputs, centre=self._centre)
        return self._folds[column, name]

    def done(self, metrics: Sequence[str] | None = None) -> dict[str, dict[str, Scored]]:
        """Column to slice to scores, in the order of the names."""
        found: dict[str, dict[str, Scored]] = {}
        for s in self._slices:
            found[s.column] = {
                n: self._folds[s.column, n].done(metrics) for n in self._names[s.column] if (s.column, n) in self._folds
            }
        return found


def worst(slices: Mapping[str, Mapping[str, Scored]], metric: str, *, sign: float) -> tuple[str, str, float] | None:
    """Column, slice and score of the slice that is surely worst: by the better end of its interval.

    Args:
        slices: As `SlicedFold.done` gives them.
        metric: Which score.
        sign: 1 where larger is better, -1 where smaller is.
    """
    ranked: list[tuple[float, str, str, float]] = []
    for column, of in slices.items():
        for name, scored in of.items():
            score = scored.scores.get(metric)
            if score is not None and score.low is not None and score.high is not None:
                bisect.insort(ranked, (sign * (score.high if sign > 0 else score.low), column, name, score.value))
    return (ranked[0][1], ranked[0][2], ranked[0][3]) if ranked else None


def _profile(s: Slice, profiles: Mapping[str, ColumnProfile]) -> ColumnProfile:
    if s.column not in profiles:
        raise SpecError(
            f"Slice {s.column!r} is no column of the training data; it has {', '.join(list(profiles)[:30])}."
        )
    return profiles[s.column]
