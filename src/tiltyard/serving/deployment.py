"""A Ray Serve application that hosts the champions of any number of tasks. Loads nothing until a replica starts.

One deployment a model, so that one that fails or is slow holds up no other; a handle to the ingress names the model. An
answer carries the model's version and digest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from ray import serve
from ray.serve import Application

from tiltyard.errors import ServingError
from tiltyard.registry.address import ModelAddress
from tiltyard.settings import Settings

OUTPUT, LABEL = "output", "prediction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model says about a table of rows.

    Args:
        model: Its registered name.
        version: Of the registry.
        digest: Of its bundle.
        outputs: ``(rows, outputs)`` float32: logits where the task is classification.
    """

    model: str
    version: int
    digest: str
    outputs: np.ndarray[Any, Any]


@serve.deployment(
    ray_actor_options={"num_cpus": 0.5},
    max_ongoing_requests=8,
    health_check_period_s=10,
    graceful_shutdown_timeout_s=10,
    logging_config={"log_level": "ERROR", "enable_access_log": False},
)
class Champion:
    """A replica of one model. Opens its bundle from the local cache, fetched from the registry where it is not there."""

    def __init__(self, settings: Settings, address: ModelAddress) -> None:
        import torch

        from tiltyard.registry.bundle import read_bundle
        from tiltyard.registry.mlflow_registry import ModelRegistry

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        torch.set_num_threads(1)
        registry = ModelRegistry(settings)
        version = registry.get(address.name, alias=address.alias, version=address.version)
        self._bundle = read_bundle(registry.fetch(version), expect_digest=version.digest)
        self._version = version

    def predict(self, table: pa.Table) -> Answer:
        """Answers for raw rows; preprocessing is the model's own."""
        x = self._bundle.preprocessor.transform(table)
        return Answer(
            model=self._version.name,
            version=self._version.version,
            digest=self._bundle.digest,
            outputs=self._bundle.predict_matrix(x),
        )

    def describe(self) -> dict[str, Any]:
        """Name, version, digest, task and classes of what it serves."""
        spec = self._bundle.spec
        return {
            "model": self._version.name,
            "version": self._version.version,
            "digest": self._bundle.digest,
            "task": str(spec.task),
            "classes": list(spec.classes),
            "columns": list(self._bundle.preprocessor.features),
        }


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=64,
    logging_config={"log_level": "ERROR", "enable_access_log": False},
)
class Ingress:
    """Takes a request to the model that it names."""

    def __init__(self, models: Mapping[str, Any]) -> None:
        self._models = dict(models)

    async def predict(self, model: str, table: pa.Table) -> Answer:
        """Answers of one model for a table of raw rows.

        Raises:
            ServingError: If no such model is served here.
        """
        answer: Answer = await self._of(model).predict.remote(table)
        return answer

    async def describe(self) -> list[dict[str, Any]]:
        """Every model served here."""
        return [await handle.describe.remote() for handle in self._models.values()]

    def _of(self, model: str) -> Any:
        if model not in self._models:
            raise ServingError(f"No model {model!r} is served here; there are: {', '.join(sorted(self._models))}.")
        return self._models[model]


def champions_app(models: Sequence[str], settings: Settings | None = None) -> Application:
    """The application for models given as ``NAME[@ALIAS|@VERSION]``.

    Raises:
        ServingError: If there is none, or one stands twice.
    """
    settings = settings or Settings.from_env()
    addresses = [ModelAddress.parse(text) for text in models]
    names = [a.name for a in addresses]
    if not names or len(set(names)) < len(names):
        raise ServingError(f"Wanted: one or more models, each once; found {names}. Register one: tiltyard run JOB")
    bound = {
        a.name: Champion.options(name=a.name.replace("/", "-")).bind(settings, a)  # type: ignore[attr-defined]
        for a in addresses
    }
    return Ingress.bind(bound)  # type: ignore[attr-defined,no-any-return]
