"""A registered version as a value, and what this machine remembers of it: enough to serve it while MLflow is away.

::

    <home>/bundles/<digest>/                the bundle, checked against its digest whenever it is opened
    <home>/bundles/known/<name>@<alias or version>.json   which version that was when the registry last answered

Files only; MLflow is in `mlflow_registry`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tiltyard.registry.address import ModelAddress
from tiltyard.registry.lineage import Lineage
from tiltyard.settings import Settings

DIGEST_TAG, METRICS_TAG, SCORE_TAG = "tiltyard.bundle_digest", "tiltyard.metrics", "tiltyard.score"
AUTHOR_TAG = "tiltyard.author"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A version in the registry.

    Args:
        name: Of the registered model.
        version: 1, 2, ...
        digest: Of its bundle; empty where Tiltyard did not register it.
        aliases: That point at it, sorted.
        tags: Of the version; lineage among them.
        run_id: MLflow run it came from.
        source: URI of the artifact.
        created_ms: Milliseconds since 1970.
    """

    name: str
    version: int
    digest: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str
    source: str
    created_ms: int

    @property
    def lineage(self) -> Lineage:
        """Where it came from."""
        return Lineage.from_tags(self.tags)

    @property
    def author(self) -> str:
        """Who had it made, as ``user@host``; empty where that is not known."""
        return self.tags.get(AUTHOR_TAG, "")

    @property
    def metrics(self) -> dict[str, float]:
        """Scores it was chosen by; empty where none were recorded."""
        return {k: float(v) for k, v in json.loads(self.tags.get(METRICS_TAG, "{}")).items()}

    @property
    def score(self) -> tuple[str, float] | None:
        """The score that decided, with its name."""
        metrics = self.metrics
        name = self.tags.get(SCORE_TAG) or next(iter(metrics), "")
        return (name, metrics[name]) if name in metrics else None


def cached_bundle(settings: Settings, digest: str) -> Path:
    """Where a bundle of this digest is cached."""
    return settings.home / "bundles" / digest


def remember(settings: Settings, address: ModelAddress, version: ModelVersion) -> None:
    """Notes which version an address named, whole or not at all."""
    path = _known(settings, address)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"schema_version": 1, **asdict(version)}, sort_keys=True)
    if path.exists() and path.read_text() == text:
        return
    descriptor, temporary = tempfile.mkstemp(prefix=".known-", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(temporary, path)


def recall(settings: Settings, address: ModelAddress) -> ModelVersion | None:
    """The version that an address named when the registry last answered, if its bundle is cached here."""
    try:
        told = json.loads(_known(settings, address).read_text())
    except (OSError, ValueError):
        return None
    if told.pop("schema_version", None) != 1:
        return None
    version = ModelVersion(**{**told, "aliases": tuple(told["aliases"])})
    return version if version.digest and cached_bundle(settings, version.digest).is_dir() else None


def _known(settings: Settings, address: ModelAddress) -> Path:
    return settings.home / "bundles" / "known" / f"{str(address).replace('/', '%2F')}.json"
