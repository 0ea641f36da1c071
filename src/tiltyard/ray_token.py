"""The token of a Ray that Tiltyard starts by itself, readable by nobody else.

Ray 2.60 turns token authentication on for a local cluster and writes the token to the user's home with mode 0644. It reads
the environment when it is **imported**, so this must be called before that; importing this module imports no Ray.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

from tiltyard.settings import Settings


def use_own_token(settings: Settings) -> Path | None:
    """Makes the token where there is none and points Ray at it; None where the environment or an earlier import decides.

    A job on a cluster (``RAY_ADDRESS``) and an environment that names a mode or a token keep what they have.
    """
    if "ray" in sys.modules or any(os.environ.get(n) for n in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")):
        return None
    path = settings.ensure_home() / "ray-token"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)
    return path
