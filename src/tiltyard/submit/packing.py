"""Which files of a working directory travel with a job, and what they weigh.

Git's rules decide: the ``.gitignore`` of each folder and ``.git/info/exclude``, and beside them a ``.tiltyardignore`` in the
same syntax for what git keeps and a job does not need. A user's global ignore file is not read: two people's packages of
one commit would differ. ``.git``, virtual environments, caches and the Tiltyard home never travel.

A package is refused where it weighs more than Ray's upload takes, where a link leads outside, and where a file looks like a
secret (`tiltyard.submit.private_files`). The same files give the same bytes, on any machine and at any time.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from tiltyard.errors import SubmitError
from tiltyard.submit.private_files import private_because

LIMIT_BYTES = 100 << 20
"""Ray's dashboard takes uploads of 100 MiB."""
IGNORE_FILES = (".gitignore", ".tiltyardignore")
NEVER = frozenset({".git", ".hg", ".svn", ".venv", "venv", ".tiltyard", "__pycache__", ".mypy_cache", ".ruff_cache",
                   ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", ".tox", ".nox", "node_modules"})  # fmt: skip
_SHOWN = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip file can say: a package does not depend on when files were touched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedFile:
    """One file that travels: where it goes, where it is, how large, its SHA-256, and whether it can be executed."""

    name: str
    path: Path
    size_bytes: int
    digest: str
    executable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """The files of a working directory that travel, by name."""

    root: Path
    files: tuple[PackedFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together, uncompressed."""
        return sum(f.size_bytes for f in self.files)

    @property
    def digest(self) -> str:
        """SHA-256 over names, contents and executable bits; 64 hexadecimal characters."""
        told = "".join(f"{f.name}\0{f.digest}\0{int(f.executable)}\n" for f in self.files)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """The beginning of each file's digest, by name: enough to say which files differ."""
        return {f.name: f.digest[:12] + ("x" if f.executable else "") for f in self.files}

    def write_zip(self, target: Path) -> Path:
        """Writes the package as a zip file; the same files give the same bytes. Returns ``target``.

        Raises:
            SubmitError: If a file has changed since it was looked at.
        """
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for file in self.files:
                data = file.path.read_bytes()
                if hashlib.sha256(data).hexdigest() != file.digest:
                    raise SubmitError(f"{file.name} changed while it was packed. Save your work, then submit again.")
                entry = zipfile.ZipInfo(file.name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if file.executable else 0o644) << 16
                archive.writestr(entry, data)
        return target


def pack(
    root: Path, *, limit_bytes: int = LIMIT_BYTES, carry: Collection[str] = (), home: Path | None = None
) -> Package:
    """Looks at a working directory and says what travels; writes nothing.

    Args:
        root: The working directory.
        limit_bytes: The most that may travel, uncompressed.
        carry: Names of files that may travel although they look like secrets.
        home: The Tiltyard home, left out wherever it lies.

    Raises:
        SubmitError: If nothing is left to travel, it is too much, a link leads outside, or a file looks like a secret.
    """
    root = root.resolve()
    found = sorted(_files(root, home.resolve() if home else None))
    _check_size(root, found, limit_bytes)
    files = []
    private = {}
    for name, path in found:
        data = path.read_bytes()
        reason = private_because(name, data)
        if reason is not None and name not in carry:
            private[name] = reason
        mode = path.stat().st_mode
        files.append(
            PackedFile(
                name=name,
                path=path,
                size_bytes=len(data),
                digest=hashlib.sha256(data).hexdigest(),
                executable=bool(mode & stat.S_IXUSR),
            )
        )
    if private:
        raise SubmitError(_private(private))
    unknown = sorted(set(carry) - {f.name for f in files})
    if unknown:
        raise SubmitError(f"--carry {unknown[0]}: no such file travels. Name it as it lies below {root}.")
    return Package(root=root, files=tuple(files))


def different(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs between two sets of `Package.digests`, one line a kind; empty where nothing does.

    >>> different({"a.py": "1", "b.py": "2"}, {"a.py": "3", "c.py": "4"})
    ['changed: a.py', 'added: c.py', 'missing: b.py']
    """
    kinds = {
        "changed": sorted(n for n in before.keys() & now.keys() if before[n] != now[n]),
        "added": sorted(now.keys() - before.keys()),
        "missing": sorted(before.keys() - now.keys()),
    }
    return [f"{kind}: {_some(names)}" for kind, names in kinds.items() if names]


def size(num_bytes: int) -> str:
    """A number of bytes as people read it.

    >>> size(3 << 20), size(900)
    ('3.0 MiB', '900 B')
    """
    if num_bytes < 1024:
        return f"{num_bytes} B"
    value, units = float(num_bytes), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = ""
    while value >= 1024 and (unit := next(units)):
        value /= 1024
    return f"{value:.1f} {unit}"


def _files(root: Path, home: Path | None) -> Iterator[tuple[str, Path]]:
    """Names and paths of the files that git's rules leave, folder by folder."""
    first = _spec_of(root, (*IGNORE_FILES, ".git/info/exclude"))
    yield from _walk(root, root, [(root, first)] if first else [], home)


def _walk(
    root: Path, folder: Path, rules: Sequence[tuple[Path, GitIgnoreSpec]], home: Path | None
) -> Iterator[tuple[str, Path]]:
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        path = Path(entry.path)
        if entry.name in NEVER or path == home or entry.name.endswith((".pyc", ".egg-info")):
            continue
        is_folder = entry.is_dir(follow_symlinks=False)
        if _is_ignored(path, rules, is_folder=is_folder):
            continue
        if is_folder:
            own = _spec_of(path, IGNORE_FILES)
            yield from _walk(root, path, [*rules, (path, own)] if own else rules, home)
            continue
        name = path.relative_to(root).as_posix()
        if entry.is_symlink():
            _check_link(root, path, name)
            if path.is_dir():  # what it leads to travels under its own name
                continue
        if path.is_file():  # sockets and pipes do not travel
            yield name, path


def _check_link(root: Path, path: Path, name: str) -> None:
    target = path.resolve()
    if not target.exists() or not target.is_relative_to(root):
        raise SubmitError(
            f"{name} is a link to {target}, which is {'not there' if not target.exists() else f'outside {root}'}; on the "
            "cluster it would lead nowhere. Put the file itself there, or name the link in .tiltyardignore."
        )


def _is_ignored(path: Path, rules: Sequence[tuple[Path, GitIgnoreSpec]], *, is_folder: bool) -> bool:
    """The last rule that matches decides; those of a deeper folder come later."""
    verdict = False
    for folder, spec in rules:
        name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        said = spec.check_file(name).include
        if said is not None:
            verdict = said
    return verdict


def _spec_of(folder: Path, names: Sequence[str]) -> GitIgnoreSpec | None:
    lines: list[str] = []
    for name in names:
        try:
            lines += (folder / name).read_text(errors="replace").splitlines()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
    return GitIgnoreSpec.from_lines(lines) if lines else None


def _check_size(root: Path, found: Sequence[tuple[str, Path]], limit_bytes: int) -> None:
    sizes = sorted(((path.stat().st_size, name) for name, path in found), reverse=True)
    total = sum(weight for weight, _ in sizes)
    if not found:
        raise SubmitError(f"Nothing travels from {root}: it is empty, or everything in it is ignored.")
    if total > limit_bytes:
        largest = ", ".join(f"{name} ({size(weight)})" for weight, name in sizes[:_SHOWN])
        raise SubmitError(
            f"{len(found)} files of {size(total)} would travel from {root}; at most {size(limit_bytes)} may. The largest: "
            f"{largest}. Commit data as a dataset (tiltyard data commit), and name what the job does not need in "
            ".gitignore or .tiltyardignore."
        )


def _private(private: Mapping[str, str]) -> str:
    told = "; ".join(f"{name}: {why}" for name, why in list(private.items())[:_SHOWN])
    more = f" and {len(private) - _SHOWN} more" if len(private) > _SHOWN else ""
    return (
        f"Refused to send what looks like a secret: {told}{more}. Everybody who may submit to the cluster could read it. Name "
        "it in .gitignore or .tiltyardignore and give the cluster its own Secret; where it is none: --carry "
        f"{next(iter(private))}"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
