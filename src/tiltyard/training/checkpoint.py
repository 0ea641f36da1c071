"""A pack on disk: ``pack.json`` with a schema version, and the safetensors file it names. Nothing is pickled.

The JSON is moved into place last and names the tensors by a name of their own, so at every moment the folder holds one
whole checkpoint: the older until that move, the newer after it.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiltyard.errors import ModelError

SCHEMA_VERSION = 2
META = "pack.json"
_FIRST_TENSORS = "pack.safetensors"
"""Where schema version 1 kept them."""
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What a file system says that has no such thing."""


def write(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes a checkpoint over whatever is there, whole or not at all.

    Args:
        folder: Where; made if it is not there. One writer at a time.
        tensors: On the CPU.
        meta: JSON values; ``schema_version`` and ``tensors`` are added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"pack-{uuid.uuid4().hex[:12]}.safetensors"
    new = folder / f".{META}"
    try:
        save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / name)
        with (folder / name).open("rb") as file:
            _to_disk(file.fileno())
        with new.open("w") as file:
            file.write(json.dumps({"schema_version": SCHEMA_VERSION, "tensors": name, **meta}))
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
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise ModelError(f"No checkpoint of a pack in {folder}: {META} is not there. Train the pack again.") from error
    except ValueError as error:
        raise ModelError(f"{folder / META} is not JSON ({error}). Train the pack again.") from error
    found = meta.get("schema_version")
    if not isinstance(found, int) or found > SCHEMA_VERSION:
        raise ModelError(
            f"The checkpoint in {folder} has schema version {found}; this Tiltyard reads up to {SCHEMA_VERSION}. "
            "Install the one that wrote it."
        )
    path = folder / Path(meta.get("tensors", _FIRST_TENSORS)).name
    try:
        return load_file(path), meta
    except (FileNotFoundError, SafetensorError) as error:
        raise ModelError(
            f"The checkpoint in {folder} is not whole: {path.name}: {error}. Train the pack again."
        ) from error


class Saving:
    """A checkpoint on its way to the disk, in a thread; `wait` for it before relying on it.

    Args:
        folder: As `write`.
        tensors: As `write`; no longer changed by anybody.
        meta: As `write`.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._write, args=(folder, tensors, meta), name="tiltyard-checkpoint")
        self._thread.start()

    def _write(self, folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        try:
            write(folder, tensors, meta)
        except BaseException as error:  # told to whoever waits
            self._error = error

    @property
    def done(self) -> bool:
        """Whether it has been written, or has failed."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Returns when the checkpoint is on disk.

        Raises:
            Exception: Whatever kept it from being written.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
