"""Who does something, for the journal's decisions and a model's author: a name that is told, not proved.

On a person's machine it is the user and the machine. A job on a cluster runs as the pod's user; ``tiltyard submit`` therefore
sends the submitter's name along, and the job's driver puts it into TILTYARD_SUBMITTED_BY.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Mapping

SUBMITTED_BY_ENV = "TILTYARD_SUBMITTED_BY"
_LONGEST = 200


def person(env: Mapping[str, str] | None = None) -> str:
    """Who this process works for: whoever submitted the job that it is part of, else this user on this machine.

    >>> person({"TILTYARD_SUBMITTED_BY": "ann@laptop"})
    'ann@laptop'
    """
    told = (os.environ if env is None else env).get(SUBMITTED_BY_ENV, "").strip()
    if told:
        return "".join(c for c in told if c.isprintable())[:_LONGEST]
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name, as in some containers
        return f"somebody@{socket.gethostname()}"
