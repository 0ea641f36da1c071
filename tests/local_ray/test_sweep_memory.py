"""Memory that runs out under a pack: it steps half as many members at its next attempt, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import sweeps

from tiltyard.distributions import loguniform
from tiltyard.experiment import Resources, Search, Variant
from tiltyard.journal import Journal
from tiltyard.types import DatasetRef

pytestmark = pytest.mark.ray


def test_pack_whose_memory_ran_out_steps_half_as_many_members_at_its_next_attempt(
    ray_session: None, tmp_path: Path
) -> None:
    settings = sweeps.settings_at(tmp_path, sweeps.commit_small_datasets(tmp_path / "data"))
    hungry = Variant(
        name="hungry",
        model="users_models:Hungry",
        fixed={"fed": str(tmp_path / "fed"), "batch_size": 32},
        space={"lr": loguniform(1e-3, 1e-1)},
    )
    wanted = sweeps.experiment(
        variants=(hungry,),
        datasets=(DatasetRef("rings"),),
        search=Search(trials=4, epochs=1, finalists=2),
        resources=Resources(pack=4),
    )
    outcome = sweeps.run_launch(settings, wanted)
    assert {r.state for r in outcome.results} == {"done"}
    with Journal.open(settings.journal_uri) as journal:
        first, second = journal.attempts(outcome.claim.key)
    assert (first.state, second.state) == ("failed", "done")
    assert (first.reason or "").startswith("out of memory: OutOfMemoryError: CUDA out of memory")
    assert (first.layout["chunk"], first.layout["halved"]) == (4, 0)
    assert (second.layout["chunk"], second.layout["halved"]) == (2, 1)
