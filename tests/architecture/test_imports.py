"""The arrows of the design: who may import whom, and each engine in its home alone.

The rules stand here as two tables; a message names the file, what it imports, and where that belongs.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "tiltyard"

#: Third-party engine -> the only places under src/tiltyard that may import it. The longest matching name decides.
ENGINE_HOMES: dict[str, tuple[str, ...]] = {
    "ray": (
        "sweep/engine",
        "data/store.py",
        "data/stream.py",
        "data/streamed.py",
        "data/readers.py",
        "evaluation/reading.py",
        "evaluation/runner.py",
        "serving/deployment.py",
        "serving/replicas.py",
        "serving/client.py",
        "submit/ray_jobs.py",
        "telemetry/instruments.py",
        "ray_address.py",
        "run.py",
    ),
    "ray.tune": ("sweep/engine",),
    "ray.data": ("data/store.py", "data/stream.py", "data/streamed.py", "data/readers.py", "evaluation/reading.py"),
    "ray.serve": ("serving/deployment.py", "serving/replicas.py", "serving/client.py"),
    "ray.job_submission": ("submit/ray_jobs.py",),
    "mlflow": ("tracking/mlflow_runs.py", "registry/mlflow_registry.py"),
    "deltalake": ("data/deltatable.py",),
    "sqlalchemy": ("journal",),
    "kubernetes": ("kuberay/client.py",),
    "grafana_client": ("telemetry/grafana.py",),
    "opentelemetry": ("telemetry/traces.py",),
    "grafana_foundation_sdk": ("telemetry/dashboards.py",),
    "lightgbm": ("models/lightgbm.py",),
    "optuna": ("sweep/engine",),
    "typer": ("cli",),
    "rich": ("cli", "evaluate.py", "report", "run.py"),
    "matplotlib": ("report/plots.py",),
    "jinja2": ("report/page.py",),
}

#: Part of src/tiltyard -> its height. A module imports its own height or lower. The longest matching prefix decides.
HEIGHTS: dict[str, int] = {
    "errors": 0,
    "types": 0,
    "progress": 0,
    "distributions": 0,
    "experiment": 0,
    "settings": 0,
    "who": 0,
    "training": 1,
    "models": 1,
    "preprocessing": 1,
    "governance": 2,
    "money": 2,
    "sweep": 2,
    "evaluation": 2,
    "serving": 2,
    "data": 2,
    "codedigest": 2,
    "jobfile": 2,
    "placement": 2,
    "ray_token": 2,
    "ray_address": 3,
    "data/store": 3,
    "data/stream": 3,
    "data/streamed": 3,
    "data/readers": 3,
    "data/refusals": 3,
    "data/upkeep": 3,
    "data/deletion": 3,
    "data/verify": 3,
    "data/export": 3,
    "data/compare": 3,
    "journal": 3,
    "tracking": 3,
    "registry": 3,
    "telemetry": 3,
    "kuberay": 3,
    "serving/client": 3,
    "serving/comparison": 3,
    "serving/holder": 3,
    "serving/http": 3,
    "serving/meters": 3,
    "serving/recorder": 3,
    "serving/splitter": 3,
    "serving/stacking": 3,
    "serving/traffic": 3,
    "sweep/engine": 4,
    "evaluation/late": 4,
    "evaluation/mlflow_log": 4,
    "evaluation/pairs": 4,
    "evaluation/reading": 4,
    "evaluation/runner": 4,
    "serving/deployment": 4,
    "serving/replicas": 4,
    "run": 5,
    "resume": 5,
    "control": 5,
    "crown": 5,
    "evaluate": 5,
    "sweep/rerun": 5,
    "nightly": 5,
    "actions": 5,
    "retrain": 5,
    "measured": 5,
    "submit": 5,
    "local": 5,
    "report": 5,
    "testing": 5,
    "cli": 6,
}
LAYER_NAMES = (
    "shared values",
    "compute",
    "decide",
    "talk to a store",
    "drive an engine",
    "bring the parts together",
    "entry",
)


class Import(NamedTuple):
    """One name that one module imports when it runs."""

    file: str
    line: int
    name: str


def running_imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every import of a module, those inside functions too, but for what stands under ``if TYPE_CHECKING``."""
    if isinstance(node, ast.expr):
        return  # none of them holds an import, and they are most of a module
    if isinstance(node, ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
    type_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    children = node.orelse if type_only and isinstance(node, ast.If) else ast.iter_child_nodes(node)
    for child in children:
        yield from running_imports(child)


@functools.cache
def imports() -> list[Import]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        found += [Import(file, line, name) for line, name in running_imports(ast.parse(path.read_text()))]
    return found


def longest(table: Iterable[str], name: str, sep: str) -> str | None:
    parts = name.split(sep)
    return next((key for n in range(len(parts), 0, -1) if (key := sep.join(parts[:n])) in table), None)


def inside(file: str, place: str) -> bool:
    return file == place or file.startswith(f"{place}/")


def engine_breaches(found: list[Import]) -> list[str]:
    breaches = []
    for file, line, name in found:
        engine = longest(ENGINE_HOMES, name, ".")
        if engine is not None and not any(inside(file, home) for home in ENGINE_HOMES[engine]):
            homes = " or ".join(home.removesuffix(".py") for home in ENGINE_HOMES[engine])
            breaches.append(f"{file}:{line} imports {engine}; move the call to {homes}")
    return breaches


def module_file(name: str) -> str | None:
    """The file under src/tiltyard that ``tiltyard.a.b[.attribute]`` names, without its suffix; None for others."""
    head, _, rest = name.partition(".")
    if head != "tiltyard":
        return None
    parts = rest.split(".") if rest else []
    for n in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[:n])
        if path.with_suffix(".py").exists() or path.is_dir():
            return "/".join(parts[:n])
    return "__init__"


def arrow_breaches(found: list[Import]) -> list[str]:
    breaches = []
    for file, line, name in found:
        target = module_file(name)
        if target is None or target == "__init__" or file == "__init__.py":
            continue
        here = longest(HEIGHTS, file.removesuffix(".py").removesuffix("/__init__"), "/")
        there = longest(HEIGHTS, target, "/")
        if here is None or there is None:
            continue
        if {here.split("/")[0], there.split("/")[0]} == {"sweep", "serving"}:
            breaches.append(
                f"{file}:{line} imports {target}; a winner travels from sweep to serving as a registered model version"
            )
        elif HEIGHTS[there] > HEIGHTS[here]:
            low, high = LAYER_NAMES[HEIGHTS[here]], LAYER_NAMES[HEIGHTS[there]]
            breaches.append(
                f"{file}:{line} ({low}) imports {target} ({high}); the arrow points down: let {there} call {here}, "
                "or pass the value in"
            )
    return breaches


def test_engines_in_the_source_stay_in_their_homes() -> None:
    assert not (breaches := engine_breaches(imports())), "\n".join(breaches)


def test_arrows_in_the_source_point_down() -> None:
    assert not (breaches := arrow_breaches(imports())), "\n".join(breaches)


def test_every_module_has_a_height() -> None:
    files = [p.relative_to(SOURCE).with_suffix("").as_posix() for p in SOURCE.rglob("*.py")]
    unplaced = sorted(
        f for f in files if f != "__init__" and longest(HEIGHTS, f.removesuffix("/__init__"), "/") is None
    )
    assert not unplaced, f"{unplaced}: say in {Path(__file__).name} how high these stand, and in the README why"


def test_rules_with_wrong_imports_name_file_and_home() -> None:
    wrong = [
        Import("sweep/space.py", 3, "ray.tune.Tuner"),
        Import("sweep/plan.py", 4, "tiltyard.serving.client"),
        Import("training/pack.py", 5, "tiltyard.sweep.plan.Plan"),
        Import("report/terminal.py", 6, "rich.table.Table"),
    ]
    assert engine_breaches(wrong) == ["sweep/space.py:3 imports ray.tune; move the call to sweep/engine"]
    told = arrow_breaches(wrong)
    assert len(told) == 2
    assert "as a registered model version" in told[0]
    assert "training/pack.py:5 (compute) imports sweep" in told[1]


def test_running_imports_with_a_type_only_import_leaves_it_out() -> None:
    code = "if TYPE_CHECKING:\n    import ray\nelse:\n    import io\ndef f():\n    from os import path\n"
    assert list(running_imports(ast.parse(code))) == [(4, "io"), (6, "os.path")]


def _python(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


ENGINES = "{'ray', 'mlflow', 'deltalake', 'kubernetes', 'sqlalchemy', 'lightgbm', 'optuna', 'grafana_client', 'typer'}"


@pytest.mark.slow
@pytest.mark.parametrize("package", sorted(p.parent.name for p in SOURCE.glob("*/__init__.py")))
def test_importing_a_package_imports_no_engine(package: str, tmp_path: Path) -> None:
    allowed = {"cli": "{'typer'}", "journal": "{'sqlalchemy'}"}.get(package, "set()")
    told = _python(f"import sys, tiltyard.{package}\nprint(sorted({ENGINES} & set(sys.modules) - {allowed}))", tmp_path)
    assert told.strip() == "[]", f"tiltyard/{package}/__init__.py must re-export pure names only; it imports {told}"


@pytest.mark.slow
def test_importing_training_needs_torch_numpy_and_safetensors_alone(tmp_path: Path) -> None:
    others = (
        "{'ray', 'mlflow', 'pydantic', 'pandas', 'pyarrow', 'sqlalchemy', 'sklearn', 'scipy', 'deltalake', 'typer'}"
    )
    told = _python(f"import sys, tiltyard.training\nprint(sorted({others} & set(sys.modules)))", tmp_path)
    assert told.strip() == "[]"


@pytest.mark.slow
def test_importing_every_module_starts_nothing(tmp_path: Path) -> None:
    names = [
        ".".join(("tiltyard", *p.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for p in sorted(SOURCE.rglob("*.py"))
        if p.name != "__main__.py"
    ]
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
import psutil
ray = sys.modules.get("ray")
print(bool(ray and ray.is_initialized()), len(psutil.Process().children()))
"""
    assert _python(code, tmp_path).splitlines()[-1] == "False 0"
    assert list(tmp_path.iterdir()) == []
