"""Model versions and their aliases in MLflow's registry, and a local cache of their bundles by digest.

A registered model is named ``<experiment>.<dataset>``: the task that a champion holds. ``@champion`` is the one that
serves, ``@previous`` the one before, so that rolling back is one call. Registering the same bundle again finds the
version that is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # MLflow's own 7 take four minutes to say "away"

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tiltyard.errors import ModelError, RegistryAwayError, RegistryError
from tiltyard.registry.address import CANDIDATE, CHAMPION, PREVIOUS, ModelAddress
from tiltyard.registry.bundle import MANIFEST, SPEC, BundleSpec, check_bundle
from tiltyard.registry.mlmodel import write_mlmodel
from tiltyard.registry.version import (
    AUTHOR_TAG,
    DIGEST_TAG,
    METRICS_TAG,
    SCORE_TAG,
    ModelVersion,
    cached_bundle,
    remember,
)
from tiltyard.settings import Settings, shown


class ModelRegistry:
    """MLflow's registry, as Tiltyard uses it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = MlflowClient(settings.tracking_uri, registry_uri=settings.tracking_uri)

    def register(
        self, name: str, bundle: Path, *, run_id: str | None = None, score: str | None = None, author: str = ""
    ) -> ModelVersion:
        """Registers a bundle under a name; the version that has this bundle already is returned as it is.

        Args:
            name: The registered model, made where it does not exist.
            bundle: Folder of the bundle; it becomes an artifact of the run.
            run_id: The run that the model came from; without one a run is made to hold the artifact.
            score: Which of the bundle's metrics decided, e.g. ``validation_accuracy``.
            author: Who had it made; a person cannot approve what is their own.

        Raises:
            DigestMismatchError: If the bundle is not as it was written.
            RegistryAwayError: If MLflow or its artifact store does not answer; do it again, it registers once.
        """
        digest = check_bundle(bundle)
        with self._asked(name):
            found = self._registered(name, bundle, digest, run_id=run_id, score=score, author=author)
        self._keep(bundle, digest)
        remember(self._settings, _pin(found), found)
        return found

    def _registered(
        self, name: str, bundle: Path, digest: str, *, run_id: str | None, score: str | None, author: str
    ) -> ModelVersion:
        found = self.find(name, digest)
        if found is None:
            run_id = run_id or self._new_run(name)
            source = self._log_model(bundle, run_id, f"model/{name}/{digest[:16]}")
            try:
                self._client.create_registered_model(name, tags={"tiltyard.kind": "task"})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            spec = BundleSpec.from_dict(json.loads((bundle / SPEC).read_text()))
            tags = {**spec.lineage.to_tags(), DIGEST_TAG: digest, METRICS_TAG: json.dumps(dict(spec.metrics))}
            if score is not None:
                tags[SCORE_TAG] = score
            if author:
                tags[AUTHOR_TAG] = author
            made = self._client.create_model_version(name, source=source, run_id=run_id, tags=tags)
            found = self._version(made)
        return found

    def _new_run(self, name: str) -> str:
        """A run for a model that no sweep made, in an experiment of its name."""
        found = self._client.get_experiment_by_name(name)
        embedded = self._settings.tracking_uri.startswith("sqlite")
        place = f"{self._settings.artifact_root}/{name}" if embedded else None
        experiment_id = found.experiment_id if found else self._client.create_experiment(name, artifact_location=place)
        run = self._client.create_run(experiment_id, run_name=f"register {name}", tags={"tiltyard.kind": "register"})
        self._client.set_terminated(run.info.run_id)
        return str(run.info.run_id)

    def _log_model(self, bundle: Path, run_id: str, place: str) -> str:
        """The bundle as a pyfunc model among the run's artifacts, in a place of its own; its URI."""
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as folder:
            model = Path(folder) / "model"
            write_mlmodel(model, bundle)
            self._client.log_artifacts(run_id, str(model), place)
        return f"{self._client.get_run(run_id).info.artifact_uri}/{place}"

    def _keep(self, bundle: Path, digest: str) -> None:
        """Copies a bundle into the local cache, so that this machine never downloads what it uploaded."""
        cached = cached_bundle(self._settings, digest)
        if cached.is_dir():
            return
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".keep-", dir=cached.parent) as folder:
            copy = shutil.copytree(bundle, Path(folder) / "bundle", ignore=shutil.ignore_patterns("__pycache__"))
            _move_whole(copy, cached)

    def get(self, name: str, *, alias: str | None = None, version: int | None = None) -> ModelVersion:
        """One version, by alias or number.

        Raises:
            RegistryError: If there is none; says what there is.
        """
        found = self._look_up(name, alias=alias, version=version)
        if found is not None:
            return found
        wanted = f"{name}@{alias}" if alias else f"{name} version {version}"
        have = ", ".join(f"v{v.version}{''.join(' @' + a for a in v.aliases)}" for v in self.versions(name))
        raise RegistryError(
            f"The registry has no {wanted}. "
            + (f"It has of {name}: {have}." if have else f"It has no model {name!r}. List them: tiltyard models")
        )

    def at(self, address: ModelAddress) -> ModelVersion:
        """The version that an address names.

        Raises:
            RegistryError: If there is none; says what there is.
        """
        return self.get(address.name, alias=address.alias, version=address.version)

    def _look_up(self, name: str, *, alias: str | None = None, version: int | None = None) -> ModelVersion | None:
        try:
            if alias is not None:
                return self._version(self._client.get_model_version_by_alias(name, alias))
            return self._version(self._client.get_model_version(name, str(version)))
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                return None
            raise self._away(name, error) from error

    def _away(self, about: str, error: Exception) -> RegistryAwayError:
        return RegistryAwayError(
            f"The registry at {shown(self._settings.tracking_uri)} did not answer for {about}: {shown(str(error))}. "
            "Wanted: MLflow within reach; see TILTYARD_TRACKING_URI."
        )

    @contextmanager
    def _asked(self, about: str) -> Iterator[None]:
        """Around questions to MLflow and its artifact store: what they raise is told without a password that is in the address."""
        try:
            yield
        except (MlflowException, OSError) as error:
            raise self._away(about, error) from error

    def find(self, name: str, digest: str) -> ModelVersion | None:
        """The newest version of a model that is this bundle, if there is one."""
        found = self._search(f"name='{name}' and tags.`{DIGEST_TAG}`='{digest}'")
        return max(found, key=lambda v: v.version, default=None)

    def versions(self, name: str) -> list[ModelVersion]:
        """Versions of a model, newest first; none where there is no such model."""
        return sorted(self._search(f"name='{name}'"), key=lambda v: -v.version)

    def names(self) -> list[str]:
        """Registered models."""
        pages = _pages(lambda token: self._client.search_registered_models(max_results=1000, page_token=token))
        with self._asked("the names of its models"):
            return sorted(m.name for m in pages)

    def _search(self, condition: str) -> list[ModelVersion]:
        """Versions with their aliases: one question for the versions, one a model for the aliases (a search omits them)."""
        aliases: dict[tuple[str, int], list[str]] = {}
        with self._asked(condition):
            found = list(_pages(lambda token: self._client.search_model_versions(condition, page_token=token)))
            for name in {v.name for v in found}:
                for alias, version in self._client.get_registered_model(name).aliases.items():
                    aliases.setdefault((name, int(version)), []).append(alias)
        return [self._version(v, aliases.get((v.name, int(v.version)), [])) for v in found]

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Points an alias at a version that exists.

        Raises:
            RegistryError: If it does not; nothing is changed.
        """
        self.get(name, version=version)
        with self._asked(name):
            self._client.set_registered_model_alias(name, alias, str(version))

    def promote(self, name: str, version: int, *, alias: str = CHAMPION) -> ModelVersion | None:
        """Makes a version the champion and the one before ``@previous``; returns the one before. Twice is as once.

        A candidate replaces a candidate: ``@previous`` is not touched.
        """
        before = self._look_up(name, alias=alias)
        if before is not None and before.version == version:
            return before
        self.get(name, version=version)
        if before is not None and alias != CANDIDATE:
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
        if not re.fullmatch(r"[0-9a-f]{64}", version.digest):
            raise RegistryError(
                f"{version.name} version {version.version} has no tag {DIGEST_TAG}: Tiltyard did not register it, and loads "
                "nothing whose content it cannot check. Register its bundle: ModelRegistry.register"
            )
        cached = cached_bundle(self._settings, version.digest)
        if cached.is_dir():
            try:
                check_bundle(cached, expect_digest=version.digest)
            except ModelError:  # the copy is damaged, not the original: take another
                shutil.rmtree(cached)
            else:
                remember(self._settings, _pin(version), version)
                return cached
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cached.parent) as folder:
            try:
                mlflow.artifacts.download_artifacts(
                    artifact_uri=version.source, dst_path=folder, tracking_uri=self._settings.tracking_uri
                )
            except (MlflowException, OSError) as error:
                raise RegistryAwayError(
                    f"{version.name} version {version.version} could not be fetched from {shown(version.source)}: "
                    f"{shown(str(error))}. "
                    "Wanted: MLflow's artifact store within reach."
                ) from error
            manifest = next(Path(folder).rglob(MANIFEST), None)
            if manifest is None:
                raise RegistryError(
                    f"What {version.source} holds is no bundle of Tiltyard's: it has no {MANIFEST}. Register the model again."
                )
            check_bundle(manifest.parent, expect_digest=version.digest)
            _move_whole(manifest.parent, cached)
        remember(self._settings, _pin(version), version)
        return cached

    @staticmethod
    def _version(found: Any, aliases: Sequence[str] | None = None) -> ModelVersion:
        return ModelVersion(
            name=found.name,
            version=int(found.version),
            digest=found.tags.get(DIGEST_TAG, ""),
            aliases=tuple(sorted(found.aliases if aliases is None else aliases)),
            tags=dict(found.tags),
            run_id=found.run_id or "",
            source=found.source,
            created_ms=int(found.creation_timestamp),
        )


def _pin(version: ModelVersion) -> ModelAddress:
    return ModelAddress(name=version.name, alias=None, version=version.version)


def _move_whole(folder: Path, place: Path) -> None:
    """Renames a finished folder into its place; another process that was there first has put the same there."""
    try:
        folder.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def _pages(ask: Callable[[str | None], Any]) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = ask(token)
        yield from page
        token = page.token
        if not token:
            return
