"""Which model versions are to meet which dataset versions, and what became of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetVersion
from tiltyard.errors import DataError, DatasetNotFoundError
from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.spec import Evaluation, work_key
from tiltyard.registry.address import ModelAddress
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One model version on one dataset version: what is predicted once."""

    model: ModelVersion
    version: DatasetVersion
    rows: str

    @property
    def key(self) -> str:
        """Of its work in the journal."""
        return work_key(
            model=str(self.address),
            digest=self.model.digest,
            dataset=self.version.name,
            version=self.version.version,
            content_digest=self.version.content_digest,
            rows=self.rows,
        )

    @property
    def address(self) -> ModelAddress:
        """The model's version."""
        return ModelAddress(name=self.model.name, alias=None, version=self.model.version)

    @property
    def about(self) -> dict[str, Any]:
        """For the journal."""
        return {
            "model": str(self.address),
            "digest": self.model.digest,
            "dataset": str(self.version.ref),
            "content_digest": self.version.content_digest,
            "rows": self.rows,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What became of a pair: ``outcome`` is ``new``, ``finished`` (earlier), ``held`` (by another process) or ``failed``."""

    pair: Pair
    outcome: str
    result: Evaluated | None = None
    reason: str = ""


def plan(spec: Evaluation, store: DatasetStore, registry: ModelRegistry) -> tuple[ModelVersion, list[list[Pair]]]:
    """The champion, and pairs by dataset version, in order; each model's own training version, its baseline, comes first.

    Raises:
        TiltyardError: If there is no such model or dataset.
    """
    found = [registry.at(ModelAddress.parse(m)) for m in spec.models]
    models = list({(m.name, m.version): m for m in found}.values())  # an alias and a number may mean the same one
    versions = [v for v in store.history(spec.dataset) if not v.beside and not is_deleted(store, v)]
    if spec.versions == "latest":
        versions = versions[-1:]
    groups: list[list[Pair]] = []
    for model in models:  # each model's own version, where it can still be read
        own = trained_on(store, model)
        if own is not None and own.split_rows.get("test") and not is_deleted(store, own):
            groups.append([Pair(model=model, version=own, rows="test")])
    for version in versions:
        # a challenger's own version has test rows that neither it nor the champion was trained on
        compares = spec.rows == "test" and len(models) > 1
        at_home = [m for m in models if compares and m.lineage.dataset_version == version.version]
        met = [
            Pair(model=m, version=version, rows=spec.rows)
            for m in models
            if m in at_home or m.lineage.dataset != version.name or version.version > m.lineage.dataset_version
        ]
        if met:
            groups.append(met)
    return models[0], groups


def trained_on(store: DatasetStore, model: ModelVersion) -> DatasetVersion | None:
    """The dataset version that a model was trained on; None where it is not there any more."""
    try:
        history = store.history(model.lineage.dataset)
    except DatasetNotFoundError:
        return None
    return next((v for v in history if v.version == model.lineage.dataset_version), None)


def is_deleted(store: DatasetStore, version: DatasetVersion) -> bool:
    """Whether the rows of a version were deleted since."""
    try:
        store.resolve(version.ref)
    except DataError:
        return True
    return False
