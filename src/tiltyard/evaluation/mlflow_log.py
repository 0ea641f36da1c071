"""An evaluation's result as what MLflow is told of it. Pure."""

from __future__ import annotations

import json
import math

from tiltyard.evaluation.folding import Evaluated


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
