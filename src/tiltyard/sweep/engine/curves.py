"""The curves of trials, read back from the Parquet files that packs left, one file at a time and each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiltyard.journal import CellScore
from tiltyard.sweep.engine.execute import CURVES, read_curves
from tiltyard.sweep.engine.layout import Storage

Point = tuple[int, dict[str, float]]
KEPT_FILES = 8
"""Files held at once: the trials that end together come from few packs."""


class Curves:
    """Histories by trial."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._files: dict[str, dict[str, list[Point]]] = {}

    def of(self, cell: str, scores: Sequence[CellScore]) -> list[Point]:
        """The history of a trial: (epoch, scores and training loss) in order.

        Args:
            cell: The trial's cell.
            scores: What is known of it, one entry a rung, rising in epoch.
        """
        return [point for score in scores for point in self._file(score.storage_uri).get(cell, [])]

    def _file(self, uri: str) -> dict[str, list[Point]]:
        if uri not in self._files:
            while len(self._files) >= KEPT_FILES:
                self._files.pop(next(iter(self._files)))
            with self._storage.reading(uri) as folder:
                self._files[uri] = _by_cell(read_curves(folder / CURVES)) if (folder / CURVES).exists() else {}
        return self._files[uri]


def _by_cell(columns: Mapping[str, Any]) -> dict[str, list[Point]]:
    names = [n for n in columns if n not in {"cell", "epoch"}]
    found: dict[str, list[Point]] = {}
    for i, cell in enumerate(columns["cell"]):
        found.setdefault(str(cell), []).append((int(columns["epoch"][i]), {n: float(columns[n][i]) for n in names}))
    return found
