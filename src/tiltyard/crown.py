"""What becomes of a sweep's winners: bundled, registered with their lineage, named champion, served and checked.

Above the engines: `tiltyard.run` calls it after a sweep. Doing it twice for the same winners changes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import numpy as np
import pyarrow as pa

from tiltyard.codedigest import user_modules
from tiltyard.data.store import DatasetStore
from tiltyard.experiment import Experiment
from tiltyard.journal import Journal
from tiltyard.registry.bundle import BundleSpec, read_bundle, write_bundle
from tiltyard.registry.lineage import Lineage
from tiltyard.registry.mlflow_registry import ModelRegistry
from tiltyard.registry.version import ModelVersion
from tiltyard.settings import Settings
from tiltyard.sweep.engine.finals import row_scores
from tiltyard.sweep.engine.outcome import Outcome
from tiltyard.sweep.engine.predict import open_trial
from tiltyard.sweep.leaderboard import Row
from tiltyard.training import split_config
from tiltyard.who import person

SERVED_BATCH_ROWS = 4096
"""Rows of a request when champions are checked: large, for a request costs milliseconds whatever it carries."""
SAME = 1e-5
"""Largest difference between a served and an offline output that is called equal: float32, other batch sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowned:
    """A dataset's winner in the registry."""

    dataset: str
    model: ModelVersion
    trial: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A champion's answers through Ray Serve held against its answers offline, on the same held-out rows."""

    dataset: str
    model: str
    rows: int
    offline: float
    served: float
    largest_difference: float

    @property
    def equal(self) -> bool:
        """Neither the scores nor any output differ by more than `SAME`."""
        return abs(self.offline - self.served) <= SAME and self.largest_difference <= SAME


def model_name(experiment: str, dataset: str) -> str:
    """The registered name of a task: what a champion holds."""
    return f"{experiment}.{dataset}"


def crown(
    settings: Settings, experiment: Experiment, outcome: Outcome, *, code_digest: str, job_file: Path | None
) -> list[Crowned]:
    """Registers the winner of each dataset and points the experiment's alias at it.

    Once for each key, by the journal: an experiment that is answered from its record does not take the title back from
    whoever was promoted since.
    """
    if experiment.champion is None:
        return []
    registry = ModelRegistry(settings)
    crowned = []
    with Journal.open(settings.journal_uri) as journal:
        for dataset in outcome.leaderboard.tables:
            best = outcome.leaderboard.best(dataset)
            if best is None or best.state != "done":
                continue
            name = model_name(experiment.name, dataset)
            model = _crowned_before(journal, registry, name, outcome.plan.key)
            is_new = model is None
            if model is None:
                journal.check(outcome.claim)
                model = _crown_one(registry, experiment, outcome, best, name, code_digest, job_file)
                journal.decide(
                    kind="champion",
                    subject=name,
                    actor="sweep",
                    evidence={
                        "key": outcome.plan.key,
                        "cell": best.cell,
                        "version": model.version,
                        "digest": model.digest,
                        "dataset": dataset,
                        "validation": best.validation,
                        "author": person(),
                    },
                    reasons=[
                        f"best of {len(outcome.leaderboard.tables[dataset])} trials by {outcome.leaderboard.metric}"
                        + (
                            f", of the finalists by the mean of {best.replicates.num} replicates"
                            if best.replicates
                            else ""
                        )
                    ],
                    outcome=f"version {model.version} is @{experiment.champion.alias}",
                    once=f"champion/{outcome.plan.key}/{dataset}",
                    claim=outcome.claim,
                )
            crowned.append(Crowned(dataset=dataset, model=model, trial=best.name, is_new=is_new))
    return crowned


def _crowned_before(journal: Journal, registry: ModelRegistry, name: str, key: str) -> ModelVersion | None:
    """The version that this key registered earlier, if it did and the registry still has it."""
    versions = [
        d.evidence["version"] for d in journal.decisions(kind="champion", subject=name) if d.evidence.get("key") == key
    ]
    known = {v.version: v for v in registry.versions(name)} if versions else {}
    return known.get(versions[-1]) if versions else None


def _crown_one(
    registry: ModelRegistry,
    experiment: Experiment,
    outcome: Outcome,
    best: Row,
    name: str,
    code_digest: str,
    job_file: Path | None,
) -> ModelVersion:
    assert experiment.champion is not None
    with tempfile.TemporaryDirectory(prefix="tiltyard-") as folder:
        bundle = Path(folder) / "bundle"
        _bundle(experiment, outcome, best.cell, bundle, code_digest, job_file)
        run_id = outcome.run_ids.get(best.cell) or outcome.parent_run_id or ""
        score = f"validation_{experiment.objective.metric}"
        registered = registry.register(name, bundle, run_id=run_id, score=score, author=person())
    registry.promote(name, registered.version, alias=experiment.champion.alias)
    return registry.get(name, version=registered.version)


def _bundle(
    experiment: Experiment, outcome: Outcome, cell: str, folder: Path, code_digest: str, job_file: Path | None
) -> None:
    trial = next(t for t in outcome.plan.trials if t.cell == cell)
    row = next(r for r in outcome.results if r.cell == cell)
    prepared = outcome.prepared[trial.dataset]
    trained = open_trial(
        outcome.layout.storage, model=trial.model, folder_uri=outcome.scores[cell, row.epoch].storage_uri, cell=cell
    )
    shared, _ = split_config(trial.config) if trial.model != "lightgbm" else ({}, {})
    lineage = Lineage(
        cell=cell,
        key=outcome.plan.key,
        experiment=experiment.name,
        variant=trial.variant,
        dataset=trial.dataset,
        dataset_version=trial.dataset_version,
        dataset_digest=trial.dataset_digest,
        code_digest=code_digest,
        seed=trial.seed,
        data_seed=trial.data_seed,
        epoch=row.epoch,
        config=trial.config,
        parent_run_id=outcome.parent_run_id or "",
        run_id=outcome.run_ids.get(cell, ""),
        environment={p: installed(p) for p in ("tiltyard", "torch", "lightgbm", "ray", "mlflow")},
    )
    write_bundle(
        folder,
        trained=trained,
        spec=BundleSpec(
            model=trial.model,
            model_args={k: v for k, v in shared.items() if k not in {"optimizer", "batch_size"}},
            task=trial.task,
            input_shape=trial.input_shape,
            num_outputs=trial.num_outputs,
            classes=tuple(prepared.version.classes),
            metrics={f"validation_{k}": v for k, v in outcome.scores[cell, row.epoch].metrics.items()},
            lineage=lineage,
            personal=prepared.version.spec.personal,
        ),
        preprocessor=prepared.preprocessor,
        user_code=user_modules(trial.model, job_file) if ":" in trial.model else None,
    )


def check_served(
    settings: Settings, experiment: Experiment, outcome: Outcome, crowned: Sequence[Crowned]
) -> list[Served]:
    """Deploys the champions on Ray Serve, streams the held-out rows through them, and compares with the bundle offline."""
    from tiltyard.serving.client import deploy, remove, stream_rows
    from tiltyard.serving.deployment import evaluation_app

    store = DatasetStore(settings.data_uri)
    registry = ModelRegistry(settings)
    handle = deploy(
        evaluation_app([f"{c.model.name}@{c.model.version}" for c in crowned], settings), name=experiment.name
    )
    served = []
    try:
        for c in crowned:
            prepared = outcome.prepared[c.dataset]
            table = store.read(prepared.version, split="test")
            if not table.num_rows:
                continue
            features = table.select(list(prepared.preprocessor.features))
            answers = stream_rows(handle, c.model.name, batches(features, SERVED_BATCH_ROWS))
            outputs = np.concatenate([a.outputs for a in answers])
            bundle = read_bundle(registry.fetch(c.model), expect_digest=c.model.digest)
            offline = bundle.predict_table(features).outputs
            y = prepared.preprocessor.transform_label(table)
            served.append(
                Served(
                    dataset=c.dataset,
                    model=f"{c.model.name}@{c.model.version}",
                    rows=len(y),
                    offline=float(row_scores(bundle.spec.task, offline, y).mean()),
                    served=float(row_scores(bundle.spec.task, outputs, y).mean()),
                    largest_difference=float(np.abs(outputs - offline).max()),
                )
            )
    finally:
        remove(experiment.name)
    _record_served(settings, outcome.plan.key, served)
    return served


def served_before(settings: Settings, key: str, crowned: Sequence[Crowned]) -> bool:
    """Whether the record says that these champions were served and compared already."""
    with Journal.open(settings.journal_uri) as journal:
        done = {d.subject for d in journal.decisions(kind="served") if d.evidence.get("key") == key}
    return done >= {f"{c.model.name}@{c.model.version}" for c in crowned}


def _record_served(settings: Settings, key: str, served: Sequence[Served]) -> None:
    with Journal.open(settings.journal_uri) as journal:
        for s in served:
            journal.decide(
                kind="served",
                subject=s.model,
                actor="sweep",
                evidence={"key": key, "rows": s.rows, "offline": s.offline, "served": s.served},
                reasons=[f"largest difference of an output {s.largest_difference:.3g}"],
                outcome="equal" if s.equal else "differs",
                once=f"served/{key}/{s.model}",
            )


def batches(table: pa.Table, rows: int) -> Iterator[pa.Table]:
    """A table in slices of at most ``rows``."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
