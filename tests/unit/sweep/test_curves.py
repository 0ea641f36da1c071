"""Curves read back: of trials that scored, and of those that never did."""

from __future__ import annotations

from pathlib import Path

from tiltyard.journal import CellScore
from tiltyard.sweep.engine.curves import Curves, curves_of_some
from tiltyard.sweep.engine.execute import Outcome
from tiltyard.sweep.engine.layout import Storage


def score(cell: str, folder: Path) -> CellScore:
    return CellScore(
        cell=cell, epoch=2, metrics={}, storage_uri=str(folder), pack_id="p", attempt=1, seconds=0.0, failed=None
    )


def test_curves_of_a_trial_that_never_scored_are_empty_and_those_of_others_are_read(tmp_path: Path) -> None:
    scored, silent = Outcome(), Outcome()
    for epoch in (1, 2):
        scored.add_point("a", epoch, 0.5, {"accuracy": epoch / 4})
    wanted = {}
    for cell, outcome in (("a", scored), ("b", silent)):
        folder = tmp_path / cell
        folder.mkdir()
        outcome.write_curves(folder)
        wanted[cell] = [score(cell, folder)]
    wanted["gone"] = [score("gone", tmp_path / "nowhere")]
    found = curves_of_some(Storage(""), wanted, "accuracy")
    assert found == {"a": [(1, 0.25), (2, 0.5)], "b": [], "gone": []}
    assert Curves(Storage("")).of("b", wanted["b"]) == []
