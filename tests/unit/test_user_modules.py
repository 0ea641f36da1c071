"""Which of the user's files travel with a model, and under which names they are imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiltyard.codedigest import user_modules
from tiltyard.errors import SpecError


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name, text in {
        "jobs/sweep.py": "import nets\n",
        "jobs/nets.py": "import parts.layers\nimport torch\n",
        "jobs/other.py": "",
        "parts/layers.py": "from parts import width\n",
        "parts/width.py": "WIDTH = 3\n",
        "unused.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_user_modules_at_the_root_keep_their_paths(work: Path) -> None:
    assert list(user_modules("parts.layers:Net", work / "jobs" / "sweep.py", root=work)) == [
        "parts/layers.py",
        "parts/width.py",
    ]


def test_user_modules_beside_the_job_file_lose_its_folder(work: Path) -> None:
    found = user_modules("nets:Net", work / "jobs" / "sweep.py", root=work)
    assert sorted(found) == ["nets.py", "parts/layers.py", "parts/width.py"]


def test_user_modules_of_an_installed_model_are_none(work: Path) -> None:
    assert user_modules("torch.nn:Linear", work / "jobs" / "sweep.py", root=work) == {}


def test_user_modules_beside_a_job_file_outside_the_working_directory_travel(work: Path) -> None:
    elsewhere = work / "elsewhere"
    elsewhere.mkdir()
    found = user_modules("nets:Net", work / "jobs" / "sweep.py", root=elsewhere)
    assert found == {"nets.py": b"import parts.layers\nimport torch\n"}, (
        "what it imports from the other root is not there"
    )


def test_user_modules_of_one_name_in_both_folders_are_those_of_the_working_directory(work: Path) -> None:
    (work / "nets.py").write_text("HERE = 1\n")
    assert user_modules("nets:Net", work / "jobs" / "sweep.py", root=work)["nets.py"] == b"HERE = 1\n"


def test_user_modules_of_a_package_of_the_job_folder_keep_its_name(work: Path) -> None:
    assert "jobs/nets.py" in user_modules("jobs.nets:Net", work / "jobs" / "sweep.py", root=work)


def test_user_modules_in_neither_folder_are_refused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "third").mkdir()
    (work / "third" / "stray_module.py").write_text("")
    monkeypatch.syspath_prepend(str(work / "third"))
    with pytest.raises(SpecError, match="neither under"):
        user_modules("stray_module:Net", work / "jobs" / "sweep.py", root=work / "jobs")
