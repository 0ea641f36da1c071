"""A version as plain files in a folder: a file a split, its card and its record; whole or not at all.

Every data file is checked against its SHA-256 as it is read. Parquet and Arrow bring every type back, so committing an
export again gives the same content digest; CSV has no types and no tensors. Written file by file: memory holds one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv, ipc

from tiltyard.data import cards, rows
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import DatasetRef, DatasetVersion, check_split
from tiltyard.errors import DataError, SpecError
from tiltyard.progress import Work, work

FORMATS: dict[str, Callable[[str, pa.Schema], Any]] = {
    "parquet": pq.ParquetWriter,
    "csv": csv.CSVWriter,
    "arrow": ipc.new_file,
}
"""Format to its writer; the format is the files' suffix too."""


def export(
    store: DatasetStore, ref: DatasetRef | str, target: str, *, split: str | None = None, form: str = "parquet"
) -> tuple[DatasetVersion, tuple[Path, ...]]:
    """Writes a version to a folder that does not exist yet, or is empty.

    Args:
        store: Where the dataset is.
        ref: Which version.
        target: The folder.
        split: Only this split; all that have rows where it is None.
        form: ``parquet``, ``csv`` or ``arrow``.

    Returns:
        The version, and the files: ``SPLIT.FORM``, ``README.md`` (the card) and ``_dataset.json`` (the record).

    Raises:
        SpecError: If there is no such format, or the folder cannot be one.
        DataError: If the folder is not empty, the format cannot hold a column, or a data file has changed.
    """
    if form not in FORMATS:
        raise SpecError(f"There is no export format {form!r}. Formats: {', '.join(FORMATS)}.")
    if "://" in target:
        raise SpecError(f"{target!r} is no folder of this machine; export to one, then copy it.")
    version = store.resolve(ref)
    wanted = [s for s in check_split(version, split) if version.split_rows.get(s)]
    _refuse_columns(version, form)
    folder = Path(target).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{str(folder)!r} exists and is not empty; nothing was written. Name another folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        rows_in_all = sum(version.split_rows[s] for s in wanted)
        with work(f"export {version.ref}", total=rows_in_all, unit="rows") as doing:
            for name in wanted:
                _write(store, version, name, scratch / f"{name}.{form}", FORMATS[form], doing)
        (scratch / "README.md").write_text(cards.render(version, store.profile(version)))
        (scratch / "_dataset.json").write_text(json.dumps(version.to_json(), indent=1))
        scratch.chmod(0o755)
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()
        scratch.rename(folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return version, tuple(sorted(folder.iterdir()))


def _refuse_columns(version: DatasetVersion, form: str) -> None:
    tensors = [n for n, kind in version.schema.items() if "[" in kind and not kind.startswith("timestamp")]
    unfit = [*tensors, *(n for n, kind in version.schema.items() if kind == "binary")]
    if form == "csv" and unfit:
        raise DataError(
            f"CSV cannot hold column {unfit[0]!r} of {version.ref}, which is {version.schema[unfit[0]]}. "
            "Export as parquet or arrow."
        )


def _write(
    store: DatasetStore,
    version: DatasetVersion,
    split: str,
    where: Path,
    writer: Callable[[str, pa.Schema], Any],
    doing: Work,
) -> None:
    schema = pa.schema([(n, rows.type_of(kind)) for n, kind in version.schema.items()])
    with writer(str(where), schema) as sink:
        for part in _parts(store, version, split):
            sink.write_table(part.select(schema.names).cast(schema))
            doing.advance(part.num_rows)


def _parts(store: DatasetStore, version: DatasetVersion, split: str) -> Iterator[pa.Table]:
    """The split's files in order, each checked."""
    for file in (f for f in version.files if f.split == split):
        try:
            data = (store.root / version.name / "table" / file.path).read_bytes()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise DataError(
                f"File {file.path} of {version.ref} is {'missing' if not data else 'not as it was written'}; nothing was "
                f"exported. See what else is: tiltyard data verify {version.ref}"
            )
        yield pq.read_table(pa.BufferReader(data), columns=list(version.schema), use_threads=False)
