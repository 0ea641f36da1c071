"""``tiltyard serve | token``: champions in service, and who may ask them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from tiltyard.errors import MachineError, ServingError
from tiltyard.settings import Settings

if TYPE_CHECKING:
    from tiltyard.serving.answers import Described

app = typer.Typer()
token = typer.Typer(help="Make, list and revoke the bearer tokens that served models ask for.", no_args_is_help=True)
APPLICATION = "champions"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@app.command()
def serve(
    models: list[str] = typer.Argument(None, help="NAME[@ALIAS|@VERSION]; without any, every champion."),
    host: str = typer.Option("127.0.0.1", help="Where to listen. Off loopback a token is always asked for."),
    port: int = typer.Option(0, min=0, max=65535, help="Port; 0 takes a free one."),
    auth: bool = typer.Option(False, "--auth", help="Ask for a bearer token on loopback too."),
    shadow: list[str] = typer.Option([], metavar="NAME@WHICH:SHARE", help="A challenger that is asked a share too."),
    canary: list[str] = typer.Option([], metavar="NAME@WHICH:SHARE", help="A challenger that answers a share."),
    max_replicas: int = typer.Option(1, min=1, help="Most replicas of each model under load."),
    end: bool = typer.Option(False, "--end", help="End what is served on the Ray of tiltyard up."),
) -> None:
    """Serve champions by HTTP: on the Ray of tiltyard up, or here until Ctrl-C."""
    from tiltyard.report.terminal import output
    from tiltyard.serving.tokens import TokenStore, tokens_path

    settings, console = Settings.from_env(), output()
    joined = _join(settings)
    if end and not joined:
        raise MachineError(f"Nothing is up for {settings.home}; what tiltyard serve starts by itself ends with Ctrl-C.")
    names = [] if end else list(models or []) or _champions(settings)
    asks = auth or host not in LOOPBACK
    from tiltyard.serving import client
    from tiltyard.serving.deployment import app_from_args

    client.connect()
    try:
        if end:
            client.end_serving()
            console.print("Ended: nothing is served any more.")
            return
        port = port or _free_port(settings)
        args = {
            "models": ",".join(names),
            "auth": "on" if asks else "off",
            "max_replicas": str(max_replicas),
            "shadow": ",".join(shadow),
            "canary": ",".join(canary),
        }
        begun = time.monotonic()
        try:
            client.deploy(app_from_args(args, settings), name=APPLICATION, http=True, host=host, port=port)
        except RuntimeError as error:
            client.end_serving()
            raise ServingError(f"{', '.join(names)} could not be served: {error}") from error
        _record_splits(args)
        url = client.address()
        console.print(f"Serving in {time.monotonic() - begun:.0f} s at {url}")
        _how_to_call(console, url, client.described(APPLICATION), asks)
        if asks and not any(t.state(time.time()) == "valid" for t in TokenStore(tokens_path(settings)).tokens()):
            console.print("\nThere is no valid token yet, so nobody is let in. Make one: tiltyard token create NAME")
        if joined:
            console.print("\nEnd it: tiltyard serve --end (tiltyard down ends it too)")
            return
        console.print("\nEnd it: Ctrl-C")
        try:
            threading.Event().wait()
        finally:
            client.end_serving()
    finally:
        client.disconnect()


def _record_splits(args: Mapping[str, str]) -> None:
    """What was asked for by --shadow and --canary, as the newest decision: it replaces what stood before."""
    from tiltyard.cli.models import decide
    from tiltyard.serving.traffic import DECISION, splits_from_args

    for name, split in splits_from_args(args).items():
        decide(DECISION, name, split.to_evidence(), "tiltyard serve", outcome=split.mode)


def _join(settings: Settings) -> bool:
    """Points this process at the Ray of ``tiltyard up``; False where none is up and this process starts its own."""
    import os

    from tiltyard.local import up
    from tiltyard.ray_token import use_own_token

    if os.environ.get("RAY_ADDRESS"):
        return True
    found = up.status(settings)
    if found is not None and all(s.running for s in found[1]):
        os.environ.update(up.join(settings))
        return True
    settings.ensure_home()
    use_own_token(settings)
    return False


def _champions(settings: Settings) -> list[str]:
    from tiltyard.cli.models import open_registry
    from tiltyard.registry.address import CHAMPION

    registry = open_registry(settings)
    names = [n for n in registry.names() if any(CHAMPION in v.aliases for v in registry.versions(n))]
    if not names:
        raise ServingError("No model has a @champion yet. See what there is: tiltyard models")
    return names


def _free_port(settings: Settings) -> int:
    from tiltyard.local.ports import choose

    return choose(["serve"], seed=f"{settings.home}/serve")["serve"]


def _how_to_call(console: Any, url: str, models: Sequence[Described], asks: bool) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("model", "version", "task", "digest"):
        table.add_column(column)
    for m in models:
        table.add_row(m.served_as, str(m.version), str(m.task), m.digest[:12])
    console.print(table)
    first = models[0]
    empty: dict[str, Any] = {"number": 0, "category": ""}
    row = {c.name: empty.get(c.kind, [0] * c.width) for c in first.columns}
    shown = json.dumps({"rows": [row]})
    header = " -H 'Authorization: Bearer TOKEN'" if asks else ""
    if len(shown) > 400:
        shown = "@rows.json"
    console.print(
        Text(
            f"\n  curl {url}/models{header}\n"
            f"  curl {url}/models/{first.served_as}/predict -H 'content-type: application/json'{header} -d '{shown}'\n"
            f"  {url}/docs"
        )
    )


@token.command()
def create(
    name: str = typer.Argument(help="Whose it is, or what for."),
    models: list[str] = typer.Option(
        ["*"], "--model", help="Pattern of the models it opens; may be given more than once."
    ),
    days: float = typer.Option(90.0, help="Days until it expires."),
) -> None:
    """Make a token; it is shown once and kept as a hash."""
    from tiltyard.serving.tokens import TokenStore, tokens_path

    settings = Settings.from_env()
    text, made = TokenStore(tokens_path(settings)).create(name, models=models, days=days)
    typer.echo(text)
    typer.echo(
        f"For {', '.join(made.models)}, until {_day(made.expires)}; its id is {made.id}. It is not shown again.",
        err=True,
    )


@token.command("list")
def list_(as_json: bool = typer.Option(False, "--json", help="Print them as JSON.")) -> None:
    """Show every token: whose, for which models, until when. No secret is kept."""
    from tiltyard.report.terminal import output
    from tiltyard.serving.tokens import TokenStore, tokens_path

    now = time.time()
    found = TokenStore(tokens_path(Settings.from_env())).tokens()
    if as_json:
        told = [
            {"id": t.id, "name": t.name, "models": list(t.models), "expires": t.expires, "state": t.state(now)}
            for t in found
        ]
        typer.echo(json.dumps(told, indent=1))
        return
    console = output()
    if not found:
        console.print("There is no token. Make one: tiltyard token create NAME")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("id", "name", "models", "made", "until", "state"):
        table.add_column(column)
    for t in found:
        state = t.state(now)
        style = "green" if state == "valid" else "dim"
        table.add_row(t.id, t.name, ", ".join(t.models), _day(t.created), _day(t.expires), Text(state, style))
    console.print(table)


@token.command()
def revoke(ident: str = typer.Argument(metavar="ID", help="Its id, as tiltyard token list shows it.")) -> None:
    """Take a token back; replicas on this home see it at their next request."""
    from tiltyard.serving.tokens import TokenStore, tokens_path

    gone = TokenStore(tokens_path(Settings.from_env())).revoke(ident)
    typer.echo(f"{gone.id} ({gone.name}) is revoked.")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
