"""Keys, contents and attempts: when two askings are one job."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import SpecError, SubmitError
from tiltyard.settings import Settings
from tiltyard.submit.preparing import Prepared, prepare
from tiltyard.submit.request import attempt_of, check_key, pack_manifest, read_manifest, stem_of

JOB = """
from tiltyard import DatasetRef, Experiment, Objective, Search, Variant, loguniform
def experiment():
    return Experiment(
        name="toy", variants=[Variant(name="a", model="logistic", space={"lr": loguniform(1e-3, 1e-1)})],
        datasets=[DatasetRef("wine")], objective=Objective(metric="accuracy"), search=Search(trials=4, epochs=2),
    )
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "toy.py").write_text(JOB)
    (tmp_path / "plain.py").write_text("print(1)")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(root: Path, job: str = "jobs/toy.py", **more: object) -> Prepared:
    return prepare(job, settings=Settings.from_env({"TILTYARD_HOME": str(root / "home")}), root=root, **more)  # type: ignore[arg-type]


def test_key_of_an_experiment_follows_what_it_is_and_not_what_lies_beside_it(root: Path) -> None:
    first = asked(root).request
    assert re.fullmatch(r"toy-[0-9a-f]{12}", first.key)
    (root / "README.md").write_text("new")
    second = asked(root).request
    assert (second.key, second.content) == (first.key, first.content)
    assert second.files != first.files
    fewer = asked(root, trials=2)
    assert fewer.request.key != first.key
    assert fewer.experiment is not None
    assert fewer.experiment.search.trials == 2
    assert fewer.request.entrypoint.endswith("driver jobs/toy.py --trials 2")


def test_content_of_an_own_key_and_of_a_plain_job_is_everything_that_travels(root: Path) -> None:
    for job in ("jobs/toy.py", "plain.py"):
        first = asked(root, job, key="mine").request
        assert first.key == "mine"
        assert asked(root, job, key="mine").request.content == first.content
        assert asked(root, job, key="mine", env={"A": "1"}).request.content != first.content
        (root / f"{Path(job).stem}.txt").write_text("new")
        assert asked(root, job, key="mine").request.content != first.content


def test_arguments_of_a_plain_job_are_quoted_for_the_shell(root: Path) -> None:
    request = asked(root, "plain.py", args=["a b", "$(rm -rf /)", "it's"]).request
    assert request.entrypoint.endswith("""driver plain.py 'a b' '$(rm -rf /)' 'it'"'"'s'""")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"job": "none.py"}, "no job file none.py"),
        ({"job": "plain.py", "trials": 3}, "has no experiment"),
        ({"env": {"DB_PASSWORD": "x"}}, "looks like a secret"),
        ({"env": {"A B": "x"}}, "no name of a variable"),
        ({"key": "no spaces please"}, "Wanted: 1 to 100"),
    ],
)
def test_a_request_that_cannot_be_right_is_refused(root: Path, more: dict[str, object], said: str) -> None:
    with pytest.raises(SubmitError, match=said):
        asked(root, **more)  # type: ignore[arg-type]


def test_a_job_file_that_does_not_travel_or_load_is_refused(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("x") / "job.py"
    outside.write_text("")
    with pytest.raises(SubmitError, match="lies outside"):
        asked(root, str(outside))
    (root / ".gitignore").write_text("plain.py\n")
    with pytest.raises(SubmitError, match="is ignored"):
        asked(root, "plain.py")
    (root / "jobs" / "toy.py").write_text("def experiment(:\n")
    with pytest.raises(SpecError, match="could not be imported"):
        asked(root)


@given(st.text(min_size=1, max_size=120), st.integers(1, 999))
def test_job_id_of_any_key_is_a_name_kubernetes_takes(key: str, attempt: int) -> None:
    stem = stem_of(key)
    job_id = f"{stem}-{attempt}"
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", job_id)
    assert len(job_id) <= 47
    assert attempt_of(stem, job_id) == attempt


@given(st.text(min_size=1), st.text(min_size=1))
def test_job_ids_of_two_keys_are_never_attempts_of_each_other(one: str, other: str) -> None:
    if one != other:
        assert attempt_of(stem_of(one), f"{stem_of(other)}-1") is None


@given(st.dictionaries(st.text(max_size=40), st.text(max_size=13), max_size=50))
def test_manifest_survives_its_way_through_the_metadata(files: dict[str, str]) -> None:
    assert read_manifest(pack_manifest(files)) == files


def test_manifest_of_very_many_files_fits_a_variable_and_still_tells_apart() -> None:
    import hashlib

    many = {f"file-{i}-{hashlib.sha256(str(i).encode()).hexdigest()}": str(i) for i in range(4000)}
    told = pack_manifest(many)
    assert len(told) < 1000
    assert told != pack_manifest({**many, "one": "more"})
    assert read_manifest("no manifest") == {}


def test_check_key_takes_what_a_person_may_call_a_work() -> None:
    assert check_key("night/2026-11-25:wine@3") == "night/2026-11-25:wine@3"
    for wrong in ("", "-a", "a" * 101, "a\nb"):
        with pytest.raises(SubmitError):
            check_key(wrong)
