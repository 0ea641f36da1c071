"""The user's own modules out of a bundle: imported from its ``code/`` folder, whatever else this process has imported.

A replica meets two versions of one model whose code differs, and their modules bear the same names. Python keeps one
module a name, so where other code holds a name already the bundle's modules are imported into a clean slate and the names
are then given back; an import inside a function of theirs then finds the other code, so write imports at the top. Where
nothing else claims a name the modules stay known.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_LOCK = threading.RLock()  # sys.modules and sys.path belong to the process; a replica loads in a thread of its own


@contextmanager
def own_code(folder: Path) -> Iterator[None]:
    """Imports inside the block find the modules under ``folder`` first; without such a folder nothing is changed."""
    if not folder.is_dir():
        yield
        return
    with _LOCK:
        names = _module_names(folder)
        before = {n: m for n, m in sys.modules.items() if n in names}
        foreign = any(not _is_same(module, names[n]) for n, module in before.items())
        if not foreign and before.keys() == names.keys():
            yield  # everything is imported already, from files of the same content
            return
        if foreign:
            for name in before:
                del sys.modules[name]
        if foreign or str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            if foreign:
                sys.path.remove(str(folder))
                for name in names:
                    sys.modules.pop(name, None)
                sys.modules.update(before)


def _module_names(folder: Path) -> dict[str, Path]:
    """Every module under the folder, by its import name, packages without an ``__init__`` too."""
    names = {}
    for path in sorted(folder.rglob("*.py")):
        parts = list(path.relative_to(folder).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        names[".".join(parts)] = path
        for depth in range(1, len(parts)):
            names.setdefault(".".join(parts[:depth]), folder.joinpath(*parts[:depth]))
    return names


def _is_same(module: ModuleType, path: Path) -> bool:
    """The module came from a file with the content of ``path``; packages without a file are taken as the same."""
    file = getattr(module, "__file__", None)
    if path.is_dir():
        return file is None
    return file is not None and Path(file).is_file() and Path(file).read_bytes() == path.read_bytes()
