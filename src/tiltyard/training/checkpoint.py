"""A pack on disk: ``pack.safetensors`` and ``pack.json`` with a schema version. Nothing is pickled."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tiltyard.errors import ModelError

SCHEMA_VERSION = 1
TENSORS, META = "pack.safetensors", "pack.json"


def write(folder: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Writes both files; the JSON, written last and moved into place, says that the checkpoint is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, folder / f".{TENSORS}")
    os.replace(folder / f".{TENSORS}", folder / TENSORS)
    (folder / f".{META}").write_text(json.dumps({"schema_version": SCHEMA_VERSION, **meta}))
    os.replace(folder / f".{META}", folder / META)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write` wrote.

    Raises:
        ModelError: If there is no whole checkpoint, or a newer Tiltyard wrote it.
    """
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError as error:
        raise ModelError(f"No checkpoint of a pack in {folder}: {META} is not there. Train the pack again.") from error
    if meta["schema_version"] > SCHEMA_VERSION:
        raise ModelError(
            f"The checkpoint in {folder} has schema version {meta['schema_version']}; this Tiltyard reads up to "
            f"{SCHEMA_VERSION}. Install the one that wrote it."
        )
    return load_file(folder / TENSORS), meta
