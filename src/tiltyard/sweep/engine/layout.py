"""Where a sweep keeps its files: one folder a key, one a pack, one an attempt; local or in an object store.

::

    <storage>/<first 16 of the key>/
        plan.json                         the experiment, as JSON; its trials stand in the journal
        packs/<pack id, @ as />/          a folder for the variant, in it one for the dataset, ...
            assignment.json               which members, from which epoch to which, and where their parameters come from
            a<attempt>/                   checkpoint and curves of one attempt; complete once the journal says so
                <first 16 of a cell>/     in a queue, those of one trial each
        leaderboard.json
        finalists.json                    how the finalists did on the test rows: confusion and calibration, no row of them
        report.html

A folder that no journal entry names is rubbish from an attempt that died, and harmless.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow.fs as pafs

from tiltyard.errors import MachineError
from tiltyard.settings import shown


@dataclass(frozen=True, slots=True)
class Storage:
    """Files under one root, a local path or a URI that pyarrow knows (``s3://bucket/prefix``)."""

    root: str

    @property
    def is_local(self) -> bool:
        """True where files are on a file system of this machine (or one that it mounts)."""
        return "://" not in self.root or self.root.startswith("file://")

    def uri(self, *parts: str) -> str:
        """The address of something under the root."""
        return "/".join((self.root.rstrip("/"), *parts))

    def write_json(self, uri: str, value: Any) -> None:
        """Writes JSON so that a reader sees all of it or nothing."""
        self.write_bytes(uri, json.dumps(value, sort_keys=True).encode())

    def write_bytes(self, uri: str, data: bytes) -> None:
        """Writes a file so that a reader sees all of it or nothing."""
        if self.is_local:
            path = _local(uri)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(data)
            temporary.replace(path)
            return
        filesystem, path_in_store = pafs.FileSystem.from_uri(uri)
        with filesystem.open_output_stream(path_in_store) as stream:  # an object appears when its upload is complete
            stream.write(data)

    def read_json(self, uri: str) -> Any:
        """Reads what `write_json` wrote.

        Raises:
            MachineError: If there is no such file.
        """
        try:
            if self.is_local:
                return json.loads(_local(uri).read_bytes())
            filesystem, path = pafs.FileSystem.from_uri(uri)
            with filesystem.open_input_stream(path) as stream:
                return json.loads(stream.read())
        except FileNotFoundError as error:
            raise MachineError(
                f"{shown(uri)} is not there, though the journal says it was written. Wanted: the storage that the sweep "
                "wrote to (TILTYARD_STORAGE_URI), with nothing deleted. Put it back, or start anew with another --seed."
            ) from error

    @contextmanager
    def opening(self, uri: str) -> Iterator[IO[bytes] | None]:
        """One file, to read from; None where there is none."""
        with ExitStack() as stack:
            try:
                if self.is_local:
                    file = stack.enter_context(_local(uri).open("rb"))
                else:
                    filesystem, path = pafs.FileSystem.from_uri(uri)
                    file = stack.enter_context(filesystem.open_input_file(path))
            except FileNotFoundError:
                file = None
            yield file

    @contextmanager
    def writing(self, uri: str) -> Iterator[Path]:
        """A local folder whose content is at ``uri`` when the block ends without an error."""
        if self.is_local:
            folder = _local(uri)
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as name:
            yield Path(name)
            filesystem, path = pafs.FileSystem.from_uri(uri)
            pafs.copy_files(name, path, destination_filesystem=filesystem)

    @contextmanager
    def reading(self, uri: str) -> Iterator[Path]:
        """A local folder with what is at ``uri``."""
        if self.is_local:
            yield _local(uri)
            return
        with tempfile.TemporaryDirectory(prefix="tiltyard-") as name:
            filesystem, path = pafs.FileSystem.from_uri(uri)
            pafs.copy_files(path, name, source_filesystem=filesystem)
            yield Path(name)

    def remove(self, uri: str) -> None:
        """Removes a folder; it is no error where there is none."""
        if self.is_local:
            shutil.rmtree(_local(uri), ignore_errors=True)
            return
        filesystem, path = pafs.FileSystem.from_uri(uri)
        filesystem.delete_dir_contents(path, missing_dir_ok=True)


@dataclass(frozen=True, slots=True)
class Layout:
    """The addresses of one key's files."""

    storage: Storage
    key: str

    @property
    def home(self) -> str:
        """Folder of the key."""
        return self.storage.uri(self.key[:16])

    @property
    def plan(self) -> str:
        """The plan, as JSON."""
        return f"{self.home}/plan.json"

    @property
    def leaderboard(self) -> str:
        """The final leaderboard, as JSON."""
        return f"{self.home}/leaderboard.json"

    @property
    def finalists(self) -> str:
        """What the test rows say of the finalists beside their scores, as JSON."""
        return f"{self.home}/finalists.json"

    @property
    def report(self) -> str:
        """The report, one page of HTML."""
        return f"{self.home}/report.html"

    def pack(self, pack_id: str) -> str:
        """Folder of a pack."""
        return f"{self.home}/packs/{pack_id.replace('@', '/')}"  # names may hold - . and _, but no /: no two packs meet

    def assignment(self, pack_id: str) -> str:
        """What a pack is to do, as JSON."""
        return f"{self.pack(pack_id)}/assignment.json"

    def attempt(self, pack_id: str, number: int) -> str:
        """Folder of one attempt at a pack."""
        return f"{self.pack(pack_id)}/a{number}"


def _local(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))
