"""Keeps a launch's claim alive for as long as the launch works, whatever it does meanwhile.

Starting Ray, sharing a dataset, looking at the test split and handing over to MLflow can each take longer than a lease
lasts. So a thread of its own renews it, and a claim that was lost meanwhile is told to whoever asks next.
"""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import Self

from tiltyard.errors import FencedError
from tiltyard.journal import Claim, Journal

RENEW_EVERY_S = 15.0
"""A quarter of a lease: three renewals in a row may fail before it is late."""
JOIN_S = 5.0
"""How long the end of the block waits for a renewal that is on its way, e.g. to a database that is gone."""

_log = logging.getLogger(__name__)


class Lease:
    """A claim that is renewed while this is entered; see `keep_alive`."""

    def __init__(self, journal: Journal, claim: Claim, every_s: float = RENEW_EVERY_S) -> None:
        self._journal, self._claim, self._every_s = journal, claim, every_s
        self._lost: FencedError | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease-{claim.key[:16]}", daemon=True)

    def __enter__(self) -> Self:
        self.renew()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join(JOIN_S)

    def check(self) -> None:
        """The claim was not found lost so far. Asks nobody, so it may be called at every turn of a loop.

        Raises:
            FencedError: If somebody took the key over; again at each call.
        """
        if self._lost is not None:
            raise FencedError(str(self._lost)) from self._lost

    def renew(self) -> None:
        """Renews now, in the journal: what is done next is done by the holder.

        Raises:
            FencedError: If somebody took the key over.
        """
        self.check()
        try:
            self._journal.renew(self._claim)
        except FencedError as error:
            self._lost = error
            raise

    def _keep(self) -> None:
        while not self._ended.wait(self._every_s):
            try:
                self._journal.renew(self._claim)
            except FencedError as error:
                self._lost = error
                return
            except Exception as error:  # a database that restarts or is locked: the fence decides, not this thread
                _log.warning("The lease of key %s was not renewed, trying again: %s", self._claim.key[:16], error)


def keep_alive(journal: Journal, claim: Claim, every_s: float = RENEW_EVERY_S) -> Lease:
    """A context manager in whose block a claim is renewed, at once and then every ``every_s`` seconds.

    The block's end raises nothing: a claim ends with `Journal.release`, which is fenced itself, and whoever takes the
    key over after that does so by right. Ask `Lease.check` (cheap) or `Lease.renew` (certain) before what only the holder
    may do.

    Args:
        journal: Where the claim is; used from a second thread until the block ends.
        claim: What to keep.
        every_s: Seconds between renewals; well below the lease's length.

    Raises:
        FencedError: On entering, if the claim is lost already.
    """
    return Lease(journal, claim, every_s)
