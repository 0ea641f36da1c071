"""A job file that cannot be run says why before anything starts."""

from pathlib import Path

import pytest

from tiltyard.errors import SpecError
from tiltyard.jobfile import load_experiment

GOOD = """
from tiltyard import Experiment, Objective, Search, Variant
def experiment():
    return Experiment(name="x", variants=(Variant(name="m", model="mlp", fixed={"lr": 0.1}),), datasets=("digits",),
                      objective=Objective(metric="accuracy"), search=Search(trials=1, epochs=1))
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "job.py"
    path.write_text(text)
    return path


def test_load_experiment_from_a_file_returns_it(tmp_path: Path) -> None:
    assert load_experiment(write(tmp_path, GOOD)).name == "x"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package_of_ours", "no_such_package_of_ours"),
        ("def experiment(:\n", "SyntaxError"),
        ("x = 1", r"no function experiment\(\)"),
        ("def experiment():\n    return 3", "returned int"),
    ],
)
def test_load_experiment_from_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        load_experiment(write(tmp_path, text))


def test_load_experiment_without_a_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.py"):
        load_experiment(tmp_path / "absent.py")


def test_load_experiment_with_an_error_inside_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"job\.py, line 3: KeyError: 'x'"):
        load_experiment(write(tmp_path, "def experiment():\n    d = {}\n    return d['x']\n"))
    with pytest.raises(SpecError, match=r"job\.py, line 2: ZeroDivisionError"):
        load_experiment(write(tmp_path, "x = 1\nx / 0\n"))


def test_load_experiment_that_is_refused_passes_the_reason_on(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no metric 'acuracy'"):
        load_experiment(write(tmp_path, GOOD.replace("accuracy", "acuracy")))


def test_load_experiment_of_a_file_with_a_dataclass_returns_it(tmp_path: Path) -> None:
    head = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
    )
    assert load_experiment(write(tmp_path, head + GOOD)).name == "x"
