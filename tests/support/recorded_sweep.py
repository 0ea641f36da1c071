"""A sweep in a journal and its storage, as a driver leaves them, without training anything: any number of trials in a second.

Scores follow from the hyperparameters (``lr`` matters most, ``dropout`` a little, ``weight_decay`` not at all), so that what
a report says of them can be held against the truth. Halving is played by the real rules of the leaderboard: of each group
a third goes on at every rung.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.data.profile import profile
from tiltyard.distributions import choice, loguniform, uniform
from tiltyard.evaluation.drift import DriftFold
from tiltyard.evaluation.fairness import fairness
from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.scores import Score, Scored
from tiltyard.evaluation.weaknesses import SliceScore
from tiltyard.experiment import Experiment, Halving, Objective, Search, Variant
from tiltyard.journal import CellScore, Journal, Owner, TrialRow, TrialUpdate
from tiltyard.settings import Settings
from tiltyard.sweep.engine.execute import CURVES
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.engine.rows import results_of
from tiltyard.sweep.leaderboard import Leaderboard, TestScore, leaderboard, wilson
from tiltyard.sweep.space import value_at
from tiltyard.types import DatasetRef

RUNGS = (2, 6, 18)
TEST_ROWS = 500
PACK = 200


@dataclass(frozen=True, slots=True)
class Recorded:
    """What was recorded."""

    settings: Settings
    key: str
    experiment: Experiment
    board: Leaderboard


def experiment(name: str, trials: int, datasets: Sequence[str]) -> Experiment:
    """Two variants that halve."""
    space: dict[str, Any] = {"lr": loguniform(1e-4, 1e-1), "weight_decay": loguniform(1e-6, 1e-2)}
    return Experiment(
        name=name,
        variants=(
            Variant(
                name="mlp", model="mlp", space={**space, "dropout": uniform(0, 0.5), "hidden": choice((64, 32), (128,))}
            ),
            Variant(name="logistic", model="logistic", space=space),
        ),
        datasets=tuple(DatasetRef(d) for d in datasets),
        objective=Objective(metric="accuracy", also=("log_loss",)),
        search=Search(trials=max(2, trials // len(datasets)), halving=Halving(rungs=RUNGS, keep=1 / 3)),
    )


def record(
    home: Path,
    *,
    trials: int = 60,
    datasets: Sequence[str] = ("rings", "moons"),
    name: str = "recorded",
    seed: int = 0,
    finished: bool = True,
    layout_of: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> Recorded:
    """Writes a sweep's journal, curves and leaderboard; ``layout_of`` says by variant what attempts note."""
    settings = Settings.from_env({"TILTYARD_HOME": str(home)})
    settings.ensure_home()
    spec = experiment(name, trials, datasets)
    key = hashlib.sha256(f"{name}/{seed}/{trials}".encode()).hexdigest()
    layout = Layout(Storage(settings.storage_uri), key)
    rng = np.random.default_rng(seed)
    rows = _rows(spec, key, trials, rng)
    with Journal.open(settings.journal_uri) as journal:
        claim = journal.claim(key, experiment=name, spec=spec.to_json(), owner=Owner.here())
        journal.add_trials(claim, rows)
        scores: dict[tuple[str, int], CellScore] = {}
        for group in dict.fromkeys(row.group for row in rows):
            live = [row for row in rows if row.group == group]
            before, noted = 0, layout_of.get(group.partition("@")[0], {})
            for rung, epoch in enumerate(RUNGS):
                for part in range(0, len(live), PACK):
                    pack = live[part : part + PACK]
                    pack_id = f"{group}-r{rung}-{part // PACK}"
                    attempt = journal.start_attempt(
                        claim, pack_id, rung=rung, cells=[r.cell for r in pack], device_kind="cpu", layout=noted
                    )
                    if rung == 0 and part == 0 and group.startswith("mlp"):
                        journal.fail_attempt(attempt, "worker died", 1.5)
                        attempt = journal.start_attempt(
                            claim, pack_id, rung=rung, cells=[r.cell for r in pack], device_kind="cpu", layout=noted
                        )
                    uri = layout.attempt(pack_id, attempt.number)
                    found = _scores(pack, epoch, uri, pack_id, attempt.number)
                    _write_curves(Path(uri), pack, before, epoch)
                    journal.finish_attempt(attempt, scores=found, metered_s=2.0 * len(pack), storage_uri=uri)
                    journal.meter(key=key, what="packs", wall_s=2.5 * len(pack), cpu_s=2.5 * len(pack))
                    scores |= {(s.cell, s.epoch): s for s in found}
                before = epoch
                ordered = sorted(live, key=lambda r: -_accuracy(r.config, epoch, r.cell))
                on = ordered[: max(1, math.ceil(len(live) / 3))] if epoch != RUNGS[-1] else []
                ended = [r for r in ordered if r not in on] if on else ordered
                state = "stopped" if on else "done"
                journal.set_trial_states(
                    claim,
                    [
                        TrialUpdate(cell=r.cell, state=state, epoch=epoch, score=_accuracy(r.config, epoch, r.cell))
                        for r in ended
                    ],
                )
                live = on
        board = _board(journal, spec, key, scores)
        journal.decide(
            kind="champion",
            subject=f"{name}.{datasets[0]}",
            actor="sweep",
            evidence={"key": key, "version": 1},
            reasons=["best of its trials by accuracy"],
            outcome="version 1 is @champion",
        )
        if finished:
            layout.storage.write_json(layout.leaderboard, board.to_json())
            layout.storage.write_json(layout.finalists, {"schema_version": 1, "finalists": _details(board)})
            journal.release(claim, state="finished", summary={"reason": None})
    return Recorded(settings, key, spec, board)


def _rows(spec: Experiment, key: str, trials: int, rng: np.random.Generator) -> list[TrialRow]:
    rows = []
    for dataset in spec.datasets:
        for number, variant in enumerate(spec.variants):
            share = trials // len(spec.datasets) * (2 if number == 0 else 1) // 3
            for index in range(max(3, share)):
                config = {n: value_at(d, float(rng.random())) for n, d in variant.space.items()}
                rows.append(
                    TrialRow(
                        cell=hashlib.sha256(f"{key}/{variant.name}/{dataset.name}/{index}".encode()).hexdigest(),
                        key=key,
                        group=f"{variant.name}@{dataset.name}",
                        index=index,
                        variant=variant.name,
                        model=variant.model,
                        dataset=dataset.name,
                        dataset_version=1,
                        config=config,
                        seed=index,
                        data_seed=0,
                    )
                )
    return rows


def _accuracy(config: Mapping[str, Any], epoch: int, cell: str) -> float:
    """Of a trial at an epoch: the learning rate matters most, dropout a little, weight decay not at all."""
    noise = (int(cell[:6], 16) / 0xFFFFFF - 0.5) * 0.04
    off = (math.log10(config["lr"]) + 2.2) ** 2
    best = 0.95 - 0.06 * off - 0.08 * config.get("dropout", 0.3) + noise
    return float(np.clip(best * (1 - 0.6 * math.exp(-epoch / 3)), 0.05, 0.999))


def _scores(pack: Sequence[TrialRow], epoch: int, uri: str, pack_id: str, attempt: int) -> list[CellScore]:
    return [
        CellScore(
            cell=r.cell,
            epoch=epoch,
            metrics={"accuracy": (a := _accuracy(r.config, epoch, r.cell)), "log_loss": 1 - a},
            storage_uri=uri,
            pack_id=pack_id,
            attempt=attempt,
            seconds=2.0,
        )
        for r in pack
    ]


def _write_curves(folder: Path, pack: Sequence[TrialRow], before: int, epoch: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    points = [(r.cell, e, _accuracy(r.config, e, r.cell)) for r in pack for e in range(before + 1, epoch + 1)]
    cells, epochs, accuracy = zip(*points, strict=True)
    table = {"cell": cells, "epoch": epochs, "train_loss": accuracy, "accuracy": accuracy, "log_loss": accuracy}
    pq.write_table(pa.table(table), folder / CURVES)


def _board(journal: Journal, spec: Experiment, key: str, scores: Mapping[tuple[str, int], CellScore]) -> Leaderboard:
    results = results_of(journal.trials(key), scores, spec.objective.also)
    done = sorted((r for r in results if r.state == "done"), key=lambda r: -(r.score or 0))
    tests, tied = {}, set()
    for dataset in spec.datasets:
        for place, r in enumerate([r for r in done if r.dataset == dataset.name][:3]):
            low, high = wilson((r.score or 0) * TEST_ROWS, TEST_ROWS)
            tests[r.cell] = TestScore(
                metric="accuracy", value=r.score or 0, low=low, high=high, rows=TEST_ROWS, others={"log_loss": 0.1}
            )
            if place == 1:
                tied.add(r.cell)
    return leaderboard(
        experiment=spec.name,
        key=key,
        metric="accuracy",
        mode=spec.objective.direction,
        results=results,
        tests=tests,
        tied=frozenset(tied),
    )


def _slice(
    column: str, name: str, rows: int, value: float, *, sensitive: bool = False, p: float = 1.0
) -> dict[str, Any]:
    low, high = wilson(value * rows, rows)
    return SliceScore(
        column=column, name=name, sensitive=sensitive, rows=rows, value=value, low=low, high=high, p=p
    ).to_json()


def evaluate_champion(recorded: Recorded, *, versions: int = 2) -> list[Evaluated]:
    """Writes what evaluations of the first champion leave: its own version, and later ones that drift more and more."""
    dataset, found = recorded.experiment.datasets[0].name, []
    with Journal.open(recorded.settings.journal_uri) as journal:
        for version in range(1, versions + 1):
            rng = np.random.default_rng(version)
            reference = DriftFold({"width": profile(pa.table({"width": np.linspace(0, 1, 2_000)})).columns["width"]})
            reference.add(pa.table({"width": rng.random(2_000) * (1 + 0.2 * (version - 1))}))
            scored = Scored(
                rows=2_000,
                labelled=2_000,
                scores={"accuracy": Score(value=0.9 - version / 100, low=0.87 - version / 100, high=0.92)},
                calibration_error=0.02,
            )
            result = Evaluated(
                model=f"{recorded.experiment.name}.{dataset}",
                model_version=1,
                dataset=dataset,
                dataset_version=version,
                metric="accuracy",
                rows="test",
                scored=scored,
                drift=reference.report() if version > 1 else None,
            )
            claim = journal.works.claim(
                hashlib.sha256(f"{recorded.key}/{version}".encode()).hexdigest(),
                kind="evaluation",
                subject=result.model,
                about={"model": result.name, "dataset": result.on},
                owner=Owner.here(),
            )
            journal.works.finish(claim, result.to_json(), cause="predicted")
            found.append(result)
    return found


def _details(board: Leaderboard) -> dict[str, Any]:
    return {
        row.cell: {
            "classes": ["inner", "outer"],
            "confusion": [[240, 10 + i], [5, 245 - i]],
            "calibration": [[50, 0.1, 0.14], [200, 0.4, 0.35], [250, 0.9, 0.93]],
            "calibration_error": 0.031,
            "slice_metric": "accuracy",
            "slices": [
                _slice("sex", "f", 240, 0.9 - i / 100, sensitive=True),
                _slice("sex", "m", 260, 0.92, sensitive=True),
                _slice("site", "<east>", 60, 0.7, p=0.001 if i == 0 else 0.2),
            ],
            "fairness": [fairness("sex", {"f": [[100, 20], [10, 110]], "m": [[90, 60], [5, 105]]}).to_json()],
        }
        for table in board.tables.values()
        for i, row in enumerate(table)
        if row.test is not None
    }
