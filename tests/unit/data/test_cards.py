"""The dataset card: what is declared and what was counted, kept beside the record; records of older forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tiltyard.data import cards
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import SCHEMA_VERSION, Card, Check, DatasetSpec, DatasetVersion
from tiltyard.types import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "dataset_version_v1.json"
SPEC = DatasetSpec(
    task=Task.MULTICLASS,
    label="y",
    key="id",
    sensitive=("income",),
    checks=(Check(kind="range", column="x", params={"max": 0.5}, severity="warning"),),
    card=Card(
        description="Rows of a sine.",
        source="numpy",
        licence="CC0",
        collected="2026-11",
        contact="data@example.org",
        known_gaps=("No rows of\nwinter.", "Labels | by hand."),
    ),
)


@pytest.fixture
def version(tmp_path: Path) -> DatasetVersion:
    n = np.arange(200)
    rows = {"id": n, "x": np.sin(n), "income": n * 777.0, "city": [("rom", "a|b")[i % 2] for i in n], "y": n % 3}
    return DatasetStore(str(tmp_path)).commit("toy", rows, spec=SPEC, message="the first").version


def test_card_says_what_was_declared_counted_and_where_it_is_from(tmp_path: Path, version: DatasetVersion) -> None:
    store = DatasetStore(str(tmp_path))
    card = (tmp_path / "toy" / "versions" / "00000001.md").read_text()
    assert card == cards.render(version, store.profile(version))
    for told in (
        "# toy@1", "Rows of a sine.", "| source | numpy |", "| licence | CC0 |", "| contact | data@example.org |",
        "- No rows of winter.", "- Labels | by hand.", "- `income`", "- range of x: max 0.5 (only warns)",
        "| `city` | string | feature | 0.0% |", "multiclass of y", version.content_digest, version.files_digest,
        "the first", "none: the first version", "0.6 / 0.2 / 0.2 by id, seed 0", "lie outside max 0.5",
        f"| train | {version.split_rows['train']} |", "schema version 1",
    ):  # fmt: skip
        assert told in card, told
    assert "a\\|b (" in card  # a bar in a value ends no cell


def test_card_shows_no_value_of_a_sensitive_column_or_key(tmp_path: Path, version: DatasetVersion) -> None:
    card = cards.render(version, DatasetStore(str(tmp_path)).profile(version))
    lines = {line.split("`")[1]: line for line in card.splitlines() if line.startswith("| `")}
    assert lines["income"].count("hidden") == 6
    assert "77" not in lines["income"]
    assert lines["id"].split("|")[5:9] == ["  "] * 4


def test_card_of_a_bare_version_says_what_is_not_declared(tmp_path: Path) -> None:
    version = DatasetStore(str(tmp_path)).commit("bare", {"a": [1, 2, 3]}).version
    card = cards.render(version, None)
    assert "No description was declared." in card
    assert card.count(cards.NOT_SAID) == 4
    assert "This version has no profile." in card


def test_record_of_an_older_form_is_read_and_says_what_it_cannot_know() -> None:
    data = json.loads(GOLDEN.read_text())
    assert data["schema_version"] == 1 < SCHEMA_VERSION
    version = DatasetVersion.from_json(data)
    assert (version.ref.name, version.num_rows, version.message) == ("toy", 60, "the first")
    assert (version.profile_sha256, version.successor_of, version.beside) == ("", None, False)
    assert version.spec.card.known_gaps == ("none of winter",)
    again = version.to_json()
    assert again["schema_version"] == SCHEMA_VERSION
    assert {k: again[k] for k in data if k not in ("schema_version", "spec")}.keys() == data.keys() - {
        "schema_version",
        "spec",
    }
    assert DatasetVersion.from_json(json.loads(json.dumps(again))) == version
    assert "# toy@1" in cards.render(version, None)
