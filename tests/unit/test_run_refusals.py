"""What a job file can have wrong: refused with one message before anything starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import sweeps
import users_models

from tiltyard.data.store import DatasetStore
from tiltyard.errors import DataError, ModelError, SpecError, TiltyardError
from tiltyard.experiment import Variant
from tiltyard.journal import Journal, Owner
from tiltyard.resume import find
from tiltyard.run import main, run_file
from tiltyard.settings import Settings

JOB = """
from tiltyard import Budget, DatasetRef, Experiment, Halving, Objective, Search, Variant, choice, loguniform, main


def experiment():
    return Experiment(
        name="refused",
        variants=({variant},),
        datasets=(DatasetRef({dataset}),),
        objective=Objective(metric={metric}),
        search=Search(trials={trials}, epochs=1),{more}
    )


if __name__ == "__main__":
    main(__file__)
"""
GOOD = {
    "variant": 'Variant(name="v", model="logistic", space={"lr": loguniform(1e-3, 1e-1)})',
    "dataset": '"rings"',
    "metric": '"accuracy"',
    "trials": "2",
    "more": "",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = sweeps.commit_small_datasets(tmp_path_factory.mktemp("data"))
    DatasetStore(uri).commit("untold", pa.table({"a": [1.0, 2.0, 3.0], "b": [1, 0, 1]}))
    return uri


@pytest.fixture
def home(tmp_path: Path, data: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TILTYARD_DATA_URI", data)
    for name in ("TILTYARD_JOURNAL_URI", "TILTYARD_STORAGE_URI", "TILTYARD_TRACKING_URI", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a job's folder becomes importable
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def refusal(tmp_path: Path, home: Path, **wrong: str) -> str:
    """What the job is refused with; nothing may have begun."""
    file = tmp_path / "job.py"
    file.write_text(JOB.format(**{**GOOD, **wrong}))
    with pytest.raises(TiltyardError) as refused:
        run_file(file)
    assert isinstance(refused.value, (SpecError, DataError, ModelError))
    assert not (home / "journal.db").exists(), "a key was claimed"
    assert not (home / "spool").exists(), "a writer was started"
    return str(refused.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"more": " patience=3,"}, ["patience"]),
        ({"variant": 'Variant(name="v", model="logistic", space={"lr": loguniform(1e-1, 1e-3)})'}, ["0.1", "0.001"]),
        ({"variant": 'Variant(name="v", model="logistic")'}, ["empty space", "trials=1"]),
        ({"metric": '"acuracy"'}, ["'acuracy'", "accuracy"]),
        ({"metric": '"roc_auc"'}, ["rings@1", "multiclass", "'roc_auc'", "log_loss"]),
        ({"metric": '"mse"'}, ["rings@1", "multiclass", "'mse'"]),
        ({"dataset": '"ring"'}, ["'ring'", "flips, rings", "tiltyard data commit"]),
        ({"dataset": '"rings", version=7'}, ["'rings'", "version 7", "tiltyard data history rings"]),
        ({"dataset": '"untold"'}, ["untold@1", "no task", "label"]),
        ({"more": " budget=Budget(cpu_hours=-2),"}, ["cpu_hours", "-2", "greater than 0"]),
        ({"more": ' include_sensitive=("age",),'}, ["'age'", "rings@1"]),
        ({"variant": 'Variant(name="v", model="logistics", fixed={"lr": 0.1}, trials=1)'}, ["'logistics'", "logistic"]),
        (
            {"variant": 'Variant(name="v", model="mlp", fixed={"widht": 8}, space={"lr": loguniform(1e-3, 1e-1)})'},
            ["'v'", "'widht'", "hidden"],
        ),
        (
            {"variant": 'Variant(name="v", model="logistic", fixed={"lr": -1.0}, space={"eps": loguniform(1e-9, 1)})'},
            ["'v'", "lr is -1.0"],
        ),
        (
            {"variant": 'Variant(name="v", model="logistic", space={"lr": choice(0.1, 0.2, -1.0)})', "trials": "24"},
            ["'v'", "lr is -1.0"],
        ),
        (
            {"variant": 'Variant(name="v", model="lightgbm", space={"num_leaves": choice(7, -5)})', "trials": "24"},
            ["'v'", "num_leaves is -5"],
        ),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_job_with_something_wrong_is_refused_before_anything_starts(
    wrong: dict[str, str], told: list[str], tmp_path: Path, home: Path
) -> None:
    message = refusal(tmp_path, home, **wrong)
    assert all(part in message for part in told), message


def own(model: str) -> str:
    return f'Variant(name="own", model="{model}", space={{"lr": loguniform(1e-3, 1e-1)}})'


def test_job_with_a_model_that_is_not_there_is_refused_with_its_path(tmp_path: Path, home: Path) -> None:
    message = refusal(tmp_path, home, variant=own("no_such_module_here:Net"))
    assert "'no_such_module_here:Net' cannot be imported" in message


def test_job_with_a_model_whose_module_lacks_it_is_refused_with_its_name(tmp_path: Path, home: Path) -> None:
    shutil.copy(users_models.__file__, tmp_path)
    message = refusal(tmp_path, home, variant=own("users_models:Nett"))
    assert "'users_models:Nett' cannot be imported" in message
    assert "no attribute 'Nett'" in message


def test_job_with_a_model_of_wrong_output_shape_is_refused_with_both_shapes(tmp_path: Path, home: Path) -> None:
    shutil.copy(users_models.__file__, tmp_path)
    message = refusal(tmp_path, home, variant=own("users_models:TooNarrow"))
    assert "'own'" in message
    assert "(2, 1)" in message
    assert "(2, 3) is wanted" in message


@pytest.mark.parametrize(
    ("module", "layer", "forward", "why"),
    [
        ("recurrent", "nn.LSTM(5, 3)", "self.layer(x)[0]", "layer: LSTM has no batched form"),
        ("branching", "nn.Linear(5, 3)", "self.layer(x if x.sum() > 0 else -x)", "data"),
    ],
)
def test_job_with_a_model_whose_trials_cannot_step_together_is_refused_with_what_to_do(
    tmp_path: Path, home: Path, module: str, layer: str, forward: str, why: str
) -> None:
    (tmp_path / f"{module}.py").write_text(
        f"from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        f"        self.layer = {layer}\n    def forward(self, x):\n        return {forward}\n"
    )
    message = refusal(tmp_path, home, variant=own(f"{module}:Net"))
    assert f"'{module}:Net' cannot be packed" in message
    assert why in message
    assert 'model="train:package.module:function"' in message


def test_job_with_a_model_that_fails_on_the_rows_is_refused_with_their_shape(tmp_path: Path, home: Path) -> None:
    (tmp_path / "four_wide.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.layer = nn.Linear(4, 3)\n    def forward(self, x):\n        return self.layer(x)\n"
    )
    message = refusal(tmp_path, home, variant=own("four_wide:Net"))
    assert "'four_wide:Net'" in message
    assert "(5,)" in message


def test_job_file_run_by_python_takes_names_with_blanks_and_refuses_none(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.py"
    file.write_text(JOB.format(**{**GOOD, "metric": '"roc_auc"'}))
    with pytest.raises(SystemExit) as ended:
        main(str(file), ["--datasets", " flips , rings"])
    assert ended.value.code == 1
    assert "rings@1 is a multiclass task" in capsys.readouterr().err, "both names were understood"
    for nothing in ("", " , "):
        with pytest.raises(SystemExit) as ended:
            main(str(file), ["--datasets", nothing])
        assert ended.value.code == 2
        assert "name at least one dataset" in capsys.readouterr().err
    assert not (home / "journal.db").exists()


def test_job_file_run_by_python_with_debug_shows_the_traceback(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "job.py"
    file.write_text(JOB.format(**{**GOOD, "metric": '"roc_auc"'}))
    monkeypatch.setenv("TILTYARD_DEBUG", "1")
    with pytest.raises(SpecError, match="rings@1 is a multiclass task"):
        main(str(file), [])
    monkeypatch.setenv("TILTYARD_DEBUG", "0")
    with pytest.raises(SystemExit):
        main(str(file), [])
    assert not (home / "journal.db").exists()


@pytest.mark.slow
def test_job_file_run_by_python_with_something_wrong_exits_with_one_message_and_no_ray(
    tmp_path: Path, home: Path, data: str
) -> None:
    file = tmp_path / "job.py"
    file.write_text(JOB.format(**{**GOOD, "metric": '"roc_auc"'}))
    env = {**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run([sys.executable, file], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: Dataset rings@1 is a multiclass task")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "ray").exists()
    assert not (home / "journal.db").exists()


def test_resume_by_name_of_a_sweep_whose_code_is_not_found_asks_for_the_job_file(home: Path) -> None:
    settings = Settings.from_env()
    settings.ensure_home()
    own = Variant(name="own", model="train:nowhere_to_be_found:fit", fixed={"a": 1}, trials=1)
    wanted = sweeps.experiment(variants=(own,))
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim("ab" * 32, experiment=wanted.name, spec=wanted.to_json(), owner=Owner.here())
        journal.release(claim, state="stopped", summary={})
    with pytest.raises(SpecError, match="name it, tiltyard resume JOB_FILE --plan, from where it was run"):
        find(settings, wanted.name)
