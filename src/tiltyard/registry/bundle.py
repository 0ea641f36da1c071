"""A model as files that anybody may open: parameters, how to rebuild it, and the preprocessing that belongs to it.

::

    bundle.json         what the model is: family, arguments, task, shapes, classes, metrics, lineage
    preprocessor.json   fitted on the training split; applied the same in training, evaluation and serving
    model.safetensors   parameters, or model.txt, LightGBM's native text
    code/               the user's own modules, where the model is the user's
    MANIFEST.json       the SHA-256 of every file above; the bundle's digest is the SHA-256 of this list

Nothing here is unpickled. A bundle is checked against its manifest, and against the digest that the registry recorded,
before a byte of it is used. Reads and writes files and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tiltyard.errors import DigestMismatchError, ModelError
from tiltyard.preprocessing import Preprocessor
from tiltyard.registry.code import own_code
from tiltyard.registry.lineage import Lineage
from tiltyard.types import Task

SCHEMA_VERSION = 1
MANIFEST, SPEC, PREPROCESSOR = "MANIFEST.json", "bundle.json", "preprocessor.json"
TORCH_FILE, LIGHTGBM_FILE, CODE = "model.safetensors", "model.txt", "code"
CHUNK_ROWS = 2048
"""Rows of one forward pass: what they need of a usual network stays in the cache (measured: tests/benchmarks)."""
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleSpec:
    """What a bundled model is.

    Args:
        model: Family, import path of the user's model, or ``lightgbm``.
        model_args: What it is built with.
        task: What it predicts.
        input_shape: Of one row after preprocessing.
        num_outputs: Logits or targets.
        classes: Label values in the order of the logits, or names of the targets.
        metrics: Scores it was chosen by, e.g. ``{"validation_accuracy": 0.98}``.
        lineage: Where it came from.
        personal: Columns of its dataset whose values stay out of logs and refusals, whether or not the model takes them.
    """

    model: str
    model_args: Mapping[str, Any]
    task: Task
    input_shape: tuple[int, ...]
    num_outputs: int
    classes: tuple[Any, ...]
    metrics: Mapping[str, float]
    lineage: Lineage
    personal: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "model_args": dict(self.model_args),
            "task": str(self.task),
            "input_shape": list(self.input_shape),
            "num_outputs": self.num_outputs,
            "classes": list(self.classes),
            "metrics": dict(self.metrics),
            "lineage": self.lineage.to_dict(),
            **({"personal": list(self.personal)} if self.personal else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BundleSpec:
        """Reads what `to_dict` gave.

        Raises:
            ModelError: If a newer Tiltyard wrote it.
        """
        found = data.get("schema_version")
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise ModelError(
                f"A bundle was written with schema version {found!r}; this Tiltyard reads up to {SCHEMA_VERSION}. "
                "Install the Tiltyard that wrote it, or newer."
            )
        return cls(
            model=data["model"],
            model_args={k: _tuples(v) for k, v in data["model_args"].items()},
            task=Task(data["task"]),
            input_shape=tuple(data["input_shape"]),
            num_outputs=data["num_outputs"],
            classes=tuple(data["classes"]),
            metrics=data["metrics"],
            lineage=Lineage(**data["lineage"]),
            personal=tuple(data.get("personal", ())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Answers for rows: ``outputs`` (rows, outputs) raw; ``probabilities`` the same shape where there are classes."""

    outputs: Array
    probabilities: Array | None
    labels: list[Any]


class Bundle:
    """An opened bundle."""

    def __init__(
        self, spec: BundleSpec, preprocessor: Preprocessor, digest: str, trained: Any, *, code_digest: str = ""
    ) -> None:
        self.spec, self.preprocessor, self.digest = spec, preprocessor, digest
        self.code_digest = code_digest
        """Of the user's modules that travel in the bundle; empty where there are none."""
        self._trained = trained
        self._forward: Callable[[Any], Any] | None = None

    @property
    def trained(self) -> Any:
        """The ``torch.nn.Module``, or the `LightGBMTrial`."""
        return self._trained

    def predict_matrix(self, x: Array) -> Array:
        """Raw outputs ``(rows, outputs)`` float32 of preprocessed rows ``(rows, *input_shape)`` float32."""
        if self.spec.model == "lightgbm":
            return np.asarray(self._trained.predict_logits(x), dtype=np.float32)
        import torch

        if self._forward is None:
            from tiltyard.registry.forward import quick_forward

            self._forward = quick_forward(self._trained, input_shape=self.spec.input_shape, rows=CHUNK_ROWS)
        rows = torch.from_numpy(np.ascontiguousarray(x))
        outputs = torch.empty((len(x), self.spec.num_outputs))
        with torch.inference_mode():
            for start in range(0, len(x), CHUNK_ROWS):
                outputs[start : start + CHUNK_ROWS] = self._forward(rows[start : start + CHUNK_ROWS])
        return np.asarray(outputs.numpy())

    def predict_table(self, table: pa.Table) -> Predictions:
        """Answers for raw rows: preprocessing included.

        Raises:
            DataError: If a column is missing or of the wrong type.
        """
        outputs = self.predict_matrix(self.preprocessor.transform(table))
        return Predictions(
            outputs=outputs,
            probabilities=probabilities(self.spec.task, outputs),
            labels=labels(self.spec.task, outputs, self.spec.classes),
        )


def probabilities(task: Task, outputs: Array) -> Array | None:
    """Softmax over classes, sigmoid per label, None for regression."""
    if task in {Task.BINARY, Task.MULTICLASS}:
        with np.errstate(invalid="ignore"):  # outputs that are not finite give NaN
            shifted = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float32)
    if task is Task.MULTILABEL:
        return np.asarray(0.5 * (1 + np.tanh(0.5 * outputs)), dtype=np.float32)  # the sigmoid, without overflow
    return None


def labels(task: Task, outputs: Array, classes: tuple[Any, ...]) -> list[Any]:
    """What is predicted, in the label's own values; one list a row where there are several."""
    if task in {Task.BINARY, Task.MULTICLASS}:
        return [classes[i] for i in outputs.argmax(axis=1)]
    if task is Task.MULTILABEL:
        return [[c for c, on in zip(classes, row, strict=True) if on] for row in outputs > 0]
    return [float(row[0]) if len(row) == 1 else [float(v) for v in row] for row in outputs]


def write_bundle(
    folder: Path,
    *,
    trained: Any,
    spec: BundleSpec,
    preprocessor: Preprocessor,
    user_code: Mapping[str, bytes] | None = None,
) -> str:
    """Writes a bundle whole or not at all; returns its digest.

    Args:
        folder: Where; must not exist.
        trained: A ``torch.nn.Module`` or a `LightGBMTrial`.
        spec: What it is.
        preprocessor: What its rows go through.
        user_code: The user's modules by path inside ``code/``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write_model(temporary, trained, spec)
        (temporary / SPEC).write_text(json.dumps(spec.to_dict(), sort_keys=True, indent=1))
        (temporary / PREPROCESSOR).write_text(json.dumps(preprocessor.to_json(), sort_keys=True))
        for name, content in (user_code or {}).items():
            path = temporary / CODE / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        digest = _write_manifest(temporary)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return digest


def _write_model(folder: Path, trained: Any, spec: BundleSpec) -> None:
    if spec.model == "lightgbm":
        (folder / LIGHTGBM_FILE).write_text(trained.model_text)
        return
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous().clone() for name, value in trained.state_dict().items()}
    save_file(state, folder / TORCH_FILE)


def _write_manifest(folder: Path) -> str:
    files = _file_digests(folder)
    (folder / MANIFEST).write_bytes(_manifest_text(files))
    return _digest_of(files)


def _manifest_text(files: Mapping[str, str]) -> bytes:
    """The one way to write a manifest, so that a changed byte in it is found too."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "files": dict(files)}, sort_keys=True, indent=1).encode()


def _differing(manifest: bytes, found: Mapping[str, str]) -> str:
    try:
        recorded = dict(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    wrong = sorted(n for n in {*recorded, *found} if recorded.get(n) != found.get(n))
    return f"{', '.join(wrong[:5])} differ from {MANIFEST}" if wrong else f"{MANIFEST} itself was changed"


def _file_digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and "__pycache__" not in path.parts
    }


def _digest_of(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def check_bundle(folder: Path, *, expect_digest: str | None = None) -> str:
    """The digest of the files that are there, after holding it against the manifest and what was expected.

    Raises:
        ModelError: If the folder is no bundle.
        DigestMismatchError: If a file was changed, added or removed, or the bundle is another than was expected.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"{folder} is not a model bundle: it has no {MANIFEST}. Register the model again.")
    found = _file_digests(folder)
    text = manifest.read_bytes()
    if text != _manifest_text(found):
        raise DigestMismatchError(
            f"Bundle {folder} is not as it was written: {_differing(text, found)}. "
            "It was not loaded. Restore the files, or register the model again."
        )
    digest = _digest_of(found)
    if expect_digest is not None and digest != expect_digest:
        raise DigestMismatchError(
            f"Bundle {folder} has digest {digest[:16]}, but {expect_digest[:16]} was registered. It was not loaded. "
            "Restore the files, or register the model again."
        )
    return digest


def read_bundle(folder: Path, *, expect_digest: str | None = None) -> Bundle:
    """Opens a bundle after checking every byte of it.

    Raises:
        ModelError, DigestMismatchError: As `check_bundle`, or if the model cannot be rebuilt.
    """
    digest = check_bundle(folder, expect_digest=expect_digest)
    spec = BundleSpec.from_dict(json.loads((folder / SPEC).read_text()))
    preprocessor = Preprocessor.from_json(json.loads((folder / PREPROCESSOR).read_text()))
    code = _file_digests(folder / CODE)
    return Bundle(spec, preprocessor, digest, _read_model(folder, spec), code_digest=_digest_of(code) if code else "")


def _read_model(folder: Path, spec: BundleSpec) -> Any:
    if spec.model == "lightgbm":
        from tiltyard.models.lightgbm import LightGBMTrial

        return LightGBMTrial.from_text(
            (folder / LIGHTGBM_FILE).read_text(), task=spec.task, num_outputs=spec.num_outputs
        )
    from safetensors.torch import load_file

    from tiltyard.training import PackSpec, rebuild_module

    pack = PackSpec(
        model=spec.model,
        model_args=dict(spec.model_args),
        task=spec.task,
        input_shape=spec.input_shape,
        num_outputs=spec.num_outputs,
        batch_size=1,
        total_epochs=1,
    )
    with own_code(folder / CODE):
        return rebuild_module(pack, load_file(folder / TORCH_FILE), source=f"in {folder}")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
