"""The Ray Serve application that hosts champions and candidates of any number of tasks. Loads nothing until a replica starts.

::

    Front      HTTP and handle: authenticates, validates, merges small requests, refuses what is too much
      Champion one deployment a model, so that one that fails or is slow holds up no other; follows its alias
    Challenger one deployment a model, with no replica until a split names a version that is to meet a share of the requests
    Registrar  the one process that asks MLflow where the aliases point, and the journal for the splits

`evaluation_app` is another application: pinned versions on replicas of their own, asked by handle alone, so that evaluation
and traffic never share a replica. Every answer carries the model's version and digest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from tiltyard.errors import ServingError, TiltyardError
from tiltyard.placement import AWAY_FROM_GPU_NODES
from tiltyard.registry.address import CHAMPION, ModelAddress
from tiltyard.serving import traffic
from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.batching import Batcher
from tiltyard.serving.comparison import Comparison
from tiltyard.serving.holder import served_name
from tiltyard.serving.meters import FLUSH_S, Meters
from tiltyard.serving.recorder import RECORD_S, Recorder
from tiltyard.serving.replicas import (
    QUIET,
    REPLICA_CPUS,
    Challenger,
    Champion,
    Evaluator,
    Registrar,
    quiet,
    served_key,
    settled,
)
from tiltyard.serving.requests import RequestError, packed
from tiltyard.serving.splitter import Ask, Splitter
from tiltyard.serving.tokens import tokens_path
from tiltyard.serving.traffic import Split
from tiltyard.settings import Settings
from tiltyard.telemetry import logs
from tiltyard.telemetry.traces import carrier

__all__ = ["Answer", "ModelAddress", "app_from_args", "champions_app", "evaluation_app"]

POLL_S = 1.0
"""How often the registry is asked where an alias points: a moved alias is taken up within two of these."""
SCALE_UP_S, LOOK_BACK_S = 10.0, 15.0
"""Load is the mean over the second; Serve's processes tell theirs every 10 s."""
RETRIES = 3
HOLD_S = 20.0
"""A challenger's replica is kept by a call of this many seconds after another; Serve ends it 30 s after the last."""


@serve.deployment(
    ray_actor_options={"num_cpus": 0, "label_selector": AWAY_FROM_GPU_NODES},
    max_ongoing_requests=256,
    max_queued_requests=64,
    backpressure_config={"status_code": 503, "retry_after_s": 1},
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=10,
    logging_config=QUIET,
)
@serve.ingress()
class Front:
    """Takes a request to the model that it names."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        models: Mapping[str, Any],
        challengers: Mapping[str, Any],
        registrar: Any,
        journal_uri: str,
        limits: Limits,
        tokens: Path | None,
        poll_s: float,
        record_s: float,
        most: int,
    ) -> None:
        quiet()
        self._models, self._challengers, self._registrar = dict(models), dict(challengers), registrar
        self._limits, self._tokens, self._poll_s = limits, tokens, poll_s
        self._described: dict[str, Described] = {}
        self._splits: dict[str, Split] = {}
        self._ready: dict[str, Described] = {}
        self._meters = Meters()
        busy = replace(limits, in_flight=limits.in_flight * most)  # enough under way that Serve adds the last replica
        self._batchers = {name: self._batcher(name, handle, busy) for name, handle in self._models.items()}
        few = replace(limits, waiting=limits.shadows)
        self._beside = {
            name: self._batcher(f"{name} challenger", handle, few) for name, handle in self._challengers.items()
        }
        self._ask, self._ask_beside = (
            {name: handle.predict.remote for name, handle in handles.items()} for handles in (models, challengers)
        )
        self._ask_arrow, self._ask_arrow_beside = (
            {name: handle.predict_arrow.remote for name, handle in handles.items()} for handles in (models, challengers)
        )
        self._comparisons = Recorder(journal_uri, record_s)
        self._splitters = {name: Splitter(name, limits, self._compared) for name in self._challengers}
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch(name)) for name in self._models]
        self._tasks += [loop.create_task(self._watch_split(name)) for name in self._challengers]
        self._tasks += [loop.create_task(self._comparisons.keep()), loop.create_task(self._hand_over())]

    def _batcher(self, name: str, handle: Any, limits: Limits) -> Batcher:
        ask = handle.predict.remote  # made once: each look at a handle's method is another handle

        async def call(table: pa.Table) -> Answer:
            self._meters.batch(name, table.num_rows)
            return await _asked(ask, packed(table))

        return Batcher(call, limits)

    def __serve_build_asgi_app__(self) -> Any:
        """Called by Serve once the replica exists."""
        from tiltyard.serving.http import Guard, build_app
        from tiltyard.serving.tokens import TokenStore

        settled()
        logs.setup(level=logging.WARNING)
        guard = Guard(TokenStore(self._tokens) if self._tokens is not None else None)
        return build_app(self, self._limits, guard, at_end=self._comparisons.write)

    async def predict(self, model: str, table: pa.Table, request_id: str = "") -> Answer:
        """Answers of one model for a table of raw rows, by handle.

        Args:
            model: As it is served here.
            table: Raw rows.
            request_id: Decides whether a challenger meets the request too; without one chance does.

        Raises:
            ServingError: If no such model is served here.
        """
        name = served_key(model, self._models)
        ask, beside = self._ask[name], self._ask_beside.get(name)
        return await self._split(
            name,
            request_id,
            lambda: _asked(ask, packed(table)),
            lambda: _asked(beside, packed(table)),  # type: ignore[arg-type]  # asked only where there is one
            table.nbytes,
        )

    async def describe_all(self) -> list[Described]:
        """Every model served here, asked now."""
        return [await handle.describe.remote() for handle in self._models.values()]

    # -- what the HTTP face asks (`tiltyard.serving.http.Backend`) ------------------------------------------------------

    def described(self) -> list[Described]:
        """Every model that has answered so far."""
        return [self.describe(name) for name in self._described]

    def describe(self, name: str) -> Described:
        """One of them."""
        if name in self._described:
            split = self._splits.get(name)
            return (
                replace(self._described[name], split=f"{split}{self._waits(name)}") if split else self._described[name]
            )
        if name in self._models:
            raise RequestError(503, f"{name} is still loading. Try again.")
        raise RequestError(404, f"No model {name!r} is served here; there are: {', '.join(sorted(self._models))}.")

    async def answer(self, name: str, table: pa.Table, request_id: str) -> Answer:
        """Its answer; small requests that meet are merged."""
        return await self._split(
            name,
            request_id,
            lambda: self._batchers[name].answer(table),
            lambda: self._beside[name].answer(table),
            table.nbytes,
        )

    async def answer_arrow(self, name: str, body: bytes, request_id: str) -> Answer:
        """Its answer for an Arrow IPC stream, which is taken apart where the model is."""
        return await self._split(
            name,
            request_id,
            lambda: _asked(self._ask_arrow[name], body),
            lambda: _asked(self._ask_arrow_beside[name], body),
            len(body),
        )

    def observe(self, name: str, *, status: int, seconds: float, rows: int) -> None:
        """Counts an answered request."""
        self._meters.request(name, status, seconds, rows)

    async def _hand_over(self) -> None:
        """What was counted, once in a while: whether or not the models can be asked about themselves."""
        while True:
            await asyncio.sleep(FLUSH_S)
            self._meters.flush()

    async def _watch(self, name: str) -> None:
        """Keeps the model's description and its gauges fresh; a Ray gauge fades after 20 s."""
        while True:
            with contextlib.suppress(Exception):  # the replica is starting or being replaced: asked again
                self._described[name] = found = await self._models[name].describe.remote()
                logs.personal(found.personal)
                self._meters.state(found, self._batchers[name].waiting)
            await asyncio.sleep(self._poll_s)

    # -- a challenger's share ------------------------------------------------------------------------------------------

    async def _split(self, name: str, request_id: str, champion: Ask, challenger: Ask, size: int) -> Answer:
        splitter = self._splitters.get(name)
        if splitter is None:
            return await champion()
        return await splitter.answer(request_id or uuid.uuid4().hex, champion, challenger, size=size)

    def _compared(self, found: Comparison) -> None:
        self._meters.comparison(found)
        self._comparisons.add(found)

    def _waits(self, name: str) -> str:
        """Why a challenger is not asked."""
        return "" if self._splitters[name].meets else "; the challenger is not ready, or is the champion itself"

    async def _watch_split(self, name: str) -> None:
        """Keeps the share that the registrar knows of, and the challenger's replica while there is one."""
        held: asyncio.Task[Any] | None = None
        while True:
            split: Split | None = self._splits.get(name)
            with contextlib.suppress(Exception):  # the registrar is being started again: what held goes on
                split = await self._registrar.split.remote(name)
            if split != self._splits.get(name):
                self._splitters[name].meet(None, None, None)
                await asyncio.to_thread(self._comparisons.write)
                self._splits.pop(name, None)
                self._ready.pop(name, None)
            if split is not None:
                self._splits[name] = split
                self._meters.split(name, split)
                if held is None or held.done():
                    held = asyncio.get_running_loop().create_task(self._hold(name))
                self._splitters[name].meet(split, self._described.get(name), await self._challenger(name, split))
            await asyncio.sleep(self._poll_s)

    async def _hold(self, name: str) -> None:
        with contextlib.suppress(Exception):  # its replica is starting or died: held again at the next look
            await self._challengers[name].hold.remote(HOLD_S)

    async def _challenger(self, name: str, split: Split) -> Described | None:
        """What the challenger's replica has ready, if it is what the split names."""
        try:
            async with asyncio.timeout(self._poll_s + 1):
                found: Described = await self._challengers[name].describe.remote()
        except TimeoutError:  # busy, or being started: what was known of it holds
            return self._ready.get(name)
        except Exception:  # not there, or what it is to load cannot be loaded
            self._ready.pop(name, None)
            return None
        if found.served_as != served_name(split.challenger):
            self._ready.pop(name, None)
            return None
        self._ready[name] = found
        return found


def _traced() -> tuple[str, ...]:
    """What the replica's span is to be under; nothing where traces are off."""
    parent = carrier()
    return (parent,) if parent else ()


async def _asked(call: Callable[..., Awaitable[Any]], argument: Any) -> Answer:
    """A call to a model, again where its replica died under it: an answer has no effect but itself.

    Raises:
        RequestError: 503 where no replica answers.
    """
    for attempt in range(RETRIES):
        try:
            return await call(argument, *_traced())  # type: ignore[no-any-return]
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
    splits: Mapping[str, Split] | None = None,
    record_s: float = RECORD_S,
    scale_up_s: float = SCALE_UP_S,
) -> Application:
    """The application for traffic.

    Args:
        models: ``NAME[@ALIAS|@VERSION]``; a name alone means its champion.
        settings: Where things live; from the environment where None.
        limits: What is refused.
        tokens: File of bearer tokens; without one HTTP asks for none, which is for loopback alone.
        replicas: Least and most replicas of each model; where they differ Serve scales between them by load.
        cpus: What Ray sets aside for a replica; each computes with one thread whatever this says.
        poll_s: Seconds between two looks at the registry, and at the journal for the splits.
        splits: Challengers' shares by registered model, of those that follow their champion; one that the journal has later
            decided about (``tiltyard models challenge``) stands as it was decided.
        record_s: Seconds after which the comparison of a new pair is in the journal.
        scale_up_s: Seconds of too much load after which a replica is added.

    Raises:
        ServingError: If there is no model, one stands twice, or a split is of one that is not served by its champion.
    """
    settings, limits = settings or Settings.from_env(), limits or Limits()
    addresses = _addresses(models)
    champions = [a.name for a in addresses if a.alias == CHAMPION]
    if strangers := sorted(set(splits or {}) - set(champions)):
        raise ServingError(
            f"A challenger is named for {', '.join(strangers)}; served by its champion are: {', '.join(champions) or 'none'}."
        )
    registrar = Registrar.bind(settings, poll_s, splits or {})  # type: ignore[attr-defined]
    bound = {
        served_name(a): Champion.options(  # type: ignore[attr-defined]
            name=_deployment(a), ray_actor_options={"num_cpus": cpus}, **_scale(*replicas, scale_up_s)
        ).bind(settings, a, registrar, limits, poll_s)
        for a in addresses
    }
    none_yet = {"min_replicas": 0, "max_replicas": replicas[1], "target_ongoing_requests": 3, "downscale_delay_s": 30}
    beside = {
        name: Challenger.options(  # type: ignore[attr-defined]
            name=f"{name.replace('/', '-')}-challenger",
            ray_actor_options={"num_cpus": cpus},
            autoscaling_config=none_yet,
        ).bind(settings, name, registrar, limits, poll_s)
        for name in champions
    }
    app = Front.bind(bound, beside, registrar, settings.journal_uri, limits, tokens, poll_s, record_s, replicas[1])  # type: ignore[attr-defined]
    return app  # type: ignore[no-any-return]


def _deployment(address: ModelAddress) -> str:
    return str(address).replace("/", "-")


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
        "record_s",
        "scale_up_s",
        "shadow",
        "canary",
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
        cpus, record_s = float(args.get("cpus", REPLICA_CPUS)), float(args.get("record_s", RECORD_S))
        scale_up_s = float(args.get("scale_up_s", SCALE_UP_S))
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
        splits=traffic.splits_from_args(args),
        record_s=record_s,
        scale_up_s=scale_up_s,
    )


def _scale(least: int, most: int, scale_up_s: float) -> dict[str, Any]:
    if least < 1 or most < least:
        raise ServingError(f"Found {least} to {most} replicas; wanted at least 1, and the most no less than the least.")
    if least == most:
        return {"num_replicas": least}
    config = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": 2,
        "upscale_delay_s": scale_up_s,
        "look_back_period_s": max(scale_up_s, LOOK_BACK_S),
    }
    return {"autoscaling_config": config}
