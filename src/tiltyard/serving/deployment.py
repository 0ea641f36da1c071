"""The Ray Serve application that hosts champions and candidates of any number of tasks. Loads nothing until a replica starts.

::

    Front      HTTP and handle: authenticates, validates, merges small requests, refuses what is too much
      Champion one deployment a model, so that one that fails or is slow holds up no other; follows its alias
    Registrar  the one process that asks MLflow where the aliases point

`evaluation_app` is another application: pinned versions on replicas of their own, asked by handle alone, so that evaluation
and traffic never share a replica. Every answer carries the model's version and digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from tiltyard.errors import RegistryError, ServingError, TiltyardError
from tiltyard.registry.address import ModelAddress
from tiltyard.registry.version import ModelVersion
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.batching import Batcher
from tiltyard.serving.holder import Holder, fetch, find, open_all, served_name
from tiltyard.serving.requests import RequestError, fitted_table, table_from_arrow
from tiltyard.serving.stacking import Stack
from tiltyard.serving.tokens import tokens_path
from tiltyard.settings import Settings

__all__ = ["Answer", "ModelAddress", "app_from_args", "champions_app", "evaluation_app"]

POLL_S = 1.0
"""How often the registry is asked where an alias points: a moved alias is taken up within two of these."""
REPLICA_CPUS = 0.1
"""A replica that waits costs nothing; what it is worth under load is for the config of a cluster to say."""
RETRIES = 3
_QUIET = {"log_level": "ERROR", "enable_access_log": False}
_LATENCIES_S = [0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
_ROWS = [1.0, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 8192, 65_536]


def _quiet() -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


@serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000, logging_config=_QUIET)
class Registrar:
    """Asks MLflow where aliases point, for all replicas; fetches what is new into this machine's cache."""

    def __init__(self, settings: Settings, poll_s: float) -> None:
        _quiet()
        self._settings, self._poll_s = settings, poll_s
        self._known: dict[ModelAddress, ModelVersion | str] = {}
        self._asked: dict[ModelAddress, asyncio.Lock] = {}
        self._task: asyncio.Task[None] | None = None

    async def resolve(self, address: ModelAddress) -> ModelVersion | str:
        """The version of an address as of the last look, or why it is not known."""
        lock = self._asked.setdefault(address, asyncio.Lock())
        async with lock:
            if address not in self._known:
                self._known[address] = await asyncio.to_thread(self._look, address)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._poll())
        return self._known[address]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            for address in list(self._known):
                self._known[address] = await asyncio.to_thread(self._look, address)

    def _look(self, address: ModelAddress) -> ModelVersion | str:
        try:
            version = find(self._settings, address)
        except Exception as error:  # whatever the store raises: the replicas go on with what they have
            return f"the registry did not say: {error}"
        with contextlib.suppress(TiltyardError, OSError):  # the replica tries too, and words the reason
            fetch(self._settings, version)
        return version


@serve.deployment(
    max_ongoing_requests=8,
    health_check_period_s=10,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
    max_constructor_retry_count=3,
    logging_config=_QUIET,
)
class Champion:
    """A replica of one model. A moved alias is taken up between two requests; what cannot be loaded never serves."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: Settings, address: ModelAddress, registrar: Any, limits: Limits, poll_s: float
    ) -> None:
        import torch

        _quiet()
        torch.set_num_threads(1)
        self._holder, self._registrar, self._limits, self._poll_s = Holder(settings, address), registrar, limits, poll_s
        self._computing = threading.Lock()  # Serve runs methods in threads; a replica computes with one
        version = await self._first()
        await asyncio.to_thread(self._holder.take, version)
        self._task = asyncio.get_running_loop().create_task(self._follow()) if address.alias else None

    async def _first(self) -> ModelVersion:
        """Where to begin: what the registry says, or what this machine remembers while it is away."""
        address = self._holder.address
        if address.alias is None:
            return await asyncio.to_thread(find, self._holder.settings, address)
        found = await self._registrar.resolve.remote(address)
        if isinstance(found, str):
            raise RegistryError(f"{address} cannot be served: {found}")
        return found  # type: ignore[no-any-return]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                found = await self._registrar.resolve.remote(self._holder.address)
            except Exception:  # noqa: S112 - the registrar is being started again: what serves goes on
                continue
            if isinstance(found, str) or not self._holder.wants(found):
                continue
            before = self._holder.version
            taken = await asyncio.to_thread(self._holder.take, found)
            await asyncio.to_thread(self._record, found, before, taken)

    def _record(self, version: ModelVersion, before: ModelVersion | None, taken: bool) -> None:
        """Appends what was done to the journal's decisions, once for all replicas."""
        from tiltyard.journal import Journal

        outcome = "serving" if taken else "refused"
        with contextlib.suppress(TiltyardError, OSError), Journal.open(self._holder.settings.journal_uri) as journal:
            journal.decide(
                kind="served",
                subject=self._holder.address.name,
                actor="tiltyard.serving",
                evidence={
                    "alias": self._holder.address.alias,
                    "version": version.version,
                    "digest": version.digest,
                    "before": before.version if before else None,
                },
                reasons=[self._holder.problem or "the alias moved"],
                outcome=outcome,
                once=f"served:{self._holder.address}:{version.digest}:{before.version if before else 0}:{outcome}",
            )

    def predict(self, table: pa.Table) -> Answer:
        """Answers for raw rows; preprocessing is the model's own."""
        with self._computing:
            return self._holder.predict(table)

    def predict_arrow(self, body: bytes) -> Answer:
        """Answers for an Arrow IPC stream from a client.

        Raises:
            RequestError: If it is not what the model takes.
        """
        table = table_from_arrow(pa.py_buffer(body), self._holder.columns, self._limits)
        with self._computing:
            return self._holder.predict(table)

    def describe(self) -> Described:
        """What serves here, and what is wrong."""
        return self._holder.describe()


@serve.deployment(
    ray_actor_options={"num_cpus": REPLICA_CPUS},
    max_ongoing_requests=4,
    graceful_shutdown_wait_loop_s=0.2,
    graceful_shutdown_timeout_s=5,
    max_constructor_retry_count=2,
    logging_config=_QUIET,
)
class Evaluator:
    """A replica for evaluation: pinned versions, large tables, one after the other."""

    def __init__(self, settings: Settings, addresses: Sequence[ModelAddress]) -> None:
        import torch

        _quiet()
        torch.set_num_threads(1)
        self._models = open_all(settings, addresses)
        self._stacks: dict[tuple[str, ...], Stack] = {}
        self._computing = threading.Lock()  # Serve runs methods in threads; a replica computes with one

    def predict_all(self, models: Sequence[str], table: pa.Table) -> list[Answer]:
        """Answers of several model versions for the same rows, in one pass where their shapes are equal.

        Raises:
            ServingError: If one is not served here.
            RequestError: If a column is missing or of another type.
        """
        names = tuple(_served(m, self._models) for m in models)
        columns = {c.name: c for n in names for c in self._models[n].columns}
        rows = fitted_table(table, tuple(columns.values()))
        with self._computing:
            if names not in self._stacks:
                self._stacks[names] = Stack({n: self._models[n].bundle for n in names})
            outputs = self._stacks[names].predict_table(rows)
        return [self._models[n].answer(outputs[n]) for n in names]

    def predict(self, model: str, table: pa.Table) -> Answer:
        """Answers of one model version.

        Raises:
            ServingError: If it is not served here.
            RequestError: If a column is missing or of another type.
        """
        holder = self._models[_served(model, self._models)]
        rows = fitted_table(table, holder.columns)
        with self._computing:
            return holder.predict(rows)

    def describe(self) -> list[Described]:
        """Every version served here."""
        return [holder.describe() for holder in self._models.values()]


@serve.deployment(
    ray_actor_options={"num_cpus": 0},
    max_ongoing_requests=256,
    max_queued_requests=256,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
    logging_config=_QUIET,
)
@serve.ingress()
class Front:
    """Takes a request to the model that it names."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, models: Mapping[str, Any], limits: Limits, tokens: Path | None, poll_s: float
    ) -> None:
        _quiet()
        self._models, self._limits, self._tokens, self._poll_s = dict(models), limits, tokens, poll_s
        self._described: dict[str, Described] = {}
        self._batchers = {
            name: Batcher(functools.partial(_asked, handle.predict.remote), limits)
            for name, handle in self._models.items()
        }
        self._meters = _Meters()
        self._tasks = [asyncio.get_running_loop().create_task(self._watch(name)) for name in self._models]

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the replica exists."""
        from tiltyard.serving.http import Guard, build_app
        from tiltyard.serving.tokens import TokenStore

        return build_app(self, self._limits, Guard(TokenStore(self._tokens) if self._tokens is not None else None))

    async def predict(self, model: str, table: pa.Table) -> Answer:
        """Answers of one model for a table of raw rows, by handle.

        Raises:
            ServingError: If no such model is served here.
        """
        handle = self._models[_served(model, self._models)]
        return await _asked(handle.predict.remote, table)

    async def describe_all(self) -> list[Described]:
        """Every model served here, asked now."""
        return [await handle.describe.remote() for handle in self._models.values()]

    # -- what the HTTP face asks (`tiltyard.serving.http.Backend`) ------------------------------------------------------

    def described(self) -> list[Described]:
        """Every model that has answered so far."""
        return list(self._described.values())

    def describe(self, name: str) -> Described:
        """One of them."""
        if name in self._described:
            return self._described[name]
        if name in self._models:
            raise RequestError(503, f"{name} is still loading. Try again.")
        raise RequestError(404, f"No model {name!r} is served here; there are: {', '.join(sorted(self._models))}.")

    async def answer(self, name: str, table: pa.Table) -> Answer:
        """Its answer; small requests that meet are merged."""
        return await self._batchers[name].answer(table)

    async def answer_arrow(self, name: str, body: bytes) -> Answer:
        """Its answer for an Arrow IPC stream, which is taken apart where the model is."""
        return await _asked(self._models[name].predict_arrow.remote, body)

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        """Counts an answered request."""
        self._meters.request(name, status, seconds, rows)

    async def _watch(self, name: str) -> None:
        """Keeps the model's description and its gauges fresh; a Ray gauge fades after 20 s."""
        while True:
            with contextlib.suppress(Exception):  # the replica is starting or being replaced: asked again
                self._described[name] = found = await self._models[name].describe.remote()
                self._meters.state(found, self._batchers[name].waiting)
            await asyncio.sleep(self._poll_s)


class _Meters:
    """Ray metrics per model. p50, p95 and p99 are ``histogram_quantile`` over the latencies."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter, Gauge, Histogram

        per_model = ("model",)
        self._requests = Counter("tiltyard_serving_requests", "Answered HTTP requests.", ("model", "status"))
        self._rows = Counter("tiltyard_serving_rows", "Rows in answered HTTP requests.", per_model)
        self._seconds = Histogram(
            "tiltyard_serving_request_seconds", "From the request's head to its answer.", _LATENCIES_S, per_model
        )
        self._batch = Histogram("tiltyard_serving_request_rows", "Rows of a request.", _ROWS, per_model)
        self._waiting = Gauge("tiltyard_serving_waiting_requests", "Requests that wait for the model.", per_model)
        self._version = Gauge("tiltyard_serving_version", "Registry version that serves.", per_model)
        self._stale = Gauge("tiltyard_serving_stale", "1 while a newer version could not be loaded.", per_model)

    def request(self, model: str, status: int, seconds: float, rows: int) -> None:
        self._requests.inc(1, {"model": model, "status": str(status)})
        self._seconds.observe(seconds, {"model": model})
        if rows:
            self._rows.inc(rows, {"model": model})
            self._batch.observe(rows, {"model": model})

    def state(self, found: Described, waiting: int) -> None:
        tags = {"model": found.served_as}
        self._waiting.set(waiting, tags)
        self._version.set(found.version, tags)
        self._stale.set(1 if found.problem else 0, tags)


async def _asked(call: Callable[[Any], Awaitable[Any]], argument: Any) -> Answer:
    """A call to a model, again where its replica died under it: an answer has no effect but itself.

    Raises:
        RequestError: 503 where no replica answers.
    """
    for attempt in range(RETRIES):
        try:
            return await call(argument)  # type: ignore[no-any-return]
        except (BackPressureError, DeploymentUnavailableError) as error:
            raise RequestError(503, f"No replica of this model can answer now: {error}") from error
        except RayTaskError as error:
            if isinstance(error.cause, TiltyardError):
                raise error.cause from None
            raise
        except RayActorError as error:
            if attempt == RETRIES - 1:
                raise RequestError(503, "The replicas of this model died under the request. Try again.") from error
            await asyncio.sleep(0.1 * 2**attempt)
    raise AssertionError


def _served(model: str, there: Mapping[str, Any]) -> str:
    """The key of a model asked for by its full name, or by the bare one where only one version of it is there."""
    if model in there:
        return model
    same = [name for name in there if name.partition("@")[0] == model]
    if len(same) != 1:
        raise ServingError(f"No model {model!r} is served here; there are: {', '.join(sorted(there))}.")
    return same[0]


def _addresses(models: Sequence[str]) -> list[ModelAddress]:
    addresses = [ModelAddress.parse(text) for text in models]
    names = [str(a) for a in addresses]
    if not names or len(set(names)) < len(names):
        raise ServingError(f"Wanted: one or more models, each once; found {names}. Register one: tiltyard run JOB")
    return addresses


def champions_app(
    models: Sequence[str],
    settings: Settings | None = None,
    *,
    limits: Limits | None = None,
    tokens: Path | None = None,
    replicas: tuple[int, int] = (1, 1),
    cpus: float = REPLICA_CPUS,
    poll_s: float = POLL_S,
) -> Application:
    """The application for traffic.

    Args:
        models: ``NAME[@ALIAS|@VERSION]``; a name alone means its champion.
        settings: Where things live; from the environment where None.
        limits: What is refused.
        tokens: File of bearer tokens; without one HTTP asks for none, which is for loopback alone.
        replicas: Least and most replicas of each model; where they differ Serve scales between them by load.
        cpus: What Ray sets aside for a replica; each computes with one thread whatever this says.
        poll_s: Seconds between two looks at the registry.

    Raises:
        ServingError: If there is no model, or one stands twice.
    """
    settings, limits = settings or Settings.from_env(), limits or Limits()
    registrar = Registrar.bind(settings, poll_s)  # type: ignore[attr-defined]
    bound = {
        served_name(a): Champion.options(  # type: ignore[attr-defined]
            name=str(a).replace("/", "-"), ray_actor_options={"num_cpus": cpus}, **_scale(*replicas)
        ).bind(settings, a, registrar, limits, poll_s)
        for a in _addresses(models)
    }
    return Front.bind(bound, limits, tokens, poll_s)  # type: ignore[attr-defined,no-any-return]


def evaluation_app(models: Sequence[str], settings: Settings | None = None, *, replicas: int = 1) -> Application:
    """The application for evaluation: pinned versions, asked by handle.

    Raises:
        ServingError: If there is no model, one stands twice, or one names an alias: what is evaluated must not move.
    """
    addresses = _addresses(models)
    if moving := [str(a) for a in addresses if a.version is None]:
        raise ServingError(
            f"Evaluation wants pinned versions, NAME@VERSION; found {', '.join(moving)}, which may move."
        )
    app = Evaluator.options(num_replicas=replicas).bind(settings or Settings.from_env(), addresses)  # type: ignore[attr-defined]
    return app  # type: ignore[no-any-return]


def app_from_args(args: Mapping[str, str], settings: Settings | None = None) -> Application:
    """Either application from the string arguments of ``serve/champion.py`` or a Serve config file.

    Raises:
        ServingError: If an argument is unknown or wrong.
    """
    known = {
        "models",
        "purpose",
        "auth",
        "tokens",
        "min_replicas",
        "max_replicas",
        "cpus",
        "poll_s",
        *Limits.__dataclass_fields__,
    }
    if unknown := sorted(set(args) - known):
        raise ServingError(f"No argument {unknown[0]!r}; there are: {', '.join(sorted(known))}.")
    settings = settings or Settings.from_env()
    models = [name.strip() for name in str(args.get("models", "")).split(",") if name.strip()]
    try:
        least = int(args.get("min_replicas", 1))
        most = int(args.get("max_replicas", least))
        poll_s, limits = float(args.get("poll_s", POLL_S)), Limits.parse(args)
        cpus = float(args.get("cpus", REPLICA_CPUS))
    except ValueError as error:
        raise ServingError(f"An argument is not a number: {error}. Wanted whole numbers, or seconds.") from error
    purpose, auth = args.get("purpose", "traffic"), args.get("auth", "on")
    if purpose == "evaluation":
        return evaluation_app(models, settings, replicas=least)
    if purpose != "traffic" or auth not in {"on", "off"}:
        raise ServingError(
            f"Found purpose {purpose!r} and auth {auth!r}; wanted purpose traffic or evaluation, and auth on or off."
        )
    tokens = Path(args["tokens"]) if "tokens" in args else tokens_path(settings)
    return champions_app(
        models,
        settings,
        limits=limits,
        tokens=tokens if auth == "on" else None,
        replicas=(least, most),
        cpus=cpus,
        poll_s=poll_s,
    )


def _scale(least: int, most: int) -> dict[str, Any]:
    if least < 1 or most < least:
        raise ServingError(f"Found {least} to {most} replicas; wanted at least 1, and the most no less than the least.")
    if least == most:
        return {"num_replicas": least}
    return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 2}}
