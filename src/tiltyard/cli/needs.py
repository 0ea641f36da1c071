"""Who needs which version of a dataset, besides its tags and pins: registered models, and sweeps that are not done.

The store of datasets knows neither registry nor journal; the commands that remove versions ask here and hand it plain
values. Where a registry is configured and does not answer, the answer is an error, never "nobody".
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tiltyard.settings import Settings

Needs = dict[int, tuple[str, ...]]
"""Version to who needs it, in words."""


def _is_there(uri: str) -> bool:
    """False where opening it would make an empty database."""
    scheme, _, path = uri.partition(":///")
    return not scheme.startswith("sqlite") or not path or Path(path).exists()


def models(settings: Settings, name: str) -> Needs:
    """Version of a dataset to the registered models that learned from it.

    Raises:
        RegistryError: If the registry does not answer.
    """
    found: dict[int, list[str]] = defaultdict(list)
    if _is_there(settings.tracking_uri):
        from tiltyard.cli.models import open_registry

        registry = open_registry(settings)
        for version in (v for model in registry.names() for v in registry.versions(model)):
            if version.tags.get("tiltyard.dataset") == name:
                number = int(version.tags["tiltyard.dataset_version"])
                found[number].append(f"model {version.name} version {version.version}")
    return {number: tuple(sorted(who)) for number, who in found.items()}


def sweeps(settings: Settings, name: str) -> Needs:
    """Version of a dataset to the sweeps in the journal that run, or were cut off and can be resumed."""
    found: dict[int, set[str]] = defaultdict(set)
    if _is_there(settings.journal_uri):
        from tiltyard.journal import Journal

        with Journal.open(settings.journal_uri) as journal:
            for launch in (a for a in journal.launches() if a.state == "running"):
                for trial in journal.trials(launch.key):
                    if trial.dataset == name:
                        found[trial.dataset_version].add(f"sweep {launch.experiment}, which is not done")
    return {number: tuple(sorted(who)) for number, who in found.items()}


def evaluations(settings: Settings, name: str) -> tuple[list[str], list[str]]:
    """Keys of the evaluations that met any version of a dataset; and in words, those that run."""
    keys, running = [], []
    if _is_there(settings.journal_uri):
        from tiltyard.journal import Journal

        with Journal.open(settings.journal_uri) as journal:
            for work in journal.works.find("evaluation"):
                if str(work.about.get("dataset", "")).partition("@")[0] == name:
                    keys.append(work.key)
                    if work.state == "running":
                        running.append(f"{work.about.get('model', work.subject)} on {work.about['dataset']}")
    return keys, running


def together(*needs: Needs) -> Needs:
    """All of them in one."""
    numbers = sorted({number for some in needs for number in some})
    return {n: tuple(who for some in needs for who in some.get(n, ())) for n in numbers}
