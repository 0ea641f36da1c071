"""How tests are written: names that tell what is shown, and no test left out of the run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
NAME = re.compile(r"^test(_[a-z0-9]+){3,}$")


def functions_of_tests() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in _statements(ast.parse(path.read_text()).body):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                yield path.relative_to(TESTS), node


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Those of a module and of its classes: pytest looks no further."""
    for node in body:
        yield node
        if isinstance(node, ast.ClassDef):
            yield from _statements(node.body)


def test_names_of_tests_tell_subject_scenario_and_outcome() -> None:
    wrong = [f"{path}:{f.lineno} {f.name}" for path, f in functions_of_tests() if not NAME.match(f.name)]
    assert not wrong, "write test_<subject>_<scenario>_<outcome>:\n" + "\n".join(wrong)


def test_files_with_tests_are_found_by_pytest() -> None:
    hidden = [
        path.relative_to(TESTS).as_posix()
        for path in TESTS.rglob("*.py")
        if not path.name.startswith("test_")
        and any(
            isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for node in ast.parse(path.read_text()).body
        )
    ]
    assert not hidden, f"pytest collects test_*.py only; rename {hidden}"


def test_folders_of_tests_do_not_shadow_a_library() -> None:
    libraries = {"ray", "mlflow", "torch", "typing", "types", "data"}
    assert not [p.name for p in TESTS.iterdir() if p.is_dir() and p.name in libraries]
