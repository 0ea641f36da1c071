"""The journal's tables, and how an older one becomes a newer one.

Each migration is a list of SQL statements that both SQLite and PostgreSQL run, applied once, in order, each in one
transaction with the row that says so. A journal written by a newer Tiltyard is refused, never guessed at.
"""

from __future__ import annotations

import time

from sqlalchemy import Connection, Engine, inspect, text

from tiltyard.errors import JournalError

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE launches (
            key VARCHAR(64) PRIMARY KEY, experiment VARCHAR(100) NOT NULL, launch_id VARCHAR(32) NOT NULL,
            state VARCHAR(16) NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL, lease_until DOUBLE PRECISION NOT NULL,
            started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, parent_run_id VARCHAR(64), spec TEXT NOT NULL,
            summary TEXT NOT NULL)""",
        "CREATE INDEX launches_experiment ON launches (experiment)",
        """CREATE TABLE trials (
            key VARCHAR(64) NOT NULL, cell VARCHAR(64) NOT NULL, grp VARCHAR(210) NOT NULL, idx INTEGER NOT NULL,
            variant VARCHAR(100) NOT NULL, model TEXT NOT NULL, dataset VARCHAR(100) NOT NULL,
            dataset_version INTEGER NOT NULL, config TEXT NOT NULL, seed BIGINT NOT NULL, data_seed BIGINT NOT NULL,
            state VARCHAR(16) NOT NULL, epoch INTEGER NOT NULL, score DOUBLE PRECISION, reason TEXT,
            PRIMARY KEY (key, cell))""",
        "CREATE INDEX trials_cell ON trials (cell)",
        """CREATE TABLE cell_scores (
            cell VARCHAR(64) NOT NULL, epoch INTEGER NOT NULL, metrics TEXT NOT NULL, storage_uri TEXT NOT NULL,
            pack_id TEXT NOT NULL, attempt INTEGER NOT NULL, seconds DOUBLE PRECISION NOT NULL, failed TEXT,
            PRIMARY KEY (cell, epoch))""",
        """CREATE TABLE attempts (
            key VARCHAR(64) NOT NULL, pack_id VARCHAR(260) NOT NULL, number INTEGER NOT NULL, fence INTEGER NOT NULL,
            rung INTEGER NOT NULL, state VARCHAR(16) NOT NULL, started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION,
            metered_s DOUBLE PRECISION NOT NULL, reason TEXT, storage_uri TEXT, cells TEXT NOT NULL, layout TEXT NOT NULL,
            device_kind VARCHAR(64) NOT NULL, PRIMARY KEY (key, pack_id, number))""",
        """CREATE TABLE decisions (
            number INTEGER PRIMARY KEY, at DOUBLE PRECISION NOT NULL, kind VARCHAR(32) NOT NULL, subject TEXT NOT NULL,
            actor TEXT NOT NULL, evidence TEXT NOT NULL, reasons TEXT NOT NULL, outcome TEXT NOT NULL,
            once VARCHAR(300) UNIQUE, previous VARCHAR(64) NOT NULL, digest VARCHAR(64) NOT NULL)""",
        """CREATE TABLE spend (
            id VARCHAR(32) PRIMARY KEY, key VARCHAR(64) NOT NULL, what VARCHAR(32) NOT NULL, at DOUBLE PRECISION NOT NULL,
            wall_s DOUBLE PRECISION NOT NULL, cpu_s DOUBLE PRECISION NOT NULL, gpu_s DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX spend_key ON spend (key)",
        "CREATE TABLE watermarks (name VARCHAR(300) PRIMARY KEY, value TEXT NOT NULL)",
        """CREATE TABLE test_looks (
            id VARCHAR(32) PRIMARY KEY, key VARCHAR(64) NOT NULL, dataset VARCHAR(100) NOT NULL, at DOUBLE PRECISION NOT NULL,
            cells TEXT NOT NULL)""",
    ),
    (
        """CREATE TABLE budgets (
            team VARCHAR(100) PRIMARY KEY, limit_cpu_s DOUBLE PRECISION, limit_gpu_s DOUBLE PRECISION,
            changed DOUBLE PRECISION NOT NULL)""",
        """CREATE TABLE holds (
            id VARCHAR(32) PRIMARY KEY, team VARCHAR(100) NOT NULL, key VARCHAR(64) NOT NULL, fence INTEGER NOT NULL,
            pack_id VARCHAR(260) NOT NULL, at DOUBLE PRECISION NOT NULL, cpu_s DOUBLE PRECISION NOT NULL,
            gpu_s DOUBLE PRECISION NOT NULL, state VARCHAR(16) NOT NULL)""",
        "CREATE INDEX holds_team ON holds (team)",
    ),
    (
        """CREATE TABLE works (
            key VARCHAR(64) PRIMARY KEY, kind VARCHAR(32) NOT NULL, subject VARCHAR(300) NOT NULL, about TEXT NOT NULL,
            state VARCHAR(16) NOT NULL, fence INTEGER NOT NULL, owner TEXT NOT NULL, lease_until DOUBLE PRECISION NOT NULL,
            started DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, reason TEXT)""",
        "CREATE INDEX works_subject ON works (kind, subject)",
        """CREATE TABLE work_results (
            key VARCHAR(64) NOT NULL, revision INTEGER NOT NULL, at DOUBLE PRECISION NOT NULL, cause TEXT NOT NULL,
            result TEXT NOT NULL, PRIMARY KEY (key, revision))""",
    ),
    (
        """CREATE TABLE requests (
            number INTEGER PRIMARY KEY, key VARCHAR(64) NOT NULL, at DOUBLE PRECISION NOT NULL, kind VARCHAR(16) NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL, actor TEXT NOT NULL, reason TEXT NOT NULL,
            state VARCHAR(16) NOT NULL, answer TEXT NOT NULL, answered DOUBLE PRECISION)""",
        "CREATE INDEX requests_key ON requests (key)",
    ),
)
VERSION = len(MIGRATIONS)


def migrate(engine: Engine) -> None:
    """Brings a journal to `VERSION`; does nothing where it is there.

    Raises:
        JournalError: If a newer Tiltyard wrote it.
    """
    with engine.begin() as connection:
        _lock(connection)
        version = _version(connection)
        if version > VERSION:
            raise JournalError(
                f"This journal has schema version {version}; this Tiltyard knows versions up to {VERSION}. "
                "Install the Tiltyard that wrote it, or newer."
            )
        for number in range(version, VERSION):
            for statement in MIGRATIONS[number]:
                connection.execute(text(statement))
            connection.execute(
                text("INSERT INTO tiltyard_schema (version, applied) VALUES (:version, :applied)"),
                {"version": number + 1, "applied": time.time()},
            )


def _lock(connection: Connection) -> None:
    """Two processes that open a new journal at once migrate one after the other."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(7415111)"))


def _version(connection: Connection) -> int:
    if not inspect(connection).has_table("tiltyard_schema"):
        connection.execute(
            text("CREATE TABLE tiltyard_schema (version INTEGER PRIMARY KEY, applied DOUBLE PRECISION NOT NULL)")
        )
        return 0
    return int(connection.execute(text("SELECT COALESCE(MAX(version), 0) FROM tiltyard_schema")).scalar_one())
