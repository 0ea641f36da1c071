"""A job file is data: one function that returns a complete description, no loop, no branch, no helper."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from tiltyard.evaluation.spec import Evaluation
from tiltyard.experiment import Experiment
from tiltyard.nightly import Night

ROOT = Path(__file__).parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_job_file_imported_gives_a_description_that_round_trips(path: Path) -> None:
    spec = importlib.util.spec_from_file_location(f"jobs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for function, kind in (("evaluation", Evaluation), ("night", Night)):
        if hasattr(module, function):
            described = getattr(module, function)()
            assert isinstance(described, kind)
            assert kind.from_json(described.to_json()) == described
            return
    experiment = module.experiment()
    assert isinstance(experiment, Experiment)
    assert Experiment.from_json(experiment.to_json()) == experiment


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_job_file_read_as_text_has_no_loop_branch_or_helper(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path.name} says what it does, how long it takes and how to run it, at its top"
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions in (["experiment"], ["evaluation"], ["night"]), (
        f"{path.name} defines {functions}; a helper belongs in src/"
    )
    logic = (ast.For, ast.While, ast.IfExp, ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.Try)
    found = [node.lineno for node in ast.walk(tree) if isinstance(node, logic)]
    assert not found, f"{path.name} computes in lines {found}; a job is data"
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    assert len(branches) == 1, f"{path.name} has no branch but `if __name__ == '__main__'`"


def test_jobs_folder_holds_at_least_the_first_sweep() -> None:
    assert "first_sweep.py" in {p.name for p in JOBS}
