"""Files of a sweep: whole or not there, and an assignment reads back as it was written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiltyard.errors import MachineError
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.types import Task

values = st.recursive(
    st.one_of(st.integers(-9, 9), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=3), st.none()),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)


@given(config=st.dictionaries(st.text(min_size=1, max_size=4), values, max_size=4), seed=st.integers(0, 2**31 - 1))
def test_assignment_through_json_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, config: dict[str, object], seed: int
) -> None:
    assignment = Assignment(
        pack_id="mlp@digits/r0/0",
        group="mlp@digits",
        rung=0,
        from_epoch=0,
        to_epoch=2,
        total_epochs=6,
        model="mlp",
        task=Task.MULTICLASS,
        input_shape=(64,),
        num_outputs=10,
        metrics=("accuracy", "log_loss"),
        dataset="digits",
        data_seed=0,
        seats=(Seat(cell="a" * 64, seed=seed, config=config), Seat(cell="b" * 64, seed=1, config={}, source="x")),
    )
    layout = Layout(Storage(str(tmp_path_factory.getbasetemp() / "s")), "k" * 64)
    uri = layout.assignment(assignment.pack_id)
    layout.storage.write_json(uri, assignment.to_dict())
    assert Assignment.from_dict(layout.storage.read_json(uri)) == assignment


def test_read_json_of_a_missing_file_names_it_and_the_setting(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    with pytest.raises(MachineError, match="TILTYARD_STORAGE_URI"):
        storage.read_json(storage.uri("absent.json"))


def test_writing_a_folder_leaves_its_files_at_the_address(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}")
    uri = storage.uri("a", "b")
    with storage.writing(uri) as folder:
        (folder / "x").write_text("1")
    with storage.reading(uri) as folder:
        assert (folder / "x").read_text() == "1"
    storage.remove(uri)
    storage.remove(uri)
    assert not (tmp_path / "a" / "b").exists()


def test_folders_of_packs_with_names_alike_are_apart() -> None:
    layout = Layout(Storage("/s"), "k" * 64)
    ids = ["a-b@c/r0/0", "a@b-c/r0/0", "a@b/b1/r0/0", "a@b-b1/r0/0", "a@b/r0/0", "a@b/r0/1"]
    assert len({layout.pack(pack_id) for pack_id in ids}) == len(ids)
    assert layout.attempt("a@b/r0/1", 2) == f"/s/{'k' * 16}/packs/a/b/r0/1/a2"
