"""Model versions and their aliases in MLflow's registry, and a local cache of their bundles by digest.

A registered model is named ``<experiment>.<dataset>``: the task that a champion holds. ``@champion`` is the one that
serves, ``@previous`` the one before, so that rolling back is one call. Registering the same bundle again finds the
version that is there.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tiltyard.errors import RegistryError
from tiltyard.registry.bundle import check_bundle
from tiltyard.registry.lineage import Lineage
from tiltyard.settings import Settings

CHAMPION, PREVIOUS, CANDIDATE = "champion", "previous", "candidate"
DIGEST_TAG = "tiltyard.bundle_digest"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A version in the registry."""

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


class ModelRegistry:
    """MLflow's registry, as Tiltyard uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = MlflowClient(settings.tracking_uri, registry_uri=settings.tracking_uri)

    def register(self, name: str, bundle: Path, *, run_id: str, tags: Mapping[str, str] | None = None) -> ModelVersion:
        """Registers a bundle under a name; the version that has this bundle already is returned as it is.

        Args:
            name: The registered model, made where it does not exist.
            bundle: Folder of the bundle; it becomes an artifact of the run.
            run_id: The run that the model came from.
            tags: Lineage, as tags.

        Raises:
            DigestMismatchError: If the bundle is not as it was written.
        """
        digest = check_bundle(bundle)
        for version in self.versions(name):
            if version.digest == digest:
                return version
        source = self._log_model(bundle, run_id, name)
        try:
            self._client.create_registered_model(name, tags={"tiltyard.kind": "task"})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            name, source=source, run_id=run_id, tags={**(tags or {}), DIGEST_TAG: digest}
        )
        return self.get(name, version=int(made.version))

    def _log_model(self, bundle: Path, run_id: str, name: str) -> str:
        """The bundle as a pyfunc model among the run's artifacts; its URI."""
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as folder:
            model = Path(folder) / "model"
            mlflow.pyfunc.save_model(
                str(model),
                loader_module="tiltyard.registry.pyfunc",
                data_path=str(bundle),
                pip_requirements=_requirements(),
            )
            self._client.log_artifacts(run_id, str(model), f"model/{name}")
        return f"{self._client.get_run(run_id).info.artifact_uri}/model/{name}"

    def get(self, name: str, *, alias: str | None = None, version: int | None = None) -> ModelVersion:
        """One version, by alias or number.

        Raises:
            RegistryError: If there is none; says what there is.
        """
        try:
            if alias is not None:
                found = self._client.get_model_version_by_alias(name, alias)
            else:
                found = self._client.get_model_version(name, str(version))
        except MlflowException as error:
            wanted = f"{name}@{alias}" if alias else f"{name} version {version}"
            have = ", ".join(f"v{v.version}{''.join(' @' + a for a in v.aliases)}" for v in self.versions(name))
            raise RegistryError(
                f"The registry has no {wanted}. "
                + (f"It has of {name}: {have}." if have else f"It has no model {name!r}. List them: tiltyard models")
            ) from error
        return self._version(found)

    def versions(self, name: str) -> list[ModelVersion]:
        """Versions of a model, newest first."""
        found = self._client.search_model_versions(f"name='{name}'")
        return sorted((self._version(v) for v in found), key=lambda v: -v.version)

    def names(self) -> list[str]:
        """Registered models."""
        return sorted(m.name for m in self._client.search_registered_models())

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Points an alias at a version that exists.

        Raises:
            RegistryError: If it does not; nothing is changed.
        """
        self.get(name, version=version)
        self._client.set_registered_model_alias(name, alias, str(version))

    def promote(self, name: str, version: int, *, alias: str = CHAMPION) -> ModelVersion | None:
        """Makes a version the champion and the one before ``@previous``; returns the one before. Twice is as once."""
        before = self._holder(name, alias)
        if before is not None and before.version == version:
            return before
        self.get(name, version=version)
        if before is not None:
            self.set_alias(name, PREVIOUS, before.version)
        self.set_alias(name, alias, version)
        return before

    def rollback(self, name: str, *, alias: str = CHAMPION) -> ModelVersion:
        """Makes ``@previous`` the champion again, and the champion ``@previous``.

        Raises:
            RegistryError: If there is no ``@previous``.
        """
        previous, now = self.get(name, alias=PREVIOUS), self.get(name, alias=alias)
        self.set_alias(name, alias, previous.version)
        self.set_alias(name, PREVIOUS, now.version)
        return previous

    def fetch(self, version: ModelVersion) -> Path:
        """The version's bundle in the local cache, downloaded where it is not there, checked against its digest.

        Raises:
            DigestMismatchError: If what was downloaded is not what was registered.
            RegistryError: If it cannot be downloaded.
        """
        cached = cached_bundle(self._settings, version.digest)
        if cached.is_dir():
            check_bundle(cached, expect_digest=version.digest)
            return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cached.parent) as folder:
            try:
                mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=folder, tracking_uri=self._settings.tracking_uri
                )
            except (MlflowException, OSError) as error:
                raise RegistryError(
                    f"{version.name} version {version.version} could not be fetched from {version.source}: {error}. "
                    "Wanted: MLflow's artifact store within reach."
                ) from error
            bundle = next(Path(folder).rglob("MANIFEST.json")).parent
            check_bundle(bundle, expect_digest=version.digest)
            if not cached.exists():
                shutil.move(str(bundle), cached)
        return cached

    def _holder(self, name: str, alias: str) -> ModelVersion | None:
        try:
            return self.get(name, alias=alias)
        except RegistryError:
            return None

    def _version(self, found: Any) -> ModelVersion:
        aliases = found.aliases
        if not aliases:  # a search leaves them out
            aliases = self._client.get_model_version(found.name, found.version).aliases
        return ModelVersion(
            name=found.name,
            version=int(found.version),
            digest=found.tags.get(DIGEST_TAG, ""),
            aliases=tuple(aliases),
            tags=dict(found.tags),
            run_id=found.run_id or "",
            source=found.source,
            created_ms=int(found.creation_timestamp),
        )


def cached_bundle(settings: Settings, digest: str) -> Path:
    """Where a bundle of this digest is cached."""
    return settings.home / "bundles" / digest


def _requirements() -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name).split('+')[0]}" for name in ("tiltyard", "torch", "lightgbm", "pyarrow", "numpy")]
