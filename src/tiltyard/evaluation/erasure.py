"""A person's rows out of what evaluations kept: the answers to them, and the labels that came late.

Kept answers hold the row's hash and, where there were any, its key and label. A row is known by its hash, or by its key where
that was kept, so answers to versions that are long gone are found too. Folders that no result counts (of a process that was
killed) are looked through like the others. Scores, slices and fairness stay: they are sums over rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.evaluation.kept import FOLDER, LABELS, table_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What `forget` took out, or would.

    Args:
        answers: Kept answers.
        labels: Labels that came late.
        folders: Where they were, one an evaluation and attempt.
        unknown: Files of labels beside such answers of which it cannot be told whose they are.
    """

    answers: int = 0
    labels: int = 0
    folders: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whose:
    """How the rows are known.

    Args:
        hashes: Hashes of the rows, int64.
        column: The column that says whose a row is.
        values: Whose rows go, as texts.
        keys: Key columns of the dataset, by which late labels were joined.
    """

    hashes: npt.NDArray[np.int64]
    column: str
    values: Sequence[str]
    keys: Sequence[str] = ()

    def answered(self, part: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows of a part of kept answers are theirs."""
        return np.isin(part[rows.ROW].to_numpy(), self.hashes) | self.named(part)

    def named(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Which rows have one of the values."""
        if self.column not in table.column_names:
            return np.zeros(table.num_rows, bool)
        found = pc.is_in(pc.cast(table[self.column], pa.string()), value_set=pa.array(self.values, pa.string()))
        return np.asarray(found.combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)


def forget(storage: Place, evaluations: Sequence[str], whose: Whose, *, look_only: bool = False) -> Forgotten:
    """Takes the answers to some rows out of what evaluations kept.

    Args:
        storage: Where evaluations keep answers (``Settings.storage_uri``).
        evaluations: Their keys in the journal: those of the dataset, for a key of another one is another person.
        whose: Which rows.
        look_only: Counts and changes nothing.
    """
    roots = [storage / FOLDER / key for key in evaluations]
    found = [_forget_in(root / fence, whose, look_only) for root in roots for fence in root.names()]
    return Forgotten(
        answers=sum(f.answers for f in found),
        labels=sum(f.labels for f in found),
        folders=tuple(folder for f in found for folder in f.folders),
        unknown=tuple(file for f in found for file in f.unknown),
    )


def _forget_in(folder: Place, whose: Whose, look_only: bool) -> Forgotten:
    """Of one folder: a part whose rows all go stays as an empty one, for a folder without parts reads as never written."""
    answers = labels = 0
    gone: list[pa.Table] = []
    for where in (folder / n for n in folder.names() if n.startswith("part-") and n.endswith(".parquet")):
        part = _read(where)
        theirs = whose.answered(part)
        if theirs.any():
            answers += int(theirs.sum())
            gone.append(part.filter(pa.array(theirs)))
            _write_rest(where, part, theirs, look_only)
    unknown: list[str] = []
    for where in (folder / LABELS / n for n in (folder / LABELS).names() if n.endswith(".parquet")):
        table = _read(where)
        told = whose.column in table.column_names
        theirs = whose.named(table)
        for part in gone:
            if whose.keys and set(whose.keys) <= {*table.column_names} & {*part.column_names}:
                told, theirs = True, theirs | _has_key_of(table, part, list(whose.keys))
        if gone and not told:
            unknown.append(where.uri)
        if theirs.any():
            labels += int(theirs.sum())
            _write_rest(where, table, theirs, look_only)
    return Forgotten(
        answers=answers, labels=labels, folders=(folder.uri,) if answers or labels else (), unknown=tuple(unknown)
    )


def _read(where: Place) -> pa.Table:
    with where.open_input() as source:
        return pq.read_table(source)


def _write_rest(where: Place, table: pa.Table, theirs: npt.NDArray[np.bool_], look_only: bool) -> None:
    if not look_only:
        where.write_bytes(table_bytes(table.filter(pa.array(~theirs))))


def _has_key_of(table: pa.Table, part: pa.Table, keys: list[str]) -> npt.NDArray[np.bool_]:
    """Which rows of a table have the key of some row of a part; keys of another type are compared as texts."""

    def texts(of: pa.Table) -> list[pa.ChunkedArray]:
        return [pc.cast(of[k], pa.string()) for k in keys]

    there = {tuple(row) for row in zip(*(c.to_pylist() for c in texts(part)), strict=True)}
    return np.array([row in there for row in zip(*(c.to_pylist() for c in texts(table)), strict=True)], bool)
