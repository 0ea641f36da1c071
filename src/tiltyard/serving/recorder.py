"""Comparisons of champions and challengers into the journal: append-only, one decision a window and pair."""

from __future__ import annotations

import asyncio
import logging
import threading

from tiltyard.serving.comparison import DECISION, Comparison, Pair

RECORD_S, RECORD_MOST_S = 10.0, 600.0
"""A new pair's comparison is in the journal after the first; while a pair goes on the windows double up to the second."""


class Recorder:
    """Adds comparisons up and appends them to the journal: soon for a new pair, then in windows that double."""

    def __init__(self, journal_uri: str, record_s: float) -> None:
        self._journal_uri, self._record_s = journal_uri, record_s
        self._lock = threading.Lock()
        self._sums: dict[Pair, Comparison] = {}
        self._known: set[Pair] = set()

    def add(self, found: Comparison) -> None:
        """One request of a share."""
        with self._lock:
            there = self._sums.get(found.pair)
            self._sums[found.pair] = there + found if there is not None else found

    async def keep(self) -> None:
        """Records until it is cancelled."""
        wait = self._record_s
        while True:
            await asyncio.sleep(wait)
            goes_on = bool(self._sums)
            news = await asyncio.to_thread(self.write)
            wait = min(2 * wait, max(self._record_s, RECORD_MOST_S)) if goes_on and not news else self._record_s

    def write(self) -> bool:
        """Appends what came since the last time; True where a pair is new. What the journal does not take is kept."""
        from tiltyard.journal import Journal

        with self._lock:
            sums, self._sums = self._sums, {}
        if not sums:
            return False
        left = dict(sums)
        try:
            with Journal.open(self._journal_uri) as journal:
                for pair, found in sums.items():
                    journal.decide(
                        kind=DECISION,
                        subject=pair.model,
                        actor="tiltyard.serving",
                        evidence=found.to_evidence(),
                        reasons=[f"{pair.mode}: version {pair.challenger_version} beside {pair.champion_version}"],
                        outcome="compared",
                    )
                    del left[pair]
        except Exception:  # whatever a store's driver raises
            logging.getLogger("ray.serve").exception("comparisons wait for the journal")
        for found in left.values():
            self.add(found)
        news = set(sums) - self._known
        self._known |= set(sums) - set(left)
        return bool(news)
