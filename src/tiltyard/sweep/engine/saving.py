"""A sweep that is told to end: packs in the middle of a rung save what they have, and the next launch goes on from there.

The driver says so in the journal (a request of the kind ``save``, with its fence), starts nothing new, and gives running packs
some seconds. A pack looks at the end of each epoch; it then leaves its checkpoint and curves in storage, its attempt in the
journal as ``saved``, and ends. The next attempt at the same pack finds it. A pack whose epoch takes longer than that is ended
as it stands, and its rung begins anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import pyarrow as pa
import pyarrow.parquet as pq

from tiltyard.errors import TiltyardError
from tiltyard.journal import Claim, Journal
from tiltyard.sweep.engine.execute import CURVES
from tiltyard.sweep.engine.layout import Storage

SAVE_S = 60.0
"""Given to running packs after SIGTERM: half of what Ray waits before it kills a job that `tiltyard cancel` stops."""
CTRL_C_SAVE_S = 5.0
"""And after Ctrl-C, where somebody waits."""
LOOK_EVERY_S = 2.0
SAVE, SAVED = "save", "saved"
_POLL_S = 0.2


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


class GoOn:
    """May a queue begin its next member? It waits while the sweep is paused; no further once the launch is told to end.

    Args:
        journal: Where pauses are answered.
        claim: Of the launch: a pause ends with it.
        ended: Whether the launch is told to end.
    """

    def __init__(self, journal: Journal, claim: Claim, ended: Callable[[], bool]) -> None:
        self._journal, self._claim, self._ended = journal, claim, ended
        self._last, self._paused = time.monotonic(), False

    def __call__(self) -> bool:
        """True once it may, False where it is to go no further."""
        while not self._ended():
            now = time.monotonic()
            if now - self._last >= LOOK_EVERY_S:
                self._last, self._paused = now, is_paused(self._journal, self._claim)
            if not self._paused:
                return True
            time.sleep(_POLL_S)
        return False


def is_paused(journal: Journal, claim: Claim) -> bool:
    """The last thing that this launch was asked of the kind is a pause."""
    told = [r for r in journal.requests.of(claim.key, state="done") if r.kind in {"pause", "continue"}]
    mine = [r for r in told if r.answer.get("fence") == claim.fence]
    return bool(mine) and mine[-1].kind == "pause"


def saved_by(journal: Journal, key: str, pack_id: str, cells: Collection[str]) -> str | None:
    """Where the last attempt at a pack saved it in the middle of its rung; None where none did, or not all of these cells."""
    tried = [a for a in journal.attempts(key, pack_id) if a.state == SAVED and set(cells) <= set(a.cells)]
    return tried[-1].storage_uri if tried else None


def saved_epochs(journal: Journal, storage: Storage, key: str) -> dict[str, int]:
    """Epochs at which packs were left in the middle of a rung, by cell; without what cannot be read, for that begins anew."""
    last = {a.pack_id: a.storage_uri for a in journal.attempts(key) if a.state == SAVED}
    found: dict[str, int] = {}
    for uri in filter(None, last.values()):
        try:
            with storage.opening(f"{uri}/{CURVES}") as file:
                points = [] if file is None else pq.ParquetFile(file).read(columns=["cell", "epoch"]).to_pylist()
        except (OSError, TiltyardError, pa.ArrowException):
            continue
        for point in points:
            found[point["cell"]] = max(found.get(point["cell"], 0), int(point["epoch"]))
    return found
