"""Actors of Ray Data that read windows, kept from one stream to the next.

A stream is one task of one actor, a generator that yields window after window without being asked for each: Ray Data looks
for finished work ten times a second where several tasks run, and at once where it is one.

Ray Data starts the actors of a pool anew for each execution, which costs seconds of imports. Here they have names: the pool
of the next execution finds those of the last one (``get_if_exists``) and begins at once. They are started by `Readers.warm`
while a dataset is shared, or by the first stream that finds none.

One stream uses one actor at a time: where its consumer is slow the actor waits for it, and nobody else may wait with them. It
is taken by a lock on a file of the node, its *lease*, which ends with the process that holds it, however that ends. The lease
names its holder, and a reader stops where that is no longer its stream: Ray does not stop the task of an actor. Readers hold
what they need to read any order of a split; a request says which. They end with `Readers.close`, or by themselves where
nobody asked them for `IDLE_S`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import math
import os
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray._private.log import PlainRayHandler
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiltyard.data.preflight import READING, StreamPlan
from tiltyard.data.versions import DatasetVersion
from tiltyard.data.windows import Decoder, Reader, Request, Slice, Window, windows_of

NAMESPACE = "tiltyard"
IDLE_S = 300.0
"""Seconds without a request after which a reader ends itself: nobody else may be left to end it."""
RESTING_S = 5.0
"""Seconds without a request after which it gives back the memory that it keeps for the next window."""
START_S = 60
"""Seconds that readers may take to start while a dataset is shared; those that take longer are waited for by their stream."""


class KeptReader(Reader):
    """A reader that ends its process where nobody asks it for anything."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asked = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, asked: pa.Table) -> Iterator[pa.Table]:
        """The windows of the requests in a table, as long as the stream that asked wants more."""
        for request in Request.of_table(asked):
            self._asked = math.inf  # not while it reads
            try:
                yield from self.ahead(_while_wanted(request, self.slices(request)))
            finally:
                self._asked = time.monotonic()

    def _watch(self) -> None:
        resting = False
        while (idle := time.monotonic() - self._asked) < IDLE_S:
            if idle > RESTING_S and not resting:
                self._buffers.clear()
                pa.default_memory_pool().release_unused()
            resting = idle > RESTING_S
            time.sleep(min(RESTING_S, IDLE_S / 4))
        os._exit(0)


def _while_wanted(request: Request, slices: Iterable[Slice]) -> Iterator[Slice]:
    return itertools.takewhile(lambda _: _wants_more(request), slices)


def _wants_more(request: Request) -> bool:
    """Is there still somebody for whom to read on? Asked in the task's own thread."""
    if not request.lease:
        return True
    try:
        holder = Path(request.lease).read_text()
    except FileNotFoundError:  # of another node, or all readers are being ended
        return not ray.get_runtime_context().is_canceled()
    return holder == request.holder and Path("/proc", holder.partition(" ")[0]).exists()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A reader that is taken: its number, and what a request says so that it reads on.

    Args:
        number: Which reader of this node.
        path: The file.
        holder: Process and stream that hold it.
    """

    number: int
    path: str
    holder: str


class Readers:
    """The readers of a version's streamed splits, on every node that streams; small, and passed to every trial.

    Args:
        version: The dataset version.
        decoder: How its files are read.
        plan: What the streams may use.
        name: Of the readers; nobody else's.
    """

    def __init__(self, version: DatasetVersion, decoder: Decoder, plan: StreamPlan, name: str | None = None) -> None:
        self.version, self.decoder, self.plan = version, decoder, plan
        self.name = name or f"readers-{uuid.uuid4().hex[:16]}"
        self._windows: dict[str, list[Window]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return (Readers, (self.version, self.decoder, self.plan, self.name))

    def windows(self, split: str) -> list[Window]:
        """Where the windows of a split lie; its files are asked once a process."""
        if split not in self._windows:
            self._windows[split] = windows_of(self.version, self.decoder.root, split)
        return self._windows[split]

    @contextmanager
    def taken(self) -> Iterator[Lease]:
        """A reader on this node that nobody else uses."""
        holder = f"{os.getpid()} {uuid.uuid4().hex}"
        for number in itertools.count():
            path = _locks() / f"{self.name}-{_node()[:12]}-{number}"
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            try:
                os.truncate(lock, 0)
                os.write(lock, holder.encode())
                yield Lease(number=number, path=str(path), holder=holder)
            finally:
                os.truncate(lock, 0)
                os.close(lock)
            return

    def blocks(self, split: str, requests: Mapping[int, pa.Table], *, wait_s: int = 0) -> Iterator[Any]:
        """An execution of Ray Data whose actors are some readers: references to the blocks they read, in order.

        A block is a window where windows are alike; small ones may come together and large ones in pieces.

        Args:
            split: Which split they read.
            requests: Number of a reader to what is asked of it.
            wait_s: Seconds to wait for all of them to be there before the first request is given to any.
        """
        names = [f"{self.name}-{_node()}-{split}-{number}" for number in requests]
        windows = self.windows(split)
        least = min((w.num_rows for w in windows if w.num_rows), default=1) * self.decoder.block_row_bytes
        context = _context(self.plan, least)
        context.wait_for_min_actors_s = wait_s
        with warnings.catch_warnings(), ray.data.DataContext.current(context):
            warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
            # ``from_arrow`` would ask a task that holds a CPU about these tables: trials that hold all would wait for themselves.
            dataset = ray.data.from_blocks(list(requests.values())).map_batches(
                KeptReader,
                fn_constructor_args=(self.decoder, (self.version.content_digest, split), windows),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self.plan.reader_cpus,
                compute=ray.data.ActorPoolStrategy(size=len(names), max_tasks_in_flight_per_actor=1),
                ray_remote_args_fn=_named(names),
                max_restarts=0,  # one that died is replaced by a new execution, of the same name
            )
            bundles, _, executor = dataset._execute_to_iterator(capture_executor=False)
        if executor is not None:
            # Ray's limits are 0 in the first second of an execution, and it passes windows on beyond them, one by one: without
            # this whenever it looks, with it only while the consumer waits (an epoch took a second more, or memory had no bound).
            executor.set_external_consumer_bytes(0)
        return iter(bundles)

    def warm(self, splits: Sequence[str], consumers: int) -> None:
        """Starts the readers of so many consumers on this node, and Ray Data itself; waits at most `START_S`.

        Each reads a few windows for nobody: what is imported and allocated then is there when a stream begins.
        """
        asked = Request(data_seed=0, epoch=0, rank=0, world=1, num_windows=READING + 1).to_table()
        for split in splits:
            with contextlib.suppress(ray.exceptions.RayError):  # the first stream will tell
                for _ in self.blocks(split, dict.fromkeys(range(consumers), asked), wait_s=START_S):
                    pass

    def close(self) -> None:
        """Ends all of them, on every node."""
        for path in _locks().glob(f"{self.name}-*"):
            path.unlink(missing_ok=True)
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["namespace"] == NAMESPACE and actor["name"].startswith(self.name):
                with contextlib.suppress(ValueError):
                    ray.kill(ray.get_actor(actor["name"], NAMESPACE))


def _locks() -> Path:
    """Where this node's sets are locked."""
    folder = Path(tempfile.gettempdir()) / f"tiltyard-readers-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _named(names: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """Options of one reader after another."""
    left = itertools.cycle(names)
    where = NodeAffinitySchedulingStrategy(_node(), soft=True)

    def options() -> dict[str, Any]:
        return {
            "name": next(left),
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "scheduling_strategy": where,
        }

    return options


def hush() -> None:
    """Ray Data tells the terminal no more than errors; what it says of each execution stays in its log file."""
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, PlainRayHandler):  # Ray's own for the terminal; a user's handlers hear what they ask for
            handler.setLevel(logging.ERROR)


def _context(plan: StreamPlan, least_bytes: int) -> ray.data.DataContext:
    """Ray Data's settings of a stream of windows that take so many bytes at least; the caller's own are not touched."""
    hush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    # A window is a block: what is larger is passed on at once, and cut only where it is half as large again.
    context.target_max_block_size = least_bytes - 1
    context._max_num_blocks_in_streaming_gen_buffer = 2 if plan.roomy else 1
    context.execution_no_progress_timeout_s = -1  # a stream waits for its consumer as long as that takes
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=float((plan.ahead - 2) * plan.window_bytes)  # one more than the limit, and one is used
    )
    return context
