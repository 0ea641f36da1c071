"""Reads a cluster's description: a Python file whose functions return `ClusterSpec`; ``cluster()`` is the base."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiltyard.errors import SpecError, TiltyardError
from tiltyard.jobfile import load_module
from tiltyard.kuberay.spec import ClusterSpec

BASE = "base"


def variants(path: Path) -> dict[str, ClusterSpec]:
    """Every description in a file: ``base``, and each further public function by its name.

    Raises:
        SpecError: If the file does not import, has no ``cluster()``, or one of them fails or returns something else.
    """
    if not path.is_file():
        raise SpecError(f"There is no {path}. Wanted: Python with one function cluster() -> ClusterSpec.")
    module = load_module(path)
    found: dict[str, Callable[[], Any]] = {
        name: thing
        for name, thing in vars(module).items()
        if inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
    }
    if "cluster" not in found:
        raise SpecError(f"{path} has no function cluster(). Wanted: `def cluster() -> ClusterSpec`.")
    specs = {BASE: _called(path, "cluster", found.pop("cluster"))}
    return specs | {name: _called(path, name, build) for name, build in found.items()}


def variant(path: Path, name: str) -> ClusterSpec:
    """One of them.

    Raises:
        SpecError: As `variants`, and if there is none of that name.
    """
    found = variants(path)
    if name not in found:
        raise SpecError(f"{path} describes no {name!r}; it describes {', '.join(found)}.")
    return found[name]


def _called(path: Path, name: str, build: Callable[[], Any]) -> ClusterSpec:
    try:
        spec = build()
    except TiltyardError:
        raise
    except Exception as error:
        raise SpecError(f"{name}() in {path} failed: {type(error).__name__}: {error}") from error
    if not isinstance(spec, ClusterSpec):
        raise SpecError(f"{name}() in {path} returned {type(spec).__name__}; a ClusterSpec is wanted.")
    return spec
