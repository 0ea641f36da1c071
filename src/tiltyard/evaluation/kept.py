"""Answers that are kept: a folder of Parquet parts in the order of the rows, for labels that come late and later challengers.

Each part holds the row hash, the raw outputs, and the label, key and slice columns that there were. Parts are written one
by one while rows stream past; which folder counts is said by the journal, so what a killed process left counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.errors import DataError

FOLDER = "evaluations"
"""Under the place of storage: in it a folder an evaluation, by key, in that one a folder an attempt."""
OUTPUTS = "(outputs)"
LABELS = "labels"
"""Folder of the sets of labels that came late."""


class Keeper:
    """Writes one model's answers.

    Args:
        folder: Where; nobody else's.
    """

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._parts = 0

    def add(self, table: pa.Table, outputs: npt.NDArray[Any], columns: Sequence[str]) -> None:
        """The next rows: their hashes, answers and the named columns."""
        flat = pa.array(np.ascontiguousarray(outputs, dtype=np.float32).reshape(-1))
        kept = table.select([rows.ROW, *(c for c in columns if c in table.column_names)])
        kept = kept.append_column(OUTPUTS, pa.FixedSizeListArray.from_arrays(flat, outputs.shape[1]))
        (self.folder / f"part-{self._parts:06d}.parquet").write_bytes(table_bytes(kept))
        self._parts += 1


class Kept:
    """Reads one model's answers again, in their order."""

    def __init__(self, folder: Place) -> None:
        self.folder = folder
        self._parts = self.parts()
        self._left: pa.Table | None = None

    def parts(self) -> Iterator[pa.Table]:
        """The parts, one after another.

        Raises:
            DataError: If there are none.
        """
        names = [n for n in self.folder.names() if n.startswith("part-") and n.endswith(".parquet")]
        if not names:
            raise DataError(f"There are no kept answers at {self.folder.uri}; evaluate the version again.")
        for name in names:
            where = self.folder / name
            with where.open_input() as source:
                yield pq.read_table(source)

    def take(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The answers to the next rows, which must be those that were asked about then.

        Raises:
            DataError: If they are other rows.
        """
        tables, wanted = [], len(hashes)
        while wanted:
            part = self._left if self._left is not None else next(self._parts, None)
            if part is None:
                break
            taken = part.slice(0, wanted)
            self._left = part.slice(taken.num_rows) if taken.num_rows < part.num_rows else None
            wanted -= taken.num_rows
            tables.append(taken)
        found = pa.concat_tables(tables) if tables else None
        if found is None or wanted or not np.array_equal(found[rows.ROW].to_numpy(), hashes):
            raise DataError(
                f"The answers kept at {self.folder.uri} are to other rows than these. Evaluate both models in one run."
            )
        return outputs_of(found)


class Joined:
    """One model's answers by row hash, where the rows of two models are not the same ones.

    In memory: 8 bytes a row and 4 for each output. Rows of one hash are the same row.
    """

    def __init__(self, folder: Place) -> None:
        parts = [(p[rows.ROW].to_numpy(), outputs_of(p)) for p in Kept(folder).parts()]
        hashes = np.concatenate([h for h, _ in parts])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._outputs = hashes[order], np.concatenate([o for _, o in parts])[order]

    def take(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The answers to these rows; NaN where there is none."""
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        found = self._outputs[places].copy()
        found[self._hashes[places] != hashes] = np.nan
        return found


def table_bytes(table: pa.Table) -> bytes:
    """A file of kept answers or labels."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="lz4", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue().to_pybytes())


def keep_labels(folder: Place, name: str, labels: pa.Table) -> None:
    """Keeps a set of labels beside the answers that they were joined to."""
    (folder / LABELS / f"{name}.parquet").write_bytes(table_bytes(labels))


def kept_labels(folder: Place, name: str) -> pa.Table:
    """A set of labels that was kept."""
    where = folder / LABELS / f"{name}.parquet"
    with where.open_input() as source:
        return pq.read_table(source)


def outputs_of(part: pa.Table) -> npt.NDArray[np.float32]:
    """Raw outputs ``(rows, outputs)`` of a part."""
    column = part[OUTPUTS].combine_chunks()
    return np.asarray(column.flatten().to_numpy().reshape(len(column), column.type.list_size))
