"""An evaluation's result as what MLflow is told of it, and the telling: what is missing there is written, once."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from tiltyard.evaluation.folding import Evaluated
from tiltyard.evaluation.pairs import Pair
from tiltyard.journal import Journal
from tiltyard.settings import Settings, shown

Say = Callable[[str], None]


def metrics_of(result: Evaluated) -> dict[str, float]:
    """Scores with the ends of their intervals, drift in two numbers, and the comparison with the champion."""
    found: dict[str, float] = {"rows": result.scored.rows, "labelled": result.scored.labelled}
    for name, score in result.scored.scores.items():
        found[name] = score.value
        if score.low is not None and score.high is not None:
            found |= {f"{name}_low": score.low, f"{name}_high": score.high}
    if result.scored.calibration_error is not None:
        found["calibration_error"] = result.scored.calibration_error
    if result.drift is not None:
        found["drifted_columns"] = len(result.drift.drifted)
        found["largest_drift"] = max((c.effect for c in result.drift.columns if c.drifted), default=0.0)
    if result.paired is not None:
        found |= {"paired_difference": result.paired.difference, "paired_p_better": result.paired.p_better()}
    return {n: float(v) for n, v in found.items() if math.isfinite(v)}


def params_of(result: Evaluated) -> dict[str, str]:
    """What does not change from revision to revision."""
    return {"model": result.name, "dataset": result.on, "rows": result.rows, "metric": result.metric}


def text_of(result: Evaluated) -> str:
    """All of it."""
    return json.dumps(result.to_json(), indent=1)


def log_to_mlflow(settings: Settings, journal: Journal, pairs: Sequence[Pair], say: Say = lambda _: None) -> int:
    """Writes the runs of these evaluations that MLflow lacks, or has of an older revision; how many.

    MLflow is where people look; the journal is the record. Where MLflow is away, that is said, and the next evaluation
    writes what is missing.
    """
    from tiltyard.tracking.mlflow_runs import MlflowRuns
    from tiltyard.tracking.records import EvaluationRecord

    written = 0
    try:
        embedded = settings.tracking_uri.startswith("sqlite")
        runs = MlflowRuns(settings.tracking_uri, settings.artifact_root if embedded else None)
        known: dict[str, dict[str, tuple[str, int]]] = {}
        for pair in pairs:
            experiment = pair.model.lineage.experiment or pair.model.name
            if experiment not in known:
                known[experiment] = runs.evaluations(experiment)
            there = known[experiment]
            results = journal.works.results(pair.key)
            run_id, revision = there.get(pair.key, (None, 0))
            for found in results[revision:]:
                result = Evaluated.from_json(found.result)
                record = EvaluationRecord(
                    experiment=experiment,
                    key=pair.key,
                    revision=found.revision,
                    model=result.name,
                    model_run_id=pair.model.run_id,
                    dataset=result.dataset,
                    dataset_version=result.dataset_version,
                    dataset_digest=pair.version.content_digest,
                    metrics=metrics_of(result),
                    params=params_of(result),
                    result=text_of(result),
                    at_ms=round(found.at * 1000),
                    duration_s=result.seconds,
                )
                run_id = runs.evaluation(record, run_id)
                written += 1
    except Exception as error:  # whatever the store or the network raises
        say(
            f"MLflow at {shown(settings.tracking_uri)} was not written to: {shown(str(error))}. The results are in the "
            "journal; the next evaluation writes what is missing."
        )
    return written
