"""What one entry of a dataset's Delta log says: which record it publishes, which files it adds.

The log is written by delta-rs (`tiltyard.data.store`) and by whatever engine maintains the table. Pure: takes bytes.
"""

from __future__ import annotations

import json
import urllib.parse
from dataclasses import dataclass

from tiltyard.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry.

    Args:
        version: Tiltyard's number of the version it publishes; None where another engine wrote it.
        record: Name of the staged record of that version.
        record_sha256: Of the record's bytes; empty where an older Tiltyard wrote it.
        adds: Files that it adds, as (path relative to the table, size in bytes).
    """

    version: int | None
    record: str | None
    record_sha256: str
    adds: tuple[tuple[str, int], ...]


def file_name(delta_version: int) -> str:
    """Name of an entry's file in ``_delta_log``."""
    return f"{delta_version:020d}.json"


def delta_version(name: str) -> int | None:
    """The Delta version that a file in ``_delta_log`` is the entry of; None where it is none (a checkpoint, say)."""
    return int(name[:20]) if len(name) == 25 and name.endswith(".json") and name[:20].isdigit() else None


def parse(entry: bytes) -> LogEntry:
    """Reads an entry.

    Raises:
        DataError: If it is no entry of a Delta log.
    """
    number, record, digest = None, None, ""
    adds: list[tuple[str, int]] = []
    try:
        for line in entry.splitlines():
            action = json.loads(line)
            if "commitInfo" in action:
                info = action["commitInfo"]
                record, digest = info.get("tiltyard.record"), str(info.get("tiltyard.record_sha256", ""))
                number = None if record is None else int(info["tiltyard.version"])
            elif "add" in action:
                adds.append((urllib.parse.unquote(action["add"]["path"]), int(action["add"]["size"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"An entry of a Delta log is damaged: {type(error).__name__}: {error}.") from error
    return LogEntry(
        version=number, record=None if record is None else str(record), record_sha256=digest, adds=tuple(adds)
    )
