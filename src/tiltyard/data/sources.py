"""Where rows come from: files, folders, globs, URIs, tables in memory, pictures in a folder per class.

Everything is read into one Arrow table, and whatever is wrong with the source is said here, before anything is written:
ragged rows, empty files, a column that mixes numbers and text, files of different columns.
"""

from __future__ import annotations

import fnmatch
import glob
import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, fs
from pyarrow import dataset as pads
from pyarrow import json as pajson

from tiltyard.data import rows
from tiltyard.data.places import brief
from tiltyard.errors import DataError
from tiltyard.settings import shown

SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
}
PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
MIXED_SHARE = 0.5  # a text column of which this share are numbers is numbers with mistakes, not text


def read(source: Any, *, types: Mapping[str, str] | None = None, filesystem: fs.FileSystem | None = None) -> pa.Table:
    """All rows of a source.

    Args:
        source: A path, glob, folder or URI of Parquet, CSV, JSON lines or Arrow IPC files; a folder with one folder of
            pictures per class; a ``pa.Table``, a pandas ``DataFrame``, or a mapping of column name to array (a NumPy
            array of two or more dimensions becomes a tensor column).
        types: Column name to type name, where the type found in a CSV is not the one wanted.
        filesystem: For ``s3://`` URIs: where to read them.

    Raises:
        DataError: If it cannot be read, with what is wrong and where.
    """
    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.table(source)
    if isinstance(source, Mapping):
        return _from_mapping(source)
    if hasattr(source, "to_parquet") and hasattr(source, "columns"):
        return _from_pandas(source)
    if isinstance(source, (str, Path)):
        return _from_files(str(source), types or {}, filesystem)
    raise DataError(
        f"A source of type {type(source).__name__} cannot be read. Wanted: a path, folder, glob or URI, a pyarrow "
        "Table, a pandas DataFrame, or a mapping of column name to array."
    )


def _from_pandas(frame: Any) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"A DataFrame column mixes types: {error}. Convert it to one type (astype).") from error


def tensor_column(values: np.ndarray[Any, Any]) -> pa.Array:
    """An array of two or more dimensions as a column of tensors: one row per first index, the rest flattened."""
    flat = np.ascontiguousarray(values).reshape(len(values), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])


def _from_mapping(columns: Mapping[str, Any]) -> pa.Table:
    arrays: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 1:
            arrays[name] = tensor_column(values)
            continue
        try:
            arrays[name] = values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"Column {name!r} mixes types: {error}. Give it values of one type.") from error
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"Columns have different numbers of rows: {lengths}. Every column needs one value per row.")
    return pa.table(arrays)


def _expand(source: str, filesystem: fs.FileSystem | None) -> tuple[list[str], fs.FileSystem | None]:
    """The files a path, folder, glob or URI means."""
    if "://" in source and not source.startswith("file://"):
        try:
            return _expand_remote(source, filesystem)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(
                f"{shown(source)!r} cannot be opened: {brief(error)}. Wanted an s3:// address that answers and lets you in: look "
                "at the bucket's name, AWS_ENDPOINT_URL, AWS_REGION and the credentials."
            ) from error
    path = source.removeprefix("file://")
    here = Path(path).expanduser()
    if here.is_dir():
        return sorted(str(p) for p in here.rglob("*") if p.is_file() and _known(p.name)), None
    if here.is_file():
        return [str(here)], None
    return sorted(glob.glob(str(here), recursive=True)), None


def _expand_remote(source: str, filesystem: fs.FileSystem | None) -> tuple[list[str], fs.FileSystem]:
    where, path = (filesystem, source.split("://", 1)[1]) if filesystem else fs.FileSystem.from_uri(source)
    info = where.get_file_info(path.rstrip("/"))
    if info.type == fs.FileType.File:
        return [info.path], where
    folder, wanted = path.rstrip("/"), None
    if info.type != fs.FileType.Directory and glob.has_magic(path):
        parts = path.split("/")
        plain = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        folder, wanted = "/".join(parts[:plain]), parts[plain:]
    found = where.get_file_info(fs.FileSelector(folder, recursive=True, allow_not_found=True))
    files = sorted(f.path for f in found if f.type == fs.FileType.File)
    if wanted is None:
        return [f for f in files if _known(f)], where
    return [f for f in files if _matches(f[len(folder) + 1 :].split("/"), wanted)], where


def _matches(parts: Sequence[str], wanted: Sequence[str]) -> bool:
    """Whether a path, part by part, is what a glob means; ``**`` stands for any number of folders, also none."""
    if not wanted or not parts:
        return not wanted and not parts
    if wanted[0] == "**" and len(wanted) > 1:
        return _matches(parts, wanted[1:]) or _matches(parts[1:], wanted)
    return fnmatch.fnmatchcase(parts[0], wanted[0]) and _matches(parts[1:], wanted[1:])


def _known(path: str) -> bool:
    name = Path(path).name
    return not name.startswith((".", "_")) and Path(path).suffix.lower() in (*SUFFIXES, *PICTURES)


def _from_files(source: str, types: Mapping[str, str], filesystem: fs.FileSystem | None) -> pa.Table:
    files, where = _expand(source, filesystem)
    if not files:
        raise DataError(
            f"Nothing to read at {shown(source)!r}. Wanted an existing file, folder, glob or URI of "
            f"{', '.join(sorted(SUFFIXES))}, or a folder with a folder of pictures per class."
        )
    if Path(files[0]).suffix.lower() in PICTURES:
        if where is not None:
            return pictures(PurePosixPath(source.split("://", 1)[1]), where)
        return pictures(Path(source.removeprefix("file://")).expanduser())
    kinds = {SUFFIXES.get(Path(f).suffix.lower()) for f in files}
    kind = kinds.pop()
    if kinds or kind is None:
        raise DataError(
            f"{shown(source)!r} holds files of unknown or mixed kinds (such as {files[0]!r} and {files[-1]!r}). Wanted one "
            f"kind of {', '.join(sorted(SUFFIXES))}."
        )
    tables = [_read_file(f, kind, types, where) for f in files]
    return _together(tables, files)


def _together(tables: list[pa.Table], files: Sequence[str]) -> pa.Table:
    if len(tables) == 1:
        return tables[0]
    for table, path in zip(tables[1:], files[1:], strict=True):
        differ = sorted(set(table.column_names) ^ set(tables[0].column_names))
        if differ:
            raise DataError(f"{path!r} and {files[0]!r} do not have the same columns: {differ[:8]} are in one only.")
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"The files of {files[0]!r} ff. have columns whose types do not fit: {error}.") from error


def _read_file(path: str, kind: str, types: Mapping[str, str], where: fs.FileSystem | None) -> pa.Table:
    shown = path if where is None else f"s3://{path}"
    place = where or fs.LocalFileSystem()
    try:
        if place.get_file_info(path).size == 0:
            raise DataError(f"{shown!r} is empty: 0 bytes. Give a file with rows.")
        if kind in ("parquet", "ipc"):
            return pads.dataset(path, format=kind, filesystem=place).to_table()
        if kind == "csv":
            return _read_csv(place, path, shown, types)
        with place.open_input_stream(path) as stream:
            return pajson.read_json(stream)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowKeyError) as error:
        raise DataError(f"{shown!r} cannot be read as {kind}: {error}. Mend the file, then commit again.") from error
    except OSError as error:
        raise DataError(f"{shown!r} cannot be opened: {error}.") from error


def _read_csv(place: fs.FileSystem, path: str, shown: str, types: Mapping[str, str]) -> pa.Table:
    delimiter = "\t" if path.endswith(".tsv") else ","
    convert = csv.ConvertOptions(
        column_types={name: rows.type_of(kind) for name, kind in types.items()}, strings_can_be_null=True
    )
    try:
        with place.open_input_stream(path) as stream:
            table = csv.read_csv(stream, parse_options=csv.ParseOptions(delimiter=delimiter), convert_options=convert)
    except pa.ArrowInvalid as error:
        if "CSV parse error: Expected" in str(error):
            _refuse_ragged(place, path, shown, delimiter)
        raise
    if unknown := sorted(set(types) - set(table.column_names)):
        raise DataError(f"{shown!r} has no column {unknown[0]!r}; it has {', '.join(table.column_names[:30])}.")
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_binary(column.type) and name not in types:
            raise DataError(f"{shown!r} column {name!r} is not UTF-8 text. Save the file as UTF-8, then commit again.")
        if pa.types.is_string(column.type) and name not in types:
            _refuse_mixed(shown, name, column)
    return table


def _refuse_ragged(place: fs.FileSystem, path: str, shown: str, delimiter: str) -> None:
    """Reads again on one thread, which knows line numbers, and tells which rows are ragged."""
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"

    with place.open_input_stream(path) as stream:
        csv.read_csv(
            stream,
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note),
        )
    told = "; ".join(f"row {r.number} has {r.actual_columns}: {r.text[:60]!r}" for r in ragged[:3])
    raise DataError(
        f"{shown!r} has ragged rows: the header (row 1) has {ragged[0].expected_columns} fields, but {told}"
        f"{f', and {len(ragged) - 3} rows more' if len(ragged) > 3 else ''}. Mend them (quote a text that holds "
        f"{delimiter!r}), then commit again."
    )


def _refuse_mixed(path: str, name: str, column: pa.ChunkedArray) -> None:
    number = pc.match_substring_regex(column.drop_null(), r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
    share = pc.mean(number.cast(pa.int8())).as_py() if len(number) else 0.0
    if not share or share < MIXED_SHARE or share == 1.0:
        return
    text = pc.and_(
        pc.is_valid(column),
        pc.invert(pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$").fill_null(True)),
    )
    at = [i + 2 for i in np.flatnonzero(text.combine_chunks().to_numpy(zero_copy_only=False))[:5].tolist()]
    values = column.filter(text).to_pylist()[:5]
    raise DataError(
        f"{path!r} column {name!r} mixes types: {share:.0%} numbers, and text such as {values} on lines {at}. Mend those "
        f"lines (an empty field is a missing value), or say that it is text: types={{{name!r}: 'string'}} (--text {name})."
    )


def pictures(folder: Path | PurePosixPath, where: fs.FileSystem | None = None) -> pa.Table:
    """A folder with one folder of pictures per class, as columns ``image``, ``label`` and ``path``.

    Pictures become tensors of int16 in 0 to 255, channel first and flattened: ``(channels * height * width,)``; all must
    have one size. Needs Pillow.

    Args:
        folder: Of one folder per class.
        where: The file system it is on; this machine's where it is None.

    Raises:
        DataError: If a picture cannot be decoded, or sizes differ.
    """
    from PIL import Image, UnidentifiedImageError

    labels: list[str] = []
    names: list[str] = []
    arrays: list[np.ndarray[Any, Any]] = []
    place = where or fs.LocalFileSystem()
    found = place.get_file_info(fs.FileSelector(str(folder), recursive=True, allow_not_found=True))
    files = [PurePosixPath(f.path) for f in found if f.type == fs.FileType.File]
    for path in sorted(p for p in files if p.parent.parent == PurePosixPath(folder) and p.suffix.lower() in PICTURES):
        try:
            with place.open_input_stream(str(path)) as stream, Image.open(io.BytesIO(stream.read())) as image:
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"), dtype=np.int16)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"{str(path)!r} is not a picture that can be decoded: {error}. Remove or mend it."
            ) from error
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        if arrays and pixels.shape != arrays[0].shape:
            raise DataError(
                f"{str(path)!r} has shape {pixels.shape} (channels, height, width), the first picture {arrays[0].shape}. "
                "Resize them to one size and mode before the commit."
            )
        labels.append(path.parent.name)
        names.append(f"{path.parent.name}/{path.name}")
        arrays.append(pixels)
    if not arrays:
        raise DataError(f"{str(folder)!r} has no folder of pictures per class; wanted FOLDER/CLASS/PICTURE.png.")
    return pa.table({"image": tensor_column(np.stack(arrays)), "label": labels, "path": names})
