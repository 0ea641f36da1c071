"""Before anything starts: dataset versions pinned, their preprocessing fitted, every configuration checked. No Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tiltyard.data.features import feature_columns, fit_preprocessor
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetVersion
from tiltyard.errors import DataError, DatasetNotFoundError, TiltyardError
from tiltyard.experiment import Experiment
from tiltyard.preprocessing import Preprocessor
from tiltyard.sweep.engine.packing import check_trial, shape_of
from tiltyard.sweep.plan import DatasetFacts, Trial
from tiltyard.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A dataset version with what turns its columns into features."""

    version: DatasetVersion
    preprocessor: Preprocessor


def prepare(experiment: Experiment, store: DatasetStore) -> tuple[dict[str, Prepared], dict[str, DatasetFacts]]:
    """Pins each dataset's version, fits its preprocessing on the training split, and takes down its facts.

    Raises:
        DatasetNotFoundError: If a dataset, version or column does not exist.
        DataError: If a dataset has no task, label, features or rows.
    """
    prepared, facts = {}, {}
    versions = [store.resolve(ref) for ref in experiment.datasets]
    for column in experiment.include_sensitive:
        if not any(column in v.schema for v in versions):
            raise DatasetNotFoundError(
                f"include_sensitive names {column!r}, which no dataset of the experiment has "
                f"({', '.join(str(v.ref) for v in versions)}). Name a column that one of them has, or drop it."
            )
    for ref, version in zip(experiment.datasets, versions, strict=True):
        named = [c for c in experiment.include_sensitive if c in version.schema]
        features = [*feature_columns(version, None), *named] if named else None
        preprocessor = fit_preprocessor(store, version, features=features)
        if version.spec.task is None:
            raise DataError(f"Dataset {version.ref} declares no task; commit it with one.")
        prepared[ref.name] = Prepared(version=version, preprocessor=preprocessor)
        facts[ref.name] = DatasetFacts(
            name=ref.name,
            version=version.version,
            content_digest=version.content_digest,
            features=tuple(preprocessor.features),
            task=version.spec.task,
            split_rows=dict(version.split_rows),
            input_shape=(preprocessor.num_features_out,),
            num_outputs=max(2, preprocessor.num_classes) if version.spec.task == "binary" else preprocessor.num_classes,
        )
    return prepared, facts


def check_models(trials: Sequence[Trial]) -> None:
    """Every configuration can be trained, before anything is started; models are built once a shape.

    Raises:
        SpecError: Naming the variant's model and what is wrong with it.
    """
    built = set()
    for trial in trials:
        shape = (shape_of(trial), trial.dataset)
        check_trial(trial, None if shape in built else steps_together)
        built.add(shape)


def steps_together(
    model: str, args: Mapping[str, Any], task: Task, input_shape: tuple[int, ...], num_outputs: int
) -> None:
    """The model can be built, and a pack can hold it: a module of a user's own may be anything.

    Raises:
        ModelError, UnpackableError: If not.
    """
    from tiltyard.models import FAMILIES, validate_args

    validate_args(model, args, task, input_shape, num_outputs)
    if model not in FAMILIES:
        from tiltyard.training import PackSpec, build_module, check_model

        spec = PackSpec(
            model=model,
            model_args=args,
            task=task,
            input_shape=input_shape,
            num_outputs=num_outputs,
            batch_size=2,
            total_epochs=1,
        )
        check_model(spec, build_module(spec, seed=0))


class LateCheck:
    """Why trials that are drawn while the sweep runs cannot be trained, if so; models are built once a shape."""

    def __init__(self) -> None:
        self._built: set[tuple[str, str]] = set()

    def __call__(self, trial: Trial) -> str | None:
        """The reason, or None where it can be trained."""
        try:
            shape = (shape_of(trial), trial.dataset)
            check_trial(trial, None if shape in self._built else steps_together)
        except TiltyardError as error:
            return str(error)
        self._built.add(shape)
        return None
