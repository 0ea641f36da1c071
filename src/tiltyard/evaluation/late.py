"""Labels that come after the predictions, and champions that come after the challengers: results revised from kept answers.

No model is asked again. Labels are joined by key; each set of labels makes one revision, however often it is given. The
scores before stay in the journal as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.data.profile import ColumnProfile
from tiltyard.errors import DataError
from tiltyard.evaluation.drift import DriftFold
from tiltyard.evaluation.folding import Evaluated, Folding
from tiltyard.evaluation.kept import Joined, Kept, keep_labels, kept_labels, outputs_of
from tiltyard.evaluation.spec import Evaluation
from tiltyard.journal import Journal, WorkResult

RETRIES = 20
_LABELS = "labels "
"""Begins the cause of a revision that labels made; the name under which they are kept follows."""


def attach_labels(
    journal: Journal,
    key: str,
    labels: pa.Table,
    *,
    spec: Evaluation,
    profiles: Mapping[str, ColumnProfile],
    champion: Evaluated | None = None,
) -> Evaluated | None:
    """Joins labels to a finished evaluation and appends the revised scores; None where these labels were there already.

    Args:
        journal: Where the evaluation is recorded.
        key: Of its work.
        labels: Key columns and label columns; one row a key.
        spec: What is to be computed.
        profiles: Of the training split.
        champion: The champion's result on the same version, to compare with.

    Raises:
        DataError: If a column is missing, or a key stands twice.
    """
    for _ in range(RETRIES):
        results = journal.works.results(key)
        if not results:
            raise DataError(
                f"Evaluation {key[:16]} has no result yet, so labels cannot be joined to it. Evaluate first."
            )
        before = Evaluated.from_json(results[-1].result)
        keys = spec.keys or before.keys
        new = _Labels(labels, keys=keys, names=before.labels)
        name = table_digest(new.table)[:16]
        cause = f"{_LABELS}{name}"
        if any(r.cause == cause for r in results):
            return None
        keep_labels(Place.of(before.predictions), name, new.table)
        earlier = _earlier(before, results, keys)
        after = rescored(before, spec=spec, profiles=profiles, champion=champion, labels=[*earlier, new])
        if journal.works.revise(key, after.to_json(), cause=cause, after=results[-1].revision) is not None:
            return after
    raise DataError(f"Evaluation {key[:16]} was revised by others {RETRIES} times meanwhile. Try again.")


def compare_anew(
    journal: Journal,
    key: str,
    champion: Evaluated,
    *,
    spec: Evaluation,
    profiles: Mapping[str, ColumnProfile],
) -> Evaluated | None:
    """Compares a finished evaluation with a champion that it was not compared with; None where there is nothing to do."""
    for _ in range(RETRIES):
        results = journal.works.results(key)
        before = Evaluated.from_json(results[-1].result)
        same = before.classes == champion.classes and before.task == champion.task
        if before.against == champion.name or not before.predictions or not champion.predictions or not same:
            return None
        labels = _earlier(before, results, spec.keys or before.keys)
        after = rescored(before, spec=spec, profiles=profiles, champion=champion, labels=labels)
        if after.paired is None:
            return None
        cause = f"compared with {champion.name}"
        if journal.works.revise(key, after.to_json(), cause=cause, after=results[-1].revision) is not None:
            return after
    return None


def rescored(
    before: Evaluated,
    *,
    spec: Evaluation,
    profiles: Mapping[str, ColumnProfile],
    champion: Evaluated | None = None,
    labels: Sequence[_Labels] = (),
) -> Evaluated:
    """A result computed anew from the kept answers: scores, slices, fairness, and the comparison with the champion.

    Drift of inputs and predictions stays as it was; that of the label is added where there are labels now.
    """
    assert before.task is not None
    places = [i for i, c in enumerate(before.classes) if c == spec.positive]
    folding = Folding(
        task=before.task,
        classes=before.classes,
        labels=before.labels,
        metric=before.metric,
        slices=spec.slices if profiles else (),
        sensitive=spec.sensitive,
        positive=places[0] if places else len(before.classes) - 1,
        profiles=profiles,
        references={},
    )
    drift = DriftFold({n: profiles[n] for n in before.labels if n in profiles})
    opponent = Joined(Place.of(champion.predictions)) if champion is not None and champion.predictions else None
    for part in Kept(Place.of(before.predictions)).parts():
        table = part
        for joined in labels:
            table = joined.onto(table)
        outputs = outputs_of(part)
        y = folding.add(table, outputs)
        drift.add(table.select([n for n in before.labels if n in table.column_names]).filter(_labelled(y)))
        if opponent is not None:
            folding.add_pair(opponent.take(part[rows.ROW].to_numpy()), outputs, y)
    fields = folding.done(alpha=spec.alpha, least_effect=spec.least_effect)
    report = before.drift
    if report is not None and labels and drift.rows:
        found = drift.report(alpha=spec.alpha, least_effect=spec.least_effect).columns
        others = [c for c in report.columns if c.column not in {d.column for d in found}]
        report = replace(report, columns=(*found, *others))
    paired = fields["paired"] if fields["paired"] is not None else before.paired
    return replace(
        before,
        scored=fields["scored"],
        slices=fields["slices"],
        fairness=fields["fairness"],
        paired=paired,
        against=champion.name if champion is not None and fields["paired"] is not None else before.against,
        drift=report,
    )


def _earlier(before: Evaluated, results: Sequence[WorkResult], keys: Sequence[str]) -> list[_Labels]:
    """The sets of labels that earlier revisions joined, in their order: a later one has the last word on a key."""
    names = [r.cause.removeprefix(_LABELS) for r in results if r.cause.startswith(_LABELS)]
    folder = Place.of(before.predictions)
    return [_Labels(kept_labels(folder, n), keys=keys, names=before.labels) for n in names]


def _labelled(y: Any) -> pa.Array:
    """Which rows have a label."""
    return pa.array(y != -1 if y.ndim == 1 else ~np.isnan(y).any(axis=1))


def table_digest(table: pa.Table) -> str:
    """Digest of a small table's rows, whatever their order and that of the columns; hex."""
    row_hash, second = rows.row_lanes(rows.canonical(table))
    return hashlib.sha256(rows.sum_rows(row_hash, second).encode()).hexdigest()


class _Labels:
    """Labels by key."""

    def __init__(self, table: pa.Table, *, keys: Sequence[str], names: Sequence[str]) -> None:
        if not keys:
            raise DataError(
                "The evaluated version declares no key, so nothing says which row a label belongs to. Name the columns: "
                "Evaluation(keys=...) or --key."
            )
        if absent := [c for c in (*keys, *names) if c not in table.column_names]:
            raise DataError(
                f"The labels have no column {absent[0]!r}; they have {', '.join(table.column_names[:20])}. Wanted: the key "
                f"columns {', '.join(keys)} and the label columns {', '.join(names)}."
            )
        self._keys, self._names = list(keys), list(names)
        self.table = table.select([*keys, *names])
        distinct = self.table.group_by(self._keys).aggregate([([], "count_all")])
        if twice := table.num_rows - distinct.num_rows:
            raise DataError(f"{twice} labels have a key that stands there already. Give one label a key.")

    def onto(self, part: pa.Table) -> pa.Table:
        """A part of kept answers with these labels; where there is none for a key, the one it had stays.

        Raises:
            DataError: If the key columns are not kept, or of another type.
        """
        import pyarrow.compute as pc

        if absent := [k for k in self._keys if k not in part.column_names]:
            raise DataError(
                f"The answers were kept without the key column {absent[0]!r}: the evaluated version has none of that name, or "
                "it was not declared. Declare the key when committing, or name it when evaluating."
            )
        place = pa.array(range(part.num_rows))
        try:
            found = part.select(self._keys).append_column("(place)", place).join(self.table, self._keys)
        except pa.ArrowInvalid as error:
            raise DataError(
                f"Labels cannot be joined by {', '.join(self._keys)}: {error}. Convert the keys."
            ) from error
        found = found.sort_by("(place)")
        for name in self._names:
            column = found[name]
            if name in part.column_names:
                column = pc.coalesce(column, part[name].cast(column.type))
                part = part.set_column(part.column_names.index(name), name, column)
            else:
                part = part.append_column(name, column)
        return part
