"""``tiltyard cluster ...``: the manifests of a cluster, and what they become on Kubernetes."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tiltyard.kuberay.applying import Step
    from tiltyard.kuberay.client import Kubernetes
    from tiltyard.kuberay.manifests.objects import Manifest
    from tiltyard.kuberay.spec import ClusterSpec
    from tiltyard.submit.preparing import Prepared

app = typer.Typer(help="Render, check, apply, watch and delete a KubeRay cluster.", no_args_is_help=True)

SPEC = typer.Option("cluster/cluster.py", "--spec", help="What describes the cluster.")
OVERLAY = typer.Option("base", "--overlay", help="Which of its variants: base, or the name of a function in the file.")
CONTEXT = typer.Option(None, "--context", help="Context of the kubeconfig; its current one by default.")
NAMESPACE = typer.Option(None, "--namespace", "-n", help="Another namespace than the description's.")
CRDS = typer.Option(None, "--crds", help="Folder with KubeRay's CRDs, instead of the connected cluster's.")
FORCE = typer.Option(False, "--force-conflicts", help="Take over fields that another manager holds.")
CONFIGMAP_BYTES = 900_000
"""A ConfigMap takes 1 MiB; base64 is counted by the API server after decoding, the rest is room for names."""


@app.command()
def render(
    spec: str = SPEC,
    out: str | None = typer.Option(None, help="Folder of the manifests; by default that of the description."),
    check: bool = typer.Option(False, "--check", help="Write nothing; exit with 1 where files are not current."),
) -> None:
    """Write the manifests: a kustomize base, overlays, and the jobs."""
    from tiltyard.kuberay.description import variants
    from tiltyard.kuberay.files import files, stale, write

    path = Path(spec)
    found = variants(path)
    wanted = files(found, _serve_configs(path, *found.values()))
    folder = Path(out) if out else path.parent
    if check:
        old = [n for n, text in wanted.items() if not (folder / n).exists() or (folder / n).read_text() != text]
        old += stale(folder, wanted)
        if old:
            typer.echo(f"Not current: {', '.join(old)}. Write them anew: tiltyard cluster render", err=True)
            raise typer.Exit(1)
        typer.echo(f"All {len(wanted)} files are current.")
        return
    changed = write(folder, wanted)
    typer.echo(
        f"{len(wanted)} files in {folder}; {len(changed)} changed" + (f": {', '.join(changed)}" if changed else ".")
    )


@app.command()
def validate(
    spec: str = SPEC,
    overlay: str | None = typer.Option(None, "--overlay", help="Which variant; all of them by default."),
    crds: str | None = CRDS,
    context: str | None = typer.Option(None, "--context", help="Check against the CRDs of this context's cluster."),
) -> None:
    """Check the manifests: schemas closed to unknown fields, and KubeRay's own rules."""
    from tiltyard.kuberay.checking import connected_schemas, refuse
    from tiltyard.kuberay.description import variants
    from tiltyard.kuberay.schemas import from_folder

    path = Path(spec)
    found = variants(path)
    chosen = {overlay: _variant(path, overlay)} if overlay else found
    schemas = from_folder(Path(crds)) if crds else connected_schemas(_connect(context)) if context else None
    problems, count = [], 0
    for one in chosen.values():
        manifests = [*_manifests(path, one), *_jobs(one)]
        count += len(manifests)
        problems += _problems(manifests, one, schemas)
    refuse(list(dict.fromkeys(problems)))
    by = f"the CRDs in {crds}" if crds else "the cluster's CRDs" if schemas else "the project's own types"
    typer.echo(f"{count} objects of {', '.join(chosen)} hold, by {by} and KubeRay's rules.")


@app.command()
def diff(
    spec: str = SPEC,
    overlay: str = OVERLAY,
    context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
    force: bool = FORCE,
) -> None:
    """Show what apply would change, asked of the server; exit with 1 where it would."""
    from tiltyard.kuberay import applying

    one = _variant(Path(spec), overlay, namespace)
    steps = applying.diff(_connect(context), _manifests(Path(spec), one), force=force)
    for step in steps:
        if step.what != applying.SAME:
            _show(step)
    same = sum(step.what == applying.SAME for step in steps)
    typer.echo(f"{len(steps) - same} of {len(steps)} objects would change.")
    raise typer.Exit(0 if same == len(steps) else 1)


@app.command()
def apply(
    spec: str = SPEC,
    overlay: str = OVERLAY,
    context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
    crds: str | None = CRDS,
    force: bool = FORCE,
    timeout: float = typer.Option(0.0, "--wait", min=0.0, help="Then wait so many seconds until all is ready."),
) -> None:
    """Bring the cluster to its description; twice changes nothing."""
    from tiltyard.kuberay import applying
    from tiltyard.kuberay.checking import connected_schemas, missing_secrets, refuse
    from tiltyard.kuberay.manifests.rendering import wanted_secrets
    from tiltyard.kuberay.schemas import from_folder

    path = Path(spec)
    one = _variant(path, overlay, namespace)
    manifests = _manifests(path, one)
    connected = _connect(context)
    typer.echo(f"To {connected.server}" + (f" (context {context})" if context else ""), err=True)
    refuse(_problems(manifests, one, from_folder(Path(crds)) if crds else connected_schemas(connected)))
    steps = applying.apply(connected, manifests, force=force, say=_show)
    typer.echo(_counts(steps))
    for missing in missing_secrets(connected, wanted_secrets(one)):
        typer.echo(f"Missing: {missing}. Make it as cluster/README.md says; its pods wait for it.", err=True)
    for ref in applying.left_over(connected, manifests, one):
        typer.echo(f"Left over: {ref} is ours and described no more. Delete it by hand if nothing needs it.", err=True)
    if timeout:
        _wait(connected, manifests, timeout)


@app.command()
def status(
    spec: str = SPEC, overlay: str = OVERLAY, context: str | None = CONTEXT, namespace: str | None = NAMESPACE
) -> None:
    """Show how each object stands, and why where one is held up."""
    from rich.table import Table
    from rich.text import Text

    from tiltyard.kuberay.api import Ref
    from tiltyard.kuberay.waiting import READY, WAITED_FOR, reasons, state_of
    from tiltyard.report.terminal import output

    one = _variant(Path(spec), overlay, namespace)
    connected = _connect(context)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("object", "namespace", "state", ""):
        table.add_column(name)
    held = []
    missing = waiting = 0
    for manifest in _manifests(Path(spec), one):
        ref = Ref.of(manifest)
        there = connected.get(ref)
        state = state_of(there)
        missing += there is None
        if there is not None and state.what == READY and ref.kind not in WAITED_FOR:
            continue
        style = "green" if state.what == READY else "red"
        table.add_row(f"{ref.kind}/{ref.name}", ref.namespace or "", Text(state.what, style), state.text)
        if there is not None and state.what != READY:
            waiting += 1
            held += reasons(connected, ref)
    jobs = [j for n in (one.namespace, *(t.namespace for t in one.teams)) for j in connected.list("RayJob", n)]
    for job in sorted(jobs, key=lambda j: str(j["metadata"].get("creationTimestamp")), reverse=True)[:10]:
        state = state_of(job)
        metadata = job["metadata"]
        table.add_row(f"RayJob/{metadata['name']}", metadata["namespace"], state.what, state.text)
    output().print(table)
    for line in dict.fromkeys(held):
        typer.echo(f"  {line}")
    if missing:
        typer.echo(f"{missing} objects are not there. Make them: tiltyard cluster apply")
    raise typer.Exit(1 if waiting or missing else 0)


@app.command()
def wait(
    spec: str = SPEC,
    overlay: str = OVERLAY,
    context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
    timeout: float = typer.Option(600.0, min=1.0, help="Seconds, for everything together."),
    kinds: list[str] | None = typer.Option(None, "--for", help="Only objects of this kind; repeatable."),
) -> None:
    """Wait until the cluster is ready; say what holds it up where it is not."""
    from tiltyard.kuberay.waiting import WAITED_FOR

    unknown = sorted(set(kinds or ()) - WAITED_FOR)
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r}; wanted one of {', '.join(sorted(WAITED_FOR))}", param_hint="--for")
    one = _variant(Path(spec), overlay, namespace)
    wanted = [m for m in _manifests(Path(spec), one) if not kinds or m["kind"] in kinds]
    _wait(_connect(context), wanted, timeout)


@app.command()
def delete(
    spec: str = SPEC,
    overlay: str = OVERLAY,
    context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
    namespaces: bool = typer.Option(False, "--namespaces", help="The namespaces too, with all that is in them."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
) -> None:
    """Delete what is ours of the cluster; volumes stay, and namespaces unless asked for."""
    from tiltyard.kuberay import applying

    one = _variant(Path(spec), overlay, namespace)
    connected = _connect(context)
    if not yes:
        typer.confirm(f"Delete the cluster {one.name} in {one.namespace} on {connected.server}?", abort=True)
    steps = applying.delete(connected, _manifests(Path(spec), one), one, namespaces=namespaces, say=_show)
    typer.echo(_counts(steps))


@app.command()
def start(
    template: str = typer.Argument(help="File with a RayJob, e.g. cluster/jobs/first-sweep.yaml."),
    scheduled: bool = typer.Option(False, "--scheduled", help="In a CronJob's pod: the date is that of its tick."),
    date: str | None = typer.Option(None, "--date", help="The logical date, YYYYMMDD; today by default."),
    per: str = typer.Option("day", help="One run a 'day' or a 'minute'."),
    time_zone: str = typer.Option("Etc/UTC", help="In which the date is meant."),
    context: str | None = CONTEXT,
    namespace: str | None = NAMESPACE,
    detach: bool = typer.Option(False, "--detach", "-d", help="Do not wait for its end."),
) -> None:
    """Start a RayJob once a date, wait for its end, and exit as it did: 0 done, 3 failed."""
    import yaml

    from tiltyard.errors import ClusterError
    from tiltyard.kuberay import starting
    from tiltyard.kuberay.manifests.schedules import JOB_FAILED
    from tiltyard.progress import work

    try:
        manifest = yaml.safe_load(Path(template).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ClusterError(f"{template} cannot be read: {error}. Wanted: a RayJob as YAML.") from error
    if per not in {"day", "minute"}:
        raise typer.BadParameter(f"{per!r}; wanted day or minute", param_hint="--per")
    tick = None
    if scheduled and date is None:
        names = os.environ.get("TILTYARD_SCHEDULED_JOB", ""), os.environ.get("TILTYARD_SCHEDULED_BY", "")
        tick = starting.scheduled_at(*names)
        if tick is None:
            typer.echo(f"{names[0]!r} is no tick of {names[1]!r} (started by hand?); the date is today's.", err=True)
    date = date or starting.logical_date(tick or datetime.now(UTC), time_zone=time_zone, per=per)
    job = starting.dated(manifest, date)
    if namespace:
        job = {**job, "metadata": {**job["metadata"], "namespace": namespace}}
    with work(f"RayJob {job['metadata']['name']}"):
        run = starting.start(_connect(context), job, timeout_s=None if detach else _patience(job), say=_say)
    if detach:
        return
    for line in run.why:
        _say(f"  {line}")
    typer.echo(f"{run.ref}: {run.state.text}")
    raise typer.Exit(0 if run.succeeded else JOB_FAILED)


def submit_ephemeral(
    prepared: Prepared,
    *,
    spec: str,
    overlay: str,
    team: str | None,
    context: str | None,
    detach: bool,
    plan: bool,
) -> int:
    """A request as a RayJob with a cluster of its own; the exit code.

    Raises:
        ClusterError: If the package does not fit, or Kubernetes refuses.
        KeyConflictError: If a RayJob of that key is there with other content.
    """
    from tiltyard.kuberay import starting
    from tiltyard.kuberay.checking import connected_schemas, refuse
    from tiltyard.submit.ephemeral import as_objects, job_of, send

    one = _variant(Path(spec), overlay)
    _, first = as_objects(prepared, one, team=team, limit_bytes=CONFIGMAP_BYTES)
    _say(f"RayJob {first['metadata']['name']} in {first['metadata']['namespace']}, key {prepared.request.key}")
    asked = job_of(prepared.request, one, first["metadata"]["name"])
    cost = one.most_cost(asked)
    workers = ", ".join(f"up to {number} {group}" for group, number in asked.workers.items())
    most = f"at most {cost:.2f} {one.currency} for them" if cost is not None else "a price is missing"
    _say(f"{workers}; ended after {asked.deadline_s / 3600:g} h at the latest: {most}")
    if plan:
        refuse(_problems([first], one, None))
        return 0
    connected = _connect(context)
    schemas = connected_schemas(connected)
    job, _ = send(
        connected,
        prepared,
        one,
        team=team,
        limit_bytes=CONFIGMAP_BYTES,
        check=lambda job: refuse(_problems([job], one, schemas)),
        say=_say,
    )
    if detach:
        return 0
    run = starting.follow(connected, job, created=True, timeout_s=_patience(job), say=_say)
    for line in run.why:
        _say(f"  {line}")
    _say(f"{run.ref}: {run.state.text}")
    return 0 if run.succeeded else 1


def _patience(job: dict[str, Any]) -> float:
    """Longer than Kubernetes lets the job live, all its tries together."""
    body = job["spec"]
    once = body.get("activeDeadlineSeconds", 7 * 86400) + body.get("preRunningDeadlineSeconds", 0)
    return float(once * (body.get("backoffLimit", 0) + 1) + 600)


def _variant(path: Path, name: str, namespace: str | None = None) -> ClusterSpec:
    from tiltyard.kuberay.description import variant

    one = variant(path, name)
    return one.derive(namespace=namespace) if namespace else one


def _manifests(path: Path, one: ClusterSpec) -> list[Manifest]:
    from tiltyard.kuberay.files import rendered

    return [m for objects in rendered(one, _serve_configs(path, one)).values() for m in objects]


def _jobs(one: ClusterSpec) -> list[Manifest]:
    from tiltyard.kuberay.manifests.rendering import render_jobs

    return list(render_jobs(one).values())


def _problems(manifests: list[Manifest], one: ClusterSpec, schemas: Any) -> list[Any]:
    from tiltyard.kuberay.checking import problems
    from tiltyard.kuberay.client import unknown_fields

    return problems(manifests, crds=schemas, unknown_fields=unknown_fields, features=one.features)


def _serve_configs(path: Path, *specs: ClusterSpec) -> dict[str, str]:
    """Text of each Serve config that is named, found from the working directory or from beside the description."""
    from tiltyard.errors import SpecError

    found = {}
    for name in {s.serving.config for s in specs if s.serving is not None}:
        places = [Path(name), path.resolve().parent.parent / name]
        there = next((p for p in places if p.is_file()), None)
        if there is None:
            raise SpecError(
                f"{path} names the Serve config {name}, which is not there. Name it from the repository's root."
            )
        found[name] = there.read_text()
    return found


def _connect(context: str | None) -> Kubernetes:
    from tiltyard.kuberay.client import Kubernetes

    return Kubernetes(context=context)


def _wait(connected: Kubernetes, manifests: list[Manifest], timeout: float) -> None:
    from tiltyard.kuberay.api import Ref
    from tiltyard.kuberay.waiting import READY, WAITED_FOR, State, wait
    from tiltyard.progress import work

    refs = [Ref.of(m) for m in manifests if m["kind"] in WAITED_FOR]
    with work("wait for the cluster", total=len(refs), unit="objects") as doing:

        def say(ref: Ref, state: State) -> None:
            _say(f"{ref.kind}/{ref.name}: {state.what}, {state.text}")
            if state.what == READY:
                doing.advance()

        wait(connected, refs, timeout_s=timeout, say=say)
    typer.echo(f"Ready: {', '.join(f'{r.kind}/{r.name}' for r in refs)}.")


def _counts(steps: list[Step]) -> str:
    whats = [step.what for step in steps]
    return ", ".join(f"{whats.count(what)} {what}" for what in dict.fromkeys(whats)) + "."


def _show(step: Step) -> None:
    typer.echo(f"{step.what:<10} {step.ref}")
    for line in step.lines:
        typer.echo(f"             {line}")


def _say(text: str) -> None:
    typer.echo(text, err=True)
