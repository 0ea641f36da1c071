"""Small real models as bundles: made in milliseconds, with every kind of column and task that a bundle can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tiltyard.preprocessing import Preprocessor
from tiltyard.registry.bundle import BundleSpec, write_bundle
from tiltyard.registry.lineage import Lineage
from tiltyard.types import Task

COLOURS = ("amber", "blue", "cyan")


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallBundle:
    """A bundle on disk and rows to ask it about: ``rows`` has the features alone, ``table`` the label too."""

    folder: Path
    digest: str
    rows: pa.Table
    table: pa.Table
    lineage: Lineage


def small_table(task: Task = Task.MULTICLASS, *, rows: int = 200, numbers: int = 4, seed: int = 0) -> pa.Table:
    """Rows with number columns ``n0, n1, ...`` (``n0`` with a null), a text column ``colour``, and the task's label."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, numbers)).astype(np.float32)
    columns: dict[str, Any] = {f"n{i}": pa.array(x[:, i]) for i in range(numbers)}
    columns["n0"] = pa.array([None, *map(float, x[1:, 0])], pa.float32())
    columns["colour"] = pa.array([COLOURS[i % 3] for i in range(rows)])
    score = x[:, -1] + 0.1 * random.normal(size=rows)
    if task is Task.BINARY:
        columns["label"] = pa.array(["yes" if s > 0 else "no" for s in score])
    elif task is Task.MULTICLASS:
        columns["label"] = pa.array(np.digitize(score, [-0.5, 0.5]).astype(np.int64))
    elif task is Task.REGRESSION:
        columns["label"] = pa.array(score.astype(np.float32))
    else:
        columns |= {f"label{i}": pa.array((x[:, i] > 0).astype(np.float32)) for i in range(3)}
    return pa.table(columns)


def small_bundle(
    folder: Path,
    *,
    task: Task = Task.MULTICLASS,
    model: str = "mlp",
    model_args: Mapping[str, Any] | None = None,
    rows: int = 200,
    numbers: int = 4,
    seed: int = 0,
    user_code: Mapping[str, bytes] | None = None,
    personal: tuple[str, ...] = (),
) -> SmallBundle:
    """Writes a bundle to ``folder`` (must not exist): a network with the weights of ``seed``, or a trained LightGBM."""
    table = small_table(task, rows=rows, numbers=numbers)
    features = [name for name in table.column_names if not name.startswith("label")]
    labels = [name for name in table.column_names if name.startswith("label")]
    preprocessor = Preprocessor.fit(table, features=features, label=labels if len(labels) > 1 else labels[0], task=task)
    width = preprocessor.num_features_out
    outputs = 1 if task is Task.REGRESSION else preprocessor.num_classes
    args: Mapping[str, Any] = model_args if model_args is not None else ({"hidden": (8,)} if model == "mlp" else {})
    lineage = _lineage(model, seed, args)
    spec = BundleSpec(
        model=model,
        model_args=args,
        task=task,
        input_shape=(width,),
        num_outputs=outputs,
        classes=preprocessor.classes,
        metrics={"validation_score": seed / 10},
        lineage=lineage,
        personal=personal,
    )
    trained = _trained(spec, preprocessor, table, seed)
    digest = write_bundle(folder, trained=trained, spec=spec, preprocessor=preprocessor, user_code=user_code)
    return SmallBundle(folder=folder, digest=digest, rows=table.select(features), table=table, lineage=lineage)


def _lineage(model: str, seed: int, args: Mapping[str, Any]) -> Lineage:
    return Lineage(
        cell=f"{seed:064d}",
        key="k" * 64,
        experiment="small",
        variant=model,
        dataset="small",
        dataset_version=1,
        dataset_digest="d" * 64,
        code_digest="c" * 64,
        seed=seed,
        data_seed=0,
        epoch=1,
        config={"lr": 0.1, **{k: list(v) if isinstance(v, tuple) else v for k, v in args.items()}},
        environment={"tiltyard": "test"},
    )


def _trained(spec: BundleSpec, preprocessor: Preprocessor, table: pa.Table, seed: int) -> Any:
    if spec.model == "lightgbm":
        from tiltyard.models.lightgbm import LightGBMTrial

        x, y = preprocessor.transform(table), preprocessor.transform_label(table)
        config = {"num_leaves": 4, "rounds_per_epoch": 2}
        trial = LightGBMTrial(config, task=spec.task, num_outputs=spec.num_outputs, seed=seed)
        metric = "mse" if spec.task is Task.REGRESSION else "log_loss"
        for _ in trial.train(x, y, x, y, to_epoch=1, metrics=(metric,)):
            pass
        return trial
    from tiltyard.training import PackSpec, build_module

    pack = PackSpec(
        model=spec.model,
        model_args=dict(spec.model_args),
        task=spec.task,
        input_shape=spec.input_shape,
        num_outputs=spec.num_outputs,
        batch_size=1,
        total_epochs=1,
    )
    return build_module(pack, seed=seed).eval()


def numbers_bundle(
    folder: Path, *, hidden: tuple[int, ...], columns: int = 40, rows: int = 1000, seed: int = 0
) -> tuple[pa.Table, Path]:
    """An untrained network of ``columns``-hidden-2 on float32 columns; ``rows`` rows to ask it about, and its bundle."""
    random = np.random.default_rng(0)
    data = random.normal(size=(columns, rows)).astype(np.float32)
    table = pa.table({f"x{i:02}": data[i] for i in range(columns)})
    train = table.slice(0, 1000).append_column("label", pa.array(["no", "yes"] * 500))
    preprocessor = Preprocessor.fit(train, features=table.column_names, label="label", task=Task.BINARY)
    lineage = replace(_lineage("mlp", seed, {"hidden": hidden}), dataset="numbers")
    spec = BundleSpec(
        model="mlp",
        model_args={"hidden": hidden},
        task=Task.BINARY,
        input_shape=(columns,),
        num_outputs=2,
        classes=("no", "yes"),
        metrics={},
        lineage=lineage,
    )
    write_bundle(folder, trained=_trained(spec, preprocessor, train, seed), spec=spec, preprocessor=preprocessor)
    return table, folder
