"""Which code an experiment is made of: a digest of the job file, what it imports from its own folder, and the pins.

The closure is read from the source (imports are parsed, nothing is run). Only modules that lie inside the working
directory count as the user's; what is installed is covered by the run-time pins: the versions of the packages that
decide numbers, without local tags (``2.13.0+cpu`` and ``2.13.0`` are one). Changing a comment in the user's code changes
the digest: a digest that guessed which changes matter could not be trusted.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tiltyard.errors import SpecError

PINS = ("tiltyard", "torch", "lightgbm", "numpy", "scikit-learn", "scipy", "pyarrow", "ray")


def code_digest(
    job_file: Path | None,
    models: Sequence[str] = (),
    *,
    root: Path | None = None,
    pins: Mapping[str, str] | None = None,
) -> str:
    """SHA-256 over the import closure and the pins; 64 hexadecimal characters.

    Args:
        job_file: The file that describes the experiment; not part of the digest itself (what it describes is in the key),
            but what it imports is.
        models: Import paths ``package.module:Name`` of the user's models; families of Tiltyard's are covered by its pin.
        root: The working directory; modules outside it are not the user's.
        pins: Versions by package; what is installed where None.
    """
    root = (root or Path.cwd()).resolve()
    files = closure(_starts(job_file, models, root), root)
    if job_file is not None:
        files.pop(_relative(job_file.resolve(), root), None)
    content = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    body = {"files": content, "pins": dict(pins) if pins is not None else installed_pins()}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def installed_pins() -> dict[str, str]:
    """Installed versions of `PINS`, without local tags."""
    found = {}
    for name in PINS:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def user_modules(model: str, job_file: Path | None = None, *, root: Path | None = None) -> dict[str, bytes]:
    """The user's modules that a model needs, by path, so that they can travel with it."""
    del job_file
    root = (root or Path.cwd()).resolve()
    return closure(_starts(None, [model], root), root)


def closure(starts: Iterable[Path], root: Path) -> dict[str, bytes]:
    """Files reached from ``starts`` by imports that stay inside ``root``: relative path to content."""
    found: dict[str, bytes] = {}
    todo = list(starts)
    while todo:
        path = todo.pop()
        name = _relative(path, root)
        if name in found:
            continue
        found[name] = path.read_bytes()
        for module in _imports(found[name], name):
            todo += _files_of(module, root, path.parent)
    return dict(sorted(found.items()))


def _starts(job_file: Path | None, models: Sequence[str], root: Path) -> list[Path]:
    starts = [job_file.resolve()] if job_file is not None else []
    for model in models:
        module, colon, _ = model.partition(":")
        if not colon:
            continue
        files = _files_of(module, root, job_file.resolve().parent if job_file else root)
        if not files and importlib.util.find_spec(module.split(".")[0]) is None:
            raise SpecError(
                f"The model {model!r} cannot be imported: there is no module {module!r} under {root} or installed. "
                "Wanted: 'package.module:Class', importable from the working directory."
            )
        starts += files
    return starts


def _imports(source: bytes, name: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise SpecError(f"{name} is not Python: line {error.lineno}: {error.msg}.") from error
    package = Path(name).parent.parts
    modules = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            modules |= {stem} | {f"{stem}.{alias.name}" if stem else alias.name for alias in node.names}
    return modules - {""}


def _files_of(module: str, root: Path, beside: Path) -> list[Path]:
    """The file of a module and the packages above it, where they lie inside the root."""
    parts = module.split(".")
    files = []
    for base in dict.fromkeys((root, beside)):
        for depth in range(1, len(parts) + 1):
            stem = base.joinpath(*parts[:depth])
            files += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return [p for p in files if p.resolve().is_relative_to(root) and ".venv" not in p.parts]


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
