"""Bundles: what is written is what is read, any other byte is found, and nothing of it is pickled."""

from __future__ import annotations

import json
import os
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import DatasetNotFoundError, DigestMismatchError, ModelError
from tiltyard.registry import bundle as bundle_module
from tiltyard.registry import check_bundle, read_bundle, write_bundle
from tiltyard.registry.bundle import CHUNK_ROWS, labels, probabilities
from tiltyard.testing.bundles import SmallBundle, small_bundle
from tiltyard.types import Task

USER_MODEL = """
from torch import nn
from user_parts.width import WIDTH

class Net(nn.Module):
    def __init__(self, input_shape, num_outputs, factor=1.0):
        super().__init__()
        self.factor = factor
        self.inner = nn.Linear(input_shape[0], WIDTH)
        self.outer = nn.Linear(WIDTH, num_outputs)

    def forward(self, x):
        return self.outer(self.inner(x).relu()) * self.factor
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    return small_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.mark.parametrize(
    ("model", "task"),
    [
        *(("mlp", task) for task in Task),
        ("resmlp", Task.BINARY),
        ("linear", Task.REGRESSION),
        *(("lightgbm", task) for task in Task if task is not Task.MULTILABEL),
    ],
)
def test_bundle_of_any_task_read_again_answers_the_same(task: Task, model: str, tmp_path: Path) -> None:
    made = small_bundle(tmp_path / "a", task=task, model=model)
    bundle = read_bundle(made.folder, expect_digest=made.digest)
    answers = bundle.predict_table(made.rows)
    assert answers.outputs.shape == (len(made.rows), bundle.spec.num_outputs)
    assert answers.outputs.dtype == np.float32
    assert np.isfinite(answers.outputs).all()
    assert len(answers.labels) == len(made.rows)
    again = read_bundle(small_bundle(tmp_path / "b", task=task, model=model).folder)
    assert again.digest == bundle.digest
    np.testing.assert_array_equal(again.predict_table(made.rows).outputs, answers.outputs)


def test_bundle_with_any_split_of_the_rows_answers_each_row_the_same(small: SmallBundle) -> None:
    bundle = read_bundle(small.folder)
    many = pa.concat_tables([small.rows] * (2 * CHUNK_ROWS // len(small.rows) + 1)).combine_chunks()
    whole = bundle.predict_table(many).outputs
    one = np.concatenate([bundle.predict_table(small.rows.slice(i, 1)).outputs for i in range(len(small.rows))])
    np.testing.assert_allclose(whole[: len(one)], one, atol=1e-6)
    np.testing.assert_allclose(whole[-len(one) :], one, atol=1e-6)


def test_bundle_with_no_rows_answers_none(small: SmallBundle) -> None:
    answers = read_bundle(small.folder).predict_table(small.rows.slice(0, 0))
    assert answers.outputs.shape == (0, 3)
    assert answers.labels == []


def test_bundle_asked_without_a_column_names_it(small: SmallBundle) -> None:
    with pytest.raises(DatasetNotFoundError, match="'colour'"):
        read_bundle(small.folder).predict_table(small.rows.drop_columns("colour"))


@given(data=st.data())
def test_check_with_any_changed_byte_finds_it(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = small_bundle(tmp_path_factory.mktemp("changed") / "b", rows=20)
    path = data.draw(st.sampled_from(sorted(p for p in made.folder.rglob("*") if p.is_file())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with pytest.raises(DigestMismatchError, match=r"not loaded|register the model again"):
        check_bundle(made.folder, expect_digest=made.digest)


def test_check_with_a_file_added_or_removed_names_it(tmp_path: Path) -> None:
    made = small_bundle(tmp_path / "b")
    (made.folder / "more.txt").write_text("x")
    with pytest.raises(DigestMismatchError, match=r"more\.txt"):
        check_bundle(made.folder)
    (made.folder / "more.txt").unlink()
    assert check_bundle(made.folder) == made.digest
    (made.folder / "model.safetensors").unlink()
    with pytest.raises(DigestMismatchError, match=r"model\.safetensors"):
        read_bundle(made.folder)


def test_check_with_a_whole_other_bundle_finds_it_by_its_digest(tmp_path: Path) -> None:
    one, other = small_bundle(tmp_path / "a"), small_bundle(tmp_path / "b", seed=1)
    assert one.digest != other.digest
    with pytest.raises(DigestMismatchError, match=one.digest[:16]):
        read_bundle(other.folder, expect_digest=one.digest)


def test_check_of_a_folder_that_is_no_bundle_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a model bundle"):
        check_bundle(tmp_path)


def test_bundle_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    made = small_bundle(tmp_path / "b")
    spec = made.folder / "bundle.json"
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "schema_version": 99}))
    bundle_module._write_manifest(made.folder)
    with pytest.raises(ModelError, match="schema version 99"):
        read_bundle(made.folder)


def test_bundle_whose_parameters_fit_no_such_model_says_so(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made = small_bundle(tmp_path / "b")
    state = load_file(made.folder / "model.safetensors")
    save_file(dict(list(state.items())[:1]), made.folder / "model.safetensors")
    bundle_module._write_manifest(made.folder)
    with pytest.raises(ModelError, match="do not fit"):
        read_bundle(made.folder)


def test_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    made = read_bundle(small_bundle(tmp_path / "b").folder)
    with pytest.raises(AttributeError):
        write_bundle(tmp_path / "c", trained=object(), spec=made.spec, preprocessor=made.preprocessor)
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("model", ["mlp", "lightgbm"])
def test_bundle_files_hold_no_pickle(model: str, tmp_path: Path) -> None:
    for path in small_bundle(tmp_path / "b", model=model).folder.rglob("*"):
        content = path.read_bytes()
        assert not content.startswith(b"\x80"), path  # protocol 2 and later
        with pytest.raises(ValueError, match=r"opcode|pickle|expected|not enough"):
            list(pickletools.genops(content))


def _write_user_model(root: Path, width: int) -> dict[str, bytes]:
    code = {
        "user_net.py": USER_MODEL.encode(),
        "user_parts/__init__.py": b"",
        "user_parts/width.py": f"WIDTH = {width}\n".encode(),
    }
    for name, content in code.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return code


def _user_bundle(root: Path, folder: Path, width: int) -> SmallBundle:
    """Made in a process of its own, as on a laptop: this one never imports the user's modules."""
    _write_user_model(root, width)
    code = (
        "import sys\nfrom pathlib import Path\nfrom tiltyard.codedigest import user_modules\n"
        "from tiltyard.testing.bundles import small_bundle\n"
        f"code = user_modules('user_net:Net')\n"
        f"print(small_bundle(Path({str(folder)!r}), model='user_net:Net', model_args={{'factor': 2.0}}, user_code=code).digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plain = small_bundle(folder.parent / f"plain-{folder.name}")
    return SmallBundle(
        folder=folder, digest=done.stdout.strip(), rows=plain.rows, table=plain.table, lineage=plain.lineage
    )


@pytest.mark.slow
def test_bundles_of_a_users_class_load_without_its_folder_each_with_its_own_code(tmp_path: Path) -> None:
    first = _user_bundle(tmp_path / "work1", tmp_path / "first", 5)
    second = _user_bundle(tmp_path / "work2", tmp_path / "second", 7)
    assert (first.folder / "code" / "user_parts" / "width.py").read_text() == "WIDTH = 5\n"
    for folder in ("work1", "work2"):
        for path in sorted((tmp_path / folder).rglob("*.py")):
            path.unlink()
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tiltyard.registry import read_bundle\n"
        f"one = read_bundle(Path({str(first.folder)!r}), expect_digest={first.digest!r})\n"
        f"two = read_bundle(Path({str(second.folder)!r}), expect_digest={second.digest!r})\n"
        f"again = read_bundle(Path({str(first.folder)!r}), expect_digest={first.digest!r})\n"
        "print(one.trained.inner.out_features, two.trained.inner.out_features, again.trained.inner.out_features)\n"
        "import user_parts.width\nprint(user_parts.width.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["5 7 5", str(first.folder / "code" / "user_parts" / "width.py")]


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=3, max_size=3), min_size=1, max_size=20))
def test_probabilities_of_any_outputs_are_probabilities(rows: list[list[float]]) -> None:
    outputs = np.asarray(rows, dtype=np.float32)
    for task in (Task.MULTICLASS, Task.MULTILABEL):
        found = probabilities(task, outputs)
        assert found is not None
        assert ((found >= 0) & (found <= 1)).all()
        if task is Task.MULTICLASS:
            np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert probabilities(Task.REGRESSION, outputs) is None


def test_labels_of_each_task_are_values_of_the_label() -> None:
    outputs = np.array([[-1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    assert labels(Task.BINARY, outputs, ("no", "yes")) == ["yes", "no"]
    assert labels(Task.MULTILABEL, outputs, ("a", "b")) == [["b"], ["a", "b"]]
    assert labels(Task.REGRESSION, outputs[:, :1], ("y",)) == [-1.0, 3.0]
    assert labels(Task.REGRESSION, outputs, ("y", "z")) == [[-1.0, 2.0], [3.0, 1.0]]
