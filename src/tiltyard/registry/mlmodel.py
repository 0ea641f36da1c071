"""A bundle as a folder that MLflow knows as a model: the files of its storage format, written here.

``MLmodel`` names the ``python_function`` flavour with ``loader_module`` and ``data``, which is all that
``mlflow.pyfunc.load_model`` needs (mlflow.org/docs/latest/ml/model). Written by hand because importing ``mlflow.pyfunc``
costs a quarter of a second and warns at import; a test loads the result with MLflow. No signature is written: MLflow
would refuse whole numbers in a column of doubles, while the bundle's preprocessor takes them.
"""

from __future__ import annotations

import platform
import shutil
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import yaml

LOADER = "tiltyard.registry.pyfunc"
DATA = "data/bundle"
REQUIRED = ("tiltyard", "torch", "lightgbm", "safetensors", "pyarrow", "pandas", "numpy")


def write_mlmodel(folder: Path, bundle: Path) -> None:
    """Writes the model folder; ``bundle`` is copied into it."""
    python = platform.python_version()
    requirements = [f"{name}=={version(name).split('+')[0]}" for name in ("mlflow", *REQUIRED)]
    shutil.copytree(bundle, folder / DATA, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    _dump(folder / "python_env.yaml", {"python": python, "dependencies": ["-r requirements.txt"]})
    conda = {"name": "mlflow-env", "channels": ["conda-forge"], "dependencies": [f"python={python}", "pip"]}
    _dump(folder / "conda.yaml", {**conda, "dependencies": [*conda["dependencies"], {"pip": requirements}]})
    _dump(
        folder / "MLmodel",
        {
            "flavors": {
                "python_function": {
                    "data": DATA,
                    "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                    "loader_module": LOADER,
                    "python_version": python,
                    "streamable": False,
                }
            },
            "mlflow_version": version("mlflow"),
            "model_size_bytes": sum(p.stat().st_size for p in (folder / DATA).rglob("*") if p.is_file()),
            "model_uuid": uuid.uuid4().hex,
            "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
        },
    )


def _dump(path: Path, content: object) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
