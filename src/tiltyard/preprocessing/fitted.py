"""From raw columns to the float32 matrix a model sees: imputation, scaling and category encoding, fitted once.

A `Preprocessor` is fitted on the training split alone, is registered with the model as JSON, and its ``transform`` is the
one code path of training, offline evaluation and serving, so the three cannot disagree. What it learned is plain numbers:

* a number or boolean column: the median fills nulls, NaN and infinities, then ``(x - centre) / scale``; a column that had
  missing values while fitting gets a second output, 1 where a value was missing;
* a text column: one output per category (the most frequent ones first to be kept, at most ``max_categories``); a null or
  a category never seen is all zeros;
* a tensor column (lists of one size): flattened, centred and scaled by one pair of numbers, so that pictures stay pictures.

Needs NumPy, and pyarrow only when it is given a table. Never reads a dataset version or a file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tiltyard.errors import DataError, DatasetNotFoundError, SpecError
from tiltyard.types import Task, check_schema_version

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 1
SCALINGS = ("standard", "minmax", "none")
_CHUNK_ROWS = 4_096  # the output of a chunk of 40 columns (0.65 MB) stays in cache while its columns are written
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """What was learned about one input column.

    Args:
        name: The column.
        kind: ``number``, ``category`` or ``tensor``.
        type: Its Arrow type when fitted, as text.
        nullable: It held a null while fitting.
        width: Inputs per row: 1, or the size of the tensor.
        fill: What a missing number becomes, before scaling.
        centre: Subtracted.
        scale: Divided by; never 0.
        indicator: An extra output says where a value was missing.
        categories: Kept categories of a text column, ascending.
    """

    name: str
    kind: str
    type: str
    nullable: bool
    width: int = 1
    fill: float = 0.0
    centre: float = 0.0
    scale: float = 1.0
    indicator: bool = False
    categories: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its output features."""
        if self.kind == "category":
            return tuple(f"{self.name}={c}" for c in self.categories)
        if self.kind == "tensor":
            return tuple(f"{self.name}[{i}]" for i in range(self.width))
        return (self.name, f"{self.name} is missing") if self.indicator else (self.name,)


def _one(table: pa.Table, name: str) -> Any:
    """A column as one Arrow array."""
    place = table.schema.get_field_index(name)  # not the list of names, which is made anew for every column
    if place < 0 and name not in table.column_names:
        shown = ", ".join(table.column_names[:12]) + (", ..." if table.num_columns > 12 else "")
        raise DatasetNotFoundError(f"There is no column {name!r}; the rows have {shown}. Mend the name, or the source.")
    column = table.column(place if place >= 0 else name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _floats(array: Any, name: str) -> F32:
    """A number, boolean or tensor column as float32 (any shape flattened); missing values are NaN."""
    import pyarrow as pa

    if pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if (pa.types.is_float32(array.type) or pa.types.is_float64(array.type)) and not array.null_count:
        with np.errstate(over="ignore"):  # as Arrow's cast below: what is out of range becomes infinite
            return np.asarray(array.to_numpy(zero_copy_only=True), dtype=np.float32)
    try:
        values = array.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"Column {name!r} is {array.type}, wanted numbers: {error}.") from error
    return np.asarray(values, dtype=np.float32)


def _numbers(array: Any, name: str) -> F32:
    """`_floats` with NaN for infinite values too."""
    values = _floats(array, name)
    if not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, np.float32(np.nan))
    return values


def _fit_number(name: str, array: Any, kind: str, width: int, scaling: str) -> Column:
    values = _numbers(array, name)
    present = values[~np.isnan(values)].astype(np.float64)
    if present.size == 0:
        raise DataError(f"Column {name!r} has no value at all in the training split; leave it out of the features.")
    gaps = bool(present.size < values.size)
    filled_with = float(np.median(present)) if gaps or kind == "number" else float(present.mean())
    centre, scale = 0.0, 1.0
    if scaling == "standard":
        centre, scale = float(present.mean()), float(present.std())
    elif scaling == "minmax":
        centre, scale = float(present.min()), float(np.ptp(present))
    return Column(
        name=name,
        kind=kind,
        type=str(array.type),
        nullable=array.null_count > 0,
        width=width,
        fill=filled_with,
        centre=centre,
        scale=scale if scale > 1e-12 * max(1.0, abs(centre)) else 1.0,
        indicator=gaps and kind == "number",
    )


def _fit_category(name: str, array: Any, max_categories: int) -> Column:
    counts = array.drop_null().value_counts()
    pairs = sorted(
        zip(counts.field(1).to_pylist(), counts.field(0).to_pylist(), strict=True), key=lambda p: (-p[0], p[1])
    )
    kept = tuple(sorted(value for _, value in pairs[:max_categories]))
    if not kept:
        raise DataError(f"Column {name!r} has no value at all in the training split; leave it out of the features.")
    return Column(name=name, kind="category", type=str(array.type), nullable=array.null_count > 0, categories=kept)


def _fit_column(name: str, array: Any, scaling: str, max_categories: int) -> Column:
    import pyarrow as pa

    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _fit_category(name, array, max_categories)
    if pa.types.is_fixed_size_list(kind):
        return _fit_number(name, array, "tensor", kind.list_size, scaling)
    if (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        return _fit_number(name, array, "number", 1, scaling)
    raise DataError(
        f"Column {name!r} is {kind}; a model can learn from numbers, booleans, texts and tensors. "
        "Leave it out of the features (DatasetSpec(ignore=...)), or turn it into numbers before the commit."
    )


def _label_values(table: pa.Table, label: str) -> Any:
    array = _one(table, label)
    if array.null_count:
        raise DataError(f"Label column {label!r} holds {array.null_count} nulls; drop those rows or fill them in.")
    return array


def _classes(table: pa.Table, labels: tuple[str, ...], task: Task) -> tuple[Any, ...]:
    if task in (Task.BINARY, Task.MULTICLASS):
        return tuple(sorted(_label_values(table, labels[0]).unique().to_pylist()))
    return labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessor:
    """What was learned from a training split; see the module's text.

    Args:
        columns: One entry per input column, in the order the model sees them.
        labels: Label columns.
        task: What is predicted.
        classes: The label's values in ascending order (binary, multiclass), else the label columns.
        scaling: How numbers were scaled.
    """

    columns: tuple[Column, ...]
    labels: tuple[str, ...]
    task: Task
    classes: tuple[Any, ...]
    scaling: str = "standard"

    @classmethod
    def fit(
        cls,
        table: pa.Table,
        *,
        features: Sequence[str],
        label: str | Sequence[str],
        task: Task | str,
        classes: Sequence[Any] | None = None,
        scaling: str = "standard",
        max_categories: int = 64,
    ) -> Self:
        """Learns from the training split.

        Args:
            table: Training rows, with the features and the label.
            features: Columns a model may see; their order is the order of the outputs.
            label: The label column, or several (multilabel, several targets).
            task: What is predicted.
            classes: All values the label can take, where the training split may lack one.
            scaling: ``standard`` (mean and standard deviation), ``minmax`` or ``none``.
            max_categories: Categories kept per text column, the most frequent ones.

        Raises:
            SpecError: If the features are none, contain a label or name one column twice, or the scaling is unknown.
            DatasetNotFoundError: If a column is missing.
            DataError: If a column cannot be learned from.
        """
        labels = (label,) if isinstance(label, str) else tuple(label)
        if scaling not in SCALINGS:
            raise SpecError(f"Scaling {scaling!r} is none of {', '.join(SCALINGS)}.")
        if not features or len(set(features)) < len(features):
            raise SpecError(f"Features {list(features)} are empty or name a column twice; give each column once.")
        if leaked := sorted(set(features) & set(labels)):
            raise SpecError(f"Label column {leaked[0]!r} is among the features; a model would read off the answer.")
        if table.num_rows == 0:
            raise DataError("The training split has no rows; give it a share of the rows (DatasetSpec(split=...)).")
        task = Task(task)
        learned = tuple(_fit_column(n, _one(table, n), scaling, max_categories) for n in features)
        found = tuple(classes) if classes is not None else _classes(table, labels, task)
        return cls(columns=learned, labels=labels, task=task, classes=found, scaling=scaling)

    @property
    def features(self) -> tuple[str, ...]:
        """Input columns, in order."""
        return tuple(c.name for c in self.columns)

    @property
    def feature_names_out(self) -> tuple[str, ...]:
        """Names of the outputs; their number is the model's number of inputs."""
        return tuple(name for c in self.columns for name in c.outputs)

    @property
    def num_features_out(self) -> int:
        """The model's number of inputs."""
        return sum(len(c.outputs) for c in self.columns)

    @property
    def num_classes(self) -> int:
        """Classes, or label columns: the model's number of outputs."""
        return len(self.classes)

    @property
    def input_schema(self) -> dict[str, tuple[str, bool]]:
        """Input column name to (Arrow type as text, whether it held a null while fitting)."""
        return {c.name: (c.type, c.nullable) for c in self.columns}

    def transform(self, table: pa.Table, *, out: F32 | None = None) -> F32:
        """What the model sees: ``(rows, num_features_out)``, float32, C-contiguous. The label is not needed.

        Args:
            table: Rows with the features.
            out: A matrix of that shape to write into and return; a new one where None.

        Raises:
            DatasetNotFoundError: If a column is missing.
            DataError: If a column has another kind of values than when fitted.
        """
        parts = [(column, _one(table, column.name)) for column in self.columns]
        widths = [len(column.outputs) for column in self.columns]
        numeric = [c.kind != "category" for c in self.columns]
        centre = np.repeat([c.centre if n else 0.0 for c, n in zip(self.columns, numeric, strict=True)], widths)
        inverse = np.repeat([1.0 / c.scale if n else 1.0 for c, n in zip(self.columns, numeric, strict=True)], widths)
        flags = self._indicators(widths)
        centre[flags], inverse[flags] = 0.0, 1.0
        centre, inverse = centre.astype(np.float32), inverse.astype(np.float32)
        out = np.empty((table.num_rows, self.num_features_out), np.float32) if out is None else out
        if all(c.kind == "number" and not c.indicator for c in self.columns):
            values = [_floats(array, column.name) for column, array in parts]
            if all(v.size == len(out) for v in values) and _scaled_numbers(values, centre, inverse, out):
                return out
        for start in range(0, table.num_rows, _CHUNK_ROWS):
            place, chunk = 0, out[start : start + _CHUNK_ROWS]
            for (column, array), width in zip(parts, widths, strict=True):
                _write(column, array.slice(start, len(chunk)), chunk[:, place : place + width])
                place += width
            finite = np.isfinite(chunk)
            if not finite.all():
                self._fill(chunk, ~finite, widths)
            with np.errstate(
                over="ignore"
            ):  # a number far out of any range becomes infinite; a served one can be anything
                chunk -= centre
                chunk *= inverse
        return out

    def _indicators(self, widths: Sequence[int]) -> list[int]:
        """Places of the outputs that say where a value was missing."""
        ends = np.cumsum(widths).tolist()
        return [end - 1 for column, end in zip(self.columns, ends, strict=True) if column.indicator]

    def _fill(self, chunk: F32, missing: npt.NDArray[np.bool_], widths: Sequence[int]) -> None:
        """Puts the learned value where there is none, and says so where an indicator was learned."""
        place = 0
        for column, width in zip(self.columns, widths, strict=True):
            value_width = 1 if column.indicator else width
            gaps = missing[:, place : place + value_width]
            if gaps.any():
                chunk[:, place : place + value_width][gaps] = column.fill
                if column.indicator:
                    chunk[:, place + 1] = gaps[:, 0]
            place += width

    def transform_label(self, table: pa.Table) -> npt.NDArray[np.int64] | F32:
        """The label as training wants it: int64 ``(rows,)`` class numbers, or float32 ``(rows, labels)``.

        Raises:
            DatasetNotFoundError: If a label column is missing.
            DataError: If a label is null, or a class was never seen.
        """
        if self.task in (Task.BINARY, Task.MULTICLASS):
            return self._class_numbers(_label_values(table, self.labels[0]))
        columns = [_numbers(_label_values(table, name), name) for name in self.labels]
        matrix = np.ascontiguousarray(np.stack(columns, axis=1))
        if np.isnan(matrix).any():
            raise DataError(f"Label columns {list(self.labels)} hold NaN or infinite values; drop or mend those rows.")
        return matrix

    def _class_numbers(self, array: Any) -> npt.NDArray[np.int64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        numbers = pc.index_in(array, value_set=pa.array(self.classes, type=array.type))
        if numbers.null_count:
            unknown = array.filter(numbers.is_null()).unique().to_pylist()[:5]
            raise DataError(
                f"Label {self.labels[0]!r} holds {unknown}, which is none of the classes {list(self.classes)[:20]} the "
                "preprocessor was fitted with. Fit it again on a version that has them, or leave those rows out."
            )
        return np.asarray(numbers.to_numpy(), dtype=np.int64)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values with ``schema_version``."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The preprocessor that ``to_json`` wrote.

        Raises:
            DataError: If it was written by a newer Tiltyard, or is damaged.
        """
        check_schema_version(data.get("schema_version"), SCHEMA_VERSION, "A preprocessor")
        try:
            return cls(
                columns=tuple(Column(**{**c, "categories": tuple(c["categories"])}) for c in data["columns"]),
                labels=tuple(data["labels"]),
                task=Task(data["task"]),
                classes=tuple(data["classes"]),
                scaling=data["scaling"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The record of a preprocessor is damaged: {error}.") from error

    @property
    def digest(self) -> str:
        """SHA-256 of everything it learned, hex."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _scaled_numbers(values: Sequence[F32], centre: F32, inverse: F32, out: F32) -> bool:
    """`Preprocessor.transform` of plain numbers, the same to the last bit: columns are scaled where they lie, then turned.

    False where a value is missing, which fills gaps the long way; ``out`` is then half written.
    """
    turned = np.empty((len(values), min(_CHUNK_ROWS, len(out))), np.float32)
    for start in range(0, len(out), _CHUNK_ROWS):
        chunk = turned[:, : len(out) - start]
        for row, column in zip(chunk, values, strict=True):
            row[:] = column[start : start + _CHUNK_ROWS]
        if not np.isfinite(chunk).all():
            return False
        with np.errstate(over="ignore"):
            chunk -= centre[:, None]
            chunk *= inverse[:, None]
        out[start : start + _CHUNK_ROWS] = chunk.T
    return True


def _write(column: Column, array: Any, out: F32) -> None:
    """Writes one column of a chunk of rows into ``out``, ``(rows, outputs)``: numbers unscaled, gaps not yet filled."""
    if column.kind == "category":
        _write_category(column, array, out)
        return
    values = _floats(array, column.name)
    if values.size != len(out) * column.width:
        raise DataError(
            f"Column {column.name!r} holds {values.size // max(1, len(out))} numbers a row; the model was fitted on "
            f"{column.width}. Give it the shape that the training data had."
        )
    if column.kind == "tensor":
        out[:] = values.reshape(out.shape)
        return
    out[:, 0] = values
    if column.indicator:
        out[:, 1] = 0.0


def _write_category(column: Column, array: Any, out: F32) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(array.type) or pa.types.is_large_string(array.type)):
        raise DataError(f"Column {column.name!r} is {array.type}; the model was fitted on text. Send text.")
    codes = pc.index_in(array, value_set=pa.array(column.categories, type=array.type)).fill_null(-1)
    out[:] = codes.to_numpy()[:, None] == np.arange(len(column.categories), dtype=np.int32)
