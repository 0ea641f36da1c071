"""Notices to real servers on loopback: signed, tried again, kept while nobody answers, refused where they must not go."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tiltyard.errors import SpecError
from tiltyard.journal import Journal
from tiltyard.telemetry.notices import Mail, Notice, Webhook, receivers_from_json, signature
from tiltyard.telemetry.notify import NoticeRefusedError, deliver, notify, public_address

NOTICE = Notice(
    title="digits: the champion fell",
    lines=(("info", "a < b & c"), ("critical", "accuracy 0.80 is surely worse than 0.93")),
    links={"run": "https://example.org/run/1"},
    at=1.0,
)


class Hook:
    """A webhook receiver that answers as it is told to and remembers what it got."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((dict(self.headers.items()), body))
                self.send_response(hook.answers.pop(0) if hook.answers else 204)
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/hook?x=1"


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join(timeout=30)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(f"sqlite:///{tmp_path / 'journal.db'}") as opened:
        yield opened


def quick(_: float) -> None:
    """No waiting between attempts."""


def test_notice_is_delivered_once_signed_and_ranked(
    hook: Hook, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", "s3cret")
    known = {"team": Webhook(url=hook.url, secret_env="HOOK_SECRET", allow_private=True)}
    told = notify(journal, known, NOTICE, once="fell/3", sleep=quick)
    assert [d.problem for d in told] == [""]
    assert notify(journal, known, NOTICE, once="fell/3", sleep=quick) == []
    (headers, body) = hook.got[0]
    assert len(hook.got) == 1
    assert json.loads(body)["lines"][0][0] == "critical"
    delivery, timestamp = headers["X-Tiltyard-Delivery"], int(headers["X-Tiltyard-Timestamp"])
    assert headers["X-Tiltyard-Signature"] == signature("s3cret", delivery, timestamp, body)
    assert b"s3cret" not in body
    assert json.loads(body)["delivery"] == delivery


def test_receiver_that_fails_at_first_is_tried_again_with_the_same_delivery_id(hook: Hook, journal: Journal) -> None:
    hook.answers = [503, 429]
    known = {"team": Webhook(url=hook.url, allow_private=True)}
    waited: list[float] = []
    told = notify(journal, known, NOTICE, once="a", sleep=waited.append)
    assert told[0].problem == ""
    assert len({h["X-Tiltyard-Delivery"] for h, _ in hook.got}) == 1
    assert waited == [0.5, 1.0]


def test_notice_to_a_dead_receiver_is_kept_and_delivered_later(hook: Hook, journal: Journal) -> None:
    dead = {"team": Webhook(url="http://127.0.0.1:9/", allow_private=True)}
    assert "refused" in notify(journal, dead, NOTICE, once="a", sleep=quick)[0].problem
    assert "refused" in notify(journal, dead, NOTICE, once="b", sleep=quick)[0].problem
    back = {"team": Webhook(url=hook.url, allow_private=True)}
    assert [d.problem for d in deliver(journal, back, sleep=quick)] == ["", ""]
    assert deliver(journal, back, sleep=quick) == []
    assert len(hook.got) == 2


def test_answer_that_says_no_or_sends_elsewhere_is_not_followed(hook: Hook, journal: Journal) -> None:
    hook.answers = [302, 404]
    known = {"team": Webhook(url=hook.url, allow_private=True)}
    assert "answered 302" in notify(journal, known, NOTICE, once="a", sleep=quick)[0].problem
    assert len(hook.got) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "localhost", "0.0.0.0"])
def test_addresses_of_the_own_network_are_refused_unless_allowed(host: str) -> None:
    with pytest.raises(NoticeRefusedError, match="own network"):
        public_address(host, 80, allow_private=False)
    assert public_address("127.0.0.1", 80, allow_private=True)[1] == "127.0.0.1"


def test_notice_by_plain_http_or_without_its_secret_is_not_sent(hook: Hook, journal: Journal) -> None:
    known = {
        "plain": Webhook(url=hook.url),
        "unsigned": Webhook(url=hook.url, secret_env="NOBODY_SET_THIS", allow_private=True),
        "file": Webhook(url="file:///etc/passwd"),
    }
    told = {d.receiver: d.problem for d in notify(journal, known, NOTICE, once="a", sleep=quick)}
    assert "https alone" in told["plain"]
    assert "NOBODY_SET_THIS is not set" in told["unsigned"]
    assert "no address" in told["file"]
    assert hook.got == []


def test_slack_body_has_blocks_and_escapes_what_means_something_there(hook: Hook, journal: Journal) -> None:
    known = receivers_from_json({"chat": {"kind": "slack", "url": hook.url, "allow_private": True}})
    notify(journal, known, NOTICE, once="a", sleep=quick)
    body = json.loads(hook.got[0][1])
    assert set(body) == {"text", "blocks"}
    assert "a &lt; b &amp; c" in body["blocks"][1]["text"]["text"]
    assert body["blocks"][2]["text"]["text"] == "<https://example.org/run/1|run>"


class _Smtp(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(b"220 test\r\n")
        data = False
        for raw in self.rfile:
            line = raw.rstrip(b"\r\n")
            if data:
                self.server.lines.append(line.decode())  # type: ignore[attr-defined]
                if line == b".":
                    data = False
                    self.wfile.write(b"250 ok\r\n")
                continue
            verb = line[:4].upper()
            data = verb == b"DATA"
            self.wfile.write({b"DATA": b"354 go\r\n", b"QUIT": b"221 bye\r\n"}.get(verb, b"250 ok\r\n"))
            if verb == b"QUIT":
                return


@contextmanager
def smtp() -> Iterator[Any]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp)
    server.lines = []  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=30)


def test_mail_is_sent_to_the_address_that_was_looked_at_with_the_delivery_as_its_message_id(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = socket.getaddrinfo, []

    def once(host: Any, *args: Any, **more: Any) -> Any:
        """A name that means another address, which refuses, when it is asked for again."""
        if host != "mail.example.org":
            return real(host, *args, **more)
        asked.append(host)
        return real("127.0.0.1" if len(asked) == 1 else "127.0.0.2", *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", once)
    with smtp() as server:
        known = {
            "mail": Mail(
                host="mail.example.org",
                port=server.server_address[1],
                sender="t@example.org",
                to=("ann@example.org",),
                starttls=False,
                allow_private=True,
            )
        }
        told = notify(journal, known, NOTICE, once="a", sleep=quick)
        assert told[0].problem == ""
        text = "\n".join(server.lines)
    assert "Subject: digits: the champion fell" in text
    assert f"Message-ID: <{told[0].delivery}@example.org>" in text
    assert "critical: accuracy 0.80" in text


def test_receivers_that_are_wrong_say_what_is_wanted() -> None:
    for wrong, message in (
        ({"a": {"kind": "pigeon"}}, "wanted webhook, slack or mail"),
        ({"a": {"kind": "webhook", "uri": "x"}}, "no field 'uri'"),
        ({"a": {"kind": "mail", "host": "h"}}, "not complete"),
    ):
        with pytest.raises(SpecError, match=message):
            receivers_from_json(wrong)
