"""A sweep that is told to end: packs in the middle of a rung save what they have, and the next launch goes on from there.

The driver says so in the journal (a request of the kind ``save``, with its fence), starts nothing new, and gives running packs
some seconds. A pack looks at the end of each epoch; it then leaves its checkpoint and curves in storage, its attempt in the
journal as ``saved``, and ends. The next attempt at the same pack finds it. A pack whose epoch takes longer than that is ended
as it stands, and its rung begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Collection

from tiltyard.journal import Claim, Journal

SAVE_S = 60.0
"""Given to running packs after SIGTERM: half of what Ray waits before it kills a job that `tiltyard cancel` stops."""
CTRL_C_SAVE_S = 5.0
"""And after Ctrl-C, where somebody waits."""
LOOK_EVERY_S = 2.0
SAVE, SAVED = "save", "saved"


def save_s(reason: str) -> float:
    """Seconds that running packs have, by why the sweep ends."""
    return CTRL_C_SAVE_S if "Ctrl-C" in reason else SAVE_S


def ask_packs(journal: Journal, claim: Claim, experiment: str, reason: str) -> None:
    """Tells the packs of a launch to save and end."""
    asked = journal.requests.ask(
        claim.key, SAVE, subject=experiment, detail={"fence": claim.fence}, actor="driver", reason=reason
    )
    journal.requests.answer(claim, asked.number, state="done", answer={"said": "running packs save what they have"})


class Saving:
    """Is the launch told to end? Looked up at most every `LOOK_EVERY_S`, for a pack that asks after each epoch."""

    def __init__(self, journal: Journal, claim: Claim) -> None:
        self._journal, self._claim = journal, claim
        self._last, self._asked = time.monotonic(), False

    def __call__(self) -> bool:
        """True once the pack is to save and end."""
        now = time.monotonic()
        if not self._asked and now - self._last >= LOOK_EVERY_S:
            self._last = now
            done = self._journal.requests.of(self._claim.key, state="done")
            self._asked = any(r.kind == SAVE and r.detail["fence"] == self._claim.fence for r in done)
        return self._asked


def saved_by(journal: Journal, key: str, pack_id: str, cells: Collection[str]) -> str | None:
    """Where the last attempt at a pack saved it in the middle of its rung; None where none did, or not all of these cells."""
    tried = [a for a in journal.attempts(key, pack_id) if a.state == SAVED and set(cells) <= set(a.cells)]
    return tried[-1].storage_uri if tried else None
