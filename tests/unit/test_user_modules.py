"""Which of the user's files travel with a model, and under which names they are imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiltyard.codedigest import user_modules


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
