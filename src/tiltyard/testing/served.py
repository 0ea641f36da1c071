"""A registry with small models and the application that serves them, for tests of a real Ray Serve."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings
from tiltyard.testing.bundles import SmallBundle, small_bundle
from tiltyard.types import Task

ARROW = "application/vnd.apache.arrow.stream"
POISON, SLOW = 1e9, -1e9
"""A first number that the user's own model fails on, and one that it takes 0.3 s for."""
OWN = b"""
import time
from torch import nn

class Moody(nn.Module):
    # Linear; a first number far above all is poison, one far below takes 0.3 s.
    def __init__(self, input_shape, num_outputs):
        super().__init__()
        self.layer = nn.Linear(input_shape[0], num_outputs)

    def forward(self, x):
        if float(x[:, 0].max()) > 1e5:
            raise ZeroDivisionError("poison")
        if float(x[:, 0].min()) < -1e5:
            time.sleep(0.3)
        return self.layer(x)
"""


@dataclass(frozen=True)
class Stage:
    """A registry with ``s.small`` (three versions, the first one champion), ``s.price`` and the user's own ``s.own``."""

    settings: Settings
    registry: ModelRegistry
    small: list[SmallBundle]
    price: SmallBundle
    own: SmallBundle


@dataclass
class Served:
    """The application of a `Stage`: its handle, where it answers by HTTP, and what was asked so far."""

    handle: Any
    url: str
    stage: Stage
    asked: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Requests of models that have a description, by model and status."""

    @property
    def host(self) -> tuple[str, int]:
        """For a socket."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def ask(
        self, path: str, body: bytes | None = None, content_type: str = "application/json", **headers: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers (lower case) of one request."""
        sent = {"content-type": content_type, **headers}
        request = urllib.request.Request(self.url + path, data=body, headers=sent)  # noqa: S310 - of `url`, on loopback
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                found = answer.status, answer.read(), {k.lower(): v for k, v in answer.headers.items()}
        except urllib.error.HTTPError as error:
            with error:
                found = error.code, error.read(), {k.lower(): v for k, v in error.headers.items()}
        if path.startswith("/models/") and found[0] not in {404, 503}:  # those of a model that has no description yet
            self.asked[path.split("/")[2], found[0]] += 1
        return found


def make_stage(home: Path) -> Stage:
    """Registers the models in a home of their own."""
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    registry = ModelRegistry(settings)
    small = [small_bundle(home / f"small{seed}", seed=seed) for seed in range(3)]
    for bundle in small:
        registry.register("s.small", bundle.folder)
    price = small_bundle(home / "price", task=Task.REGRESSION, model="lightgbm")
    registry.promote("s.small", 1)
    registry.promote("s.price", registry.register("s.price", price.folder).version)
    own = _own_bundle(home / "own")
    registry.promote("s.own", registry.register("s.own", own.folder).version)
    return Stage(settings, registry, small, price, own)


def _own_bundle(folder: Path) -> SmallBundle:
    """Of a class whose module is nowhere but in the bundle when this returns."""
    source = folder.with_suffix(".source")
    source.mkdir()
    (source / "moody_model.py").write_bytes(OWN)
    sys.path.insert(0, str(source))
    try:
        made = small_bundle(folder, model="moody_model:Moody", user_code={"moody_model.py": OWN}, seed=5)
    finally:
        sys.path.remove(str(source))
        sys.modules.pop("moody_model", None)
        shutil.rmtree(source)
    return made


def wait(what: Callable[[], bool], seconds: float = 30.0) -> None:
    """Until it holds.

    Raises:
        AssertionError: If that takes longer.
    """
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s")
        time.sleep(0.05)


def json_rows(table: pa.Table) -> bytes:
    """The body of a request for some rows."""
    return json.dumps({"rows": table.to_pylist()}).encode()


def arrow_stream(table: pa.Table) -> bytes:
    """The same as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def with_first_number(rows: pa.Table, value: float) -> pa.Table:
    """The rows with `POISON` or `SLOW` as their first number."""
    return rows.set_column(0, "n0", pa.array([value] * rows.num_rows, pa.float32()))


def replica_pids(model: str) -> list[int]:
    """Processes that answer for a model of the application."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(Exception):  # one that has ended, or whose title Ray is writing
            if f"ServeReplica:champions:{model}@champion" in " ".join(process.cmdline()):
                found.append(process.pid)
    return found
