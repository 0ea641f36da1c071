"""From a job file on a laptop to what is asked of a cluster: its key, its package, and the plan that a person reads."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tiltyard.codedigest import code_digest
from tiltyard.errors import SubmitError
from tiltyard.experiment import Experiment
from tiltyard.jobfile import load_experiment
from tiltyard.settings import Settings
from tiltyard.submit.packing import LIMIT_BYTES, Package, pack
from tiltyard.submit.request import Request, check_key, content_of
from tiltyard.who import person

_SECRET_NAME = re.compile(r"(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_KEY)", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What is asked, the files that travel, and the experiment where the job is one."""

    request: Request
    package: Package
    experiment: Experiment | None


def prepare(
    job_file: str,
    *,
    settings: Settings,
    root: Path,
    key: str | None = None,
    args: Sequence[str] = (),
    trials: int | None = None,
    datasets: Sequence[str] | None = None,
    seed: int | None = None,
    env: Mapping[str, str] | None = None,
    carry: Collection[str] = (),
    limit_bytes: int = LIMIT_BYTES,
) -> Prepared:
    """Reads a job file and its working directory; sends nothing.

    Args:
        job_file: Path of the file; it must lie in the working directory.
        settings: Where this laptop's home is, which does not travel.
        root: The working directory.
        key: A name for the work instead of the experiment's own.
        args: Arguments of a job that is no experiment.
        trials: Trials per dataset, instead of the experiment's own.
        datasets: Only these.
        seed: Of the search and the models.
        env: Variables of the driver and the workers; no secrets.
        carry: Files that may travel although they look like secrets.
        limit_bytes: The most that may travel.

    Raises:
        SpecError: If the experiment cannot be run as it stands.
        SubmitError: If the file or the package cannot travel.
    """
    path = Path(job_file)
    if not path.is_file():
        raise SubmitError(f"There is no job file {job_file}. Give the path of a Python file, e.g. jobs/first_sweep.py.")
    if not path.resolve().is_relative_to(root.resolve()):
        raise SubmitError(
            f"{job_file} lies outside {root.resolve()}, which is what travels. Go to the folder that holds both."
        )
    name = path.resolve().relative_to(root.resolve()).as_posix()
    env = _checked(env or {})
    options = _options(trials, datasets, seed)
    experiment = None
    if _is_experiment(path):
        experiment = load_experiment(path).with_options(trials=trials, datasets=datasets, seed=seed)
    elif options:
        raise SubmitError(
            f"{job_file} has no experiment(): {options[0]} is not for it. Its own arguments stand behind --."
        )
    words = (*options, *args)
    package = pack(root, limit_bytes=limit_bytes, carry=carry, home=settings.home)
    if name not in package.digests:
        raise SubmitError(
            f"{name} is ignored by .gitignore or .tiltyardignore, so it would not travel. Take it out there."
        )
    content = content_of(package_digest=package.digest, job_file=name, args=words, env=env)
    if key is not None:
        check_key(key)
    elif experiment is not None:
        content = _experiment_digest(experiment, path, root, env, args)
        key = f"{experiment.name}-{content[:12]}"
    else:
        key = f"{path.stem.replace('_', '-').lower()}-{content[:12]}"
    request = Request(key=key, content=content, job_file=name, args=words, files=package.digests, env=env, by=person())
    return Prepared(request=request, package=package, experiment=experiment)


def _experiment_digest(
    experiment: Experiment, path: Path, root: Path, env: Mapping[str, str], args: Sequence[str]
) -> str:
    """Digest of its description, its code and pins; not of the versions of its data, which the cluster pins."""
    code = code_digest(path, [v.model for v in experiment.variants], root=root)
    body = {"spec": experiment.to_json(), "code": code, "env": dict(env), "args": list(args)}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _options(trials: int | None, datasets: Sequence[str] | None, seed: int | None) -> list[str]:
    words = []
    if trials is not None:
        words += ["--trials", str(trials)]
    if datasets is not None:
        words += ["--datasets", ",".join(datasets)]
    if seed is not None:
        words += ["--seed", str(seed)]
    return words


def _is_experiment(path: Path) -> bool:
    """Whether the file defines ``experiment()``; a file that is no Python is one, and is refused when it is loaded."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return True
    return any(isinstance(node, ast.FunctionDef) and node.name == "experiment" for node in tree.body)


def _checked(env: Mapping[str, str]) -> dict[str, str]:
    for name in env:
        if not _VARIABLE.fullmatch(name):
            raise SubmitError(f"--env {name!r} is no name of a variable. Wanted: --env NAME=VALUE.")
        if _SECRET_NAME.search(name):
            raise SubmitError(
                f"--env {name} looks like a secret; what a job is given is shown on the dashboard. Put it into a Secret that the "
                "cluster's pods read (secrets of cluster/cluster.py)."
            )
    return dict(env)
