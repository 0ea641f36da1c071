"""Actors of Ray Data that read windows, kept from one stream to the next.

Ray Data starts the actors of a pool anew for each execution, which costs seconds of imports. Here they have names: the pool
of the next execution finds those of the last one (``get_if_exists``) and begins at once. They are started by `Readers.warm`
while a dataset is shared, or by the first stream that finds none.

One stream uses one *set* of ``READERS`` actors at a time: a stream whose consumer is slow leaves its readers waiting for it,
and nobody else may wait with them. A set is taken by a lock on a file of the node, which ends with the process that holds it,
however that ends. Readers hold what they need to read any split and any order; a request says which. They end with
`Readers.close`, or by themselves where nobody asked them for `IDLE_S`.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import math
import os
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tiltyard.data.preflight import READERS, StreamPlan
from tiltyard.data.versions import DatasetVersion
from tiltyard.data.windows import Decoder, Reader, Window, windows_of

NAMESPACE = "tiltyard"
IDLE_S = 300.0
"""Seconds without a request after which a reader ends itself: nobody else may be left to end it."""
START_S = 60
"""Seconds that readers may take to start while a dataset is shared; those that take longer are waited for by their stream."""


class KeptReader(Reader):
    """A reader that ends its process where nobody asks it for anything."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._asked = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def __call__(self, asked: pa.Table) -> pa.Table:
        """See `Reader`."""
        self._asked = math.inf  # not while it reads
        try:
            return super().__call__(asked)
        finally:
            self._asked = time.monotonic()
            pa.default_memory_pool().release_unused()  # what it keeps would be held by every reader, beyond its plan

    def _watch(self) -> None:
        while time.monotonic() - self._asked < IDLE_S:
            time.sleep(min(5.0, IDLE_S / 4))
        os._exit(0)


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
    def taken(self) -> Iterator[int]:
        """The number of a set of readers on this node that nobody else uses."""
        for number in itertools.count():
            path = _locks() / f"{self.name}-{_node()[:12]}-{number}"
            lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            try:
                yield number
            finally:
                os.close(lock)
            return

    def blocks(
        self, requests: Sequence[pa.Table], sets: Sequence[int], split: str, *, wait_s: int = 0
    ) -> Iterator[Any]:
        """An execution of Ray Data whose actors are the readers of some sets: references to a block a request, in order.

        Args:
            requests: As `tiltyard.data.windows.Reader` takes them.
            sets: Numbers of the sets.
            split: Which split they read.
            wait_s: Seconds to wait for all of them to be there before the first request is given to any.
        """
        names = [f"{self.name}-{_node()}-{split}-{s}-{k}" for s in sets for k in range(READERS)][: len(requests)]
        context = _context(self.plan)
        context.wait_for_min_actors_s = wait_s
        with warnings.catch_warnings(), ray.data.DataContext.current(context):
            warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
            dataset = ray.data.from_arrow(list(requests)).map_batches(
                KeptReader,
                fn_constructor_args=(self.decoder, (self.version.content_digest, split), self.windows(split)),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self.plan.reader_cpus,
                compute=ray.data.ActorPoolStrategy(size=len(names), max_tasks_in_flight_per_actor=self.plan.queued),
                ray_remote_args_fn=_named(names),
                max_restarts=0,  # one that died is replaced by a new execution, of the same name
            )
            return iter(dataset.iter_internal_ref_bundles())

    def warm(self, splits: Sequence[str], consumers: int) -> None:
        """Starts the readers of so many consumers on this node, and Ray Data itself; waits at most `START_S`."""
        for split in splits:
            with contextlib.suppress(ray.exceptions.GetTimeoutError):
                nothing = [Reader.request([])] * (consumers * READERS)
                for _ in self.blocks(nothing, range(consumers), split, wait_s=START_S):
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


def _context(plan: StreamPlan) -> ray.data.DataContext:
    """Ray Data's settings of a stream; the caller's own are not touched."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray's own, where it copies its settings
        context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    context.target_max_block_size = plan.window_bytes  # a window is a block: it is cut from half as much again
    # A task's one block is its whole output. Ray Data counts so many windows for each task that runs, and a task whose buffer
    # is full waits until it is looked at, a tenth of a second: with two it never is (1.3 and 2.2 million rows/s).
    context._max_num_blocks_in_streaming_gen_buffer = 2 if plan.roomy else 1
    options = context.execution_options
    options.preserve_order = True
    options.resource_limits = options.resource_limits.copy(
        object_store_memory=float((plan.ahead - 1) * plan.window_bytes)  # one more is in the consumer's hands
    )
    return context
