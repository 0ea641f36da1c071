"""Makes the report of a launch: reads the record, draws the page, and keeps it beside the leaderboard in storage.

Anybody may make it at any time, from any machine that reaches the journal and the storage; a finished sweep makes it
itself. It takes a second or less for hundreds of trials.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from tiltyard.journal import Journal, Launch
from tiltyard.progress import work
from tiltyard.report.findings import gather
from tiltyard.report.page import render
from tiltyard.report.record import board_of, pick_launch, reading
from tiltyard.settings import Settings
from tiltyard.sweep.engine.layout import Layout, Storage
from tiltyard.sweep.leaderboard import Leaderboard

_LOG = logging.getLogger(__name__)


def report(settings: Settings, wanted: str | None = None) -> tuple[Launch, str]:
    """The page of a recorded launch, finished or not, and which one it is.

    Args:
        settings: Where things live.
        wanted: An experiment, the beginning of a key, or None for the newest launch.

    Raises:
        SpecError: If there is no such launch.
        JournalError: If nothing was ever recorded.
    """
    with reading(settings) as journal:
        launch = pick_launch(journal, wanted)
        with work(f"read the record of {launch.experiment}"):
            findings = gather(settings, journal, launch, board_of(settings, journal, launch))
        return launch, render(findings)


def drawing_at_end(settings: Settings) -> Callable[[str, Leaderboard, str | None], bytes | None]:
    """What a sweep calls when its leaderboard is written: draws the page, keeps it beside it, and gives it back.

    The sweep's answer does not depend on its picture: where drawing fails, a warning says so and None comes back.
    """

    def draw(key: str, board: Leaderboard, reason: str | None) -> bytes | None:
        try:
            with Journal.open(settings.journal_uri) as journal:
                launch = journal.launch(key)
                assert launch is not None
                ended = replace(launch, state="finished", summary={"reason": reason})
                page = render(gather(settings, journal, ended, board)).encode()
            keep(settings, key, page)
        except Exception:
            _LOG.warning("The report could not be drawn; later: tiltyard report %s", key[:12], exc_info=True)
            return None
        return page

    return draw


def keep(settings: Settings, key: str, page: bytes) -> str:
    """Puts a page beside the leaderboard in storage; its address."""
    layout = Layout(Storage(settings.storage_uri), key)
    layout.storage.write_bytes(layout.report, page)
    return layout.report
