"""Which code an experiment is made of: a digest of the job file, what it imports from its own folder, and the pins.

The closure is read from the source (imports are parsed, nothing is run). Only modules that lie inside the working
directory or the job file's folder count as the user's, under the path by which they are imported, so that it does not
matter from where a job is started; what is installed is covered by the run-time pins: the versions of the packages that
decide numbers, without local tags (``2.13.0+cpu`` and ``2.13.0`` are one). Changing a comment in the user's code changes
the digest: a digest that guessed which changes matter could not be trusted.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tiltyard.errors import SpecError
from tiltyard.types import OWN_TRAINING, TUNE_TRAINABLE

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
        root: The working directory; modules outside it and the job file's folder are not the user's, nor is Tiltyard
            itself, wherever it lies.
        pins: Versions by package; what is installed where None.

    Raises:
        SpecError: If a model is not there, lies where nobody would see it change, or something is not Python.
    """
    roots = _roots(root, job_file)
    files = _walk(_starts(models, roots), roots)
    if job_file is not None:
        job = job_file.resolve()
        files |= {at: data for at, data in _walk([(job.name, job)], roots).items() if at != (job.name, job)}
    content: dict[str, str] = {}
    for (name, _), data in sorted(files.items()):  # two files of one name: which of them is imported is Python's affair
        found = hashlib.sha256(data).hexdigest()
        content[name] = f"{content[name]}+{found}" if name in content else found
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

    Raises:
        SpecError: If the model is not there, or lies where nobody would see it change.
    """
    roots = _roots(root, job_file)
    return _by_name(_walk(_starts([model], roots), roots), roots)


def closure(starts: Iterable[Path], root: Path) -> dict[str, bytes]:
    """Files reached from ``starts`` by imports that stay inside ``root``: relative path to content."""
    roots = (root.resolve(),)
    return _by_name(_walk([(_relative(p.resolve(), roots), p.resolve()) for p in starts], roots), roots)


def _roots(root: Path | None, job_file: Path | None) -> tuple[Path, ...]:
    """Folders of the user's modules: the working directory, and that of the job file, wherever it lies."""
    first = (root or Path.cwd()).resolve()
    return tuple(dict.fromkeys((first, job_file.resolve().parent if job_file is not None else first)))


_Found = tuple[str, Path]
"""A module's file: the path under which it is imported, and where it is."""


def _walk(starts: Iterable[_Found], roots: Sequence[Path]) -> dict[_Found, bytes]:
    """Files reached from ``starts`` by imports that stay inside the roots."""
    found: dict[_Found, bytes] = {}
    todo = list(starts)
    while todo:
        at = todo.pop()
        if at in found:
            continue
        name, path = at
        found[at] = path.read_bytes()
        for module in _imports(found[at], name):
            todo += _files_of(module, roots)
    return found


def _by_name(files: Mapping[_Found, bytes], roots: Sequence[Path]) -> dict[str, bytes]:
    """Content by name; of two files of one name that of the first root, as Python would import it."""
    named: dict[str, bytes] = {}
    for (name, _), data in sorted(files.items(), key=lambda item: item[0][1] != roots[0] / item[0][0]):
        named.setdefault(name, data)
    return dict(sorted(named.items()))


def _starts(models: Sequence[str], roots: Sequence[Path]) -> list[_Found]:
    starts: list[_Found] = []
    for model in models:
        module, colon, _ = model.removeprefix(OWN_TRAINING).removeprefix(TUNE_TRAINABLE).partition(":")
        if not colon:
            continue
        files = _files_of(module, roots)
        starts += files
        if files or module.split(".")[0] == "tiltyard":
            continue
        where = " or ".join(map(str, roots))
        spec = _spec_of(module.split(".")[0])
        if spec is None:
            raise SpecError(
                f"The model {model!r} cannot be imported: there is no module {module!r} under {where} or installed. "
                "Wanted: 'package.module:Class', importable from the working directory or from beside the job file."
            )
        strangers = [place for place in _places(spec) if not _is_installed(place)]
        if strangers:
            raise SpecError(
                f"The model {model!r} is imported from {strangers[0]}, which is neither under {where} nor installed: a "
                "change of it would not be seen, and it would not travel with the model. Put it beside the job file, "
                "run from its folder, or install it as a package (not as editable)."
            )
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


def _files_of(module: str, roots: Sequence[Path]) -> list[_Found]:
    """The file of a module and the packages above it, where they lie inside a root."""
    parts = module.split(".")
    if parts[0] == "tiltyard":
        return []
    files = []
    for base in dict.fromkeys((*roots, *_installed_from(parts[0], roots))):
        for depth in range(1, len(parts) + 1):
            stem = base.joinpath(*parts[:depth])
            files += [
                (path.relative_to(base).as_posix(), path)
                for path in (stem.with_suffix(".py"), stem / "__init__.py")
                if path.is_file() and not _is_installed(path)
            ]
    return files


def _installed_from(package: str, roots: Sequence[Path]) -> list[Path]:
    """The folder that a package is imported from, where that is inside a root (``src/``, installed as editable)."""
    spec = _spec_of(package)
    places = _places(spec) if spec is not None else []
    return [p.parent for p in places if any(p.is_relative_to(root) for root in roots) and not _is_installed(p)]


def _places(spec: ModuleSpec) -> list[Path]:
    """Where a package or module is; nothing for one that is built into Python."""
    places = list(spec.submodule_search_locations or ())
    if not places and spec.has_location and spec.origin:
        places = [spec.origin]
    return [Path(place).resolve() for place in places]


def _is_installed(path: Path) -> bool:
    """Python's own, or a package's that pip put there."""
    if {".venv", "site-packages", "dist-packages"} & set(path.parts):
        return True
    kinds = ("stdlib", "platstdlib", "purelib", "platlib")
    return any(path.is_relative_to(Path(sysconfig.get_path(kind)).resolve()) for kind in kinds)


def _spec_of(package: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # a module that was put into sys.modules by hand has none
        return None


def _relative(path: Path, roots: Sequence[Path]) -> str:
    inside = [root for root in roots if path.is_relative_to(root)]
    return path.relative_to(inside[0]).as_posix() if inside else path.name
