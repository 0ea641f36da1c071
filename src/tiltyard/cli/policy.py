"""``tiltyard policy``: what is done when a model no longer holds, what would have been, and who said not now."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tiltyard.errors import SpecError
from tiltyard.settings import Settings
from tiltyard.who import person

if TYPE_CHECKING:
    from tiltyard.governance.policy import Policy
    from tiltyard.journal import Journal

app = typer.Typer(help="Check, apply and replay policies; hold one, or look at what was decided.", no_args_is_help=True)

FILE = typer.Option(..., "--policy", help="JSON, or Python with one function policy() -> Policy.")
MODEL = typer.Argument(help="The registered model.")
REASON = typer.Option("", help="Why, for the record of decisions.")
JSON = typer.Option(False, "--json", help="Print it as JSON.")


@app.command()
def check(file: str = typer.Argument(help="JSON, or Python with one function policy() -> Policy.")) -> None:
    """Read a policy and say what it does, or what is wrong with it."""
    from tiltyard.report.terminal import output

    policy = load_policy(file)
    console = output()
    console.print(f"{policy.name}: {len(policy.rules)} rules, at most {policy.most_retrains_a_week} retrains a week")
    for r in policy.rules:
        console.print(
            f"  {r.name}: when {_told(r.when)}, then {_told(r.then)}; silent for {r.cool_down_h:g} hours after"
        )


@app.command()
def apply(
    model: str = MODEL,
    file: str = FILE,
    train: bool = typer.Option(False, "--train", help="Run the sweeps that rules ask for, here and now."),
) -> None:
    """Decide on the newest evidence of the champion, and do it; every decision is recorded."""
    from tiltyard import actions
    from tiltyard.cli.models import open_registry
    from tiltyard.report.terminal import output
    from tiltyard.retrain import retrain

    settings, console = Settings.from_env(), output()
    open_registry(settings)
    policy = load_policy(file)
    applied = actions.apply(
        settings,
        policy,
        model,
        now=time.time(),
        actor=f"policy {policy.name}, applied by {person()}",
        tell=lambda text: console.print(f"alert: {text}"),
        train=(lambda action: retrain(settings, action, model=model, actor=person())) if train else None,
    )
    if not applied:
        console.print(f"{model}: no rule has anything against its champion.")
    for a in applied:
        console.print(f"{a.step.rule}: {a.step.reasons[0]}\n  {a.step.action.kind}: {a.told}")


@app.command()
def replay(model: str = MODEL, file: str = FILE, as_json: bool = JSON) -> None:
    """Show what a policy would have done over the recorded evaluations of the champions there were; does nothing."""
    from tiltyard.actions import evidence_of, results
    from tiltyard.cli.models import open_registry
    from tiltyard.governance import policy as policies
    from tiltyard.report.terminal import output

    policy, registry = load_policy(file), open_registry(Settings.from_env())
    with _journal() as journal:
        found = results(journal, model)
        decided = [d for k in ("champion", "promotion", "rollback") for d in journal.decisions(kind=k, subject=model)]
        reigned = {d.evidence.get("version") for d in decided}
        reigned |= {d.evidence.get("target") for d in journal.decisions(kind="policy", subject=model)}
    versions = [v for v in registry.versions(model) if v.version in reigned or "champion" in v.aliases]
    history = [e for v in versions for e in evidence_of(found, v)]
    steps = list(policies.replay(policy, history))
    if as_json:
        told = [
            {"at": e.at, "version": e.version, "on": e.on, "rule": s.rule, "action": s.action.kind}
            | {"do": s.do, "reasons": s.reasons}
            for e, s in steps
        ]
        typer.echo(json.dumps(told, indent=1))
        return
    console = output()
    for e, s in steps:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(e.at))
        what = s.action.kind if s.do else "withheld"
        console.print(f"{day}  v{e.version} on {e.on}: {s.rule} -> {what}: {'; '.join(s.reasons)}", markup=False)
    done = sum(s.do for _, s in steps)
    console.print(f"{len(history)} evaluations, {done} actions, {len(steps) - done} withheld")


@app.command()
def hold(
    model: str = MODEL,
    rule: str = typer.Option("", help="One rule alone; without it everything but alerts."),
    days: float | None = typer.Option(None, help="For so long; without it until it is resumed."),
    reason: str = REASON,
) -> None:
    """Keep policies from acting on a model."""
    from tiltyard import actions
    from tiltyard.report.terminal import output

    until = None if days is None else time.time() + days * 86_400
    with _journal() as journal:
        actions.hold(journal, model, by=person(), reason=reason, rule=rule, until=until)
    output().print(f"{model}: {rule or 'all rules but alerts'} on hold. End it: tiltyard policy resume {model}")


@app.command()
def resume(
    model: str = MODEL, rule: str = typer.Option("", help="The rule that was held, if one was."), reason: str = REASON
) -> None:
    """End a hold."""
    from tiltyard import actions
    from tiltyard.report.terminal import output

    with _journal() as journal:
        actions.resume(journal, model, by=person(), reason=reason, rule=rule)
    output().print(f"{model}: {rule or 'policies'} may act again.")


@app.command()
def approve(
    model: str = typer.Argument(help="The version, as NAME@VERSION or NAME@candidate."),
    withdraw: bool = typer.Option(False, help="Take an approval back."),
    reason: str = REASON,
) -> None:
    """Approve a version, bound to its digest; gates that ask for approvals wait for them."""
    from tiltyard import actions
    from tiltyard.cli.models import open_registry
    from tiltyard.registry.address import ModelAddress
    from tiltyard.report.terminal import output

    version = open_registry(Settings.from_env()).at(ModelAddress.parse(model))
    with _journal() as journal:
        actions.approve(journal, version, by=person(), reason=reason, withdraw=withdraw)
    what = "withdrawn" if withdraw else "approved"
    output().print(f"{version.name} version {version.version} ({version.digest[:12]}): {what} by {person()}")


@app.command()
def log(model: str = MODEL, as_json: bool = JSON) -> None:
    """Show every decision about a model, oldest first, after checking that none was changed."""
    from tiltyard.report.terminal import output

    with _journal() as journal:
        journal.verify_decisions()
        found = journal.decisions(subject=model)
    if as_json:
        typer.echo(json.dumps([{**_plain(d), "evidence": d.evidence} for d in found], indent=1))
        return
    console = output()
    for d in found:
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(d.at))
        console.print(
            f"{d.number:5}  {day}  {d.kind:11} {d.outcome}  by {d.actor}: {'; '.join(d.reasons)}", markup=False
        )
    if not found:
        console.print(f"Nothing was decided about {model} yet.")


def load_policy(file: str) -> Policy:
    """The policy of a file.

    Raises:
        SpecError: If it cannot be read.
    """
    from tiltyard.governance.policy import Policy
    from tiltyard.jobfile import load_module

    path = Path(file)
    if path.suffix == ".py":
        build = getattr(load_module(path), "policy", None)
        made = build() if callable(build) else None
        if not isinstance(made, Policy):
            raise SpecError(f"{file} has no function policy() that returns a Policy. Wanted: `def policy() -> Policy`.")
        return made
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SpecError(f"The policy {file} cannot be read: {error}. Wanted: a JSON file.") from error
    return Policy.from_json(data)


def _journal() -> Journal:
    from tiltyard.journal import Journal

    return Journal.open(Settings.from_env().journal_uri)


def _told(thing: Any) -> str:
    from dataclasses import asdict

    values = ", ".join(f"{k} {v}" for k, v in asdict(thing).items() if v not in ((), "", None))
    return f"{thing.kind} ({values})" if values else str(thing.kind)


def _plain(decision: Any) -> dict[str, Any]:
    return {
        "number": decision.number,
        "at": decision.at,
        "kind": decision.kind,
        "actor": decision.actor,
        "outcome": decision.outcome,
        "reasons": list(decision.reasons),
        "digest": decision.digest,
    }
