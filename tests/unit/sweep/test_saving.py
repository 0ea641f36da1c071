"""A pack that is told to save in the middle of its rung goes on there, as if it had never been interrupted."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiltyard.data.feed import local_feed
from tiltyard.journal import Claim, Journal, Owner
from tiltyard.sweep.engine import saving
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.execute import CURVES, Outcome, execute, read_curves
from tiltyard.sweep.engine.layout import Storage
from tiltyard.sweep.engine.saving import Saving, ask_packs, save_s, saved_by, saved_epochs
from tiltyard.training import checkpoint
from tiltyard.types import Task

ASSIGNMENT = Assignment(
    pack_id="mlp@rings/r0/0",
    group="mlp@rings",
    rung=0,
    from_epoch=0,
    to_epoch=4,
    total_epochs=6,
    model="mlp",
    task=Task.MULTICLASS,
    input_shape=(4,),
    num_outputs=3,
    metrics=("accuracy", "log_loss"),
    dataset="rings",
    data_seed=0,
    seats=tuple(Seat(cell=f"c{i}", seed=i, config={"hidden": (5,), "lr": lr}) for i, lr in enumerate((0.1, 0.01))),
)


def feed(split: str) -> Any:
    rng = np.random.default_rng(len(split))
    y = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 4)) + y[:, None]).astype(np.float32)
    return local_feed(x, y, content_digest="d" * 64, split=split, batch_size=16, data_seed=0)


def run(folder: Path, **how: Any) -> tuple[Outcome, list[int]]:
    folder.mkdir()
    epochs: list[int] = []
    feeds = {"train": feed("train"), "validation": feed("validation")}
    outcome = execute(ASSIGNMENT, **feeds, storage=Storage(""), folder=folder, on_epoch=epochs.append, **how)
    return outcome, epochs


def test_pack_that_saved_goes_on_there_to_the_same_scores_and_curves(tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole")
    looks = iter([False, True])
    first, epochs = run(tmp_path / "first", saving=lambda: next(looks))
    assert (first.saved, first.scores, epochs) == (True, {}, [1, 2])
    second, epochs = run(tmp_path / "second", saved=str(tmp_path / "first"))
    assert (second.saved, epochs) == (False, [3, 4])
    assert second.scores == whole.scores
    found, wanted = (read_curves(tmp_path / name / CURVES) for name in ("second", "whole"))
    assert {n: c.tolist() for n, c in found.items()} == {n: c.tolist() for n, c in wanted.items()}


def test_pack_whose_saved_checkpoint_is_gone_begins_its_rung_anew(tmp_path: Path) -> None:
    outcome, epochs = run(tmp_path / "a", saved=str(tmp_path / "nowhere"))
    assert (set(outcome.scores), epochs) == ({"c0", "c1"}, [1, 2, 3, 4])


def test_pack_at_the_end_of_its_rung_is_done_whatever_is_asked(tmp_path: Path) -> None:
    looks = iter([False, False, False, True])
    outcome, epochs = run(tmp_path / "a", saving=lambda: next(looks))
    assert (outcome.saved, set(outcome.scores), epochs) == (False, {"c0", "c1"}, [1, 2, 3, 4])


def test_checkpoint_of_a_rung_is_written_while_its_last_epoch_is_scored(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    meta, written = folder / f".{checkpoint.META}", folder / checkpoint.META
    readers = []

    def look(epoch: int) -> None:  # the last epoch is scored by now
        if epoch == ASSIGNMENT.to_epoch:
            deadline = time.monotonic() + 60
            while not any(folder.glob("*.safetensors")) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert any(folder.glob("*.safetensors")), "it is being written"
            assert not written.exists(), "and waits at the pipe"
            readers.append(threading.Thread(target=meta.read_text))
            readers[0].start()

    folder.mkdir()
    os.mkfifo(meta)  # opening it to write waits for a reader
    feeds = {"train": feed("train"), "validation": feed("validation")}
    outcome = execute(ASSIGNMENT, **feeds, storage=Storage(""), folder=folder, on_epoch=look)
    readers[0].join(timeout=60)
    assert set(outcome.scores) == {"c0", "c1"}
    assert written.exists(), "it is there before anybody is told of scores"


def test_checkpoint_of_a_rung_that_cannot_be_written_fails_the_attempt(tmp_path: Path) -> None:
    (tmp_path / "a" / f".{checkpoint.META}").mkdir(parents=True)
    feeds = {"train": feed("train"), "validation": feed("validation")}
    with pytest.raises(OSError, match=checkpoint.META):
        execute(ASSIGNMENT, **feeds, storage=Storage(""), folder=tmp_path / "a")


def claimed(journal: Journal) -> Claim:
    return journal.claim("k" * 64, experiment="x", spec="{}", owner=Owner.here())


def test_saving_is_asked_of_one_launch_and_not_of_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LOOK_EVERY_S", 0.0)
    with Journal.open(f"sqlite:///{tmp_path / 'j.db'}") as journal:
        claim = claimed(journal)
        look = Saving(journal, claim)
        assert not look()
        ask_packs(journal, claim, "x", "stopped by SIGTERM")
        assert look()
        journal.release(claim, state="stopped", summary={})
        assert not Saving(journal, claimed(journal))()


def test_saved_by_names_the_last_attempt_that_saved_all_of_these_cells(tmp_path: Path) -> None:
    with Journal.open(f"sqlite:///{tmp_path / 'j.db'}") as journal:
        claim = claimed(journal)

        def attempt(cells: tuple[str, ...]) -> Any:
            return journal.start_attempt(claim, "p", rung=0, cells=cells, device_kind="cpu", layout={})

        assert saved_by(journal, claim.key, "p", ["a"]) is None
        for uri in ("one", "two"):
            journal.save_attempt(attempt(("a", "b")), metered_s=1.0, storage_uri=uri)
        journal.fail_attempt(attempt(("a", "b")), "died", 1.0)
        assert saved_by(journal, claim.key, "p", ["b", "a"]) == "two"
        assert saved_by(journal, claim.key, "p", ["a", "c"]) is None
        assert saved_by(journal, claim.key, "q", ["a"]) is None


def test_epochs_at_which_packs_were_left_are_read_from_their_last_curves(tmp_path: Path) -> None:
    looks = iter([False, True])
    run(tmp_path / "first", saving=lambda: next(looks))
    with Journal.open(f"sqlite:///{tmp_path / 'j.db'}") as journal:
        claim = claimed(journal)
        assert saved_epochs(journal, Storage(""), claim.key) == {}
        for pack_id, place in (("p", "nowhere"), ("p", "first"), ("q", "nowhere")):
            attempt = journal.start_attempt(claim, pack_id, rung=0, cells=["c0", "c1"], device_kind="cpu", layout={})
            journal.save_attempt(attempt, metered_s=1.0, storage_uri=str(tmp_path / place))
        assert saved_epochs(journal, Storage(""), claim.key) == {"c0": 2, "c1": 2}


def test_ctrl_c_is_waited_for_less_than_a_job_that_is_cancelled() -> None:
    from tiltyard.submit.request import STOP_WAIT_S

    assert save_s("stopped by Ctrl-C") < save_s("stopped by SIGTERM") < STOP_WAIT_S


@pytest.mark.parametrize(
    ("stopping", "saves", "ends"), [(False, False, False), (True, True, False), (True, False, True)]
)
def test_running_packs_are_ended_once_the_time_to_save_is_over(stopping: bool, saves: bool, ends: bool) -> None:
    from tiltyard.sweep.engine.searcher import StopNow

    class Driver:
        done = False
        stopping: bool
        saving: bool

        def next_pack(self) -> str | None:
            return None

        def pack_ended(self, pack_id: str, *, failed: bool) -> None: ...

        def pack_ran_out(self, pack_id: str, why: str) -> None: ...

        def tick(self) -> None: ...

    driver = Driver()
    driver.stopping, driver.saving = stopping, saves
    assert StopNow(driver).stop_all() is ends
