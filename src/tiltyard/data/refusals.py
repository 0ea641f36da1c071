"""Puts down in the journal that a declared check has refused rows, so that it is counted and seen later.

Whoever commits, the command line or a person's own code, the refusal is a decision of the home whose store it is: a store
elsewhere than the home's (``TILTYARD_DATA_URI``, or ``<home>/data``) has no journal that knows it, and nothing is written.
Which values were refused stays out of it. A journal that is away takes nothing from the refusal itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tiltyard.data.places import Place
from tiltyard.errors import CheckFailedError
from tiltyard.settings import Settings, shown

KIND = "refused version"
"""Of the decision; its subject is the dataset's name."""
_LOG = logging.getLogger(__name__)


@contextmanager
def recorded(root: Place, name: str) -> Iterator[None]:
    """Records a refusal inside the block, and lets it go on.

    Args:
        root: Of the store.
        name: The dataset's.
    """
    try:
        yield
    except CheckFailedError as error:
        settings = Settings.from_env()
        if Place.of(settings.data_uri).uri == root.uri:
            try:
                _record(settings, name, str(error).splitlines()[0][:300])
            except Exception as away:  # whatever a database's driver raises: the rows are refused all the same
                _LOG.warning(
                    "That %s was refused could not be put down in the journal. %s", name, shown(str(away))[:300]
                )
        raise


def _record(settings: Settings, name: str, reason: str) -> None:
    from tiltyard.journal import Journal  # sqlalchemy: whoever is refused nothing does not load it

    settings.ensure_home()
    with Journal.open(settings.journal_uri) as journal:
        journal.decide(
            kind=KIND,
            subject=name,
            actor="tiltyard data",
            evidence={"dataset": name},
            reasons=[reason],
            outcome="nothing was committed",
        )
