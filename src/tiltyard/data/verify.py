"""Is every byte of a dataset still the one that was written?

Four links hold a version: its seal names the SHA-256 of its entry in the Delta log, the entry that of the record, the
record those of the data files and of the profile. All are read again and hashed; besides, the rows are hashed anew and
compared with the content digest, so that a version is also what it says. A card can be rendered again and is not
compared. Reads only; finds everything it can rather than stopping at the first fault.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.data import deltalog, rows
from tiltyard.data import profile as profiling
from tiltyard.data.deletion import pending
from tiltyard.data.lifecycle import Tombstone
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetVersion, content_digest, files_digest
from tiltyard.errors import DataError, DatasetNotFoundError, TiltyardError
from tiltyard.progress import work
from tiltyard.types import check_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong: with which version (``NAME@N``, or the dataset), in which file, and what."""

    ref: str
    path: str
    told: str

    def __str__(self) -> str:
        return f"{self.ref}: {self.path}: {self.told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What was read again, and what is wrong.

    Args:
        versions: References of the versions that were read.
        num_files: Data files, records, profiles and log entries.
        num_bytes: Of them.
        findings: What is wrong; empty where nothing is.
        notes: What could not be checked, and why; nothing to act on.
    """

    versions: tuple[str, ...] = ()
    num_files: int = 0
    num_bytes: int = 0
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    def __add__(self, other: Verified) -> Verified:
        return Verified(
            versions=(*self.versions, *other.versions),
            num_files=self.num_files + other.num_files,
            num_bytes=self.num_bytes + other.num_bytes,
            findings=(*self.findings, *other.findings),
            notes=(*self.notes, *other.notes),
        )


def verify(store: DatasetStore, name: str, version: int | None = None) -> Verified:
    """Reads a dataset again: one version, or all with their tags, pins and tombstones.

    Raises:
        DatasetNotFoundError: If there is no such dataset or version.
        DataError: If the version is gone.
    """
    folder = store.root / check_name(name, "Dataset")
    numbers, stones = (folder / "versions").numbers(), (folder / "tombstones").numbers()
    total = Verified()
    log = _read_log(folder, name)
    total += log.verified
    numbers = sorted({*numbers, *log.records} - set(stones))
    if version is not None:
        if version not in numbers:
            store.resolve(f"{name}@{version}")  # says what there is
            raise DatasetNotFoundError(f"Dataset {name!r} has no version {version}.")
        return sum((_version(store, folder, name, n, log) for n in [version]), log.about(version))
    if not numbers:
        store.history(name)  # says what there is
    with work(f"verify {name}", total=len(numbers), unit="versions") as doing:
        for number in numbers:
            total += _version(store, folder, name, number, log)
            doing.advance()
    return total + _names(store, folder, name, numbers, stones)


# ---- the log -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Log:
    """Entries that publish a version, by its number, with their file and bytes; and what is wrong with the others."""

    records: dict[int, tuple[Place, bytes, deltalog.LogEntry]]
    verified: Verified

    def about(self, version: int) -> Verified:
        """Nothing, where the version has an entry; else all that is wrong with the log."""
        return Verified() if version in self.records else self.verified


def _read_log(folder: Place, name: str) -> _Log:
    log = folder / "table" / "_delta_log"
    records, findings, num_bytes, count = {}, [], 0, 0
    for file in log.names():
        if deltalog.delta_version(file) is None:
            continue
        raw = (log / file).read_bytes()
        count, num_bytes = count + 1, num_bytes + len(raw)
        try:
            entry = deltalog.parse(raw)
        except DataError as error:
            findings.append(Finding(ref=name, path=_under(folder, log / file), told=str(error)))
            continue
        if entry.version is not None:
            records[entry.version] = (log / file, raw, entry)
    return _Log(records, Verified(num_files=count, num_bytes=num_bytes, findings=tuple(findings)))


def _under(folder: Place, file: Place) -> str:
    return file.path[len(folder.path) + 1 :]


# ---- one version ---------------------------------------------------------------------------------------------------


def _version(store: DatasetStore, folder: Place, name: str, number: int, log: _Log) -> Verified:
    ref, stem = f"{name}@{number}", f"{number:08d}"
    record = folder / "versions" / f"{stem}.json"
    found = Verified(versions=(ref,))

    def wrong(file: Place, told: str) -> Verified:
        return Verified(findings=(Finding(ref=ref, path=_under(folder, file), told=told),))

    if not record.exists():
        with contextlib.suppress(TiltyardError, OSError, ValueError):
            store.resolve(ref)  # publishes what a writer that died left unpublished
    data = record.read_bytes() if record.exists() else None
    found += Verified(num_files=1, num_bytes=len(data or b""))
    entry = None
    if number in log.records:
        place, raw, entry = log.records[number]
        found += _seal(folder, ref, stem, place, raw)
        found += _record(folder, ref, record, data, entry)
        staged = folder / "staged" / str(entry.record)
        copy = staged.read_bytes() if staged.exists() else None
        if data is None or _sha(copy) == entry.record_sha256 != _sha(data):
            data = copy  # the files are compared with the copy that is whole
    try:
        version = DatasetVersion.from_json(json.loads(data or b""))
    except (TiltyardError, ValueError, AttributeError) as error:
        return found + wrong(record, f"cannot be read: {error}")
    if entry is None:
        place = folder / "table" / "_delta_log" / deltalog.file_name(version.delta_version)
        told = "has changed: it does not publish this version any more" if place.exists() else "missing"
        found += wrong(place, told)
    if entry is not None and set(entry.adds) != {(f.path, f.size_bytes) for f in version.files}:
        found += wrong(log.records[number][0], "its files are not those of the version's record")
    try:
        return found + _profile(folder, version) + _files(folder, version)
    except (TiltyardError, pa.ArrowException, OSError, ValueError, TypeError, KeyError) as error:
        return found + wrong(record, f"does not fit its files: {type(error).__name__}: {error}")


def _seal(folder: Place, ref: str, stem: str, entry: Place, raw: bytes) -> Verified:
    seal = folder / "versions" / f"{stem}.seal"
    if not seal.exists():
        return Verified(notes=(f"{ref}: its log entry has no seal (an older Tiltyard wrote it); it was only read.",))
    data = seal.read_bytes()
    wanted = json.dumps({"schema_version": 1, "log_sha256": hashlib.sha256(raw).hexdigest()}, indent=1).encode()
    if data == wanted:
        return Verified(num_files=1, num_bytes=len(data))
    told = "the log entry or its seal has changed: they do not belong together"
    paths = f"{_under(folder, entry)} and {_under(folder, seal)}"
    return Verified(findings=(Finding(ref=ref, path=paths, told=told),))


def _record(folder: Place, ref: str, record: Place, data: bytes | None, entry: deltalog.LogEntry) -> Verified:
    """The record and its staged copy: both as the log names them."""
    staged = folder / "staged" / str(entry.record)
    copy = staged.read_bytes() if staged.exists() else None
    if not entry.record_sha256:
        if copy == data and data is not None:
            return Verified(num_files=1, num_bytes=len(data))
        told = "is not as its staged copy; the log entry of an older Tiltyard does not say which of them is whole"
        return Verified(findings=(Finding(ref=ref, path=_under(folder, record), told=told),))
    whole = {place.path: _sha(text) == entry.record_sha256 for place, text in ((record, data), (staged, copy))}
    findings = []
    for place, other, text in ((record, staged, data), (staged, record, copy)):
        if not whole[place.path]:
            told = "missing" if text is None else "has changed: its SHA-256 is not the one in the Delta log"
            mend = f"; {_under(folder, other)} is whole: copy it here" if whole[other.path] else ""
            findings.append(Finding(ref=ref, path=_under(folder, place), told=told + mend))
    return Verified(num_files=1, num_bytes=len(copy or b""), findings=tuple(findings))


def _sha(data: bytes | None) -> str:
    return "" if data is None else hashlib.sha256(data).hexdigest()


def _profile(folder: Place, version: DatasetVersion) -> Verified:
    if not version.profile_path:
        return Verified(notes=(f"{version.ref}: has no profile.",))
    ref, where = str(version.ref), folder / version.profile_path
    if not where.exists():
        return Verified(findings=(Finding(ref=ref, path=version.profile_path, told="missing"),))
    data = where.read_bytes()
    read = Verified(num_files=1, num_bytes=len(data))
    if version.profile_sha256:
        if _sha(data) != version.profile_sha256:
            told = "has changed: its SHA-256 is not the one in the record"
            read += Verified(findings=(Finding(ref=ref, path=version.profile_path, told=told),))
        return read
    try:
        profiling.Profile.from_json(json.loads(data))
    except (DataError, ValueError) as error:
        return read + Verified(findings=(Finding(ref=ref, path=version.profile_path, told=str(error)),))
    return read + Verified(notes=(f"{ref}: its record has no digest of the profile; it was only read.",))


def _files(folder: Place, version: DatasetVersion) -> Verified:
    """Data files byte by byte, and the rows in them against the content digest."""
    ref = str(version.ref)
    found = Verified()
    sums: dict[str, list[str]] = {}
    with work(f"read {ref}", total=sum(f.size_bytes for f in version.files), unit="bytes") as doing:
        for file in version.files:
            where, path = folder / "table" / file.path, f"table/{file.path}"
            if not where.exists():
                found += Verified(findings=(Finding(ref=ref, path=path, told="missing"),))
                continue
            data = where.read_bytes()
            found += Verified(num_files=1, num_bytes=len(data))
            if _sha(data) != file.sha256:
                told = f"has changed: {len(data):,} bytes (written: {file.size_bytes:,}) whose SHA-256 is not the one in the record"
                found += Verified(findings=(Finding(ref=ref, path=path, told=told),))
                continue
            sums.setdefault(file.split, []).append(_row_sum(data, sorted(version.schema)))
            doing.advance(file.size_bytes)
    if found.findings:
        return found
    row_sums = {split: rows.add_sums(*parts) for split, parts in sums.items()}
    found_digest = content_digest(version.schema, version.spec, row_sums, version.classes)
    wrong = []
    if files_digest(version.files) != version.files_digest:
        wrong.append("its files digest is not that of its files")
    if row_sums != dict(version.row_sums) or found_digest != version.content_digest:
        wrong.append("its content digest is not that of its rows")
    record = f"versions/{version.version:08d}.json"
    return found + Verified(findings=tuple(Finding(ref=ref, path=record, told=told) for told in wrong))


def _row_sum(data: bytes, columns: Sequence[str]) -> str:
    table = pq.read_table(pa.BufferReader(data), columns=list(columns), use_threads=False)
    return rows.sum_rows(*rows.row_lanes(rows.canonical(table)))


# ---- what stands beside the versions -------------------------------------------------------------------------------


def _names(store: DatasetStore, folder: Place, name: str, numbers: Sequence[int], stones: Sequence[int]) -> Verified:
    """Tags and pins that name nothing, and removals that are not finished."""
    findings: list[Finding] = []
    mend = f"finish it: tiltyard data gc {name} --yes"
    for kind in ("tags", "pins"):
        for file in (folder / kind).names():
            try:
                named = (folder / kind / file).read_json()["version"]
                told = "" if named in numbers else f"names version {named}, which is not there"
            except (DataError, KeyError, TypeError):
                told = "is damaged"
            findings += [Finding(ref=name, path=f"{kind}/{file}", told=told)] if told else []
    for number in stones:
        where = folder / "tombstones" / f"{number:08d}.json"
        try:
            stone = Tombstone.from_json(where.read_json())
        except DataError as error:
            findings.append(Finding(ref=name, path=_under(folder, where), told=str(error)))
            continue
        left = [f for f in stone.files if (folder / f).exists()]
        if left:
            told = f"of a version that was {stone.kind} ({len(left)} such files); {mend}"
            findings.append(Finding(ref=f"{name}@{number}", path=left[0], told=told))
    if begun := pending(store, name):
        told = f"a deletion of {begun[0][1].at[:10]} was begun and is not done; {mend}"
        findings.append(Finding(ref=name, path=_under(folder, begun[0][0]), told=told))
    return Verified(findings=tuple(findings))
