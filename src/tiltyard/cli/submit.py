"""``tiltyard submit | jobs | logs | cancel``: jobs on a cluster, from a laptop that has its URL and token."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.submit.clusters import Target
    from tiltyard.submit.preparing import Prepared
    from tiltyard.submit.ray_jobs import Job, RayJobs

app = typer.Typer()

CLUSTER = typer.Option(None, "--cluster", help="A cluster of the clusters file, or 'up' for the one of tiltyard up.")
ADDRESS = typer.Option(None, "--address", help="URL of the cluster's Ray dashboard instead.")
DETACHED = 0


@app.command()
def submit(
    file: str = typer.Argument(help="A job file in the working directory, which travels with it."),
    args: list[str] | None = typer.Argument(None, help="Arguments of the job, after --."),
    cluster: str | None = CLUSTER,
    address: str | None = ADDRESS,
    key: str | None = typer.Option(None, help="A name for this work; default: the experiment's name and digest."),
    trials: int | None = typer.Option(None, min=1, help="Trials per dataset, instead of the experiment's own."),
    datasets: str | None = typer.Option(None, help="Only these, separated by commas; name or name@version."),
    seed: int | None = typer.Option(None, min=0, help="Seed of the search and of the models."),
    env: list[str] | None = typer.Option(None, "--env", help="NAME=VALUE for the job; repeatable. No secrets."),
    carry: list[str] | None = typer.Option(None, help="A file that may travel although it looks like a secret."),
    again: bool = typer.Option(False, "--again", help="Start it again although it has succeeded."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Do not follow the log."),
    plan: bool = typer.Option(False, "--plan", help="Only show what would be sent."),
    other_ray: bool = typer.Option(False, "--other-ray", help="Send it although the cluster's Ray is another version."),
    ephemeral: bool = typer.Option(False, "--ephemeral", help="As a RayJob with a cluster of its own (Kubernetes)."),
    team: str | None = typer.Option(None, help="With --ephemeral: whose namespace and quota."),
    spec: str = typer.Option("cluster/cluster.py", help="With --ephemeral: what describes the cluster."),
    overlay: str = typer.Option("base", help="With --ephemeral: which variant of it."),
    context: str | None = typer.Option(None, help="With --ephemeral: context of the kubeconfig."),
) -> None:
    """Send a job to a cluster, once: the same again finds it and shows its log."""
    from tiltyard.run import names_in
    from tiltyard.submit.preparing import prepare

    names = names_in(datasets)
    if names == []:
        raise typer.BadParameter("name at least one dataset, e.g. --datasets wine,digits", param_hint="--datasets")
    settings = Settings.from_env()
    prepared = prepare(
        file,
        settings=settings,
        root=Path.cwd(),
        key=key,
        args=args or (),
        trials=trials,
        datasets=names,
        seed=seed,
        env=dict(_variable(text) for text in env or ()),
        carry=carry or (),
    )
    if ephemeral:
        from tiltyard.cli.cluster import submit_ephemeral

        if cluster is not None or address is not None:
            raise typer.BadParameter("--ephemeral makes a cluster; it takes no --cluster or --address")
        raise typer.Exit(
            submit_ephemeral(prepared, spec=spec, overlay=overlay, team=team, context=context, detach=detach, plan=plan)
        )
    target = _target(settings, cluster, address)
    _show_plan(prepared, f"{target.name}  {target.url}")
    if plan:
        return
    from tiltyard.submit.ray_jobs import RayJobs
    from tiltyard.submit.sending import send

    def connect() -> RayJobs:
        jobs = RayJobs(target)
        _check_ray(jobs.ray_version, target, other_ray=other_ray)
        return jobs

    with tempfile.TemporaryDirectory() as folder:
        package = prepared.package.write_zip(Path(folder) / "package.zip")
        sent = send(prepared.request, package, connect, again=again, say=_say)
    if sent.started:
        _say(f"Submitted: {sent.job_id}")
    else:
        _say(f"It was submitted before: {sent.job_id}, {sent.state}. To start it again once it has ended: --again")
    where = f" --address {address}" if address else f" --cluster {cluster}" if cluster else ""
    _say(f"  tiltyard logs -f {sent.job_id}{where}\n  tiltyard cancel {sent.job_id}{where}")
    if not detach:
        raise typer.Exit(_follow(RayJobs(target), sent.job_id))


@app.command()
def jobs(
    cluster: str | None = CLUSTER,
    address: str | None = ADDRESS,
    as_json: bool = typer.Option(False, "--json", help="Print them as JSON."),
    limit: int = typer.Option(20, min=1, help="How many, newest first."),
) -> None:
    """List the jobs of a cluster, newest first."""
    from rich.table import Table
    from rich.text import Text

    from tiltyard.report.terminal import clock_time, output
    from tiltyard.submit.sending import by_of, key_of

    found = [job for job in _connect(cluster, address).jobs() if not job.id.startswith("cancel-")][:limit]
    if as_json:
        rows = [
            {
                "id": j.id,
                "state": j.state,
                "key": key_of(j),
                "by": by_of(j),
                "started": j.started,
                "ended": j.ended,
                "message": j.message,
            }
            for j in found
        ]
        typer.echo(json.dumps(rows, indent=1))
        return
    if not found:
        typer.echo("No job yet. Send one: tiltyard submit jobs/first_sweep.py")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("job", "state", "key", "by", "started", "took"):
        table.add_column(name)
    styles = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow", "RUNNING": "cyan"}
    for job in found:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else ""
        took = clock_time((job.ended or time.time()) - job.started) if job.started else ""
        table.add_row(
            job.id, Text(job.state, styles.get(job.state, "")), Text(key_of(job)), Text(by_of(job)), started, took
        )
    output().print(table)


@app.command()
def logs(
    job: str = typer.Argument(help="A job, its key, or the beginning of one."),
    follow: bool = typer.Option(False, "-f", "--follow", help="Until it ends; exits as the job does."),
    cluster: str | None = CLUSTER,
    address: str | None = ADDRESS,
) -> None:
    """Print what a job has written; with -f also what it writes, until it ends."""
    connected = _connect(cluster, address)
    found = _pick(connected, job)
    if follow:
        raise typer.Exit(_follow(connected, found.id))
    sys.stdout.write(connected.logs(found.id))


@app.command()
def cancel(
    job: str = typer.Argument(help="A job, its key, or the beginning of one."),
    no_record: bool = typer.Option(
        False, "--no-record", help="Do not tell the journal first; a retry may start it again."
    ),
    cluster: str | None = CLUSTER,
    address: str | None = ADDRESS,
) -> None:
    """End a job in order: recorded first, then told to stop; what is finished is kept."""
    from tiltyard.submit import ending

    connected = _connect(cluster, address)
    done = ending.cancel(connected, _pick(connected, job), record=not no_record, say=_say)
    if not done.was_running:
        _say(f"{done.job.id} had ended before: {done.job.state}.")
        return
    _say(f"{done.job.id}: {done.job.state}. What it finished is kept; the same tiltyard submit goes on from there.")


def watch_job(job: str | None, cluster: str | None, address: str | None) -> int:
    """Follows a job by its state, without a journal, until it ends; the exit code."""
    from tiltyard.progress import work
    from tiltyard.submit.following import wait_until_ended

    connected = _connect(cluster, address)
    found = _pick(connected, job) if job else next(iter(connected.jobs()), None)
    if found is None:
        typer.echo("No job yet. Send one: tiltyard submit jobs/first_sweep.py")
        return 1
    job_id = found.id
    with work(f"{job_id}  {found.state}") as watched:

        def look(_: float) -> None:
            lines = [line for line in connected.logs(job_id).splitlines() if line.strip()] or [""]
            watched.what = f"{job_id}  {connected.job(job_id).state}  {lines[-1][:120]}"
            time.sleep(1.0)

        ended = wait_until_ended(connected, job_id, timeout_s=float("inf"), pause=look)
    return _told(ended)


def _follow(connected: RayJobs, job_id: str) -> int:
    from tiltyard.submit.following import follow

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        return _told(follow(connected, job_id, write, say=_say))
    except KeyboardInterrupt:
        _say(f"\nNot followed any more; the job goes on. End it: tiltyard cancel {job_id}")
        raise


def _told(job: Job) -> int:
    ok = job.state == "SUCCEEDED"
    _say(f"{job.id}: {job.state}" + ("" if ok or not job.message else f". {job.message.strip()[:1000]}"))
    return 0 if ok else 1


def _connect(cluster: str | None, address: str | None) -> RayJobs:
    from tiltyard.submit.ray_jobs import RayJobs

    return RayJobs(_target(Settings.from_env(), cluster, address))


def _target(settings: Settings, cluster: str | None, address: str | None) -> Target:
    from tiltyard.submit.clusters import find_target

    target = find_target(settings, cluster=cluster, address=address)
    if target.is_plain and target.token:
        _say(f"Warning: {target.url} is not encrypted; whoever sees the traffic has the token. Wanted: https://.")
    return target


def _pick(connected: RayJobs, wanted: str) -> Job:
    from tiltyard.submit.sending import pick

    return pick([j for j in connected.jobs() if not j.id.startswith("cancel-")], wanted)


def _check_ray(there: str, target: Target, *, other_ray: bool) -> None:
    from tiltyard.errors import SubmitError

    here = version("ray")
    if there == here or other_ray:
        return
    raise SubmitError(
        f"{target.name} runs Ray {there}, here is {here}. The key of an experiment and its results belong to the versions that "
        "were installed. Wanted: the same on both sides: use the environment of the cluster's image, or build the image "
        "anew (cluster/README.md). To send it all the same: --other-ray"
    )


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--env")
    return name, value


def _show_plan(prepared: Prepared, where: str) -> None:
    """What is about to be sent, on stderr."""
    from tiltyard.submit.packing import size

    request, package, experiment = prepared.request, prepared.package, prepared.experiment
    lines = {"cluster": where, "key": request.key, "command": " ".join(("python", request.job_file, *request.args))}
    if experiment is not None:
        lines["datasets"] = ", ".join(map(str, experiment.datasets))
        lines["trials"] = f"{experiment.search.trials} a dataset, of {', '.join(v.name for v in experiment.variants)}"
        budget = experiment.budget
        limits = [
            f"{value:g} {name.replace('_', '-')}"
            for name in ("cpu_hours", "gpu_hours")
            if (value := getattr(budget, name))
        ]
        lines["budget"] = ", ".join(limits) or "none"
    lines["package"] = f"{len(package.files)} files, {size(package.size_bytes)}, of {package.root}"
    for name, value in lines.items():
        _say(f"{name:<9} {value}")


def _say(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, markup=False)
