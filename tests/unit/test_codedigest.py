"""The code digest: what an experiment is made of, and nothing else."""

import sys
from pathlib import Path

import pytest

from tiltyard.codedigest import PINS, closure, code_digest, installed_pins
from tiltyard.errors import SpecError

PIN = {"torch": "2.13.0"}


def put(root: Path, **files: str) -> None:
    """Writes files; ``__`` in a name stands for a folder's slash."""
    for name, content in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(
        tmp_path,
        job="import os\nimport pkg.net\nfrom helpers import one\n",
        helpers="import numpy\none = 1\n",
        pkg__net="from . import layers\nfrom .sub import deep\nfrom ..pkg import late\n",
        pkg__layers="x = 1\n",
        pkg__late="x = 1\n",
        pkg__sub__deep="from ..layers import x\nfrom .. import aside\n",
        pkg__aside="def f():\n    import inside\n",
        inside="x = 1\n",
        stranger="x = 1\n",
    )
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "sub" / "__init__.py").write_text("from pkg import base\n")
    put(tmp_path, pkg__base="x = 1\n")
    return tmp_path


def digest(root: Path, *models: str, job: str = "job.py", **pins: str) -> str:
    return code_digest(root / job, models, root=root, pins={**PIN, **pins})


def test_closure_of_a_job_follows_every_form_of_import_inside_the_root(root: Path) -> None:
    assert sorted(closure([root / "job.py"], root)) == [
        "helpers.py",
        "inside.py",
        "job.py",
        "pkg/__init__.py",
        "pkg/aside.py",
        "pkg/base.py",
        "pkg/late.py",
        "pkg/layers.py",
        "pkg/net.py",
        "pkg/sub/__init__.py",
        "pkg/sub/deep.py",
    ]


@pytest.mark.parametrize("name", ["helpers", "pkg/net", "pkg/layers", "pkg/sub/__init__", "pkg/base", "inside"])
def test_code_digest_after_a_comment_in_what_is_imported_is_another(root: Path, name: str) -> None:
    before = digest(root)
    with (root / f"{name}.py").open("a") as file:
        file.write("# a word\n")
    assert digest(root) != before


def test_code_digest_after_a_change_of_the_job_file_or_a_stranger_is_the_same(root: Path) -> None:
    before = digest(root)
    for name in ("job", "stranger"):
        with (root / f"{name}.py").open("a") as file:
            file.write("y = 2\n")
    assert digest(root) == before


def test_code_digest_of_a_model_that_stands_in_the_job_file_covers_it(root: Path) -> None:
    put(root, jobs__mine="class Net: pass\n")
    before = digest(root, "mine:Net", job="jobs/mine.py")
    put(root, jobs__mine="class Net: width = 2\n")
    assert digest(root, "mine:Net", job="jobs/mine.py") != before


def test_code_digest_of_a_user_model_that_the_job_does_not_import_covers_it(root: Path) -> None:
    before = digest(root, "stranger:Net")
    assert before != digest(root)
    put(root, stranger="x = 2\n")
    assert digest(root, "stranger:Net") != before


def test_code_digest_does_not_depend_on_where_the_working_directory_is(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    here = digest(root)
    for path in closure([root / "job.py"], root):
        (elsewhere / path).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / path).write_bytes((root / path).read_bytes())
    assert digest(elsewhere) == here


def test_code_digest_with_another_version_of_a_pin_is_another(root: Path) -> None:
    assert digest(root, torch="2.14.0") != digest(root)


def test_code_digest_of_a_package_installed_from_inside_the_root_covers_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(root, job="import mine_of_src.net\n", src__mine_of_src__net="x = 1\n")
    (root / "src" / "mine_of_src" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(root / "src"))
    before = digest(root)
    put(root, src__mine_of_src__net="x = 2\n")
    assert digest(root) != before


def test_closure_leaves_out_tiltyard_and_what_is_installed_in_the_root(root: Path) -> None:
    put(
        root,
        job="import tiltyard.errors\nimport other\n",
        tiltyard__errors="x = 1\n",
        **{".venv__lib__site-packages__other": "x = 1\n"},
    )
    assert sorted(closure([root / "job.py"], root)) == ["job.py"]


def test_installed_pins_carry_no_local_tags() -> None:
    pins = installed_pins()
    assert set(pins) == set(PINS)
    assert not [v for v in pins.values() if "+" in v]


@pytest.mark.parametrize("source", [b"def f(:\n", b"x = 1\0\n"])
def test_code_digest_of_what_is_not_python_names_the_file(root: Path, source: bytes) -> None:
    (root / "helpers.py").write_bytes(source)
    with pytest.raises(SpecError, match=r"helpers\.py is not Python"):
        digest(root)


def test_code_digest_of_a_model_that_cannot_be_imported_names_it(root: Path) -> None:
    with pytest.raises(SpecError, match=r"'no_such_package_here\.net:Net' cannot be imported"):
        digest(root, "no_such_package_here.net:Net")


def test_code_digest_imports_nothing_of_the_users(root: Path) -> None:
    digest(root, "pkg.net:Net")
    assert not {"pkg", "helpers", "inside"} & set(sys.modules)


@pytest.fixture
def apart(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job with a model beside it, in a folder that is not below the working directory; the latter."""
    put(root, beside__job="import own\n", beside__own="import width\nclass Net: pass\n", beside__width="WIDTH = 1\n")
    (root / "cwd").mkdir()
    monkeypatch.chdir(root / "cwd")
    monkeypatch.syspath_prepend(str(root / "beside"))
    return root / "cwd"


@pytest.mark.parametrize("changed", ["own", "width"])
@pytest.mark.parametrize("models", [(), ("own:Net",), ("own:train",)])
def test_code_digest_of_a_job_started_from_elsewhere_covers_what_is_beside_it(
    apart: Path, changed: str, models: tuple[str, ...]
) -> None:
    job = apart.parent / "beside" / "job.py"
    before = code_digest(job, models, pins=PIN)
    with (job.parent / f"{changed}.py").open("a") as file:
        file.write("y = 2\n")
    assert code_digest(job, models, pins=PIN) != before


def test_code_digest_is_the_same_from_whichever_folder_a_job_is_started(apart: Path) -> None:
    job = apart.parent / "beside" / "job.py"
    found = {code_digest(job, ["own:Net"], root=root, pins=PIN) for root in (apart, job.parent, apart.parent)}
    assert len(found) == 1


def test_code_digest_of_two_files_of_one_name_covers_both(apart: Path) -> None:
    job = apart.parent / "beside" / "job.py"
    put(apart, own="class Net: pass\n")
    before = code_digest(job, ["own:Net"], pins=PIN)
    for folder in (apart, job.parent):
        put(folder, own=f"class Net: width = {len(str(folder))}\n")
        assert code_digest(job, ["own:Net"], pins=PIN) != before
        before = code_digest(job, ["own:Net"], pins=PIN)


def test_code_digest_of_a_model_that_lies_in_neither_folder_is_refused_with_its_place(
    apart: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(apart.parent, third__stray_model="class Net: pass\n")
    monkeypatch.syspath_prepend(str(apart.parent / "third"))
    with pytest.raises(
        SpecError, match=r"'stray_model:Net' is imported from .*third/stray_model\.py, which is neither"
    ):
        code_digest(apart.parent / "beside" / "job.py", ["stray_model:Net"], pins=PIN)


def test_code_digest_of_models_that_are_installed_or_built_in_is_that_of_the_pins(root: Path) -> None:
    job = root / "alone" / "job.py"
    put(root, alone__job="x = 1\n")
    assert code_digest(job, ["torch.nn:Linear", "json:loads", "math:floor"], root=root, pins=PIN) == code_digest(
        job, root=root, pins=PIN
    )
