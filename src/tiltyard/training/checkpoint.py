"""A pack on disk: ``pack.json`` with a schema version, and the safetensors file it names. Nothing is pickled.

The JSON is moved into place last and names the tensors by a name of their own, so at every moment the folder holds one
whole checkpoint: the older until that move, the newer after it. The JSON also holds a checksum of the tensors' file and of
itself, so that a byte that has changed since is found.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiltyard.errors import ModelError

SCHEMA_VERSION = 3
META = "pack.json"
_FIRST_TENSORS = "pack.safetensors"
"""Where schema version 1 kept them."""
_SUM = ', "crc32": '
"""What stands before the checksum, which comes last in the JSON."""
_SUMMED_FROM = 3
"""The schema version from which there are checksums."""
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What a file system says that has no such thing."""


def write(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint over whatever is there, whole or not at all.

    Args:
        folder: Where; made if it is not there. One writer at a time.
        tensors: On the CPU.
        meta: JSON values; ``schema_version``, ``tensors`` and ``crc32`` are added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"pack-{uuid.uuid4().hex[:12]}.safetensors"
    new = folder / f".{META}"
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / name)
        with (folder / name).open("rb") as file:
            _to_disk(file.fileno())
        told = json.dumps({"schema_version": SCHEMA_VERSION, "tensors": name, **meta}).removesuffix("}")
        with new.open("w") as file:
            file.write(f"{told}{_SUM}{_checksum(told, folder / name)}}}")
            file.flush()
            _to_disk(file.fileno())
        os.replace(new, folder / META)
    except BaseException:
        for path in (folder / name, new):
            path.unlink(missing_ok=True)
        raise
    for old in folder.glob("pack*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def _checksum(told: str, tensors: Path) -> int:
    """CRC-32 of the JSON before it and of the tensors' file: 2 GB/s, a quarter of the time that a cryptographic digest takes."""
    found = zlib.crc32(told.encode())
    with tensors.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


def _to_disk(descriptor: int) -> None:
    """Waits until the file's bytes are on the disk, so that a machine that stops cannot leave a name without them."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write` wrote, in any schema version up to this one.

    Raises:
        ModelError: If there is no whole checkpoint, or a newer Tiltyard wrote it.
    """
    try:
        text = (folder / META).read_text()
        meta = json.loads(text)
    except FileNotFoundError as error:
        raise ModelError(f"No checkpoint of a pack in {folder}: {META} is not there. Train the pack again.") from error
    except OSError as error:
        raise ModelError(
            f"{folder / META} cannot be read: {error}. Look at the folder, or train the pack again."
        ) from error
    except ValueError as error:
        raise ModelError(f"{folder / META} is not JSON ({error}). Train the pack again.") from error
    if not isinstance(meta, dict):
        raise ModelError(f"{folder / META} holds a {type(meta).__name__}; an object is wanted. Train the pack again.")
    found = meta.get("schema_version")
    if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
        raise ModelError(
            f"The checkpoint in {folder} has schema version {found}; this Tiltyard reads 1 to {SCHEMA_VERSION}. "
            "Install the one that wrote it."
        )
    path = folder / (Path(str(meta.get("tensors", _FIRST_TENSORS))).name or _FIRST_TENSORS)
    try:
        tensors = load_file(path)
        if found >= _SUMMED_FROM or "crc32" in meta:
            _check_sum(folder, text.rpartition(_SUM)[0], meta.get("crc32"), path)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The checkpoint in {folder} is not whole: {path.name}: {error}. Train the pack again."
        ) from error
    return tensors, meta


def _check_sum(folder: Path, told: str, wanted: object, tensors: Path) -> None:
    found = _checksum(told, tensors)
    if found != wanted:
        raise ModelError(
            f"The checkpoint in {folder} is not as it was written: its checksum is {found}, and {wanted} is recorded. "
            "Train the pack again."
        )


class Saving:
    """A checkpoint on its way to the disk, in a thread; `wait` for it before relying on it.

    Args:
        folder: As `write`.
        tensors: As `write`; no longer changed by anybody.
        meta: As `write`.
        after: One that is to be on disk first, since it may go to the same folder.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, after: Saving | None = None
    ) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._write, args=(folder, tensors, meta, after), name="tiltyard-checkpoint"
        )
        self._thread.start()

    def _write(
        self, folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], after: Saving | None
    ) -> None:
        if after is not None:
            after.settle()
        try:
            write(folder, tensors, meta)
        except BaseException as error:  # told to whoever waits
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has been written, or has failed."""
        return not self._thread.is_alive()

    def settle(self) -> None:
        """Returns when it has been written, or has failed."""
        self._thread.join()

    def wait(self) -> None:
        """Returns when the checkpoint is on disk.

        Raises:
            Exception: Whatever kept it from being written.
        """
        self.settle()
        if self._error is not None:
            raise self._error
