"""What is told, to whom, and how a receiver is named in ``<home>/receivers.json``. Pure.

::

    {
        "team": {"kind": "webhook", "url": "https://example.org/hook", "secret_env": "HOOK_SECRET"},
        "chat": {"kind": "slack", "url": "https://hooks.slack.com/services/..."},
        "mail": {
            "kind": "mail",
            "host": "smtp.example.org",
            "sender": "tiltyard@example.org",
            "to": ["ann@example.org"],
        },
    }

Secrets are named by the environment variable that holds them and never stand in the file.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tiltyard.errors import SpecError

SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that a person should know.

    Args:
        title: In one line.
        lines: What it is about: (severity, text).
        links: Name to address.
        at: Seconds since 1970.
    """

    title: str
    lines: tuple[tuple[str, str], ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    at: float = 0.0

    @property
    def ranked(self) -> tuple[tuple[str, str], ...]:
        """The lines, the gravest first."""
        return tuple(sorted(self.lines, key=lambda line: SEVERITIES.index(line[0])))

    def text(self) -> str:
        """As plain text."""
        lines = [f"{severity}: {text}" for severity, text in self.ranked]
        return "\n".join([self.title, *lines, *(f"{name}: {url}" for name, url in self.links.items())])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"title": self.title, "lines": [list(n) for n in self.ranked], "links": dict(self.links), "at": self.at}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Notice:
        """What ``to_json`` gave."""
        return cls(
            title=data["title"],
            lines=tuple((s, t) for s, t in data["lines"]),
            links=data["links"],
            at=data["at"],
        )

    def to_slack(self) -> dict[str, Any]:
        """As Slack's incoming webhooks take it; ``<``, ``>`` and ``&`` mean something there."""
        signs = {"critical": ":red_circle:", "warning": ":large_yellow_circle:", "info": ":white_circle:"}
        body = "\n".join(f"{signs[s]} {_escaped(t)}" for s, t in self.ranked)
        links = " ".join(f"<{url}|{_escaped(name)}>" for name, url in self.links.items())
        blocks: list[dict[str, Any]] = [
            {"type": "header", "text": {"type": "plain_text", "text": self.title[:150]}},
        ]
        for part in (body, links):
            if part:
                blocks.append({"type": "section", "text": {"type": "mrkdwn", "text": part[:3000]}})
        return {"text": _escaped(self.title), "blocks": blocks}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """A receiver by HTTP POST.

    Args:
        url: Where.
        secret_env: Environment variable that holds the secret of the signature; empty for none.
        slack: Whether the body is Slack's.
        allow_private: Whether addresses of this host and its own network are allowed.
    """

    url: str
    secret_env: str = ""
    slack: bool = False
    allow_private: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A receiver by SMTP.

    Args:
        host: Of the mail server.
        sender: From whom.
        to: To whom.
        port: Of the server.
        user: For its login; empty for none.
        password_env: Environment variable that holds the password.
        starttls: Whether the connection is encrypted before anything is said.
        allow_private: Whether a server in this host's own network is allowed.
    """

    host: str
    sender: str
    to: tuple[str, ...]
    port: int = 587
    user: str = ""
    password_env: str = ""
    starttls: bool = True
    allow_private: bool = False


Receiver = Webhook | Mail


def receivers_from_json(data: Mapping[str, Any]) -> dict[str, Receiver]:
    """Receivers by name.

    Raises:
        SpecError: If a kind or field is unknown, or something is missing.
    """
    found: dict[str, Receiver] = {}
    for name, given in data.items():
        values = dict(given)
        kind = values.pop("kind", "")
        made: type[Any] = Mail if kind == "mail" else Webhook
        if kind not in {"webhook", "slack", "mail"}:
            raise SpecError(f"Receiver {name!r} is of kind {kind!r}; wanted webhook, slack or mail.")
        fields = {f.name for f in dataclasses.fields(made)}
        if unknown := sorted(set(values) - fields):
            raise SpecError(f"Receiver {name!r} has no field {unknown[0]!r}; it has {', '.join(sorted(fields))}.")
        if "to" in values:
            values["to"] = tuple(values["to"])
        if kind == "slack":
            values["slack"] = True
        try:
            found[name] = made(**values)
        except TypeError as error:
            raise SpecError(f"Receiver {name!r} is not complete: {error}.") from error
    return found


def body_of(notice: Notice, receiver: Webhook, delivery: str) -> bytes:
    """What is posted."""
    told = notice.to_slack() if receiver.slack else {"delivery": delivery, **notice.to_json()}
    return json.dumps(told, sort_keys=True).encode()


def signature(secret: str, delivery: str, timestamp: int, body: bytes) -> str:
    """``v1,`` and the base64 HMAC-SHA256 of ``delivery.timestamp.body``.

    >>> signature("s", "d", 1, b"{}")[:3]
    'v1,'
    """
    signed = f"{delivery}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()
