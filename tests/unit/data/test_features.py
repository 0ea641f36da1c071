"""What a model sees of a version: the features, and a preprocessor that knows the training split alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiltyard.data.features import feature_columns, fit_preprocessor
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetSpec
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.types import Task


def test_fit_on_a_version_looks_at_the_training_split_alone(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    n = np.arange(300)
    spec = DatasetSpec(task=Task.BINARY, label="y", key="id", sensitive=("age",))
    base: dict[str, Any] = {"id": n, "x": n.astype(np.float32), "age": n, "city": [f"c{i % 4}" for i in n], "y": n % 2}
    version = store.commit("toy", base, spec=spec).version
    held_out = set(store.read(version, columns=["id"], split="test")["id"].to_pylist())
    held_out |= set(store.read(version, columns=["id"], split="validation")["id"].to_pylist())
    marred = np.array([i in held_out for i in n])
    wild = {**base, "x": np.where(marred, 1e6, base["x"]).astype(np.float32)}
    wild["city"] = ["unheard" if m else c for m, c in zip(marred, base["city"], strict=True)]
    other = store.commit("toy", wild).version
    first, second = fit_preprocessor(store, version), fit_preprocessor(store, other)
    assert first == second
    assert first.features == ("city", "x")  # neither the key nor the sensitive column
    assert fit_preprocessor(store, version, features=["x", "age"]).features == ("x", "age")


def test_features_of_a_version_that_has_none_or_no_task_are_refused(tmp_path: Path) -> None:
    store = DatasetStore(str(tmp_path))
    plain = store.commit("plain", {"x": [1.0, 2.0]}).version
    with pytest.raises(DataError, match="declares no task"):
        feature_columns(plain, None)
    with pytest.raises(DatasetNotFoundError, match="no column 'z'"):
        feature_columns(plain, ["z"])
    bare = store.commit("bare", {"y": [0.5, 1.5]}, spec=DatasetSpec(task=Task.REGRESSION, label="y")).version
    with pytest.raises(DataError, match="no feature columns"):
        feature_columns(bare, None)
