"""What ``mlflow.pyfunc.load_model`` calls to open a bundle (``loader_module``): no pickle, no MLflow import.

The model takes a pandas data frame of raw rows and gives one back: ``prediction``, and a ``probability_<class>`` column for
each class where there are classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiltyard.registry.bundle import Bundle, read_bundle


class PyfuncModel:
    """The face of a bundle towards MLflow."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Answers for a data frame (or anything that makes one)."""
        import pandas as pd
        import pyarrow as pa

        del params
        frame = model_input if isinstance(model_input, pd.DataFrame) else pd.DataFrame(model_input)
        answers = self.bundle.predict_table(pa.Table.from_pandas(frame, preserve_index=False))
        columns: dict[str, Any] = {"prediction": answers.labels}
        if answers.probabilities is not None:
            for i, name in enumerate(self.bundle.spec.classes):
                columns[f"probability_{name}"] = answers.probabilities[:, i]
        return pd.DataFrame(columns)


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's entry; the name is MLflow's."""
    return PyfuncModel(read_bundle(Path(path)))
