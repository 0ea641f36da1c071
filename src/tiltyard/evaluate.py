"""Runs an evaluation's job file, or an evaluation, and tells what it found.

``python jobs/evaluate.py``, ``tiltyard evaluate run jobs/evaluate.py`` and ``ray job submit -- python jobs/evaluate.py`` all
come through `evaluate_file`. Exit codes as in `tiltyard.run`: 1 also where a version could not be evaluated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tiltyard.errors import TiltyardError
from tiltyard.evaluation.spec import Evaluation
from tiltyard.jobfile import load_evaluation
from tiltyard.ray_token import use_own_token
from tiltyard.report.progress import showing
from tiltyard.report.terminal import output
from tiltyard.settings import Settings, shows_tracebacks

if TYPE_CHECKING:
    from tiltyard.evaluation.pairs import Done


def evaluate_main(path: str, argv: Sequence[str] | None = None) -> None:
    """What a job file calls at its end; exits."""
    import argparse

    argparse.ArgumentParser(prog=f"python {Path(path).name}", description="Run this evaluation.").parse_args(argv)
    try:
        code = evaluate_file(path)
    except TiltyardError as error:
        if shows_tracebacks():
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", style="red", markup=False)
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def evaluate_file(path: str | Path) -> int:
    """Runs the evaluation of a job file; the exit code.

    Raises:
        TiltyardError: If it cannot be run as it stands.
    """
    return run_evaluation(load_evaluation(path))


def run_evaluation(spec: Evaluation, *, settings: Settings | None = None) -> int:
    """Evaluates what has not been evaluated yet, telling what was found; the exit code.

    Raises:
        TiltyardError: If there is no such model or dataset.
    """
    settings = settings or Settings.from_env()
    settings.ensure_home()
    use_own_token(settings)
    from tiltyard.evaluation.runner import evaluate
    from tiltyard.report.evaluations import overview

    console = output()
    with showing():
        done = evaluate(settings, spec, say=console.print)
    results = [(d.result, d.outcome) for d in done if d.result is not None]
    if results:
        console.print(overview(results))
    for line in _left_out(done):
        console.print(line)
    if not any(d.outcome == "new" for d in done):
        console.print("Nothing is new: every version was evaluated before, or is being.")
    console.print("\nAll of one: tiltyard evaluate show MODEL@VERSION DATASET@VERSION")
    return 1 if any(d.outcome == "failed" for d in done) else 0


def _left_out(done: Sequence[Done]) -> list[str]:
    """What has no result, and why."""
    return [f"{d.pair.address} on {d.pair.version.ref}: {d.outcome}: {d.reason}" for d in done if d.result is None]


if __name__ == "__main__":
    evaluate_main(sys.argv[1], sys.argv[2:])
