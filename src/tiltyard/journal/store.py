"""Where a journal's rows are: SQLite or PostgreSQL, and how a transaction begins on each.

Every write that depends on what was read happens in one transaction; on SQLite it takes the write lock when it begins
(``BEGIN IMMEDIATE``), on PostgreSQL it locks the row (or the table) it depends on. Many processes may write at once.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from tiltyard.errors import FencedError, JournalError
from tiltyard.journal.schema import migrate

BUSY_S = 60
_READS = "tiltyard_reads"
"""Execution option of a connection that only reads: on SQLite it then takes no write lock."""


class Store:
    """An open database at today's schema version."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"

    @classmethod
    def open(cls, uri: str) -> Store:
        """Opens, creates or migrates what is at a SQLAlchemy URL.

        Raises:
            JournalError: If it cannot be opened, or a newer Tiltyard wrote it.
        """
        wanted = "Wanted: a writable SQLite file or a PostgreSQL database (TILTYARD_JOURNAL_URI)."
        try:
            url = make_url(uri)
        except SQLAlchemyError as error:
            raise JournalError(f"The journal's address is no SQLAlchemy URL. {wanted}") from error
        shown, kind = url.render_as_string(hide_password=True), url.drivername.partition("+")[0]
        if kind not in {"sqlite", "postgresql"}:
            raise JournalError(f"The journal {shown} is neither SQLite nor PostgreSQL. {wanted}")
        engine: Engine | None = None
        try:
            if kind == "sqlite":
                engine = _open_sqlite(uri, url.database)
            else:
                engine = create_engine(url.set(drivername="postgresql+psycopg"), pool_pre_ping=True)
            migrate(engine)
        except (SQLAlchemyError, OSError, JournalError) as error:
            if engine is not None:
                engine.dispose()
            if isinstance(error, JournalError):
                raise
            raise JournalError(f"The journal {shown} cannot be opened: {error}. {wanted}") from error
        return cls(engine)

    def close(self) -> None:
        """Gives its connections back."""
        self._engine.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that only reads."""
        with self._engine.connect() as connection:
            yield connection.execution_options(**{_READS: True})

    @contextmanager
    def writing(self, exclusive_table: str | None = None) -> Iterator[Connection]:
        """One transaction, committed where the block ends without an error; alone in a table if asked."""
        with self._engine.begin() as connection:
            if exclusive_table is not None and not self._is_sqlite:
                connection.execute(text(f"LOCK TABLE {exclusive_table} IN EXCLUSIVE MODE"))
            yield connection

    @property
    def for_update(self) -> str:
        """Put behind a SELECT: nobody else reads these rows to write, until the transaction ends."""
        return "" if self._is_sqlite else " FOR UPDATE"

    @property
    def for_share(self) -> str:
        """Put behind a SELECT: nobody changes these rows until the transaction ends."""
        return "" if self._is_sqlite else " FOR SHARE"


def check_fence(store: Store, tx: Connection, key: str, fence: int, *, alone: bool = False) -> None:
    """Holds the launch's row until the transaction ends, so that nobody takes it over meanwhile.

    With ``alone`` no other transaction of this claim runs beside this one, e.g. to number attempts.

    Raises:
        FencedError: If the claim was taken over.
    """
    lock = store.for_update if alone else store.for_share
    now = tx.execute(text(f"SELECT fence FROM launches WHERE key = :key{lock}"), {"key": key}).scalar()
    if now != fence:
        raise FencedError(taken_over(key, fence))


def taken_over(key: str, fence: int) -> str:
    """What a late writer is told."""
    return (
        f"The claim on key {key[:16]} (fence {fence}) was taken over by another process; nothing was written. "
        "Look at who works on it: tiltyard runs"
    )


def _open_sqlite(uri: str, database: str | None) -> Engine:
    if database and database != ":memory:":
        path = Path(database)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    engine = create_engine(uri, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_S * 1000}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    """Write-ahead logging, which the file remembers.

    Where two processes switch a new file at once SQLite does not ask its busy handler, so we wait here.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return
