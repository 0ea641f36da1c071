"""`serve/champion.yaml` and `serve/champion.py` belong together, and Ray Serve's own schema takes the file."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tiltyard.errors import ServingError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "serve").glob("*.yaml"))


def _config(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_parsed_by_the_schema_of_ray_serve_is_taken(path: Path) -> None:
    from ray.serve.schema import ServeDeploySchema

    parsed = ServeDeploySchema.model_validate(_config(path))
    assert parsed.applications, path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_config_names_a_builder_that_takes_its_arguments(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import Application

    monkeypatch.syspath_prepend(str(ROOT))
    for application in _config(path)["applications"]:
        module, _, name = application["import_path"].partition(":")
        build = getattr(importlib.import_module(module), name)
        assert isinstance(build(application["args"]), Application), f"{path} and {module} disagree"
        with pytest.raises(ServingError, match="No argument 'modles'"):
            build({"modles": "x"})


def test_config_off_loopback_asks_for_tokens() -> None:
    for path in CONFIGS:
        config = _config(path)
        if config["http_options"]["host"] not in {"127.0.0.1", "localhost"}:
            assert all(a["args"].get("auth", "on") == "on" for a in config["applications"]), path


@pytest.mark.slow
def test_serve_folder_on_the_path_does_not_shadow_ray_serve() -> None:
    """As `serve run` and a RayService import it: from the working directory, in a process of its own."""
    code = "import sys; sys.path.insert(0, '.'); import serve.champion, ray.serve as r; print(serve.champion.__file__, r.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, rays = done.stdout.split()
    assert Path(ours) == ROOT / "serve" / "champion.py" or ours.endswith("serve/champion.py")
    assert "site-packages" in rays
