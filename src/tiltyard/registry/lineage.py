"""Where a model came from, as a value and as registry tags. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PREFIX = "tiltyard."


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Everything that decided what a model is."""

    cell: str
    key: str
    experiment: str
    variant: str
    dataset: str
    dataset_version: int
    dataset_digest: str
    code_digest: str
    seed: int
    data_seed: int
    epoch: int
    config: Mapping[str, Any] = field(default_factory=dict)
    parent_run_id: str = ""
    run_id: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def to_tags(self) -> dict[str, str]:
        """As tags of a model version; all of it, so that the registry alone tells where a model came from."""
        return {
            PREFIX + name: json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else str(value)
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Lineage:
        """Reads what `to_tags` gave."""
        values: dict[str, Any] = {}
        for name, kind in cls.__annotations__.items():
            text = tags.get(PREFIX + name)
            if text is None:
                continue
            if kind == "int":
                values[name] = int(text)
            elif kind.startswith("Mapping"):
                values[name] = json.loads(text)
            else:
                values[name] = text
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)
