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
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tiltyard.errors import SpecError
from tiltyard.types import OWN_TRAINING

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
        job_file: The file that describes the experiment; what it imports is part of the digest. It itself is not (what it
            describes is in the key), unless a model stands in it.
        models: Import paths ``package.module:Name`` of the user's models; families of Tiltyard's are covered by its pin.
        root: The working directory; modules outside it are not the user's, nor is Tiltyard itself, wherever it lies.
        pins: Versions by package; what is installed where None.
    """
    root = (root or Path.cwd()).resolve()
    beside = job_file.resolve().parent if job_file is not None else root
    files = closure(_starts(None, models, root, beside=beside), root)
    if job_file is not None:
        job = _relative(job_file.resolve(), root)
        files |= {n: data for n, data in closure([job_file.resolve()], root).items() if n != job}
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
    """The user's modules that a model needs, by the path under which they are imported, so that they can travel with it.

    A module beside the job file is imported without its folder's name (Python puts the folder of a script on its path).
    """
    root = (root or Path.cwd()).resolve()
    beside = job_file.resolve().parent if job_file is not None else root
    starts = _starts(None, [model], root, beside=beside)
    files = closure(starts, root)
    if beside == root or not beside.is_relative_to(root) or _files_of(model.partition(":")[0], root, root):
        return files
    prefix = beside.relative_to(root).as_posix() + "/"
    return {name.removeprefix(prefix): content for name, content in files.items()}


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


def _starts(job_file: Path | None, models: Sequence[str], root: Path, *, beside: Path | None = None) -> list[Path]:
    starts = [job_file.resolve()] if job_file is not None else []
    beside = job_file.resolve().parent if job_file is not None else (beside or root)
    for model in models:
        module, colon, _ = model.removeprefix(OWN_TRAINING).partition(":")
        if not colon:
            continue
        files = _files_of(module, root, beside)
        if not files and _spec_of(module.split(".")[0]) is None:
            raise SpecError(
                f"The model {model!r} cannot be imported: there is no module {module!r} under {root} or installed. "
                "Wanted: 'package.module:Class', importable from the working directory."
            )
        starts += files
    return starts


def _imports(source: bytes, name: str) -> set[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
        raise SpecError(f"{name} is not Python: {line}.") from error
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
    if parts[0] == "tiltyard":
        return []
    files = []
    for base in dict.fromkeys((root, beside, *_installed_from(parts[0], root))):
        for depth in range(1, len(parts) + 1):
            stem = base.joinpath(*parts[:depth])
            files += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return [p for p in files if p.resolve().is_relative_to(root) and not {".venv", "site-packages"} & set(p.parts)]


def _installed_from(package: str, root: Path) -> list[Path]:
    """The folder that a package is imported from, where that is inside the root (``src/``, installed as editable)."""
    spec = _spec_of(package)
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    if spec is not None and not places and spec.origin and spec.origin.endswith(".py"):
        places = [spec.origin]
    return [p.parent for place in places if (p := Path(place).resolve()).is_relative_to(root)]


def _spec_of(package: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand has none
        return None


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
