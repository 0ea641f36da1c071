"""Evaluates models on the dataset versions they have not met: streamed through Ray Serve, folded as the answers come.

Rows are read by Ray Data in the order of their hashes, sent as large Arrow batches to replicas kept for evaluation, with a
bounded number of requests in flight; what comes back is folded (`folding`) and kept (`kept`). Never more than those batches
is in memory, but for the hashes of a training split where rows are asked for that are ``new`` (8 bytes each).

Each model version on each dataset version is one *work* of the journal: predicted once, however often and however
concurrently it is started. A process that is killed leaves a claim that the next one takes over and a folder that nobody
refers to; every row is counted once in the result. The first work of a model is its own training version: what later
versions are held against, its scores and its predictions.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from tiltyard.data import rows
from tiltyard.data.places import Place
from tiltyard.data.profile import ColumnProfile
from tiltyard.data.store import DatasetStore
from tiltyard.data.versions import SPLITS, DatasetVersion
from tiltyard.errors import DataError, ServingError, SpecError, TiltyardError
from tiltyard.evaluation.folding import Evaluated, Folding
from tiltyard.evaluation.kept import Joined, Keeper, Kept
from tiltyard.evaluation.late import compare_anew
from tiltyard.evaluation.mlflow_log import log_to_mlflow
from tiltyard.evaluation.pairs import Done, Pair, plan, trained_on
from tiltyard.evaluation.reading import blocks
from tiltyard.evaluation.scores import Scored
from tiltyard.evaluation.spec import Evaluation
from tiltyard.journal import Journal, Owner, WorkClaim
from tiltyard.progress import work
from tiltyard.registry.bundle import Bundle, read_bundle
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import ModelVersion
from tiltyard.serving.client import (
    IN_FLIGHT,
    connect,
    deploy,
    disconnect,
    end_if_unused,
    remove,
    stream_rows_through_all,
)
from tiltyard.serving.deployment import evaluation_app
from tiltyard.settings import Settings

KIND = "evaluation"
ASKED = {"test": ("test",), "held-out": ("validation", "test")}
"""Splits whose rows are asked about; all of them for other choices of rows."""
RENEW_S = 20.0
LEASE_S = 120.0
Say = Callable[[str], None]


def evaluate(
    settings: Settings, spec: Evaluation, *, say: Say = lambda _: None, in_flight: int = IN_FLIGHT
) -> list[Done]:
    """Evaluates every pair that has not been evaluated yet; those that have are answered from the journal.

    Args:
        settings: Where things live.
        spec: What to evaluate.
        say: Told what is being done, line by line.
        in_flight: Requests under way at a time.

    Raises:
        TiltyardError: If there is no such model or dataset, or a slice cannot be made.
    """
    store, registry = DatasetStore(settings.data_uri), ModelRegistry(settings)
    with Journal.open(settings.journal_uri) as journal:
        champion, planned = plan(spec, store, registry)
        runner = _Runner(settings, spec, store, registry, journal, say, in_flight, champion)
        done = runner.run(planned)
        log_to_mlflow(settings, journal, [d.pair for d in done if d.result is not None], say)
        return done


def _row_bytes(schema: Mapping[str, str], columns: Sequence[str]) -> int:
    """What a row takes in memory, about: 12 bytes for a text."""
    kinds = [rows.type_of(schema[c]) for c in columns]
    return 8 + sum(12 if pa.types.is_string(k) or pa.types.is_binary(k) else max(1, k.bit_width // 8) for k in kinds)


@dataclass(slots=True)
class _Seat:
    """A model in a stream: its pair, its claim, its folds."""

    pair: Pair
    claim: WorkClaim
    folding: Folding
    keeper: Keeper
    against: str = ""
    champion: Kept | Joined | None = None
    leader: int | None = None
    """Place of the champion in the same stream."""
    seconds: float = 0.0


@dataclass(slots=True)
class _Runner:
    settings: Settings
    spec: Evaluation
    store: DatasetStore
    registry: ModelRegistry
    journal: Journal
    say: Say
    in_flight: int
    champion: ModelVersion
    _bundles: dict[str, Bundle] = field(default_factory=dict)
    _started: bool = False
    _app: str = ""
    _app_was_served: bool = False
    _handle: Any = None
    _served: tuple[str, ...] = ()
    _wanted: tuple[str, ...] = ()

    def run(self, groups: list[list[Pair]]) -> list[Done]:
        done: list[Done] = []
        works = {p.key: self.journal.works.get(p.key) for group in groups for p in group}
        open_pairs = [p for group in groups for p in group if (w := works[p.key]) is None or w.state != "finished"]
        self._wanted = tuple(dict.fromkeys(str(p.address) for p in open_pairs))
        try:
            for group in groups:
                done += self._group(group)
        finally:
            self._unserve()
            if self._app_was_served:
                with contextlib.suppress(Exception):  # as in `_unserve`
                    end_if_unused()
            if self._started:
                disconnect()
        return done

    def _unserve(self) -> None:
        """Ends the application; one that is gone already is gone."""
        if self._app:
            with contextlib.suppress(Exception):
                remove(self._app)
        self._app, self._served, self._handle = "", (), None

    # -- one dataset version ---------------------------------------------------------------------------------------------

    def _group(self, pairs: Sequence[Pair]) -> list[Done]:
        found, claimed = {}, {}
        for pair in pairs:
            claim = self.journal.works.claim(
                pair.key,
                kind=KIND,
                subject=pair.model.name,
                about=pair.about,
                owner=Owner.here(),
                lease_s=LEASE_S,
            )
            if claim.is_ours:
                claimed[pair.key] = claim
            else:
                found[pair.key] = self._answered(pair, claim)
        try:
            found |= self._claimed(pairs, claimed)
        except BaseException as error:
            for key, claim in claimed.items():
                if key not in found:
                    self.journal.works.fail(claim, f"{type(error).__name__}: {error}")
            if not isinstance(error, TiltyardError | ray.exceptions.RayError):
                raise
            if isinstance(error, ray.exceptions.RayError | ServingError):
                self._unserve()  # the replicas died, and their successors, or Serve did: the next version gets new ones
            for pair in pairs:
                found.setdefault(pair.key, Done(pair=pair, outcome="failed", reason=str(error)))
        return [self._compared(found[p.key], found[pairs[0].key]) for p in pairs]

    def _compared(self, done: Done, champion: Done) -> Done:
        """A result that was not compared with today's champion, compared with it from the kept answers."""
        if champion.pair.model != self.champion or done.pair == champion.pair:
            return done
        if done.result is None or champion.result is None or done.result.against == champion.result.name:
            return done
        profiles = self._profiles(done.pair)
        after = compare_anew(self.journal, done.pair.key, champion.result, spec=self.spec, profiles=profiles)
        return done if after is None else replace(done, result=after)

    def _answered(self, pair: Pair, claim: WorkClaim) -> Done:
        if claim.outcome == "held":
            holder = claim.holder
            who = f"process {holder.pid} on {holder.host}" if holder else "another process"
            return Done(pair=pair, outcome="held", reason=f"{who} works on it")
        return Done(pair=pair, outcome="finished", result=self._result(pair))

    def _result(self, pair: Pair) -> Evaluated | None:
        results = self.journal.works.results(pair.key)
        return Evaluated.from_json(results[-1].result) if results else None

    def _claimed(self, pairs: Sequence[Pair], claims: Mapping[str, WorkClaim]) -> dict[str, Done]:
        """Predicts and records the claimed pairs of one version; those that cannot be predicted are recorded as such."""
        found: dict[str, Done] = {}
        seats: list[_Seat] = []
        for pair in pairs:
            if pair.key not in claims:
                continue
            if problem := self._problem(pair):
                found[pair.key] = self._finish(pair, claims[pair.key], self._refused(pair, problem))
                continue
            seats.append(self._seat(pair, claims[pair.key]))
        if not seats:
            return found
        self._oppose(pairs, seats)
        version = seats[0].pair.version
        self.say(f"{version.ref}: {', '.join(str(s.pair.address) for s in seats)}")
        begun = time.monotonic()
        self._stream(version, seats)
        for seat in seats:
            fields = seat.folding.done(
                alpha=self.spec.alpha, least_effect=self.spec.least_effect, schema=version.schema
            )
            result = Evaluated(
                model=seat.pair.model.name,
                model_version=seat.pair.model.version,
                dataset=version.name,
                dataset_version=version.version,
                metric=seat.folding.metric,
                rows=seat.pair.rows,
                against=seat.against if fields["paired"] is not None else "",
                predictions=seat.keeper.folder.uri,
                seconds=round(time.monotonic() - begun, 3),
                task=seat.folding.task,
                classes=seat.folding.classes,
                labels=seat.folding.labels,
                keys=self._keys(version),
                spec=self.spec.to_json(),
                **fields,
            )
            found[seat.pair.key] = self._finish(seat.pair, seat.claim, result)
        return found

    def _finish(self, pair: Pair, claim: WorkClaim, result: Evaluated) -> Done:
        self.journal.works.finish(claim, result.to_json(), cause="evaluated")
        return Done(pair=pair, outcome="new", result=result)

    def _bundle(self, pair: Pair) -> Bundle:
        digest = pair.model.digest
        if digest not in self._bundles:
            self._bundles[digest] = read_bundle(self.registry.fetch(pair.model), expect_digest=digest)
        return self._bundles[digest]

    def _problem(self, pair: Pair) -> str:
        """Why the model cannot answer for this version; empty where it can."""
        inputs = {c.name: c for c in self._bundle(pair).preprocessor.columns}
        kinds = {n: t for n, t in pair.version.schema.items() if n in inputs}
        gone = [n for n in inputs if n not in kinds]
        if gone:
            return f"{pair.version.ref} lacks columns that the model needs: {', '.join(gone)}"
        other = [
            f"{n} is {kinds[n]} now and was {c.type}"
            for n, c in inputs.items()
            if (c.kind == "category") != (kinds[n] == "string") or (c.kind == "tensor") != ("[" in kinds[n])
        ]
        return f"{pair.version.ref} has columns of another kind: {'; '.join(other)}" if other else ""

    def _refused(self, pair: Pair, problem: str) -> Evaluated:
        self.say(f"{pair.address}: {problem}")
        empty = Scored(rows=0, labelled=0)
        refused = Evaluated(
            model=pair.model.name,
            model_version=pair.model.version,
            dataset=pair.version.name,
            dataset_version=pair.version.version,
            metric=self._metric(pair),
            rows=pair.rows,
            scored=empty,
            problem=problem,
        )
        profiles = self._profiles(pair)
        references = {n: p for n, p in profiles.items() if n in self._bundle(pair).preprocessor.features}
        if not references:
            return refused
        fold = Folding(
            task=self._bundle(pair).spec.task,
            classes=self._bundle(pair).spec.classes,
            labels=(),
            metric=refused.metric,
            profiles={},
            references=references,
        )
        fields = fold.done(alpha=self.spec.alpha, least_effect=self.spec.least_effect, schema=pair.version.schema)
        return replace(refused, drift=fields["drift"])

    # -- a model's seat ---------------------------------------------------------------------------------------------------

    def _metric(self, pair: Pair) -> str:
        """What the model was chosen by, unless the spec says otherwise."""
        if self.spec.metric is not None:
            return self.spec.metric
        score = pair.model.score
        if score is None:
            raise SpecError(f"{pair.address} was registered without a score; say what counts: Evaluation(metric=...).")
        return score[0].removeprefix("validation_")

    def _profiles(self, pair: Pair) -> dict[str, ColumnProfile]:
        """Of the training split; empty where its version is gone."""
        own = trained_on(self.store, pair.model)
        if own is None:
            return {}
        splits = self.store.profile(own).splits
        return dict(splits["train"].columns) if "train" in splits else {}

    def _seat(self, pair: Pair, claim: WorkClaim) -> _Seat:
        bundle, profiles = self._bundle(pair), self._profiles(pair)
        labels = self.spec.labels or bundle.preprocessor.labels
        wanted = [*bundle.preprocessor.features, *(n for n in labels if n in pair.version.schema)]
        references = {n: profiles[n] for n in wanted if n in profiles}
        references |= self._baseline(pair)
        classes = bundle.spec.classes
        positive = classes.index(self.spec.positive) if self.spec.positive in classes else len(classes) - 1
        folding = Folding(
            task=bundle.spec.task,
            classes=classes,
            labels=labels,
            metric=self._metric(pair),
            slices=self.spec.slices if profiles else (),
            sensitive=self.spec.sensitive,
            positive=positive,
            profiles=profiles,
            references=references,
        )
        folder = Place.of(self.settings.storage_uri) / "evaluations" / pair.key / f"{claim.fence:04d}"
        return _Seat(pair=pair, claim=claim, folding=folding, keeper=Keeper(folder))

    def _baseline(self, pair: Pair) -> dict[str, ColumnProfile]:
        """What the model predicted on the test split of its own version."""
        own = trained_on(self.store, pair.model)
        if own is None:
            return {}
        baseline = Pair(model=pair.model, version=own, rows="test")
        result = self._result(baseline) if baseline.key != pair.key else None
        return dict(result.shapes) if result is not None else {}

    def _oppose(self, pairs: Sequence[Pair], seats: list[_Seat]) -> None:
        """Gives every challenger the champion's answers to the same rows: of this stream, or kept from an earlier one."""
        champion = pairs[0]
        if len(pairs) < 2 or champion.model != self.champion:
            return
        leader = next((i for i, s in enumerate(seats) if s.pair.key == champion.key), None)
        earlier = None if leader is not None else self._result(champion)
        for seat in seats:
            if (
                seat.pair.key == champion.key
                or self._bundle(seat.pair).spec.classes != self._bundle(champion).spec.classes
            ):
                continue
            seat.against = str(champion.address)
            seat.leader = leader
            if earlier is not None and earlier.predictions:
                # rows that are new to one model need not be new to the other
                by = Joined if champion.rows == "new" else Kept
                seat.champion = by(Place.of(earlier.predictions))

    # -- the stream -------------------------------------------------------------------------------------------------------

    def _serve(self, names: Sequence[str], claim: WorkClaim) -> Any:
        """The handle of an application that serves these versions: one for the run, with every model that it will need."""
        if self._handle is not None and set(names) <= set(self._served):
            return self._handle
        self._unserve()
        self._started = connect() or self._started
        self._app = f"evaluate-{claim.key[:12]}"  # a killed process's is replaced by who takes its work over
        served = tuple(dict.fromkeys([*self._wanted, *names]))
        self._app_was_served = True
        with work(f"start replicas of {', '.join(served)}"):
            self._handle = deploy(evaluation_app(list(served), self.settings), name=self._app)
        self._served = served
        return self._handle

    def _stream(self, version: DatasetVersion, seats: list[_Seat]) -> None:
        handle = self._serve([str(s.pair.address) for s in seats], seats[0].claim)
        inputs = list(dict.fromkeys(c for s in seats for c in self._bundle(s.pair).preprocessor.features))
        kept = [
            c
            for c in dict.fromkeys(
                [
                    *(n for s in seats for n in s.folding.labels),
                    *self._keys(version),
                    *(s.column for s in self.spec.slices),
                ]
            )
            if c in version.schema
        ]
        columns = list(dict.fromkeys([*inputs, *kept]))
        waiting: deque[Any] = deque()
        renewed = time.monotonic()

        def tables() -> Iterator[Any]:
            for table in self._rows(version, seats, columns):
                waiting.append(table)
                yield table

        names = [str(s.pair.address) for s in seats]
        which = seats[0].pair.rows
        total = None if which == "new" else sum(version.split_rows.get(s, 0) for s in ASKED.get(which, SPLITS))
        with work(f"evaluate {', '.join(names)} on {version.ref}", total=total, unit="rows") as doing:
            for answers in stream_rows_through_all(handle, names, tables(), in_flight=self.in_flight):
                table = ray.get(waiting.popleft())
                self._take(table, [a.outputs for a in answers], seats, kept)
                doing.advance(table.num_rows)
                if time.monotonic() - renewed > RENEW_S:
                    for seat in seats:
                        self.journal.works.renew(seat.claim)
                    renewed = time.monotonic()

    def _keys(self, version: DatasetVersion) -> tuple[str, ...]:
        return self.spec.keys or version.spec.keys

    def _rows(self, version: DatasetVersion, seats: Sequence[_Seat], columns: Sequence[str]) -> Iterator[Any]:
        """References to the rows that are asked about, in order; without those a model was trained on, where asked for."""
        which = seats[0].pair.rows
        splits = ASKED.get(which, SPLITS)
        files = [f for s in splits for f in version.files if f.split == s]
        if not files:
            raise DataError(
                f"{version.ref} has no rows to evaluate on ({which}: {', '.join(splits)}). Ask for others: rows='new'."
            )
        seen = self._trained_rows(seats) if which == "new" else None
        root = Place.of(version.uri, self.store.storage_options)
        yield from blocks(
            root,
            files,
            columns,
            batch_rows=self.spec.batch_rows,
            row_bytes=_row_bytes(version.schema, columns),
            seen=seen,
        )

    def _trained_rows(self, seats: Sequence[_Seat]) -> npt.NDArray[np.int64]:
        """Hashes of the rows that any of the models was trained on, ascending."""
        parts = [np.empty(0, np.int64)]
        for model in {s.pair.address: s.pair.model for s in seats}.values():
            own = trained_on(self.store, model)
            if own is None:
                raise DataError(
                    f"{model.name}@{model.version} was trained on {model.lineage.dataset}@{model.lineage.dataset_version}, which "
                    "is not there any more, so nothing says which rows are new to it. Ask for others: rows='test'."
                )
            parts.append(self.store.read_hashes(own, "train"))
        return np.unique(np.concatenate(parts))

    def _take(
        self, table: pa.Table, outputs: Sequence[npt.NDArray[Any]], seats: Sequence[_Seat], kept: Sequence[str]
    ) -> None:
        """Folds and keeps one batch of answers."""
        labels = []
        for seat, out in zip(seats, outputs, strict=True):
            labels.append(seat.folding.add(table, out))
            seat.keeper.add(table, out, kept)
        for seat, out, y in zip(seats, outputs, labels, strict=True):
            if seat.leader is not None:
                seat.folding.add_pair(outputs[seat.leader], out, y)
            elif seat.champion is not None:
                seat.folding.add_pair(seat.champion.take(table[rows.ROW].to_numpy()), out, y)
