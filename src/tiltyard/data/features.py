"""Which columns of a version a model sees, and the preprocessor fitted on its training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tiltyard.data.versions import DatasetVersion, check_columns
from tiltyard.errors import DataError
from tiltyard.preprocessing import Preprocessor

if TYPE_CHECKING:
    from tiltyard.data.store import DatasetStore

FIT_ROWS = 1_000_000
"""Training rows a preprocessor is fitted on: the first by hash, hence a uniform sample."""


def feature_columns(version: DatasetVersion, features: Sequence[str] | None) -> tuple[str, ...]:
    """The features an experiment sees: those it names, else all that are not label, key or marked.

    Raises:
        DatasetNotFoundError: If a named column does not exist.
        DataError: If there is no feature or no label.
    """
    chosen = version.features if features is None else tuple(features)
    check_columns(version, chosen)
    if not chosen:
        raise DataError(f"Dataset {version.ref} has no feature columns: all of {list(version.schema)} are reserved.")
    if version.spec.task is None:
        raise DataError(
            f"Dataset {version.ref} declares no task and label, so nothing can be trained on it. "
            "Commit it with DatasetSpec(task=..., label=...)."
        )
    return chosen


def fit_preprocessor(
    store: DatasetStore, version: DatasetVersion, *, features: Sequence[str] | None = None, scaling: str = "standard"
) -> Preprocessor:
    """Fits a preprocessor on the training split (at most `FIT_ROWS` of it, a uniform sample by hash).

    Raises:
        DataError: If there is nothing to learn from, or the version declares no task.
    """
    chosen = feature_columns(version, features)
    assert version.spec.task is not None
    table = store.read(version, columns=[*chosen, *version.spec.labels], split="train", limit=FIT_ROWS)
    return Preprocessor.fit(
        table,
        features=chosen,
        label=version.spec.labels,
        task=version.spec.task,
        classes=version.classes,
        scaling=scaling,
    )
