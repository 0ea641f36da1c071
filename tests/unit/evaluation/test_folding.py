"""Everything of one model on one version, folded; kept answers read again; labels joined late."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.data.profile import profile
from tiltyard.errors import DataError, SpecError
from tiltyard.evaluation.erasure import Whose, forget
from tiltyard.evaluation.folding import Evaluated, Folding, prediction_table
from tiltyard.evaluation.kept import FOLDER, Joined, Keeper, Kept
from tiltyard.evaluation.late import attach_labels, compare_anew, rescored
from tiltyard.evaluation.slices import Slice
from tiltyard.evaluation.spec import Evaluation, work_key
from tiltyard.journal import Journal, Owner
from tiltyard.types import Task

RNG = np.random.default_rng(2)
ROWS = 300
Y = RNG.integers(0, 2, ROWS)
OUT = (np.eye(2)[Y] + RNG.normal(size=(ROWS, 2))).astype(np.float32)
BETTER = (2 * np.eye(2)[Y] + RNG.normal(size=(ROWS, 2))).astype(np.float32)
TABLE = pa.table(
    {
        "x": pa.array(RNG.normal(size=ROWS)),
        "sex": pa.array(RNG.choice(["a", "b"], ROWS)),
        "id": pa.array(np.arange(ROWS)),
        "label": pa.array(np.array(["no", "yes"])[Y]),
        rows.ROW: pa.array(np.arange(ROWS) * 7 - 900),
    }
)
PROFILES = dict(profile(TABLE).columns)
SPEC = Evaluation(dataset="d", models=("m@1", "m@2"), metric="accuracy", sensitive=("sex",), keys=("id",))


def folded(table: pa.Table, out: np.ndarray, *, champion: np.ndarray | None = None, folder: Place) -> Evaluated:
    fold = Folding(
        task=Task.BINARY,
        classes=("no", "yes"),
        labels=("label",),
        metric="accuracy",
        slices=SPEC.slices,
        sensitive=SPEC.sensitive,
        profiles=PROFILES,
        references={n: PROFILES[n] for n in ("x", "label")},
    )
    keeper = Keeper(folder)
    for start in range(0, ROWS, 70):
        part = table.slice(start, 70)
        y = fold.add(part, out[start : start + 70])
        if champion is not None:
            fold.add_pair(champion[start : start + 70], out[start : start + 70], y)
        keeper.add(part, out[start : start + 70], ["label", "id", "sex"])
    return Evaluated(
        model="m",
        model_version=2,
        dataset="d",
        dataset_version=4,
        metric="accuracy",
        rows="test",
        predictions=folder.uri,
        task=Task.BINARY,
        classes=("no", "yes"),
        labels=("label",),
        keys=("id",),
        against="m@1" if champion is not None else "",
        **fold.done(alpha=0.05, least_effect=0.01, schema={"x": "float64", "label": "string"}),
    )


def test_result_as_json_comes_back_equal(tmp_path: Path) -> None:
    result = folded(TABLE, BETTER, champion=OUT, folder=Place.of(str(tmp_path)))
    assert Evaluated.from_json(json.loads(json.dumps(result.to_json()))).to_json() == result.to_json()
    assert result.paired is not None
    assert result.paired.difference > 0
    assert result.fairness[0]["column"] == "sex"
    assert result.drift is not None
    assert result.drift.drifted == ()
    assert not result.drift.has_schema_change


@pytest.mark.parametrize(
    ("task", "classes", "names"),
    [
        (Task.BINARY, ("no", "yes"), ["(prediction)", "(confidence)"]),
        (Task.REGRESSION, ("t",), ["(prediction)"]),
        (Task.MULTILABEL, ("a", "b"), ["(prediction)a", "(prediction)b"]),
    ],
)
def test_predictions_of_every_task_have_columns_that_can_be_profiled(
    task: Task, classes: tuple[str, ...], names: list[str]
) -> None:
    found = prediction_table(task, classes, OUT[:, : len(classes)])
    assert found.column_names == names
    assert all(c.categories or c.edges for c in profile(found).columns.values())


def test_kept_answers_are_read_again_in_any_cut_and_refused_for_other_rows(tmp_path: Path) -> None:
    folder = Place.of(str(tmp_path))
    folded(TABLE, OUT, folder=folder)
    hashes = TABLE[rows.ROW].to_numpy()
    kept = Kept(folder)
    found = [kept.take(hashes[a:b]) for a, b in ((0, 1), (1, 200), (200, ROWS))]
    assert np.array_equal(np.concatenate(found), OUT)
    with pytest.raises(DataError, match="other rows"):
        Kept(folder).take(hashes[5:10])
    joined = Joined(folder).take(np.array([hashes[9], 12_345, hashes[0]]))
    assert np.array_equal(joined[[0, 2]], OUT[[9, 0]])
    assert np.isnan(joined[1]).all()
    with pytest.raises(DataError, match="no kept answers"):
        Kept(folder / "nothing").take(hashes)


def test_late_labels_are_joined_once_each_and_the_record_keeps_what_was(tmp_path: Path) -> None:
    bare = TABLE.set_column(3, "label", pa.array([None] * ROWS, pa.string()))
    result = folded(bare, OUT, folder=Place.of(str(tmp_path / "a")))
    champion = folded(TABLE, BETTER, folder=Place.of(str(tmp_path / "b")))
    assert (result.scored.labelled, result.scored.rows) == (0, ROWS)
    labels = TABLE.select(["id", "label"])
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        claim = journal.works.claim("k", kind="evaluation", subject="m", about={}, owner=Owner.here())
        with pytest.raises(DataError, match="no result yet"):
            attach_labels(journal, "k", labels, spec=SPEC, profiles=PROFILES)
        journal.works.finish(claim, result.to_json(), cause="evaluated")
        half = attach_labels(journal, "k", labels.slice(0, 100), spec=SPEC, profiles=PROFILES)
        whole = attach_labels(journal, "k", labels.slice(100), spec=SPEC, profiles=PROFILES, champion=champion)
        assert half is not None
        assert whole is not None
        assert half.scored.labelled == 100
        assert whole.scored.labelled == ROWS  # the labels of the first set are still there
        assert whole.scored.confusion == folded(TABLE, OUT, folder=Place.of(str(tmp_path / "c"))).scored.confusion
        assert whole.paired is not None
        assert whole.paired.rows == ROWS
        assert whole.paired.difference < 0
        assert whole.drift is not None
        assert whole.drift.column("label") is not None
        assert attach_labels(journal, "k", labels.slice(100), spec=SPEC, profiles=PROFILES) is None
        assert [r.revision for r in journal.works.results("k")] == [1, 2, 3]
        again = compare_anew(journal, "k", replace(champion, model_version=9), spec=SPEC, profiles=PROFILES)
        assert again is not None
        assert again.scored == whole.scored
        with pytest.raises(DataError, match="no column 'label'"):
            attach_labels(journal, "k", labels.select(["id"]), spec=SPEC, profiles=PROFILES)
        with pytest.raises(DataError, match="1 labels have a key"):
            attach_labels(journal, "k", pa.concat_tables([labels, labels.slice(0, 1)]), spec=SPEC, profiles=PROFILES)


def test_another_champion_is_compared_with_from_kept_answers(tmp_path: Path) -> None:
    result = folded(TABLE, OUT, champion=BETTER, folder=Place.of(str(tmp_path / "a")))
    other = replace(folded(TABLE, OUT, folder=Place.of(str(tmp_path / "b"))), model_version=3)
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as journal:
        claim = journal.works.claim("k", kind="evaluation", subject="m", about={}, owner=Owner.here())
        journal.works.finish(claim, result.to_json(), cause="evaluated")
        after = compare_anew(journal, "k", other, spec=SPEC, profiles=PROFILES)
        assert after is not None
        assert after.against == "m@3"
        assert after.paired is not None
        assert (after.paired.won, after.paired.lost) == (0, 0)
        assert after.scored == result.scored
        assert compare_anew(journal, "k", other, spec=SPEC, profiles=PROFILES) is None


def test_result_is_revised_after_a_persons_answers_went_a_whole_part_of_them(tmp_path: Path) -> None:
    folder = Place.of(str(tmp_path)) / FOLDER / "k" / "0001"
    result = folded(TABLE, OUT, folder=folder)
    gone = Whose(hashes=TABLE[rows.ROW].to_numpy()[60:150], column="id", values=())  # parts are of 70 rows
    assert forget(Place.of(str(tmp_path)), ["k"], gone).answers == 90
    assert rescored(result, spec=SPEC, profiles=PROFILES).scored.rows == ROWS - 90


def test_spec_reads_texts_and_json_and_refuses_what_cannot_be() -> None:
    assert SPEC.slices == (Slice(column="sex"),)
    assert Evaluation.from_json(json.loads(json.dumps(SPEC.to_json()))) == SPEC
    for wrong in ({"models": ()}, {"rows": "some"}, {"metric": "luck"}, {"versions": "old"}, {"alpha": 0.0}):
        with pytest.raises(SpecError):
            Evaluation.from_json({"dataset": "d", "models": ["m"], **wrong})
    with pytest.raises(SpecError, match="no field 'modles'"):
        Evaluation.from_json({"dataset": "d", "modles": []})
    keys = {
        work_key(model=m, digest="d", dataset="s", version=v, content_digest="c", rows=r)
        for m in ("a", "b")
        for v in (1, 2)
        for r in ("test", "all")
    }
    assert len(keys) == 8
