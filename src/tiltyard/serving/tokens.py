"""Bearer tokens for the HTTP of served models: who may ask which models, until when.

A token is ``tyt_<id>_<secret>``: 256 random bits, shown once. The file keeps the SHA-256 of the secret (a slow hash is for
secrets that people choose), the models it opens and when it ends; mode 0600, replaced whole. The secret is compared in
constant time, and a wrong id costs the same comparison as a wrong secret.
"""

from __future__ import annotations

import fcntl
import fnmatch
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tiltyard.errors import ServingError
from tiltyard.settings import Settings

_FORM = re.compile(r"^tyt_([0-9a-f]{12})_([0-9a-f]{64})$")
_NOBODY = hashlib.sha256(b"").hexdigest()
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What is kept of a token.

    Args:
        id: Names it; no secret.
        name: Whose, or what for.
        hash: SHA-256 of the secret, hexadecimal.
        models: Shell patterns of the registered names it opens; ``*`` opens all.
        created: Seconds since 1970.
        expires: Seconds since 1970.
        revoked: When it was taken back, or None.
    """

    id: str
    name: str
    hash: str
    models: tuple[str, ...]
    created: float
    expires: float
    revoked: float | None = None

    def state(self, now: float) -> str:
        """``valid``, ``expired`` or ``revoked``."""
        return "revoked" if self.revoked is not None else "expired" if now >= self.expires else "valid"

    def opens(self, model: str) -> bool:
        """It is scoped to this model; what stands behind an ``@`` does not count."""
        return any(fnmatch.fnmatchcase(model.partition("@")[0], pattern) for pattern in self.models)


def tokens_path(settings: Settings) -> Path:
    """Where the tokens of a home are kept."""
    return settings.home / "serving-tokens.json"


class TokenStore:
    """The tokens in one file. A missing file has none; reading it makes none."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._read_at: tuple[int, int] | None = None
        self._tokens: dict[str, Token] = {}

    def create(self, name: str, *, models: Sequence[str] = ("*",), days: float = 90.0) -> tuple[str, Token]:
        """Makes a token; the text is shown here and never again.

        Raises:
            ServingError: If it would open nothing or end at once.
        """
        if not name or not models or not all(models) or not 0 < days <= 3650:
            raise ServingError(
                f"Found name {name!r}, models {list(models)} and {days:g} days; wanted a name, one or more patterns of "
                "models ('*' for all), and more than 0 and at most 3650 days."
            )
        ident, secret, now = secrets.token_hex(6), secrets.token_hex(32), self._clock()
        token = Token(
            id=ident, name=name, hash=_hash(secret), models=tuple(models), created=now, expires=now + days * DAY_S
        )
        with self._changing() as tokens:
            tokens[ident] = token
        return f"tyt_{ident}_{secret}", token

    def revoke(self, ident: str) -> Token:
        """Takes a token back; twice is as once.

        Raises:
            ServingError: If there is none of this id.
        """
        with self._changing() as tokens:
            if ident not in tokens:
                raise ServingError(f"There is no token {ident!r}. List them: tiltyard token list")
            token = tokens[ident]
            if token.revoked is None:
                tokens[ident] = token = replace(token, revoked=self._clock())
        return token

    def tokens(self) -> list[Token]:
        """All of them, oldest first."""
        self._refresh()
        return sorted(self._tokens.values(), key=lambda t: t.created)

    def find(self, text: str) -> Token | None:
        """The valid token that a client showed, or None; a changed file is seen at the next call."""
        self._refresh()
        form = _FORM.match(text)
        token = self._tokens.get(form.group(1)) if form else None
        shown = _hash(form.group(2)) if form else _hash(text)
        same = hmac.compare_digest(shown, token.hash if token else _NOBODY)
        return token if token is not None and same and token.state(self._clock()) == "valid" else None

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._read_at, self._tokens = None, {}
            return
        stamp = (found.st_mtime_ns, found.st_ino)
        if stamp != self._read_at:
            self._tokens, self._read_at = self._load(), stamp

    def _load(self) -> dict[str, Token]:
        try:
            told = json.loads(self._path.read_text())
            if told["schema_version"] != 1:
                raise ValueError(f"schema version {told['schema_version']}")  # noqa: TRY301
            tokens = [Token(**{**t, "models": tuple(t["models"])}) for t in told["tokens"]]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ServingError(
                f"The tokens in {self._path} cannot be read: {error}. Nobody is let in. Restore the file, or move it away "
                "and make new tokens: tiltyard token create"
            ) from error
        return {t.id: t for t in tokens}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Token]]:
        """The tokens under the file's lock; written back whole at the end."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            tokens = self._load()
            yield tokens
            text = json.dumps({"schema_version": 1, "tokens": [asdict(t) for t in tokens.values()]}, indent=1)
            descriptor, temporary = tempfile.mkstemp(prefix=".tokens-", dir=self._path.parent)  # mode 0600
            with os.fdopen(descriptor, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        finally:
            os.close(lock)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


class WrongGuesses:
    """Counts refused tokens by client address, so that guessing is slowed down; a right token always passes."""

    def __init__(self, *, most: int = 10, within_s: float = 60.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._within_s, self._clock = most, within_s, clock
        self._seen: dict[str, deque[float]] = {}

    def wait_s(self, client: str) -> float:
        """Notes a wrong token; how long the client is to wait, 0 where it may try again."""
        now = self._clock()
        if len(self._seen) > 10_000:  # addresses are the client's to choose: keep the table small
            self._seen = {c: s for c, s in self._seen.items() if s and now - s[-1] < self._within_s}
        seen = self._seen.setdefault(client, deque(maxlen=self._most))
        while seen and now - seen[0] >= self._within_s:
            seen.popleft()
        if len(seen) >= self._most:
            return max(1.0, self._within_s - (now - seen[0]))
        seen.append(now)
        return 0.0
