"""The one model version that a replica serves, and how another takes its place.

A version is fetched, checked and opened beside the one that serves; only then it takes over, between two requests. If any
of that fails, the old one goes on serving and `problem` says why. No Ray: a replica is a holder behind a handle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tiltyard.errors import RegistryAwayError, RegistryError, TiltyardError
from tiltyard.registry.address import ModelAddress
from tiltyard.registry.bundle import Bundle, check_bundle, read_bundle
from tiltyard.registry.version import ModelVersion, cached_bundle, recall, remember
from tiltyard.serving.answers import Answer, Described, InputColumn
from tiltyard.settings import Settings, shown
from tiltyard.telemetry import logs

AGAIN_S = 30.0
"""How long a version that could not be loaded is left alone before it is tried again: its artifact may have come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """What is known of an address.

    Args:
        version: That it names, or named when the registry last answered; None where that was never heard.
        registry: Why the registry does not say so now; empty where it does.
        age_s: Seconds since it said so last.
    """

    version: ModelVersion | None = None
    registry: str = ""
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Served:
    version: ModelVersion
    bundle: Bundle
    columns: tuple[InputColumn, ...]


class Holder:
    """Serves one address (a name with an alias, or a pinned version)."""

    def __init__(
        self, settings: Settings, address: ModelAddress, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.settings, self.address, self._clock = settings, address, clock
        self.served_as = served_name(address)
        self.problem = ""
        self.heard = Heard()
        self._served: _Served | None = None
        self._refused: tuple[str, float] | None = None
        self._taking = threading.Lock()

    @property
    def version(self) -> ModelVersion | None:
        """What serves now."""
        return self._served.version if self._served else None

    def wants(self, version: ModelVersion) -> bool:
        """True where this version does not serve, and was not refused within the last `AGAIN_S` seconds."""
        if self._served is not None and self._served.version.version == version.version:
            self._refused, self.problem = None, ""
            return False
        digest, when = self._refused or ("", 0.0)
        return version.digest != digest or self._clock() - when >= AGAIN_S

    def take(self, version: ModelVersion) -> bool:
        """Opens a version and lets it serve; False where it cannot, with the reason in `problem`.

        Raises:
            Exception: What stopped it, if nothing serves yet.
        """
        with self._taking:
            try:
                bundle = read_bundle(fetch(self.settings, version), expect_digest=version.digest)
                self._warm(bundle)
            except Exception as error:  # a user's model, a store's driver: whatever it is, the old version goes on
                self._refused = (version.digest, self._clock())
                self.problem = f"version {version.version} could not be loaded: {error}"
                if self._served is None:
                    raise
                return False
            columns = tuple(InputColumn(name=c.name, kind=c.kind, width=c.width) for c in bundle.preprocessor.columns)
            logs.personal(bundle.spec.personal)
            self._served, self._refused, self.problem = _Served(version, bundle, columns), None, ""
            remember(self.settings, self.address, version)
            return True

    @staticmethod
    def _warm(bundle: Bundle) -> None:
        """One row of zeros through the model: a model that cannot answer is found before it serves."""
        import numpy as np

        bundle.predict_matrix(np.zeros((1, *bundle.spec.input_shape), np.float32))

    def predict(self, table: pa.Table, turn: AbstractContextManager[Any] | None = None) -> Answer:
        """Answers for raw rows.

        Args:
            table: The rows.
            turn: Held while the model computes, so that the rows of the next request are prepared meanwhile.

        Raises:
            DataError: If a column is missing or of another type.
            Exception: What a user's model raises, without the personal values of the rows (`logs.cleaned`).
        """
        served = self._now()
        with nameless(table, served.bundle.spec.personal):
            x = served.bundle.preprocessor.transform(table)
            with turn or nullcontext():
                return _answer(served, served.bundle.predict_matrix(x))

    def answer(self, outputs: Any) -> Answer:
        """Outputs ``(rows, outputs)``, computed elsewhere, as this model's answer."""
        return _answer(self._now(), outputs)

    @property
    def bundle(self) -> Bundle:
        """The opened bundle that serves."""
        return self._now().bundle

    @property
    def columns(self) -> tuple[InputColumn, ...]:
        """What a row must have."""
        return self._now().columns

    def describe(self) -> Described:
        """What serves, and what is wrong."""
        served = self._now()
        spec = served.bundle.spec
        return Described(
            served_as=self.served_as,
            model=served.version.name,
            version=served.version.version,
            digest=served.bundle.digest,
            task=spec.task,
            classes=tuple(spec.classes),
            columns=served.columns,
            problem=self.problem,
            registry=self.heard.registry,
            registry_age_s=self.heard.age_s,
            personal=served.bundle.spec.personal,
        )

    def _now(self) -> _Served:
        if self._served is None:
            raise RegistryError(f"Nothing is served for {self.address} yet; {self.problem or 'it is still loading'}.")
        return self._served


def _answer(served: _Served, outputs: Any) -> Answer:
    return Answer(
        model=served.version.name,
        version=served.version.version,
        digest=served.bundle.digest,
        task=served.bundle.spec.task,
        classes=tuple(served.bundle.spec.classes),
        outputs=outputs,
    )


class nameless:  # noqa: N801 - used as a function
    """What is raised inside says nothing of what stands in these columns of the rows: a user's model may word it as it likes."""

    __slots__ = ("_columns", "_table")

    def __init__(self, table: pa.Table, columns: Iterable[str]) -> None:
        self._table, self._columns = table, columns

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, Exception):
            return
        there = [self._table[name] for name in self._columns if name in self._table.column_names]
        values = [str(v) for column in there for v in column.to_pylist() if v is not None]
        clean = logs.cleaned(error, values)
        if clean is not error:
            raise clean from None


def served_name(address: ModelAddress) -> str:
    """How a model is asked for: by its name alone where it is the champion."""
    return address.name if address.alias == "champion" else str(address)


def fetch(settings: Settings, version: ModelVersion) -> Path:
    """The version's bundle: from the local cache if it is whole there, else from the registry (which imports MLflow)."""
    cached = cached_bundle(settings, version.digest)
    if version.digest and cached.is_dir():
        try:
            check_bundle(cached, expect_digest=version.digest)
        except TiltyardError:
            pass  # damaged: the registry takes another copy
        else:
            return cached
    from tiltyard.registry.mlflow_registry import ModelRegistry

    return ModelRegistry(settings).fetch(version)


def find(settings: Settings, address: ModelAddress) -> ModelVersion:
    """The version of an address. A pinned one that is cached here needs no registry; an alias is looked up.

    Raises:
        RegistryError: If there is none, or the registry is away and nothing is remembered here.
    """
    return look_up(settings, address)[0]


def look_up(settings: Settings, address: ModelAddress) -> tuple[ModelVersion, str]:
    """As `find`; and why the registry did not say so itself, empty where it did or was not needed."""
    if address.version is not None and (known := recall(settings, address)) is not None:
        return known, ""
    from tiltyard.registry.mlflow_registry import ModelRegistry

    try:
        return ModelRegistry(settings).at(address), ""
    except Exception as error:  # MLflow opens its store on first use and raises what its driver raises
        if isinstance(error, TiltyardError) and not isinstance(error, RegistryAwayError):
            raise  # the registry was there and said no
        known = recall(settings, address)
        if known is not None:
            return known, f"the registry did not answer: {shown(str(error))[:300]}"
        raise RegistryAwayError(
            f"The registry did not answer for {address}, and this machine has no copy: {shown(str(error))}. Wanted: MLflow within "
            "reach; see TILTYARD_TRACKING_URI."
        ) from error


def open_all(settings: Settings, addresses: Sequence[ModelAddress]) -> dict[str, Holder]:
    """Holders of several pinned versions, by the name they are asked by.

    Raises:
        TiltyardError: If one cannot be opened.
    """
    holders = {}
    for address in addresses:
        holder = Holder(settings, address)
        holder.take(find(settings, address))
        holders[holder.served_as] = holder
    return holders
