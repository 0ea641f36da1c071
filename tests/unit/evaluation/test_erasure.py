"""A person's rows in what evaluations kept: answers by hash or key, labels that came late; others stay as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.evaluation.erasure import Whose, forget
from tiltyard.evaluation.kept import FOLDER, Keeper, Kept, keep_labels, kept_labels, outputs_of

ROWS = 30
TABLE = pa.table(
    {
        "id": pa.array(np.arange(ROWS)),
        "person": pa.array([f"p{i % 10}" for i in range(ROWS)]),
        rows.ROW: pa.array(np.arange(ROWS) * 5 - 60),
    }
)
OUT = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)


def keep(storage: Place, key: str, columns: list[str]) -> Place:
    folder = storage / FOLDER / key / "0001"
    keeper = Keeper(folder)
    for start in range(0, ROWS, 10):
        keeper.add(TABLE.slice(start, 10), OUT[start : start + 10], columns)
    return folder


def whose(hashes: list[int] | None = None, column: str = "id", values: tuple[str, ...] = ()) -> Whose:
    return Whose(hashes=np.array(hashes or [], np.int64), column=column, values=values, keys=("id",))


@settings(max_examples=25)
@given(st.sets(st.integers(0, ROWS - 1)), st.booleans())
def test_forget_of_any_rows_takes_their_answers_and_keeps_all_others_in_order(
    tmp_path_factory: object, gone: set[int], by_key: bool
) -> None:
    storage = Place.of(str(tmp_path_factory.mktemp("storage")))  # type: ignore[attr-defined]
    folder = keep(storage, "mine", ["id"])
    other = keep(storage, "another dataset's", ["id"])
    who = whose(values=tuple(map(str, gone))) if by_key else whose([i * 5 - 60 for i in gone])
    assert forget(storage, ["mine"], who, look_only=True).answers == len(gone)
    found = forget(storage, ["mine", "of a folder that is not there"], who)
    assert (found.answers, found.folders) == (len(gone), (folder.uri,) if gone else ())
    left = [i for i in range(ROWS) if i not in gone]
    parts = list(Kept(folder).parts())
    np.testing.assert_array_equal(np.concatenate([outputs_of(p) for p in parts]), OUT[left])
    assert sum(p.num_rows for p in Kept(other).parts()) == ROWS
    assert forget(storage, ["mine"], who).answers == 0


def test_forget_takes_late_labels_by_the_column_or_by_the_key_of_the_answers(tmp_path: Path) -> None:
    storage = Place.of(str(tmp_path))
    folder = keep(storage, "k", ["id", "person"])
    keep_labels(folder, "by-id", pa.table({"id": pa.array([3, 4, 13], pa.int32()), "y": [0, 1, 0]}))
    keep_labels(folder, "by-person", pa.table({"person": ["p3", "p4"], "y": [0, 1]}))
    keep_labels(folder, "by-nothing", pa.table({"ticket": [1], "y": [0]}))
    found = forget(storage, ["k"], whose(column="person", values=("p3",)))
    assert (found.answers, found.labels) == (3, 3)
    assert [u.rpartition("/")[2] for u in found.unknown] == ["by-nothing.parquet"]
    assert kept_labels(folder, "by-id")["id"].to_pylist() == [4]
    assert kept_labels(folder, "by-person")["person"].to_pylist() == ["p4"]
