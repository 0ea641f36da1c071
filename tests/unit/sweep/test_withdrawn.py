"""What a pack and a queue do with members that a person has stopped, and how a queue keeps those that have ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiltyard.data.feed import local_feed
from tiltyard.sweep.engine.assignment import Assignment, Seat
from tiltyard.sweep.engine.execute import CURVES, Keep, Outcome, execute, read_curves
from tiltyard.sweep.engine.layout import Storage
from tiltyard.types import Task

CONFIGS: dict[str, tuple[dict[str, Any], ...]] = {
    "logistic": ({"lr": 0.1}, {"lr": 0.01}),
    "lightgbm": ({"num_leaves": 3}, {"num_leaves": 4}),
}


def feed(split: str) -> Any:
    rng = np.random.default_rng(len(split))
    y = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 4)) + y[:, None]).astype(np.float32)
    return local_feed(x, y, content_digest="d" * 64, split=split, batch_size=16, data_seed=0)


def run(folder: Path, model: str, stopped: set[str], keep: Keep | None = None) -> tuple[Outcome, list[int]]:
    assignment = Assignment(
        pack_id=f"{model}@rings/r0/0",
        group=f"{model}@rings",
        rung=0,
        from_epoch=0,
        to_epoch=5,
        total_epochs=5,
        model=model,
        task=Task.MULTICLASS,
        input_shape=(4,),
        num_outputs=3,
        metrics=("accuracy",),
        dataset="rings",
        data_seed=0,
        seats=tuple(Seat(cell=f"c{i}", seed=i, config=c) for i, c in enumerate(CONFIGS[model])),
    )
    epochs: list[int] = []
    outcome = execute(
        assignment,
        train=feed("train"),
        validation=feed("validation"),
        storage=Storage(""),
        folder=folder,
        on_epoch=epochs.append,
        withdrawn=lambda: stopped,
        keep=keep,
    )
    return outcome, epochs


def test_pack_of_which_every_member_was_stopped_ends_at_the_next_epoch_and_scores_nothing(tmp_path: Path) -> None:
    outcome, epochs = run(tmp_path, "logistic", {"c0", "c1", "of another pack"})
    assert (outcome.withdrawn, outcome.scores, outcome.failed, epochs) == ({"c0", "c1"}, {}, {}, [1])


@pytest.mark.parametrize("stopped", [set(), {"c0"}])
def test_pack_of_which_some_member_goes_on_trains_to_the_end(tmp_path: Path, stopped: set[str]) -> None:
    outcome, epochs = run(tmp_path, "logistic", stopped)
    assert (outcome.withdrawn, set(outcome.scores), epochs) == (set(), {"c0", "c1"}, [1, 2, 3, 4, 5])


def test_queue_with_a_keeper_keeps_each_member_before_the_next_begins(tmp_path: Path) -> None:
    kept: list[tuple[str, Outcome, list[str]]] = []

    @contextmanager
    def keep(cell: str, part: Outcome) -> Iterator[Path]:
        assert len(kept) == int(cell[1:])
        place = tmp_path / "members" / cell
        place.mkdir(parents=True)
        yield place
        kept.append((cell, part, sorted(p.name for p in place.iterdir())))

    together, _ = run(tmp_path, "lightgbm", set())
    outcome, _ = run(tmp_path / "none", "lightgbm", set(), keep)
    assert outcome.scores == together.scores
    assert outcome.curve == together.curve
    assert [(cell, set(part.scores), files) for cell, part, files in kept] == [
        (f"c{i}", {f"c{i}"}, [f"c{i}", CURVES]) for i in range(2)
    ]
    assert read_curves(tmp_path / "members" / "c1" / CURVES)["cell"].tolist() == ["c1"] * 5
    assert not (tmp_path / "none").exists()


def test_queue_leaves_out_what_was_stopped(tmp_path: Path) -> None:
    outcome, _ = run(tmp_path, "lightgbm", {"c0"})
    assert (outcome.withdrawn, set(outcome.scores)) == ({"c0"}, {"c1"})
