"""Where things live: one folder, ``TILTYARD_HOME``, unless told otherwise.

Every store is a URI and every URI can be set by an environment variable; nothing else in Tiltyard reads the
environment for a location. Embedded: SQLite and local files under the home. Cluster: PostgreSQL and an object store, no
code change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TRACKING_ENV = "TILTYARD_TRACKING_URI"
DEBUG_ENV = "TILTYARD_DEBUG"
_URI = re.compile(r"([a-z][a-z0-9+.-]*://)(\S+)", re.IGNORECASE)
_SECRET_PARAMETER = re.compile(r"([?&][a-z_]*(?:password|passwd|secret|token)[a-z_]*=)[^&#\s]*", re.IGNORECASE)


def shows_tracebacks(env: Mapping[str, str] | None = None) -> bool:
    """True where a person wants the traceback of a refusal: TILTYARD_DEBUG is set, and not 0."""
    return (os.environ if env is None else env).get(DEBUG_ENV, "") not in {"", "0"}


def shown(text: str) -> str:
    """A URI, or a message with URIs in it, as it may be printed or logged: without the passwords in them.

    >>> shown("postgresql://ann:s3cret@db:5432/journal?sslpassword=x")
    'postgresql://ann:***@db:5432/journal?sslpassword=***'
    """
    return _URI.sub(lambda found: found[1] + _without_password(found[2]), text)


def _without_password(rest: str) -> str:
    """What follows ``scheme://``, with the password of its user part hidden."""
    end = min((i for i in map(rest.find, "/?#") if i >= 0), default=len(rest))
    if "@" not in rest[:end]:
        # No user part, unless a password with a slash in it (SQLAlchemy takes one) ended it early: what follows a host's
        # colon is a number.
        _, colon, port = rest[:end].rpartition(":")
        end = len(rest) if colon and not port.isdigit() and not rest.startswith("[") else 0
    user, at, _ = rest[:end].rpartition("@")
    if at and ":" in user:
        rest = f"{user.partition(':')[0]}:***{rest[len(user) :]}"
    return _SECRET_PARAMETER.sub(r"\1***", rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The addresses of every store. Build it with `Settings.from_env`."""

    home: Path
    """Folder of everything embedded. Environment: TILTYARD_HOME, default ``.tiltyard`` in the working directory."""
    journal_uri: str
    """SQLAlchemy URL. TILTYARD_JOURNAL_URI, default ``sqlite:///<home>/journal.db``."""
    tracking_uri: str
    """MLflow tracking and registry. TILTYARD_TRACKING_URI, then MLFLOW_TRACKING_URI, default ``sqlite:///<home>/mlflow.db``."""
    data_uri: str
    """Root of the versioned datasets. TILTYARD_DATA_URI, default ``<home>/data``; ``s3://`` works."""
    storage_uri: str
    """Root of curves and checkpoints. TILTYARD_STORAGE_URI, default ``<home>/storage``."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Settings as the environment gives them; creates nothing."""
        env = os.environ if env is None else env
        home = Path(env.get("TILTYARD_HOME") or ".tiltyard").expanduser().absolute()
        return cls(
            home=home,
            journal_uri=env.get("TILTYARD_JOURNAL_URI") or f"sqlite:///{home / 'journal.db'}",
            tracking_uri=env.get(TRACKING_ENV) or env.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}",
            data_uri=env.get("TILTYARD_DATA_URI") or str(home / "data"),
            storage_uri=env.get("TILTYARD_STORAGE_URI") or str(home / "storage"),
        )

    @property
    def artifact_root(self) -> str:
        """Where a local MLflow keeps artifacts when it is embedded: beside its SQLite file."""
        return (self.home / "mlartifacts").as_uri()

    @property
    def cluster_state(self) -> Path:
        """Folder where ``tiltyard up`` keeps the pids, ports and token of what it started."""
        return self.home / "up"

    def sizes(self, kind: str) -> Path:
        """File of what ``tiltyard calibrate`` found for a kind of device."""
        return self.home / "sizes" / f"{kind}.json"

    def ensure_home(self) -> Path:
        """Creates the home folder (mode 0700) and returns it."""
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        return self.home
