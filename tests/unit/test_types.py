"""Names, references and metrics that every room shares."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import SpecError
from tiltyard.types import METRICS, NAME_PATTERN, DatasetRef, Mode, Task, check_name

names = st.from_regex(NAME_PATTERN, fullmatch=True).filter(lambda n: len(n) <= 100)


@given(name=names, version=st.none() | st.integers(1, 10**6))
def test_dataset_reference_through_text_reads_back_equal(name: str, version: int | None) -> None:
    ref = DatasetRef(name, version)
    assert DatasetRef.parse(str(ref)) == ref


@given(name=names)
def test_name_that_is_allowed_is_a_file_name_and_a_part_of_an_address(name: str) -> None:
    assert check_name(name, "Name") == name
    assert not set(name) & set("/\\@:*? \n")
    assert name not in {".", ".."}


@pytest.mark.parametrize("name", ["", "A", "a b", "-a", "a-", ".", "a/b", "a@b", "é", "a\n", "x" * 101])
def test_name_that_is_not_allowed_is_shown_with_what_is(name: str) -> None:
    with pytest.raises(SpecError, match="Wanted: 1 to 100 lower case letters"):
        check_name(name, "Variant")


def test_mode_tells_the_better_of_two_and_ties_are_not_better() -> None:
    assert Mode.MAX.better(2, 1)
    assert Mode.MIN.better(1, 2)
    assert not Mode.MAX.better(1, 1)
    assert (Mode.MAX.sign, Mode.MIN.sign) == (1.0, -1.0)


def test_metrics_cover_every_task_in_a_known_direction() -> None:
    assert {task for m in METRICS.values() for task in m.tasks} == set(Task)
    assert {n for n, m in METRICS.items() if m.mode is Mode.MIN} == {"log_loss", "brier", "mse", "rmse", "mae"}
    assert [t for t in Task if not t.is_classification] == [Task.REGRESSION]
