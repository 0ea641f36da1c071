"""Three real datasets that ship inside scikit-learn, as versioned datasets: something to sweep in the first five minutes.

scikit-learn is imported when a sample is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tiltyard.data.versions import Card, Commit, DatasetSpec, SplitSpec
from tiltyard.errors import DatasetNotFoundError
from tiltyard.types import Task

if TYPE_CHECKING:
    from tiltyard.data.store import DatasetStore

SPLIT = SplitSpec(train=0.6, validation=0.2, test=0.2)
NAMES = ("digits", "breast-cancer", "wine")


def _table(bunch: Any, names: Sequence[str]) -> pa.Table:
    columns: dict[str, Any] = {n: np.ascontiguousarray(bunch.data[:, i], np.float32) for i, n in enumerate(names)}
    columns["target"] = bunch.target.astype(np.int64)
    columns["row_id"] = np.arange(len(bunch.target), dtype=np.int64)
    return pa.table(columns)


def _tidy(names: Sequence[str]) -> list[str]:
    return [n.replace(" ", "_").replace("/", "_per_") for n in names]


def _digits() -> tuple[pa.Table, DatasetSpec]:
    from sklearn.datasets import load_digits

    card = Card(
        description="1,797 pictures of handwritten digits, 8 x 8 pixels of 0 to 16, one column per pixel.",
        source="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, test part; UCI Machine Learning "
        "Repository, 1998, doi:10.24432/C50P49. Taken from the copy inside scikit-learn.",
        licence="CC BY 4.0",
        collected="1998, 43 writers; this part is of 13 of them",
        known_gaps=("The writer of a digit is not recorded, so one writer's digits are in several splits.",),
    )
    table = _table(load_digits(), [f"pixel_{i:02d}" for i in range(64)])
    return table, DatasetSpec(task=Task.MULTICLASS, label="target", key="row_id", split=SPLIT, card=card)


def _breast_cancer() -> tuple[pa.Table, DatasetSpec]:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    card = Card(
        description="569 fine needle aspirates of breast masses: 30 measures of the cell nuclei; 0 malignant, 1 benign.",
        source="W. Wolberg, O. Mangasarian, N. Street, W. Street: Breast Cancer Wisconsin (Diagnostic); UCI Machine "
        "Learning Repository, 1995, doi:10.24432/C5DW2B. Taken from the copy inside scikit-learn.",
        licence="CC BY 4.0",
        collected="1995, one hospital in Wisconsin",
        known_gaps=("One hospital; neither age nor origin of the patients is recorded.",),
    )
    spec = DatasetSpec(task=Task.BINARY, label="target", key="row_id", split=SPLIT, card=card)
    return _table(bunch, _tidy(bunch.feature_names)), spec


def _wine() -> tuple[pa.Table, DatasetSpec]:
    from sklearn.datasets import load_wine

    bunch = load_wine()
    card = Card(
        description="178 wines of three cultivars grown in one region of Italy: 13 chemical measures.",
        source="S. Aeberhard, M. Forina: Wine; UCI Machine Learning Repository, 1991, doi:10.24432/C5PC7J. Taken from "
        "the copy inside scikit-learn.",
        licence="CC BY 4.0",
        collected="before 1991",
        known_gaps=("178 rows: a score on the test split has a wide interval.",),
    )
    spec = DatasetSpec(task=Task.MULTICLASS, label="target", key="row_id", split=SPLIT, card=card)
    return _table(bunch, _tidy(bunch.feature_names)), spec


_SAMPLES: dict[str, Callable[[], tuple[pa.Table, DatasetSpec]]] = {
    "digits": _digits,
    "breast-cancer": _breast_cancer,
    "wine": _wine,
}


def commit_samples(store: DatasetStore, names: Sequence[str] = NAMES) -> list[Commit]:
    """Commits the samples; those that are there already make no new version.

    Raises:
        DatasetNotFoundError: If a name is no sample.
    """
    for name in names:
        if name not in _SAMPLES:
            raise DatasetNotFoundError(f"There is no sample dataset {name!r}; there are {', '.join(_SAMPLES)}.")
    made = []
    for name in names:
        table, spec = _SAMPLES[name]()
        made.append(store.commit(name, table, spec=spec, message="sample that ships with scikit-learn"))
    return made
