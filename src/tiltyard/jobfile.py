"""Opens a job file: imports it and calls its ``experiment()``; says what is wrong where that fails.

The folder of the file and the working directory are importable while it loads, as they are for ``python jobs/x.py``.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from tiltyard.errors import SpecError, TiltyardError
from tiltyard.evaluation.spec import Evaluation
from tiltyard.experiment import Experiment

T = TypeVar("T")


def load_experiment(path: str | Path, *, function: str = "experiment") -> Experiment:
    """The experiment that a job file describes.

    Raises:
        SpecError: If there is no such file, it does not import, has no such function, or returns something else.
    """
    return _load(Path(path), function, Experiment, "jobs/first_sweep.py")


def load_evaluation(path: str | Path) -> Evaluation:
    """The evaluation that a job file describes.

    Raises:
        SpecError: As `load_experiment`.
    """
    return _load(Path(path), "evaluation", Evaluation, "jobs/evaluate.py")


def _load(path: Path, function: str, kind: type[T], example: str) -> T:
    module = load_module(path)
    build = getattr(module, function, None)
    if not callable(build):
        raise SpecError(
            f"{path} has no function {function}(). Wanted: `def {function}() -> {kind.__name__}`, as in {example}."
        )
    try:
        made = build()
    except TiltyardError:
        raise
    except Exception as error:
        raise SpecError(f"{function}() failed: {_told(error, path)}") from error
    if not isinstance(made, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise SpecError(f"{function}() in {path} returned {type(made).__name__}; {article} {kind.__name__} is wanted.")
    return made


def load_module(path: Path) -> ModuleType:
    """Imports a file by its path, under a name of its own."""
    if not path.is_file():
        raise SpecError(f"There is no job file {path}. Give the path of a Python file, e.g. jobs/first_sweep.py.")
    for folder in (str(path.parent.resolve()), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(f"tiltyard_job_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # while it loads: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except TiltyardError:
        raise
    except Exception as error:
        raise SpecError(f"{path} could not be imported: {_told(error, path)}") from error
    finally:
        sys.modules.pop(spec.name, None)  # no other process has it: what it defines travels by value
    return module


def _told(error: Exception, path: Path) -> str:
    """The error, and the last line of the job file that it came through."""
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path.resolve()
    ]
    where = f"{path}, line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {error}"
