"""``tiltyard evaluate``: models on dataset versions that they have not met, and what came out."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import typer

from tiltyard.errors import DataError, SpecError
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.evaluation.folding import Evaluated
    from tiltyard.journal import Journal

app = typer.Typer(help="Test models on dataset versions that they have not met.", no_args_is_help=True)

JSON = typer.Option(False, "--json", help="Print it as JSON.")
MODEL = typer.Argument(help="A version, as NAME@VERSION.", metavar="MODEL@VERSION")
ON = typer.Argument(help="A dataset version.", metavar="DATASET@VERSION")


@app.command()
def run(
    file: str | None = typer.Argument(None, help="A job file with one function evaluation() -> Evaluation."),
    dataset: str | None = typer.Option(None, help="Instead of a file: the dataset."),
    model: list[str] = typer.Option(
        [], "--model", help="NAME[@ALIAS|@VERSION]; the first is the champion, others are compared with it."
    ),
    rows: str = typer.Option("test", help="test, held-out, new (not trained on), or all rows of a version."),
    metric: str | None = typer.Option(None, help="What models are chosen by; without it the champion's own."),
    slices: list[str] = typer.Option([], "--slice", help="COLUMN or COLUMN:30,50 that scores are split by."),
    sensitive: list[str] = typer.Option([], help="Column whose groups are compared for fairness."),
    labels: list[str] = typer.Option([], "--label", help="Label column, where labels come later."),
    keys: list[str] = typer.Option([], "--key", help="Column that late labels are joined by."),
    latest: bool = typer.Option(False, help="The newest version alone, not every version that was not met."),
    address: str | None = typer.Option(None, help="A running Ray: its address, or 'up' for the one of tiltyard up."),
) -> None:
    """Evaluate what has not been evaluated yet; what has is answered from the record."""
    from tiltyard.cli.run import address_env
    from tiltyard.evaluate import evaluate_file, run_evaluation
    from tiltyard.evaluation.slices import Slice
    from tiltyard.evaluation.spec import Evaluation

    os.environ.update(address_env(address))
    if file is not None:
        raise typer.Exit(evaluate_file(file))
    if dataset is None or not model:
        raise SpecError("Give a job file, or --dataset NAME and --model NAME. As in: tiltyard evaluate run --help")
    spec = Evaluation(
        dataset=dataset,
        models=tuple(model),
        rows=rows,
        metric=metric,
        slices=tuple(Slice.parse(s) for s in slices),
        sensitive=tuple(sensitive),
        labels=tuple(labels),
        keys=tuple(keys),
        versions="latest" if latest else "new",
    )
    raise typer.Exit(run_evaluation(spec))


@app.command("list")
def list_(
    model: str | None = typer.Argument(None, help="A registered model; all of them without it."),
    as_json: bool = JSON,
) -> None:
    """Show every evaluation that is recorded, oldest first."""
    from tiltyard.report.evaluations import overview
    from tiltyard.report.terminal import output

    with _journal() as journal:
        found = [(r, state) for _, r, state in _recorded(journal, model)]
    if as_json:
        typer.echo(json.dumps([r.to_json() for r, _ in found], indent=1))
        return
    if not found:
        output().print("Nothing was evaluated yet. Do it: tiltyard evaluate run --dataset NAME --model NAME")
        return
    output().print(overview(found))


@app.command()
def show(model: str = MODEL, on: str = ON, as_json: bool = JSON) -> None:
    """Show all of one evaluation: scores, slices, fairness, drift."""
    from tiltyard.report import evaluations
    from tiltyard.report.terminal import output

    with _journal() as journal:
        _, result = _one(journal, model, on)
    if as_json:
        typer.echo(json.dumps(result.to_json(), indent=1))
        return
    evaluations.show(output(), result)


@app.command()
def labels(
    model: str = MODEL,
    on: str = ON,
    source: str = typer.Argument(help="The labels: a file, or a dataset version; key columns and label columns."),
    key: list[str] = typer.Option([], "--key", help="Column to join by; without it those of the evaluation."),
) -> None:
    """Join labels that came late to kept answers; the scores get a new revision, no model is asked again."""
    from tiltyard.data.sources import read
    from tiltyard.data.store import DatasetStore
    from tiltyard.evaluation.late import attach_labels
    from tiltyard.evaluation.spec import Evaluation
    from tiltyard.registry.address import ModelAddress
    from tiltyard.registry.mlflow_registry import ModelRegistry
    from tiltyard.report import evaluations
    from tiltyard.report.terminal import output

    settings = Settings.from_env()
    store = DatasetStore(settings.data_uri)
    name, at, _ = source.partition("@")
    table = store.read(source) if at and name in store.names() else read(source)
    with _journal() as journal:
        work, result = _one(journal, model, on)
        registered = ModelRegistry(settings).at(ModelAddress.parse(model))
        own = registered.lineage
        profiles: dict[str, Any] = {}
        if own.dataset in store.names():
            splits = store.profile(f"{own.dataset}@{own.dataset_version}").splits
            profiles = dict(splits["train"].columns) if "train" in splits else {}
        champion = _opponent(journal, result)
        spec = Evaluation.from_json({**result.spec, "keys": key or result.keys})
        after = attach_labels(journal, work, table, spec=spec, profiles=profiles, champion=champion)
    if after is None:
        output().print("These labels were joined before; nothing changed.")
        return
    evaluations.show(output(), after)


def _journal() -> Journal:
    from tiltyard.journal import Journal

    return Journal.open(Settings.from_env().journal_uri)


def _recorded(journal: Journal, model: str | None = None) -> list[tuple[str, Evaluated, str]]:
    """Key, newest result and state of every evaluation that has a result."""
    from tiltyard.evaluation.folding import Evaluated

    works = journal.works.find("evaluation", model)
    newest = journal.works.newest(w.key for w in works)
    return [
        (w.key, Evaluated.from_json(newest[w.key].result), f"revision {newest[w.key].revision}")
        for w in works
        if w.key in newest
    ]


def _one(journal: Journal, model: str, on: str) -> tuple[str, Evaluated]:
    found = [(k, r) for k, r, _ in _recorded(journal, model.partition("@")[0]) if (r.name, r.on) == (model, on)]
    if not found:
        raise DataError(
            f"{model} was not evaluated on {on}. See what was: tiltyard evaluate list; or do it: tiltyard evaluate run"
        )
    return found[-1]


def _opponent(journal: Journal, result: Evaluated) -> Evaluated | None:
    """The champion's result on the same version, if the result was, or can be, compared with one."""
    if result.against:
        return _one(journal, result.against, result.on)[1]
    return None
