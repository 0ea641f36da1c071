"""Which cluster is meant, and with what token: a URL and a secret, found on a laptop that has nothing else.

The address, in this order: ``--address URL``, ``--cluster NAME``, TILTYARD_CLUSTER_URL, the only cluster of the clusters
file, and the one that ``tiltyard up`` started here. NAME is ``up``, or a table of the clusters file
(TILTYARD_CLUSTERS, default ``~/.config/tiltyard/clusters.toml``)::

    [lab]
    url = "https://ray.lab.example"  # what is in front of port 8265; end TLS there
    token_file = "~/.config/tiltyard/lab.token"  # mode 0600; or, instead of it, the Secret in Kubernetes:
    secret = "tiltyard-ray-token"  # read with kubectl
    namespace = "tiltyard"
    context = "lab"

The token, in this order: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, the cluster's ``token_file``, its ``secret``,
``~/.ray/auth_token``. It is never printed and never in an argument of a program; a file that others can read is refused.
"""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiltyard.errors import SubmitError
from tiltyard.local import commands, state
from tiltyard.settings import Settings, shown

URL_ENV = "TILTYARD_CLUSTER_URL"
FILE_ENV = "TILTYARD_CLUSTERS"
_KNOWN = {"url", "token_file", "secret", "namespace", "context", "ca_file"}
_KUBECTL_S = 30

Kubectl = Callable[[Sequence[str]], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A cluster that jobs can be sent to."""

    name: str
    url: str
    token: str | None = field(repr=False)
    """None where none was found: an unprotected cluster needs none, any other answers 401."""
    found_in: str
    """Where the token comes from, for messages."""
    ca_file: str | None = None
    """Certificates to trust, for a cluster with its own authority."""

    @property
    def is_plain(self) -> bool:
        """True where the token would travel unencrypted over a network."""
        parts = urlsplit(self.url)
        return parts.scheme == "http" and parts.hostname not in {"127.0.0.1", "localhost", "::1"}


def find_target(
    settings: Settings,
    *,
    cluster: str | None = None,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    kubectl: Kubectl | None = None,
) -> Target:
    """The cluster that is meant and its token.

    Raises:
        SubmitError: If no cluster is meant or there is none of that name, or its token cannot be read safely.
    """
    env = os.environ if env is None else env
    kubectl = kubectl or run_kubectl
    if address is not None and cluster is not None:
        raise SubmitError("--address and --cluster name two clusters; give one of them.")
    name, entry = _entry(settings, cluster, address, env)
    url = _checked(str(entry.get("url", "")), name)
    token, found_in = _token(entry, env, kubectl)
    return Target(name=name, url=url, token=token, found_in=found_in, ca_file=entry.get("ca_file"))


def run_kubectl(args: Sequence[str]) -> str:
    """Standard output of ``kubectl``.

    Raises:
        SubmitError: If it is not installed, fails or does not answer.
    """
    try:
        done = subprocess.run(["kubectl", *args], capture_output=True, text=True, check=False, timeout=_KUBECTL_S)
    except FileNotFoundError as error:
        raise SubmitError("kubectl is not installed; it was to read the token. Set RAY_AUTH_TOKEN instead.") from error
    except subprocess.TimeoutExpired as error:
        raise SubmitError(f"kubectl did not answer within {_KUBECTL_S} s. Is the Kubernetes API reachable?") from error
    if done.returncode != 0:
        raise SubmitError(f"kubectl could not read the token: {done.stderr.strip()[:500]}")
    return done.stdout


def _entry(
    settings: Settings, cluster: str | None, address: str | None, env: Mapping[str, str]
) -> tuple[str, Mapping[str, Any]]:
    if address is not None:
        up = state.read(settings.cluster_state)
        ray = up.service(commands.RAY) if up is not None else None
        if ray is not None and ray.url == address.rstrip("/"):
            return "up", _of_up(settings, wanted=True)
        return urlsplit(address).netloc or address, {"url": address}
    path = Path(env.get(FILE_ENV) or Path(env.get("HOME", "~")).expanduser() / ".config/tiltyard/clusters.toml")
    if cluster == "up":
        return "up", _of_up(settings, wanted=True)
    if cluster is None and env.get(URL_ENV):
        return urlsplit(env[URL_ENV]).netloc or env[URL_ENV], {"url": env[URL_ENV]}
    known = _read(path)
    if cluster is not None:
        if cluster not in known:
            there = f"It names {', '.join(sorted(known))}." if known else "It is not there or names none."
            raise SubmitError(
                f"There is no cluster {cluster!r} in {path}. {there} Add a table [{cluster}] with its url, use 'up' for the "
                "one of tiltyard up, or give --address URL."
            )
        return cluster, known[cluster]
    if len(known) == 1:
        return next(iter(known.items()))
    if known:
        raise SubmitError(f"Which cluster? {path} names {', '.join(sorted(known))}. Say --cluster NAME.")
    return "up", _of_up(settings, wanted=False)


def _of_up(settings: Settings, *, wanted: bool) -> Mapping[str, Any]:
    up = state.read(settings.cluster_state)
    ray = up.service(commands.RAY) if up is not None else None
    if up is None or ray is None:
        found = f"Nothing is up for {settings.home}" if wanted else "No cluster is named and nothing is up here"
        raise SubmitError(f"{found}. Start one (tiltyard up), or name one: --address URL, --cluster NAME or {URL_ENV}.")
    return {"url": ray.url, "token_file": up.token_path, "first": True}


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, OSError) as error:
        raise SubmitError(f"{path} cannot be read: {error}. Wanted: one TOML table a cluster, e.g. [lab].") from error
    for name, entry in found.items():
        unknown = sorted(set(entry) - _KNOWN) if isinstance(entry, dict) else ["(no table)"]
        if unknown:
            hint = " A token does not belong into this file: name its file." if "token" in unknown else ""
            raise SubmitError(f"{path}: [{name}] has {unknown[0]!r}. Wanted: {', '.join(sorted(_KNOWN))}.{hint}")
    return found


def _checked(url: str, name: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise SubmitError(
            f"The address of {name} is {shown(url)!r}. Wanted: the URL of the Ray dashboard, http:// or https://; e.g. "
            "http://127.0.0.1:8265 behind kubectl port-forward."
        )
    if parts.username or parts.password:
        raise SubmitError(f"The address of {name} holds a password; a token belongs into a file or RAY_AUTH_TOKEN.")
    return url.rstrip("/")


def _token(entry: Mapping[str, Any], env: Mapping[str, str], kubectl: Kubectl) -> tuple[str | None, str]:
    file = entry.get("token_file")
    if file and entry.get("first"):  # of `tiltyard up`: its own token, whatever other cluster the environment is for
        return _from_file(Path(file)), str(file)
    if env.get("RAY_AUTH_TOKEN"):
        return env["RAY_AUTH_TOKEN"].strip(), "RAY_AUTH_TOKEN"
    if env.get("RAY_AUTH_TOKEN_PATH"):
        return _from_file(Path(env["RAY_AUTH_TOKEN_PATH"])), "RAY_AUTH_TOKEN_PATH"
    if file:
        return _from_file(Path(file).expanduser()), str(file)
    if entry.get("secret"):
        return _from_secret(entry, kubectl), f"Secret {entry['secret']}"
    last = Path(env.get("HOME", "~")).expanduser() / ".ray" / "auth_token"
    if last.exists():
        return _from_file(last), str(last)
    return None, "nowhere"


def _from_file(path: Path) -> str:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise SubmitError(
                f"The token in {path} can be read by others (mode {mode:04o}); who has it can run anything on the cluster. "
                f"Wanted: mode 0600. Mend it: chmod 600 {path}"
            )
        token = path.read_text().strip()
    except OSError as error:
        raise SubmitError(f"The token file {path} cannot be read: {error.strerror or error}.") from error
    if not token:
        raise SubmitError(f"The token file {path} is empty. Write the cluster's token into it, mode 0600.")
    return token


def _from_secret(entry: Mapping[str, Any], kubectl: Kubectl) -> str:
    where = [f"--{n}={entry[n]}" for n in ("context", "namespace") if entry.get(n)]
    told = kubectl([*where, "get", "secret", str(entry["secret"]), "-o", "jsonpath={.data.auth_token}"])
    try:
        token = base64.b64decode(told, validate=True).decode().strip()
    except ValueError as error:
        raise SubmitError(f"Secret {entry['secret']} holds no readable auth_token.") from error
    if not token:
        raise SubmitError(f"Secret {entry['secret']} has no key auth_token. Make it as cluster/README.md says.")
    return token
