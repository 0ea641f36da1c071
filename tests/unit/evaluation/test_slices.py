"""Scores by slices equal the scores of the slice's rows alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tiltyard.data.profile import profile
from tiltyard.errors import SpecError
from tiltyard.evaluation.scores import ScoreFold
from tiltyard.evaluation.slices import MISSING, OTHER, Slice, SlicedFold, worst
from tiltyard.types import Task

RNG = np.random.default_rng(0)
ROWS = 600
TABLE = pa.table(
    {
        "region": pa.array(RNG.choice(["north", "south"], ROWS)),
        "age": pa.array(np.where(np.arange(ROWS) % 50 == 0, np.nan, RNG.uniform(18, 80, ROWS))),
    }
)
PROFILES = profile(TABLE).columns
Y = RNG.integers(0, 2, ROWS)
OUT = (np.eye(2)[Y] * 2 + RNG.normal(size=(ROWS, 2))).astype(np.float32)


def test_sliced_folds_in_parts_equal_folds_of_each_slice_alone() -> None:
    fold = SlicedFold(
        [Slice(column="region"), Slice(column="age", edges=(30, 50))], PROFILES, task=Task.BINARY, num_outputs=2
    )
    for part in (slice(0, 250), slice(250, ROWS)):
        fold.add(TABLE.slice(part.start, part.stop - part.start), OUT[part], Y[part])
    found = fold.done(["accuracy", "log_loss"])
    assert list(found["age"]) == ["below 30", "30 to 50", "50 or more", MISSING]
    assert sum(s.rows for s in found["age"].values()) == ROWS
    north = np.array(TABLE["region"].to_pylist()) == "north"
    alone = ScoreFold(Task.BINARY, 2)
    alone.add(OUT[north], Y[north])
    expected = alone.done(["accuracy", "log_loss"])
    assert found["region"]["north"].confusion == expected.confusion
    assert found["region"]["north"].scores["log_loss"].value == pytest.approx(expected.scores["log_loss"].value)


def test_slices_of_values_unseen_in_training_and_of_nulls_have_names_of_their_own() -> None:
    fold = SlicedFold([Slice(column="region")], PROFILES, task=Task.BINARY, num_outputs=2)
    fold.add(pa.table({"region": ["north", "abroad", None]}), OUT[:3], Y[:3])
    fold.add(pa.table({"other": [1]}), OUT[:1], Y[:1])
    assert {n: s.rows for n, s in fold.done()["region"].items()} == {"north": 1, OTHER: 1, MISSING: 1}


def test_worst_slice_is_the_one_whose_better_end_is_lowest() -> None:
    fold = SlicedFold([Slice(column="region")], PROFILES, task=Task.BINARY, num_outputs=2)
    wrong = np.where(np.array(TABLE["region"].to_pylist())[:, None] == "south", -OUT, OUT)
    fold.add(TABLE, wrong, Y)
    column, name, _ = worst(fold.done(), "accuracy", sign=1.0) or ("", "", 0.0)
    assert (column, name) == ("region", "south")


@pytest.mark.parametrize(
    ("text", "message"), [("age", "give edges"), ("none", "no column"), ("age:50,30", "ascending")]
)
def test_slice_that_cannot_be_made_says_what_to_give(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        SlicedFold([Slice.parse(text)], PROFILES, task=Task.BINARY, num_outputs=2)
