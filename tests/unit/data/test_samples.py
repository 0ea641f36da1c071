"""The three sample datasets: real rows, splits and cards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_wine

from tiltyard.data.samples import NAMES, commit_samples
from tiltyard.data.store import DatasetStore
from tiltyard.errors import DatasetNotFoundError


def test_samples_are_committed_once_with_every_row_and_a_card(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    made = {c.version.name: c.version for c in commit_samples(store)}
    assert {n: (v.num_rows, len(v.features), v.num_classes) for n, v in made.items()} == {
        "digits": (1797, 64, 10),
        "breast-cancer": (569, 30, 2),
        "wine": (178, 13, 3),
    }
    assert [c.created for c in commit_samples(store)] == [False] * 3
    for version in made.values():
        assert min(version.split_rows.values()) > 0
        assert version.spec.card.source
        assert version.spec.card.licence == "CC BY 4.0"
    wine = store.read("wine", columns=["row_id", "alcohol"]).sort_by("row_id")
    np.testing.assert_array_equal(wine["alcohol"].to_numpy(), load_wine().data[:, 0].astype(np.float32))


def test_sample_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=", ".join(NAMES)):
        commit_samples(DatasetStore(str(tmp_path)), ["iris"])
