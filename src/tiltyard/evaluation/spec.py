"""What is to be evaluated, as one frozen value with a JSON form: which models, on which dataset's versions, how. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tiltyard.errors import SpecError
from tiltyard.evaluation.drift import ALPHA, LEAST_EFFECT
from tiltyard.evaluation.slices import Slice
from tiltyard.types import METRICS, check_name

SCHEMA_VERSION = 1
ROWS = ("test", "held-out", "new", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Models that are tested on every version of a dataset that they have not met.

    Args:
        dataset: The dataset's name.
        models: ``NAME[@ALIAS|@VERSION]``; the first is the champion, the others are compared with it on the same rows.
        rows: Which rows of a version: ``test`` (its test split), ``held-out`` (validation and test), ``new`` (those of
            any split that are not in the training split the model was trained on), ``all``.
        metric: What the models are chosen by; None for the metric that the champion was registered with.
        slices: What scores are split by.
        sensitive: Of the slices' columns, those whose groups are compared for fairness.
        positive: The label value that is the good outcome, for fairness; None for the last class.
        labels: Label columns, where the dataset declares none (labels that come later).
        keys: Columns that late labels are joined by; None for the dataset's own key.
        versions: ``new`` for every version since the model's own, ``latest`` for the newest alone.
        alpha: Chance of any false alarm of drift in a version.
        least_effect: Share of rows that must have moved for drift.
        batch_rows: Rows of a request.
    """

    dataset: str
    models: tuple[str, ...]
    rows: str = "test"
    metric: str | None = None
    slices: tuple[Slice, ...] = ()
    sensitive: tuple[str, ...] = ()
    positive: str | int | bool | None = None
    labels: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    versions: str = "new"
    alpha: float = ALPHA
    least_effect: float = LEAST_EFFECT
    batch_rows: int = 65_536

    def __post_init__(self) -> None:
        check_name(self.dataset, "Dataset")
        for name in ("models", "sensitive", "labels", "keys"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        given: tuple[Any, ...] = self.slices  # a plain text will do
        slices = tuple(Slice.parse(s) if isinstance(s, str) else s for s in given)
        known = {s.column for s in slices}
        object.__setattr__(self, "slices", (*slices, *(Slice(column=c) for c in self.sensitive if c not in known)))
        if not self.models or len(set(self.models)) < len(self.models):
            raise SpecError(f"Evaluation wants one or more models, each once; found {list(self.models)}.")
        if self.rows not in ROWS:
            raise SpecError(f"Evaluation of rows {self.rows!r}; wanted one of {', '.join(ROWS)}.")
        if self.versions not in ("new", "latest"):
            raise SpecError(f"Evaluation of versions {self.versions!r}; wanted new or latest.")
        if self.metric is not None and self.metric not in METRICS:
            raise SpecError(f"There is no metric {self.metric!r}; there are: {', '.join(METRICS)}.")
        if not 0 < self.alpha < 1 or not 0 <= self.least_effect < 1 or self.batch_rows < 1:
            raise SpecError(
                f"Evaluation with alpha {self.alpha}, least_effect {self.least_effect} and batch_rows {self.batch_rows}; "
                "wanted shares between 0 and 1, and at least one row."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """What ``to_json`` gave, or a person wrote.

        Raises:
            SpecError: If a field is unknown or has an unusable value, or a newer Tiltyard wrote it.
        """
        values = dict(data)
        found = values.pop("schema_version", SCHEMA_VERSION)
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise SpecError(
                f"An evaluation was written with schema version {found!r}; this Tiltyard reads up to {SCHEMA_VERSION}."
            )
        if unknown := sorted(set(values) - {f.name for f in dataclasses.fields(cls)}):
            raise SpecError(f"An evaluation has no field {unknown[0]!r}.")
        try:
            values["slices"] = tuple(
                Slice(column=s["column"], edges=tuple(s.get("edges", ()))) if isinstance(s, Mapping) else s
                for s in values.get("slices", ())
            )
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise SpecError(f"An evaluation cannot be read: {error}.") from error


def work_key(*, model: str, digest: str, dataset: str, version: int, content_digest: str, rows: str) -> str:
    """The key of one model version on one dataset version: what is predicted once."""
    parts = ("evaluation", model, digest, dataset, str(version), content_digest, rows)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
