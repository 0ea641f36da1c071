"""Small files at a place: a local folder or an S3 prefix, read and written whole.

Writes are atomic: a reader sees the old file, the new one, or none. Nothing here decides who may write; what needs
compare-and-set goes through the Delta log (`tiltyard.data.store`). A place that does not answer, refuses, or gives what cannot
be read is a `DataError`; a file that is not there stays a `FileNotFoundError`, which callers expect.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
from pyarrow import fs

from tiltyard.errors import DataError
from tiltyard.settings import shown

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 600


def json_bytes(value: Any) -> bytes:
    """A value as the JSON that is stored: the bytes that digests are made of."""
    return json.dumps(value, indent=1).encode()


def s3_filesystem(options: Mapping[str, str]) -> fs.S3FileSystem:
    """An S3 file system from delta-rs's option names (``AWS_ENDPOINT_URL``, ``AWS_REGION``, ...); environment otherwise.

    Keys not given come from the environment, then from where the AWS SDK finds them (a pod's role, say).
    """

    def option(name: str) -> str | None:
        return options.get(name) or options.get(name.lower()) or os.environ.get(name)

    endpoint = option("AWS_ENDPOINT_URL")
    given: dict[str, Any] = {"region": option("AWS_REGION") or option("AWS_DEFAULT_REGION") or "us-east-1"}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        given |= {"endpoint_override": host, "scheme": scheme or "https"}
    if option("AWS_ACCESS_KEY_ID"):
        given |= {"access_key": option("AWS_ACCESS_KEY_ID"), "secret_key": option("AWS_SECRET_ACCESS_KEY")}
        if option("AWS_SESSION_TOKEN"):
            given["session_token"] = option("AWS_SESSION_TOKEN")
    return fs.S3FileSystem(**given)


@dataclass(frozen=True, slots=True)
class Place:
    """A folder: ``filesystem`` plus ``path``; ``uri`` is how Delta names it."""

    uri: str
    path: str
    options: Mapping[str, str] = field(default_factory=dict)
    filesystem: fs.FileSystem = field(default_factory=fs.LocalFileSystem, compare=False)

    @classmethod
    def of(cls, uri: str, options: Mapping[str, str] | None = None) -> Self:
        """The place a URI or local path names; creates nothing.

        Raises:
            DataError: If the scheme is neither local nor ``s3://``.
        """
        if uri.startswith("s3://"):
            return cls(uri.rstrip("/"), uri[5:].rstrip("/"), dict(options or {}), s3_filesystem(options or {}))
        if "://" in uri and not uri.startswith("file://"):
            raise DataError(f"Datasets cannot be kept at {shown(uri)!r}. Wanted a local folder or s3://BUCKET/PREFIX.")
        path = str(Path(uri.removeprefix("file://")).expanduser().absolute())
        return cls(path, path)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Place.of, (self.uri, dict(self.options)))

    def __truediv__(self, name: str) -> Place:
        return Place(f"{self.uri}/{name}", f"{self.path}/{name}", self.options, self.filesystem)

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around whatever asks the disk or the bucket.

        Raises:
            DataError: If it does not answer, refuses, or what it holds cannot be read; says which and what to do.
        """
        try:
            yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowInvalid) as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> DataError:
        """What to raise where the disk or the bucket raised this."""
        if self.is_local:
            told = (
                "If the disk is full or the folder is not yours to use, mend that and do it again; "
                "else the file may be damaged: tiltyard data verify"
            )
        else:
            told = (
                "Wanted an S3 that answers and lets you in. Look at the address (AWS_ENDPOINT_URL, AWS_REGION; plain http also "
                "needs AWS_ALLOW_HTTP=true), the bucket's name and the credentials (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or a role), then do it again"
            )
        return DataError(f"{shown(self.uri)} cannot be used: {shown(brief(error))}. {told}.")

    def check_bucket(self) -> None:
        """Refuses a bucket that does not exist: listing it gives nothing, as an empty one does.

        Raises:
            DataError: If there is no such bucket.
        """
        if self.is_local:
            return
        bucket = self.path.partition("/")[0]
        with self.asked():
            there = self.filesystem.get_file_info(bucket).type != fs.FileType.NotFound
        if not there:
            raise self.failed(OSError(f"there is no bucket {bucket!r}"))

    def names(self) -> list[str]:
        """Names of the files and folders right under it, ascending; none where it does not exist."""
        with self.asked():
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def numbers(self) -> list[int]:
        """Numbers of the files right under it that are named by one (``00000007.json``), ascending."""
        return [int(f[:8]) for f in self.names() if len(f) == 13 and f.endswith(".json") and f[:8].isdigit()]

    def files(self) -> list[fs.FileInfo]:
        """All files anywhere under it."""
        selector = fs.FileSelector(self.path, recursive=True, allow_not_found=True)
        with self.asked():
            return [info for info in self.filesystem.get_file_info(selector) if info.type == fs.FileType.File]

    def exists(self) -> bool:
        """True where there is a file."""
        with self.asked():
            return bool(self.filesystem.get_file_info(self.path).type == fs.FileType.File)

    def read_bytes(self) -> bytes:
        """The file's bytes."""
        with self.asked(), self.filesystem.open_input_stream(self.path) as stream:
            return bytes(stream.read())

    def write_bytes(self, data: bytes) -> None:
        """Writes the file whole, replacing one that is there."""
        with self.asked():
            target = self.path
            if self.is_local:
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
                target = f"{self.path}.{uuid.uuid4().hex}.part"
            with self.filesystem.open_output_stream(target) as stream:
                stream.write(data)
            if self.is_local:
                Path(target).replace(self.path)

    def read_json(self) -> Any:
        """The file, parsed.

        Raises:
            DataError: If it is no JSON.
        """
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise DataError(
                f"The file {shown(self.uri)} is damaged: {error}. See what else is: tiltyard data verify"
            ) from error

    def write_json(self, value: Any) -> None:
        """Writes a value as JSON."""
        self.write_bytes(json_bytes(value))

    @contextmanager
    def open_input(self) -> Iterator[Any]:
        """The file, to be read here and there."""
        with self.asked(), self.filesystem.open_input_file(self.path) as source:
            yield source

    def open_output(self) -> Any:
        """A stream to a new file; parents are made where the file system has folders. Use it within `asked`."""
        if self.is_local:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        return self.filesystem.open_output_stream(self.path)

    def remove(self) -> None:
        """Deletes the file; silent where there is none."""
        if self.exists():
            with self.asked():
                self.filesystem.delete_file(self.path)


def brief(error: Exception) -> str:
    """A library's message on one line, without its colours and without its stack."""
    text = _COLOUR.sub("", str(error)).partition("\n   0: ")[0]
    told = " ".join(text.replace("↳", ":").split()).replace(" :", ":").rstrip(".:")
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]} ..."
