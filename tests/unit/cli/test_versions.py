"""``tiltyard data`` after the commit, as a shell sees it: compare, name, remove, verify, export, delete."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tiltyard import cli
from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.data.store import DatasetStore
from tiltyard.evaluation.kept import FOLDER, Keeper, Kept
from tiltyard.journal import Journal, Owner
from tiltyard.journal.values import TrialRow
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.settings import Settings
from tiltyard.testing.bundles import small_bundle

OPTIONS = ("--task", "binary", "--label", "y", "--key", "id", "--sensitive", "age")


def csv(stop: int) -> str:
    lines = (f"{i},{20 + i},{('rom', 'ulm')[i % 2]},{i % 3 % 2}\n" for i in range(stop))
    return "id,age,city,y\n" + "".join(lines)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with four versions of ``small``: 60, 70, 80 and 90 persons."""
    for name in ("TILTYARD_DATA_URI", "TILTYARD_TRACKING_URI", "MLFLOW_TRACKING_URI", "TILTYARD_JOURNAL_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TILTYARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    for stop in (60, 70, 80, 90):
        (tmp_path / f"{stop}.csv").write_text(csv(stop))
    return tmp_path


@pytest.fixture
def committed(home: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    tiltyard(capsys, "commit", "small", home / "60.csv", *OPTIONS, "--known-gap", "no children", "--licence", "CC0")
    for stop in (70, 80, 90):
        tiltyard(capsys, "commit", "small", home / f"{stop}.csv")
    return home


def tiltyard(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["data", *map(str, args)])
    out, err = capsys.readouterr()
    assert (left.value.code or 0) == code, out + err
    return str(out if code == 0 else err or out)


def store(home: Path) -> DatasetStore:
    return DatasetStore(str(home / "home" / "data"))


def test_diff_shows_rows_splits_and_statistics_side_by_side(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = tiltyard(capsys, "diff", "small@1", "small@2")
    assert "60 -> 70 (+10): 10 added, 0 removed, 60 kept" in said
    lines = [line.split() for line in said.splitlines() if line.strip().startswith(("age", "@2"))]
    first, second = store(committed).resolve("small@1"), store(committed).resolve("small@2")
    means = [store(committed).profile(v).column("age").mean for v in (first, second)]
    assert [f"{m:.6g}" for m in means] == [lines[0][5], lines[1][4]]
    found = json.loads(tiltyard(capsys, "diff", "small@1", "small@2", "--json"))
    assert found["rows"] == {"added": 10, "removed": 0, "kept": 60, "moved": 0, "columns": None}
    assert "both" in tiltyard(capsys, "diff", "small", "small@4")
    assert "Neither version has rows in split 'dev'" in tiltyard(
        capsys, "diff", "small", "small", "--split", "dev", code=1
    )


def test_tags_and_pins_are_told_resolved_moved_and_taken_away(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiltyard(capsys, "tag", "small@2", "gold") == "small@gold is version 2.\n"
    assert tiltyard(capsys, "tag", "small@2", "gold") == "small@gold is version 2 already.\n"
    assert "tiltyard data tag small@3 gold --move" in tiltyard(capsys, "tag", "small@3", "gold", code=1)
    assert tiltyard(capsys, "tag", "small@3", "gold", "--move") == "small@gold is version 3, was 2.\n"
    assert json.loads(tiltyard(capsys, "show", "small@gold", "--json"))["version"] == 3
    assert "small@3 is pinned" in tiltyard(capsys, "pin", "small@gold", "--reason", "the paper")
    shown = tiltyard(capsys, "show", "small@3")
    assert ("gold" in shown, "the paper" in shown) == (True, True)
    assert "gold" in tiltyard(capsys, "history", "small")
    assert "not pinned any more" in tiltyard(capsys, "unpin", "small@gold")
    assert "still there" in tiltyard(capsys, "tag", "small", "gold", "--remove")
    assert "has no tag 'gold'; its tags: none" in tiltyard(capsys, "show", "small@gold", code=1)


def test_gc_looks_first_then_removes_and_the_history_says_why(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiltyard(capsys, "tag", "small@1", "gold")
    said = tiltyard(capsys, "gc", "small")
    assert "would remove small@2: nothing needs it" in said
    assert "keeps   small@1: tag gold" in said
    assert "Nothing was changed; to do it: tiltyard data gc small --yes" in said
    assert [v.version for v in store(committed).history("small")] == [1, 2, 3, 4]
    assert "removed small@3" in tiltyard(capsys, "gc", "small", "--yes", "--reason", "room")
    assert [v.version for v in store(committed).history("small")] == [1, 4]
    told = tiltyard(capsys, "show", "small@2", code=1)
    assert "small@2 was removed on" in told
    assert ": room. The newest version is small@4" in told
    assert "removed" in tiltyard(capsys, "history", "small")
    gone = [h for h in json.loads(tiltyard(capsys, "history", "small", "--json")) if h.get("gone")]
    assert [(g["version"], g["reason"]) for g in gone] == [(3, "room"), (2, "room")]
    assert "Freed 0 B" in tiltyard(capsys, "gc", "small", "--yes")
    with Journal.open(Settings.from_env().journal_uri) as journal:
        (decided,) = journal.decisions(kind="data removal")
    assert (decided.subject, decided.evidence) == ("small", {"versions": [2, 3]})


@pytest.mark.slow
def test_models_and_sweeps_keep_their_versions_and_deletion_lists_the_models(
    committed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = small_bundle(committed / "bundle", seed=1)  # its lineage names small@1
    ModelRegistry(Settings.from_env()).register("sweep.small", made.folder, score="validation_score")
    with Journal.open(Settings.from_env().journal_uri) as journal:
        owner = Owner(host="elsewhere", pid=1, started=1.0)
        claim = journal.claim("k" * 64, experiment="night", spec="{}", owner=owner)
        row = TrialRow(
            cell="c", key="k" * 64, group="g", index=0, variant="v", model="mlp", dataset="small", dataset_version=2,
            config={}, seed=0, data_seed=0,
        )  # fmt: skip
        journal.add_trials(claim, [row])
        for key, of in (("e" * 64, "small@3"), ("f" * 64, "other@1")):  # small@3 will be gone, its answers are not
            work = journal.works.claim(
                key, kind="evaluation", subject="m", about={"dataset": of, "model": "m@1"}, owner=owner, lease_s=60
            )
            answers = pa.table({"id": np.arange(80), rows.ROW: np.arange(80)})
            keeper = Keeper(Place.of(Settings.from_env().storage_uri) / FOLDER / key / f"{work.fence:04d}")
            keeper.add(answers, np.zeros((80, 2), np.float32), ["id"])
    said = tiltyard(capsys, "gc", "small", "--yes")
    assert "keeps   small@1: model sweep.small version 1" in said
    assert "keeps   small@2: sweep night, which is not done" in said
    assert "removed small@3" in said
    shown = tiltyard(capsys, "delete", "small", "--key", 17, "--key", 18)
    assert "rows whose 'id' is 17 or 18." in shown
    assert "Evaluations keep 2 answers to such rows" in shown
    assert "Nothing was deleted." in shown
    said = tiltyard(capsys, "delete", "small", "--key", 17, "--key", 18, "--reason", "asked to", "--yes")
    assert "small@1 held 2 such rows and is gone; small@5 took its place." in said
    assert "small@2 held 2 such rows and is gone." in said
    assert "  model sweep.small version 1" in said
    assert "Took 2 answers to such rows and 0 labels of them out of what evaluations kept." in said
    assert (
        "An evaluation runs and may yet keep answers to such rows; when it ended, delete again: m@1 on small@3" in said
    )
    folders = [Place.of(Settings.from_env().storage_uri) / FOLDER / key / "0001" for key in ("e" * 64, "f" * 64)]
    assert [p.num_rows for folder in folders for p in Kept(folder).parts()] == [78, 80]
    assert "small@1 was deleted" in tiltyard(capsys, "show", "small@1", code=1)
    found = store(committed)
    assert [(v.version, v.num_rows) for v in found.history("small")] == [(5, 58), (6, 88)]
    assert found.tombstones("small")[1].models == ("model sweep.small version 1",)
    with Journal.open(Settings.from_env().journal_uri) as journal:
        (decided,) = journal.decisions(kind="data deletion")
    assert decided.evidence["versions"] == [1, 2, 4]
    assert "17" not in json.dumps(decided.evidence)
    assert "Every byte is as it was written" in tiltyard(capsys, "verify", "small")


def test_delete_of_nobody_is_an_error_and_changes_nothing(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = tiltyard(capsys, "delete", "small", "--key", 999, code=1)
    assert "nothing was deleted" in said
    assert len(store(committed).history("small")) == 4


def test_verify_names_the_changed_file_and_ends_with_one(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiltyard(capsys, "commit", "other", committed / "60.csv", *OPTIONS)
    assert "Every byte is as it was written: 5 versions" in tiltyard(capsys, "verify")
    version = store(committed).resolve("small@2")
    file = Path(version.uri) / version.files[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    said = tiltyard(capsys, "verify", code=1)
    assert f"small@2: table/{version.files[0].path}: has changed" in said
    assert "1 wrong in 5 versions" in said
    assert "Every byte" in tiltyard(capsys, "verify", "small@1")
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "verify", "small@2", "--json"])
    assert left.value.code == 1
    assert len(json.loads(capsys.readouterr().out)["findings"]) == 1


def test_card_and_export_give_what_people_read(committed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tiltyard(capsys, "card", "small@1")
    assert card.startswith("<!-- tiltyard dataset card")
    assert "- no children" in card
    assert "- no children" in tiltyard(capsys, "card", "small")  # kept from version to version
    assert card == (committed / "home" / "data" / "small" / "versions" / "00000001.md").read_text()
    said = tiltyard(capsys, "export", "small@1", committed / "out", "--format", "csv")
    assert "README.md, _dataset.json, test.csv, train.csv, validation.csv" in said
    assert (committed / "out" / "README.md").read_text() == card
    assert "not empty" in tiltyard(capsys, "export", "small@1", committed / "out", code=1)
    assert "no export format" in tiltyard(capsys, "export", "small", committed / "x", "--format", "xls", code=1)
