"""Puts data source, folder, boards, alert rules, contact points and routes into a Grafana, through ``grafana-client``.

What is to be there is decided by `provisioning`; here it is read, compared and written, one document at a time. A second push
writes nothing. Where somebody else writes at the same moment Grafana says 412 or 409: the document is read and merged
again. The token comes from the environment or a file, goes into a header, and stands in no argument, message or log.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from grafana_client.api import GrafanaApi
from grafana_client.client import GrafanaException, GrafanaServerError

from tiltyard.errors import SpecError, TiltyardError
from tiltyard.telemetry import provisioning as wanted
from tiltyard.telemetry.boards import BOARDS
from tiltyard.telemetry.dashboards import model
from tiltyard.telemetry.notices import Receiver

TOKEN_ENV = "GRAFANA_TOKEN"  # noqa: S105 - the name of a variable
TIMEOUT_S = 20.0
TRIES = 4


class GrafanaError(TiltyardError):
    """Grafana said no, or did not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was written: ``made``, ``changed`` or ``removed``."""

    what: str
    how: str


def token_of(file: Path | None, env: Mapping[str, str] = os.environ) -> str:
    """The token of a service account: from a file that is named, else from the environment.

    Raises:
        SpecError: If there is none.
    """
    if file is not None:
        try:
            token = file.read_text().strip()
        except OSError as error:
            raise SpecError(f"The token's file {file} cannot be read: {error.strerror}.") from error
    else:
        token = env.get(TOKEN_ENV, "").strip()
    if not token:
        raise SpecError(
            f"There is no token for Grafana. Put one of a service account with the role Admin into {TOKEN_ENV}, or name a file "
            "that holds it: --token-file FILE."
        )
    return token


class Pusher:
    """One push.

    Args:
        url: Of Grafana; without user and password.
        token: Of a service account.
        sleep: Waits between tries.
    """

    def __init__(self, url: str, token: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SpecError(f"{url!r} is no address of a Grafana; wanted https://HOST[/PATH].")
        if parts.username or parts.password:
            raise SpecError(f"The address of Grafana holds a user or password; put a token into {TOKEN_ENV} instead.")
        path = f"{parts.path.strip('/')}/" if parts.path.strip("/") else ""
        self._api = GrafanaApi.from_url(
            urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", "")),
            credential=token,
            timeout=TIMEOUT_S,
        )
        self._url, self._sleep = url, sleep
        self.changes: list[Change] = []

    def push(
        self, *, prometheus: str | None, data_source: str | None = None, receivers: Mapping[str, Receiver] | None = None
    ) -> list[Change]:
        """Makes Grafana hold what is committed, and leaves what people added; what was written.

        Args:
            prometheus: Address of Prometheus as Grafana reaches it; None for a data source that is there.
            data_source: Its uid.
            receivers: By name; each becomes a contact point that gets every alert.

        Raises:
            SpecError: If neither an address nor a data source is given, or there is no such one.
            GrafanaError: If Grafana refuses or does not answer.
        """
        source = self._source(prometheus, data_source)
        self._folder()
        for board in BOARDS:
            self._board(model(board), source)
        self._rules(source[1])
        if receivers is not None:
            self._contacts(wanted.contact_points(receivers))
        return self.changes

    def _source(self, prometheus: str | None, uid: str | None) -> tuple[str, str]:
        if prometheus is None:
            if uid is None:
                raise SpecError(
                    "Say where Prometheus is (--prometheus URL), or which data source to use (--datasource UID)."
                )
            found = self._found(lambda: self._api.datasource.get_datasource_by_uid(uid))
            if found is None:
                raise SpecError(f"Grafana has no data source with the uid {uid!r}; name another, or --prometheus URL.")
            return found["name"], found["uid"]
        body = wanted.data_source(prometheus)

        def once() -> None:
            there = self._found(lambda: self._api.datasource.get_datasource_by_uid(wanted.DATA_SOURCE_UID))
            if there is None:
                self._api.datasource.create_datasource(body)
                self._note("data source", "made")
            elif (merged := wanted.merged_data_source(there, body)) is not None:
                self._api.datasource.update_datasource_by_uid(wanted.DATA_SOURCE_UID, merged)
                self._note("data source", "changed")

        self._again("data source", once)
        return wanted.DATA_SOURCE_NAME, wanted.DATA_SOURCE_UID

    def _folder(self) -> None:
        def once() -> None:  # a folder that somebody gave another title keeps it
            if self._found(lambda: self._api.folder.get_folder(wanted.FOLDER_UID)) is None:
                self._api.folder.create_folder(wanted.FOLDER_TITLE, uid=wanted.FOLDER_UID)
                self._note("folder", "made")

        self._again("folder", once)

    def _board(self, rendered: dict[str, Any], source: tuple[str, str]) -> None:
        def once() -> None:
            there = self._found(lambda: self._api.dashboard.get_dashboard(rendered["uid"]))
            before = None if there is None else there["dashboard"]
            merged = wanted.merged_board(before, rendered, source=source)
            if merged is None:
                return
            folder = wanted.FOLDER_UID if there is None else there["meta"].get("folderUid", wanted.FOLDER_UID)
            if before is not None:  # Grafana says 412 where the version is not the newest
                merged |= {"id": before["id"], "version": before["version"]}
            body = {"dashboard": merged, "folderUid": folder, "overwrite": False, "message": "tiltyard dashboards push"}
            self._api.dashboard.update_dashboard(body)
            self._note(f"board {rendered['uid']}", "made" if there is None else "changed")

        self._again(f"board {rendered['uid']}", once)

    def _rules(self, source_uid: str) -> None:
        api = self._api.alertingprovisioning

        def once() -> None:
            there = self._found(lambda: api.get_rule_group(wanted.FOLDER_UID, wanted.GROUP))
            merged = wanted.merged_group(there, source_uid)
            if merged is not None:
                api.update_rule_group(wanted.FOLDER_UID, wanted.GROUP, merged, disable_provenance=True)
                self._note("alert rules", "made" if there is None else "changed")

        self._again("alert rules", once)

    def _contacts(self, points: list[dict[str, Any]]) -> None:
        api = self._api.alertingprovisioning
        there = self._again("contact points", api.get_contactpoints) or []
        new, old = wanted.changed_points(there, points)
        for point in new:
            make = partial(api.create_contactpoint, point, disable_provenance=True)
            self._again(f"contact point {point['name']}", make)
            self._note(f"contact point {point['name']}", "made")
        for point in wanted.turned_points(there, points):
            write = partial(api.update_contactpoint, point["uid"], point, disable_provenance=True)
            self._again(f"contact point {point['name']}", write)
            self._note(f"contact point {point['name']}", "changed")

        def routes() -> None:
            tree = wanted.merged_policies(api.get_notification_policy_tree(), [p["name"] for p in points])
            if tree is not None:
                api.set_notification_policy_tree(tree, disable_provenance=True)
                self._note("routes of alerts", "changed")

        self._again("routes of alerts", routes)
        for uid in old:  # last: Grafana keeps one that a route still names
            self._again("contact point", partial(api.delete_contactpoint, uid))
            self._note(f"contact point {uid}", "removed")

    def _note(self, what: str, how: str) -> None:
        self.changes.append(Change(what=what, how=how))

    def _found(self, ask: Callable[[], Any]) -> Any:
        """The document, or None where there is none."""
        try:
            return ask()
        except GrafanaException as error:
            if error.status_code == 404:
                return None
            raise

    def _again(self, what: str, do: Callable[[], Any]) -> Any:
        """Does it, and again after a conflict or a fault of the server; any other no is told."""
        for attempt in range(TRIES):
            try:
                return do()
            except GrafanaException as error:
                if attempt == TRIES - 1 or not _passes(error):
                    raise GrafanaError(_told(self._url, what, error)) from None
            except OSError as error:  # refused, reset, no such host: niquests' errors are OSErrors
                if attempt == TRIES - 1:
                    raise GrafanaError(
                        f"Grafana at {self._url} does not answer ({type(error).__name__}). Look at the address; then push again: "
                        "what was written stays, and nothing is written twice."
                    ) from None
            self._sleep(0.25 * 2**attempt)
        raise AssertionError("unreachable")


def _passes(error: GrafanaException) -> bool:
    """Whether it may go well the next time."""
    return isinstance(error, GrafanaServerError) or error.status_code in {0, 409, 412, 429}


_HINTS = {
    401: "Look at the token.",
    403: "Give the token's service account the role Admin.",
    409: "Somebody's own has that name, or it is provisioned from files: rename it or take it out there.",
    412: "Somebody changes it all the time, or another board has this title in the folder.",
}


def _told(url: str, what: str, error: GrafanaException) -> str:
    said = error.response.get("message", "") if isinstance(error.response, dict) else ""
    hint = _HINTS.get(error.status_code, "Look at Grafana's log.")
    return f"Grafana at {url} answered {error.status_code} to the {what}: {said or 'no message'}. {hint}"
