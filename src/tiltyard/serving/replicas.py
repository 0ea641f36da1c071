"""The processes that answer: replicas of champions, of challengers and for evaluation; and the one that asks the registry for them.

A replica holds one version at a time, follows its alias, and computes with one thread. What takes requests to them and how they
are put together is `tiltyard.serving.deployment`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
from ray import serve

from tiltyard.errors import RegistryError, ServingError, TiltyardError
from tiltyard.placement import AWAY_FROM_GPU_NODES
from tiltyard.registry.address import ModelAddress
from tiltyard.registry.version import ModelVersion
from tiltyard.serving import traffic
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.holder import Heard, Holder, fetch, find, look_up, nameless, open_all
from tiltyard.serving.requests import fitted_table, table_from_arrow, unpacked
from tiltyard.serving.traffic import Split
from tiltyard.settings import Settings, shown
from tiltyard.telemetry.traces import span

if TYPE_CHECKING:
    from tiltyard.serving.stacking import Stack

T = TypeVar("T")
REPLICA_CPUS = 0.1
"""A replica that waits costs nothing; what it is worth under load is for the config of a cluster to say."""
POLL_NICENESS = 10
"""Of the thread that looks at the registry and the journal every second: requests go first."""
QUIET = {"log_level": "ERROR", "enable_access_log": False}


def quiet() -> None:
    """Serve's own log says nothing but errors in this process."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def settled() -> None:
    """What a process has loaded when it begins to answer is left out of later garbage collections, which would look at it all."""
    gc.freeze()


def compute_with_one_thread() -> None:
    """Torch is loaded, and computes with one thread in whatever thread of this process."""
    import torch

    torch.set_num_threads(1)


def served_key(model: str, there: Mapping[str, Any]) -> str:
    """The key of a model asked for by its full name, or by the bare one where only one version of it is there."""
    if model in there:
        return model
    same = [name for name in there if name.partition("@")[0] == model]
    if len(same) != 1:
        raise ServingError(f"No model {model!r} is served here; there are: {', '.join(sorted(there))}.")
    return same[0]


@serve.deployment(
    ray_actor_options={"num_cpus": 0, "label_selector": AWAY_FROM_GPU_NODES},
    max_ongoing_requests=1000,
    logging_config=QUIET,
)
class Registrar:
    """Asks MLflow where aliases point, for all replicas; fetches what is new into this machine's cache."""

    def __init__(self, settings: Settings, poll_s: float, splits: Mapping[str, Split]) -> None:
        quiet()
        self._settings, self._poll_s = settings, poll_s
        self._configured, self._splits = dict(splits), dict(splits)
        self._seen_splits = False
        self._known: dict[ModelAddress, Heard] = {}
        self._when: dict[ModelAddress, float] = {}
        self._begun = time.monotonic()
        self._asked: dict[ModelAddress, asyncio.Lock] = {}
        self._task: asyncio.Task[None] | None = None
        self._behind = ThreadPoolExecutor(1, initializer=_step_back)
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the next look is another try
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        threading.Thread(target=_load_mlflow, daemon=True).start()  # ready when the first replica asks

    async def resolve(self, address: ModelAddress) -> Heard:
        """The version of an address as of the last look, and why it is not known or not known to be the newest."""
        lock = self._asked.setdefault(address, asyncio.Lock())
        async with lock:
            if address not in self._known:
                self._known[address] = await asyncio.to_thread(self._look, address)
        self._go_on()
        found = self._known[address]
        return replace(found, age_s=time.monotonic() - self._when.get(address, self._begun) if found.registry else 0.0)

    async def split(self, model: str) -> Split | None:
        """The share of a champion's requests that a challenger meets, as of the last look at the journal."""
        if not self._seen_splits:
            await asyncio.to_thread(self._look_at_splits)
        self._go_on()
        return self._splits.get(model)

    def _go_on(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._poll())

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            await self._from_behind(self._look_at_splits)
            for address in list(self._known):
                self._known[address] = await self._from_behind(self._look, address)

    async def _from_behind(self, look: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._behind, look, *args)

    def _look(self, address: ModelAddress) -> Heard:
        before = self._known.get(address, Heard())
        try:
            version, away = look_up(self._settings, address)
        except Exception as error:  # whatever the store raises: the replicas go on with what they have
            return replace(before, registry=f"the registry did not say: {shown(str(error))[:300]}")
        if away and before.version is not None:
            return replace(before, registry=away)
        if version != before.version:  # a bundle is read whole to be checked: once a version
            with contextlib.suppress(TiltyardError, OSError):  # the replica tries too, and words the reason
                fetch(self._settings, version)
        if not away:
            self._when[address] = time.monotonic()
        return Heard(version=version, registry=away)

    def _look_at_splits(self) -> None:
        from tiltyard.journal import Journal

        with contextlib.suppress(Exception):  # while the journal is away, what was seen last holds
            with Journal.open(self._settings.journal_uri) as journal:
                decisions = journal.decisions(kind=traffic.DECISION)
            told = [(d.subject, d.outcome, d.evidence) for d in decisions]
            self._splits = traffic.standing(self._configured, told)
        self._seen_splits = True


def _load_mlflow() -> None:
    import tiltyard.registry.mlflow_registry  # noqa: F401


def _step_back() -> None:
    """The thread that calls this, and it alone, runs where nothing else wants the core."""
    os.nice(POLL_NICENESS)


class _Replica:
    """A process that answers with one version at a time, and computes with one thread."""

    def __init__(self, settings: Settings, registrar: Any, limits: Limits, poll_s: float) -> None:
        quiet()
        self._settings, self._registrar, self._limits, self._poll_s = settings, registrar, limits, poll_s
        self._holder: Holder | None = None
        self._computing = threading.Lock()  # Serve runs methods in threads

    @property
    def _held(self) -> Holder:
        if self._holder is None:
            raise ServingError("There is no challenger here; it is still loading, or the share was ended.")
        return self._holder

    def predict(self, table: pa.Table | bytes, parent: str = "") -> Answer:
        """Answers for raw rows, as they are or `packed`; preprocessing is the model's own.

        ``parent`` is the ``traceparent`` of whoever asks, where traces are on.
        """
        held = self._held
        with span("replica", parent=parent, model=held.address):
            return held.predict(unpacked(table), self._computing)

    def predict_arrow(self, body: bytes, parent: str = "") -> Answer:
        """Answers for an Arrow IPC stream from a client.

        Raises:
            RequestError: If it is not what the model takes.
        """
        table = table_from_arrow(pa.py_buffer(body), self._held.columns, self._limits)
        return self.predict(table, parent)

    def describe(self) -> Described:
        """What serves here, and what is wrong."""
        return self._held.describe()


@serve.deployment(
    max_ongoing_requests=8,
    health_check_period_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
    max_constructor_retry_count=3,
    logging_config=QUIET,
)
class Champion(_Replica):
    """A replica of one model. A moved alias is taken up between two requests; what cannot be loaded never serves."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, address: ModelAddress, registrar: Any, limits: Limits, poll_s: float
    ) -> None:
        super().__init__(settings, registrar, limits, poll_s)
        self._holder = Holder(settings, address)
        asked = asyncio.get_running_loop().create_task(self._first())  # the registry answers while torch is loaded
        await asyncio.to_thread(compute_with_one_thread)
        await asyncio.to_thread(self._holder.take, await asked)
        settled()
        self._task = asyncio.get_running_loop().create_task(self._follow()) if address.alias else None

    async def _first(self) -> ModelVersion:
        """Where to begin: what the registry says, or what this machine remembers while it is away."""
        address = self._held.address
        if address.alias is None:
            return await asyncio.to_thread(find, self._settings, address)
        found: Heard = await self._registrar.resolve.remote(address)
        if found.version is None:
            raise RegistryError(f"{address} cannot be served: {found.registry}")
        self._held.heard = found
        return found.version

    async def _follow(self) -> None:
        holder = self._held
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                found: Heard = await self._registrar.resolve.remote(holder.address)
            except Exception:  # noqa: S112 - the registrar is being started again: what serves goes on
                continue
            holder.heard = found
            if found.version is None or not holder.wants(found.version):
                continue
            before = holder.version
            taken = await asyncio.to_thread(holder.take, found.version)
            await asyncio.to_thread(self._record, found.version, before, taken)

    def _record(self, version: ModelVersion, before: ModelVersion | None, taken: bool) -> None:
        """Appends what was done to the journal's decisions, once for all replicas."""
        from tiltyard.journal import Journal

        holder, outcome = self._held, "serving" if taken else "refused"
        with contextlib.suppress(TiltyardError, OSError), Journal.open(holder.settings.journal_uri) as journal:
            journal.decide(
                kind="served",
                subject=holder.address.name,
                actor="tiltyard.serving",
                evidence={
                    "alias": holder.address.alias,
                    "version": version.version,
                    "digest": version.digest,
                    "before": before.version if before else None,
                },
                reasons=[holder.problem or "the alias moved"],
                outcome=outcome,
                once=f"served:{holder.address}:{version.digest}:{before.version if before else 0}:{outcome}",
            )


@serve.deployment(
    max_ongoing_requests=8,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=5,
    logging_config=QUIET,
)
class Challenger(_Replica):
    """A replica of whatever version a split names; there is none while no split does. It may fail, and nothing else then does."""

    def __init__(self, settings: Settings, model: str, registrar: Any, limits: Limits, poll_s: float) -> None:
        super().__init__(settings, registrar, limits, poll_s)
        compute_with_one_thread()
        self._model = model
        self._task: asyncio.Task[None] | None = None

    async def hold(self, seconds: float) -> None:
        """Keeps this replica: Serve ends one that nobody asks."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._follow())
        await asyncio.sleep(seconds)

    async def _follow(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # said by `describe`: the holder has the reason
                await self._look()
            await asyncio.sleep(self._poll_s)

    async def _look(self) -> None:
        split = await self._registrar.split.remote(self._model)
        if split is None:
            self._holder = None
            return
        if self._holder is None or self._holder.address != split.challenger:
            self._holder = Holder(self._settings, split.challenger)
        found: Heard = await self._registrar.resolve.remote(split.challenger)
        self._holder.heard = found
        if found.version is None:
            self._holder.problem = self._holder.problem or found.registry
        elif self._holder.wants(found.version):
            await asyncio.to_thread(self._holder.take, found.version)


@serve.deployment(
    ray_actor_options={"num_cpus": REPLICA_CPUS},
    max_ongoing_requests=4,
    graceful_shutdown_wait_loop_s=0.2,
    graceful_shutdown_timeout_s=5,
    max_constructor_retry_count=2,
    logging_config=QUIET,
)
class Evaluator:
    """A replica for evaluation: pinned versions, large tables, one after the other."""

    def __init__(self, settings: Settings, addresses: Sequence[ModelAddress]) -> None:
        quiet()
        compute_with_one_thread()
        self._models = open_all(settings, addresses)
        self._stacks: dict[tuple[str, ...], Stack] = {}
        self._computing = threading.Lock()  # Serve runs methods in threads; a replica computes with one

    def predict_all(self, models: Sequence[str], table: pa.Table) -> list[Answer]:
        """Answers of several model versions for the same rows, in one pass where their shapes are equal.

        Raises:
            ServingError: If one is not served here.
            RequestError: If a column is missing or of another type.
        """
        names = tuple(served_key(m, self._models) for m in models)
        columns = {c.name: c for n in names for c in self._models[n].columns}
        rows = fitted_table(table, tuple(columns.values()))
        from tiltyard.serving.stacking import Stack

        with self._computing:
            if names not in self._stacks:
                self._stacks[names] = Stack({n: self._models[n].bundle for n in names})
        with nameless(table, {c for n in names for c in self._models[n].bundle.spec.personal}):
            outputs = self._stacks[names].predict_table(rows, self._computing)
        return [self._models[n].answer(outputs[n]) for n in names]

    def predict(self, model: str, table: pa.Table) -> Answer:
        """Answers of one model version.

        Raises:
            ServingError: If it is not served here.
            RequestError: If a column is missing or of another type.
        """
        holder = self._models[served_key(model, self._models)]
        return holder.predict(fitted_table(table, holder.columns), self._computing)

    def describe(self) -> list[Described]:
        """Every version served here."""
        return [holder.describe() for holder in self._models.values()]
