"""Deploys an application and streams rows through it with a bounded number of requests in flight."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError

from tiltyard.errors import ServingError, TiltyardError
from tiltyard.ray_address import port_of_its_own, probe
from tiltyard.serving.answers import Answer, Described
from tiltyard.serving.environment import SERVE_ALONE_ENV

IN_FLIGHT = 3
"""One being answered, one being taken apart beside it, one on its way: more only takes memory."""
RETRIES = 3
LOOK_S = 2.0
"""So long an answer is waited for before it is looked whether Serve is still there."""
NO_RAY = (
    "Start one here (tiltyard up; tiltyard serve finds it), correct RAY_ADDRESS, or unset it: models are then served by a Ray "
    "that starts and ends with this process."
)


def set_environment() -> None:
    """What the Ray that is started next is told about Serve; what the environment says already stands."""
    for name, value in SERVE_ALONE_ENV.items():
        os.environ.setdefault(name, value)


def connect() -> bool:
    """Joins the Ray of the environment (``RAY_ADDRESS``) or starts one for this process; True where one was started.

    Call `tiltyard.ray_token.use_own_token` before anything imports Ray.

    Raises:
        MachineError: If no Ray answers at ``RAY_ADDRESS`` within seconds.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS", "")
    joins = bool(address)
    if joins:
        probe(address, instead=NO_RAY)
    else:
        set_environment()
    own: dict[str, Any] = (
        {} if joins else {"address": "local", "include_dashboard": False, "object_store_memory": 512 << 20}
    )
    with port_of_its_own():
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **own)
    return not joins


def disconnect() -> None:
    """Leaves the Ray, or ends the one that `connect` started."""
    ray.shutdown()


def end_serving() -> None:
    """Ends every application of this Ray and Serve itself."""
    serve.shutdown()  # type: ignore[no-untyped-call]


def deploy(app: Any, *, name: str, http: bool = False, host: str = "127.0.0.1", port: int = 8000) -> Any:
    """Runs an application until it is ready; returns the handle of its ingress.

    Args:
        app: A bound application.
        name: Its name; an application of the same name is replaced.
        http: Whether Serve's HTTP proxy is started too, and the application answers under ``/``.
        host: Where the proxy listens.
        port: On which port.

    Raises:
        ServingError: If HTTP is wanted and the Serve that runs already has none, while others use it.
    """
    if http:
        _make_room_for_http()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    location = "HeadOnly" if http else "Disabled"
    serve.start(
        proxy_location=location,
        http_options={"host": host, "port": port},
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )
    return serve.run(app, name=name, route_prefix="/" if http else None)


def address() -> str:
    """Where Serve's proxy answers: the options of a Serve that runs already stand, whatever `deploy` asked for."""
    options = serve.context._get_global_client().http_config  # type: ignore[union-attr]  # no public call tells it
    return f"http://{options.host}:{options.port}"


def end_if_unused() -> None:
    """Ends a Serve without HTTP that serves nothing any more, so that the next `deploy` may start one that has it."""
    if _runs_without_http() and not serve.status().applications:
        end_serving()


def _runs_without_http() -> bool:
    """Whether a Serve runs here that was started for handles alone; its options stand as long as it runs."""
    try:
        client = serve.context._get_global_client(raise_if_no_controller_running=False)
    except RayError:
        return False
    return client is not None and not serve.status().proxies


def _make_room_for_http() -> None:
    end_if_unused()
    if _runs_without_http():
        others = ", ".join(sorted(serve.status().applications))
        raise ServingError(
            f"The Serve that runs here was started without HTTP and serves {others}; HTTP cannot be added while it runs. "
            "Wait until that ends, then start this again."
        )


def described(name: str) -> list[Described]:
    """What an application of `champions_app` serves now."""
    found: list[Described] = serve.get_app_handle(name).describe_all.remote().result(timeout_s=60)
    return found


def remove(name: str) -> None:
    """Ends an application."""
    serve.delete(name)


def stream_rows(handle: Any, model: str, tables: Iterable[pa.Table], *, in_flight: int = IN_FLIGHT) -> Iterator[Answer]:
    """Answers for tables of raw rows, in their order, with at most ``in_flight`` requests under way.

    Tables come as they are, or as references to what is in Ray's object store already. A table whose replica died is sent again.

    Raises:
        TiltyardError: What the application said to a table.
    """
    yield from _stream(lambda rows: handle.predict.remote(model, rows), tables, in_flight)


def stream_rows_through_all(
    handle: Any, models: Sequence[str], tables: Iterable[Any], *, in_flight: int = IN_FLIGHT
) -> Iterator[list[Answer]]:
    """As `stream_rows`, of several pinned versions of an `evaluation_app` at once: each table is sent and prepared once."""
    yield from _stream(lambda rows: handle.predict_all.remote(list(models), rows), tables, in_flight)


def _stream(send: Callable[[Any], Any], tables: Iterable[Any], in_flight: int) -> Iterator[Any]:
    waiting: deque[tuple[Any, Any]] = deque()
    for table in tables:
        if len(waiting) >= in_flight:
            yield _answer(send, *waiting.popleft())
        # kept until it is answered, so that sending it again costs nothing
        rows = table if isinstance(table, ray.ObjectRef) else ray.put(table)
        waiting.append((rows, send(rows)))
    while waiting:
        yield _answer(send, *waiting.popleft())


def _result(response: Any) -> Any:
    """What was answered. A Serve that died answers nothing for ever, so now and then it is looked after.

    Raises:
        ServingError: If Serve serves nothing any more.
    """
    while True:
        try:
            return response.result(timeout_s=LOOK_S)
        except TimeoutError as error:
            if isinstance(error, RayTaskError):  # the model's own
                raise
            if _serves_nothing():
                raise ServingError(
                    "Serve ended under requests that were on their way, or its applications were deleted. Start again: what "
                    "was done is kept, what was not is done then."
                ) from None


def _serves_nothing() -> bool:
    try:
        return not serve.status().applications
    except Exception:  # a controller that is gone, or going
        return True


def _answer(send: Callable[[Any], Any], rows: Any, response: Any) -> Any:
    for attempt in range(RETRIES):
        try:
            return _result(response)
        except RayTaskError as error:
            if isinstance(error.cause, TiltyardError):
                raise error.cause from None
            raise
        except RayActorError:
            if attempt == RETRIES - 1:
                raise
            response = send(rows)
    raise AssertionError
