"""The curves of trials, read back from the Parquet files that packs left, one file at a time and each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

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


def curves_of_some(
    storage: Storage, wanted: Mapping[str, Sequence[CellScore]], metric: str
) -> dict[str, list[tuple[int, float]]]:
    """One metric by epoch of some trials: every file is opened once, and of each only what is asked for is read.

    Args:
        storage: Where the files are. One that is gone is left out.
        wanted: By cell: what is known of it, one entry a rung, rising in epoch.
        metric: Which column.
    """
    cells: dict[str, list[str]] = {}
    for cell, scores in wanted.items():
        for score in scores:
            cells.setdefault(score.storage_uri, []).append(cell)
    found: dict[str, dict[int, float]] = {cell: {} for cell in wanted}
    for uri, some in cells.items():
        with storage.opening(f"{uri}/{CURVES}") as file:
            opened = None if file is None else pq.ParquetFile(file)
            if opened is None or metric not in opened.schema_arrow.names:  # nothing in it has ever been scored
                continue
            table = opened.read(columns=["cell", "epoch", metric])
        table = table.filter(pc.is_in(table.column("cell"), pa.array(some, table.column("cell").type)))
        for cell, epoch, value in zip(*(column.to_pylist() for column in table.columns), strict=True):
            found[cell][epoch] = value
    return {cell: sorted(points.items()) for cell, points in found.items()}


def _by_cell(columns: Mapping[str, Any]) -> dict[str, list[Point]]:
    names = [n for n in columns if n not in {"cell", "epoch"}]
    found: dict[str, list[Point]] = {}
    for i, cell in enumerate(columns["cell"]):
        found.setdefault(str(cell), []).append((int(columns["epoch"][i]), {n: float(columns[n][i]) for n in names}))
    return found
