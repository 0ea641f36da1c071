"""Delivers notices: at least once each, with a delivery id to know a second one by, and never at the cost of a job.

A notice to a receiver is a *work* of the journal: what could not be delivered stays there, and the next `deliver` tries it
again, whoever runs it. One call takes seconds at most: a receiver that is dead or slow is given up until then.

Webhooks are signed (`notices.signature`; headers ``X-Tiltyard-Delivery``, ``-Timestamp``, ``-Signature``) and not redirected. An
address that is not public is refused unless the receiver allows it, and the address that was looked at is the one that is
connected to: a name that turns to another address meanwhile gains nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import ipaddress
import json
import os
import smtplib
import socket
import ssl
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

from tiltyard.errors import SpecError, TiltyardError
from tiltyard.journal import Journal, Owner
from tiltyard.settings import Settings
from tiltyard.telemetry.notices import Mail, Notice, Receiver, Webhook, body_of, receivers_from_json, signature

KIND = "notice"
TIMEOUT_S = 5.0
ATTEMPTS = 3
FIRST_WAIT_S = 0.5
KEEP_S = 7 * 86_400.0
"""For so long an undelivered notice is tried again."""


class NoticeRefusedError(TiltyardError):
    """A receiver's address that must not be connected to, or that said no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What became of a notice to a receiver; ``problem`` is empty where it was delivered."""

    receiver: str
    delivery: str
    problem: str = ""


def receivers(settings: Settings) -> dict[str, Receiver]:
    """The receivers of this home; none where there is no file.

    Raises:
        SpecError: If the file cannot be read.
    """
    path = Path(settings.home) / "receivers.json"
    if not path.exists():
        return {}
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise SpecError(f"{path} cannot be read: {error}. Wanted: JSON, a receiver a name.") from error
    return receivers_from_json(data)


def notify(
    journal: Journal,
    known: Mapping[str, Receiver],
    notice: Notice,
    *,
    to: Sequence[str] = (),
    once: str,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Delivery]:
    """Puts a notice down for receivers and delivers it, with what is left of earlier ones; never raises for a dead one.

    Args:
        journal: Where it is put down.
        known: Receivers by name.
        notice: What is told.
        to: Their names; all where none is named.
        once: A name of the notice: the same one again is not delivered twice.
        sleep: Waits between attempts.
    """
    for name in to or tuple(known):
        key = hashlib.sha256(f"notice\0{name}\0{once}".encode()).hexdigest()
        about = {"notice": notice.to_json(), "put": time.time()}
        claim = journal.works.claim(key, kind=KIND, subject=name, about=about, owner=Owner.here())
        if claim.is_ours:
            journal.works.fail(claim, "not delivered yet")
    return deliver(journal, known, sleep=sleep)


def deliver(
    journal: Journal, known: Mapping[str, Receiver], *, sleep: Callable[[float], None] = time.sleep
) -> list[Delivery]:
    """Tries every notice that was put down and not delivered yet; a receiver that fails is left until the next time."""
    found = []
    dead: dict[str, str] = {}
    for work in journal.works.find(KIND):
        if work.state == "finished" or time.time() - work.about["put"] > KEEP_S:
            continue
        claim = journal.works.claim(
            work.key, kind=KIND, subject=work.subject, about=work.about, owner=Owner.here(), lease_s=60
        )
        if not claim.is_ours:
            continue
        problem = dead.get(work.subject, "")
        if not problem:
            problem = _tried(known.get(work.subject), Notice.from_json(work.about["notice"]), work.key[:32], sleep)
        if problem:
            dead[work.subject] = problem
            journal.works.fail(claim, problem)
        else:
            journal.works.finish(claim, {"at": time.time()}, cause="delivered")
        found.append(Delivery(receiver=work.subject, delivery=work.key[:32], problem=problem))
    return found


def _tried(receiver: Receiver | None, notice: Notice, delivery: str, sleep: Callable[[float], None]) -> str:
    """The problem after some attempts; empty where one succeeded."""
    if receiver is None:
        return "there is no receiver of that name in receivers.json"
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            if isinstance(receiver, Mail):
                _mail(receiver, notice, delivery)
            else:
                _post(receiver, notice, delivery)
        except NoticeRefusedError as error:
            return str(error)
        except (OSError, http.client.HTTPException, smtplib.SMTPException) as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            return ""
    return problem


def public_address(host: str, port: int, *, allow_private: bool) -> tuple[socket.AddressFamily, str]:
    """An address of a host, looked up once; every one of its addresses must be public unless others are allowed.

    Raises:
        NoticeRefusedError: If one is not.
        OSError: If the name is not known.
    """
    found = [
        (family, str(where[0])) for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]
    for _, text in found:
        if not allow_private and not ipaddress.ip_address(text.partition("%")[0]).is_global:
            raise NoticeRefusedError(
                f"{host} is {text}, an address of this host's own network. Wanted: a public one, or allow_private: true in "
                "receivers.json."
            )
    return found[0]


def _post(receiver: Webhook, notice: Notice, delivery: str) -> None:
    parts = urllib.parse.urlsplit(receiver.url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise NoticeRefusedError(
            f"{parts.scheme}://... is no address that a notice is sent to; wanted https://HOST/PATH."
        )
    if parts.scheme == "http" and not receiver.allow_private:
        raise NoticeRefusedError("Notices leave this network by https alone; the receiver's url begins with http://.")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    family, address = public_address(parts.hostname, port, allow_private=receiver.allow_private)
    body, timestamp = body_of(notice, receiver, delivery), int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "tiltyard",
        "X-Tiltyard-Delivery": delivery,
        "X-Tiltyard-Timestamp": str(timestamp),
    }
    if receiver.secret_env:
        secret = os.environ.get(receiver.secret_env)
        if not secret:
            raise NoticeRefusedError(
                f"{receiver.secret_env} is not set, and the notice was not sent without a signature."
            )
        headers["X-Tiltyard-Signature"] = signature(secret, delivery, timestamp, body)
    connection = http.client.HTTPConnection(parts.hostname, port, timeout=TIMEOUT_S)
    plain = socket.socket(family, socket.SOCK_STREAM)
    try:
        plain.settimeout(TIMEOUT_S)
        plain.connect((address, port))
        connection.sock = (
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
            if parts.scheme == "https"
            else plain
        )
        path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read(65_536)
    finally:
        connection.close()
        plain.close()
    if answer.status in {408, 429} or answer.status >= 500:
        raise OSError(f"the receiver answered {answer.status}")
    if not 200 <= answer.status < 300:
        raise NoticeRefusedError(f"The receiver answered {answer.status} {answer.reason}.")


class _PinnedSMTP(smtplib.SMTP):
    """Connects to an address that was looked at, and asks it to be the host that was named."""

    def __init__(self, address: str, host: str, port: int) -> None:
        self._address = address
        super().__init__(host, port, timeout=TIMEOUT_S)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:  # noqa: ARG002 - smtplib gives it
        return socket.create_connection((self._address, port), timeout)


def _mail(receiver: Mail, notice: Notice, delivery: str) -> None:
    _, address = public_address(receiver.host, receiver.port, allow_private=receiver.allow_private)
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = notice.title, receiver.sender, ", ".join(receiver.to)
    message["Message-ID"] = f"<{delivery}@{receiver.sender.partition('@')[2] or 'tiltyard'}>"
    message.set_content(notice.text())
    with _PinnedSMTP(address, receiver.host, receiver.port) as server:
        if receiver.starttls:
            server.starttls(context=ssl.create_default_context())
        if receiver.user:
            server.login(receiver.user, os.environ.get(receiver.password_env, ""))
        server.send_message(message)
