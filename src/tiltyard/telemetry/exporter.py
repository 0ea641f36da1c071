"""Answers Prometheus with what stands in the record: ``python -m tiltyard.telemetry.exporter --port 9105``.

A sweep's gauges live as long as its driver. Whether a night was missed, how old data are, what a champion scored last are
to be seen while nothing runs: this small server reads journal, registry and data store every `EVERY_S` seconds, in a
thread of its own, and gives what it read last. Where one of them is away the others are still told, and
``tiltyard_record_age_seconds`` rises. ``tiltyard up`` starts it; on a cluster it is a container of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tiltyard.data.refusals import KIND as REFUSED
from tiltyard.evaluation.folding import Evaluated
from tiltyard.journal import Journal
from tiltyard.settings import Settings, shown
from tiltyard.telemetry import logs, record
from tiltyard.telemetry.instruments import DECLARED, Source
from tiltyard.telemetry.record import Known, Readings

PORT = 9105
EVERY_S = 30.0
NIGHT, EVALUATION = "night", "evaluation"
"""Kinds of works in the journal (`tiltyard.nightly`, `tiltyard.evaluation.runner`)."""
_LOG = logging.getLogger(__name__)
_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class RecordReader:
    """Reads the stores; results of evaluations that were read before are not read again.

    Args:
        settings: Where they are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._results: dict[str, tuple[float | None, Evaluated]] = {}
        self._registry: Any = None

    def read(self, now: float) -> tuple[Readings, list[str]]:
        """What is found now, and what could not be read."""
        found: Readings = []
        problems: list[str] = []
        newest: list[Any] = []
        committed: dict[str, int] = {}

        def attempt(what: str, do: Callable[[], None]) -> None:
            try:
                do()
            except Exception as error:  # whatever a store or a network raises: the rest is still told
                problems.append(f"{what}: {shown(str(error))[:300]}")

        def data() -> None:
            from tiltyard.data.store import DatasetStore

            store = DatasetStore(self._settings.data_uri)
            newest.extend(store.newest())
            committed.update({v.name: len(store.versions(v.name)) for v in newest})

        def journal() -> None:
            with Journal.open(self._settings.journal_uri) as journal:
                found.extend(record.of_launches(journal.launches(), now=now))
                found.extend(record.of_budgets(journal.budgets.all()))
                refused = Counter(d.subject for d in journal.decisions(kind=REFUSED))
                found.extend(record.of_datasets(newest, committed, refused, now=now))
                nights = journal.works.find(NIGHT)
                results = journal.works.newest(w.key for w in nights)
                found.extend(record.of_nights(nights, results, record.ages_of(newest, now=now), now=now))
                self._evaluations(journal)

        def models() -> None:
            known = self._known() if _exists(self._settings.tracking_uri) else []
            found.extend(record.of_models(known, [r for _, r in self._results.values()], now=now))

        attempt("datasets", data)
        attempt("journal", journal)
        attempt("registry", models)
        return found, problems

    def _evaluations(self, journal: Journal) -> None:
        for work in journal.works.find(EVALUATION):
            if work.state != "finished":
                continue
            known = self._results.get(work.key)
            if known is not None and known[0] == work.ended and time.time() - (work.ended or 0) > 86_400:
                continue  # late labels may revise a result of today; older ones are looked at when the server starts
            results = journal.works.results(work.key)
            if results:
                self._results[work.key] = work.ended, Evaluated.from_json(results[-1].result)

    def _known(self) -> list[Known]:
        from tiltyard.registry.mlflow_registry import ModelRegistry

        if self._registry is None:
            self._registry = ModelRegistry(self._settings)
        found = []
        for name in self._registry.names():
            for version in self._registry.versions(name):
                if not set(record.ROLES) & set(version.aliases):
                    continue
                trained_on = None
                with contextlib.suppress(Exception):  # a version that Tiltyard did not register has no lineage
                    trained_on = version.lineage.dataset, version.lineage.dataset_version
                found += [
                    Known(
                        name=name,
                        version=version.version,
                        role=role,
                        created=version.created_ms / 1000,
                        trained_on=trained_on,
                    )
                    for role in record.ROLES
                    if role in version.aliases
                ]
        return sorted(found, key=lambda k: (record.ROLES.index(k.role), -k.created))


def _exists(uri: str) -> bool:
    """False where MLflow's embedded store is not there yet: reading would make it."""
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()


def exposition(readings: Readings) -> str:
    """Readings in Prometheus' text format, one family after another.

    Raises:
        KeyError: If a metric is not declared.
        AssertionError: If it is declared otherwise.
    """
    families: dict[str, list[str]] = {}
    for name, labels, value in readings:
        declared = DECLARED[name]
        assert declared.source is Source.RECORD, f"{name} is exported by Ray"
        assert set(labels) == set(declared.labels), f"{name} has labels {sorted(labels)}"
        inside = ",".join(f'{k}="{_escaped(v)}"' for k, v in labels.items())
        families.setdefault(name, []).append(f"{name}{{{inside}}} {value:g}" if inside else f"{name} {value:g}")
    lines = []
    for name, series in families.items():
        declared = DECLARED[name]
        lines += [f"# HELP {name} {_escaped(declared.meaning)}", f"# TYPE {name} {declared.kind}", *series]
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


class Exporter:
    """The server and the thread that reads.

    Args:
        settings: Of which home.
        port: Where it answers; 0 for a free one.
        host: On which address.
        every_s: How often the record is read.
    """

    def __init__(
        self, settings: Settings, *, port: int = PORT, host: str = "127.0.0.1", every_s: float = EVERY_S
    ) -> None:
        self._reader, self._every_s = RecordReader(settings), every_s
        self._readings: Readings = []
        self._sound = time.time()
        self._ended = threading.Event()
        self._told: list[str] = []
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path.partition("?")[0] in {"/metrics", "/healthz"}
                sent = (exporter.text() if self.path.startswith("/metrics") else "ok\n").encode() if known else b""
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(sent)

            def log_message(self, format: str, *args: object) -> None:
                """A scrape every few seconds is no news."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._threads = [
            threading.Thread(target=self._read, name="tiltyard-record", daemon=True),
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True),
        ]

    @property
    def port(self) -> int:
        """Where it answers."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Reads and answers from now on."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Ends both."""
        self._ended.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(timeout=30)

    def text(self) -> str:
        """What Prometheus is told now."""
        age = ("tiltyard_record_age_seconds", dict[str, str](), time.time() - self._sound)
        return exposition([age, *self._readings])

    def _read(self) -> None:
        while not self._ended.is_set():
            readings, problems = self._reader.read(time.time())
            self._readings = readings
            if not problems:
                self._sound = time.time()
            if problems != self._told:
                for problem in problems:
                    _LOG.warning("The record cannot be read whole; trying on. %s", problem)
                self._told = problems
            self._ended.wait(self._every_s)


@contextlib.contextmanager
def exporting(settings: Settings, *, every_s: float = EVERY_S) -> Iterator[Exporter]:
    """A running exporter on a free port, while the block lasts."""
    made = Exporter(settings, port=0, every_s=every_s)
    made.start()
    try:
        yield made
    finally:
        made.close()


def main(argv: list[str] | None = None) -> None:
    """Runs until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m tiltyard.telemetry.exporter", description=__doc__)
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container, behind a NetworkPolicy")
    parser.add_argument("--every", type=float, default=EVERY_S, help="seconds between two looks at the record")
    options = parser.parse_args(argv)
    logs.setup(level=logging.WARNING)
    os.nice(10)  # whoever trains or serves on this machine comes first
    made = Exporter(Settings.from_env(), port=options.port, host=options.host, every_s=options.every)
    ended = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: ended.set())
    made.start()
    ended.wait()
    made.close()


if __name__ == "__main__":
    main()
