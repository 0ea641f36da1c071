"""Opening a journal: from nothing, by several at once, an older one, a newer one, none at all."""

import os
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import create_engine, inspect, text

from tiltyard.errors import JournalError
from tiltyard.journal import Journal, Owner
from tiltyard.journal.schema import MIGRATIONS, VERSION

GOLDEN = Path(__file__).parents[2] / "golden" / "journal_v1.sql"
A, B = "a" * 64, "b" * 64
CELLS = [f"{n:064x}" for n in range(3)]


def driver(uri: str) -> str:
    return uri.replace("postgresql://", "postgresql+psycopg://")


def versions(uri: str) -> list[int]:
    engine = create_engine(driver(uri))
    try:
        with engine.connect() as c:
            return [int(v) for v in c.execute(text("SELECT version FROM tiltyard_schema ORDER BY version")).scalars()]
    finally:
        engine.dispose()


def load_golden(uri: str, golden: Path = GOLDEN) -> None:
    """A golden journal, of version 1 unless told otherwise, as a database of this store."""
    if uri.startswith("sqlite"):
        connection = sqlite3.connect(uri.removeprefix("sqlite:///"))
        connection.executescript(golden.read_text())
        connection.close()
        return
    engine = create_engine(driver(uri))
    try:
        with engine.begin() as c:
            c.exec_driver_sql(golden.read_text().replace("BEGIN TRANSACTION;", "").replace("COMMIT;", ""))
    finally:
        engine.dispose()


def test_open_of_an_empty_store_applies_every_migration(uri: str) -> None:
    Journal.open(uri).close()
    assert versions(uri) == list(range(1, VERSION + 1))
    Journal.open(uri).close()
    assert versions(uri) == list(range(1, VERSION + 1))


def test_open_of_an_empty_store_by_eight_at_once_applies_each_migration_once(uri: str) -> None:
    gate = Barrier(8)

    def one(_: int) -> None:
        gate.wait(timeout=30)
        Journal.open(uri).close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert versions(uri) == list(range(1, VERSION + 1))


def test_open_of_a_journal_by_a_newer_tiltyard_is_refused_and_changes_nothing(uri: str) -> None:
    Journal.open(uri).close()
    engine = create_engine(driver(uri))
    with engine.begin() as c:
        c.execute(text("INSERT INTO tiltyard_schema (version, applied) VALUES (99, 0)"))
    engine.dispose()
    with pytest.raises(JournalError, match=rf"version 99.*up to {VERSION}.*or newer"):
        Journal.open(uri)
    assert versions(uri) == [*range(1, VERSION + 1), 99]


def test_open_of_the_golden_journal_of_version_1_keeps_all_that_it_says(uri: str) -> None:
    load_golden(uri)
    with Journal.open(uri) as journal:
        assert versions(uri) == list(range(1, VERSION + 1))
        second, first = journal.launches()
        assert (first.key, first.state, first.experiment) == (A, "finished", "first-sweep")
        assert (first.parent_run_id, first.summary) == ("0123456789abcdef", {"best": {"digits": CELLS[1]}})
        assert (second.key, second.state) == (B, "running")
        trials = journal.trials(A)
        assert [(t.cell, t.state, t.epoch, t.score) for t in trials] == [
            (CELLS[0], "stopped", 3, 0.9),
            (CELLS[1], "done", 9, 0.91),
            (CELLS[2], "failed", 0, None),
        ]
        assert trials[0].config == {"hidden": (64, 32), "lr": 0.01}
        assert [(a.number, a.state, a.metered_s) for a in journal.attempts(A)] == [
            (1, "failed", 3.5),
            (2, "done", 1.75),
        ]
        scores = journal.cell_scores(CELLS)
        assert scores[CELLS[1], 3].metrics == {"accuracy": 0.91, "log_loss": 0.3}
        assert scores[CELLS[2], 3].failed == "diverged: log_loss is not a finite number"
        assert journal.verify_decisions() == 2
        assert journal.decisions(kind="promotion")[0].reasons == ("besser", "mieux été")
        assert journal.spend(A).by_what == {"driver": 9.0, "pack": 5.25}
        assert journal.watermark("evaluate/digits") == "3"


def test_open_of_the_golden_journal_of_version_2_keeps_its_budgets_and_takes_works(uri: str) -> None:
    load_golden(uri, GOLDEN.with_name("journal_v2.sql"))
    with Journal.open(uri) as journal:
        assert versions(uri) == list(range(1, VERSION + 1))
        budget = journal.budgets.get("vision")
        assert (budget.limit_cpu_s, budget.spent.cpu_s, budget.reserved.cpu_s) == (36_000.0, 40.0, 60.0)
        assert len(journal.launches()) == 3
        assert journal.verify_decisions() == 2
        assert journal.works.find("evaluation") == []
        claim = journal.works.claim(A, kind="evaluation", subject="m", about={"dataset": "digits"}, owner=Owner.here())
        assert claim.outcome == "new"


def test_golden_journal_of_version_1_is_written_to_as_any_other(uri: str) -> None:
    load_golden(uri)
    with Journal.open(uri) as journal:
        assert journal.claim(A, experiment="first-sweep", spec="{}", owner=Owner.here()).outcome == "finished"
        taken = journal.claim(B, experiment="first-sweep", spec="{}", owner=Owner.here())
        assert (taken.outcome, taken.fence) == ("taken_over", 2)
        journal.decide(kind="rung", subject="x", actor="halving", evidence={}, reasons=[], outcome="")
        assert journal.verify_decisions() == 3
        assert journal.record_test_look(A, "digits", [CELLS[1]]) == 2


def test_open_of_the_golden_journal_of_version_3_keeps_its_works_and_takes_requests(uri: str) -> None:
    load_golden(uri, GOLDEN.with_name("journal_v3.sql"))
    with Journal.open(uri) as journal:
        assert versions(uri) == list(range(1, VERSION + 1))
        assert [r.result for r in journal.works.results("e" * 64)] == [{"accuracy": 0.9}]
        assert journal.verify_decisions() == 2
        assert journal.requests.of(B) == []
        asked = journal.requests.ask(B, "pause", subject="first-sweep", detail={}, actor="me")
        taken = journal.claim(B, experiment="first-sweep", spec="{}", owner=Owner.here())
        assert journal.requests.answer(taken, asked.number, state="done", answer={"said": "paused"})


@pytest.mark.parametrize("version", [1, 2, 3])
def test_columns_of_a_migrated_golden_journal_are_those_of_a_new_one(uri: str, tmp_path: Path, version: int) -> None:
    load_golden(uri, GOLDEN.with_name(f"journal_v{version}.sql"))
    new = f"sqlite:///{tmp_path / 'new.db'}"
    for address in (uri, new):
        Journal.open(address).close()
    old_engine, new_engine = create_engine(driver(uri)), create_engine(new)
    try:
        old, fresh = inspect(old_engine), inspect(new_engine)
        assert sorted(old.get_table_names()) == sorted(fresh.get_table_names())
        for table in fresh.get_table_names():
            names = [c["name"] for c in fresh.get_columns(table)]
            assert [c["name"] for c in old.get_columns(table)] == names, table
    finally:
        old_engine.dispose()
        new_engine.dispose()


@pytest.mark.parametrize("version", [1, 2, 3])
def test_schema_of_a_version_is_what_its_golden_journal_has(version: int) -> None:
    def words(sql: str) -> str:
        return " ".join(sql.replace(";", "").split())

    golden = words(GOLDEN.with_name(f"journal_v{version}.sql").read_text())
    assert [s for migration in MIGRATIONS[:version] for s in migration if words(s) not in golden] == []


def test_open_of_a_new_sqlite_file_lets_only_its_owner_read_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal.db"
    Journal.open(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("mysql://user:secret@host/db", "neither SQLite nor PostgreSQL"),
        ("nonsense", "no SQLAlchemy URL"),
        ("postgresql://user:secret@127.0.0.1:1/db?connect_timeout=2", "cannot be opened"),
    ],
)
def test_open_of_an_address_that_is_no_journal_says_so_without_the_password(address: str, said: str) -> None:
    with pytest.raises(JournalError, match=said) as error:
        Journal.open(address)
    assert "secret" not in str(error.value)
    assert "TILTYARD_JOURNAL_URI" in str(error.value)


def test_open_of_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    path.write_bytes(os.urandom(4096))
    with pytest.raises(JournalError, match="cannot be opened"):
        Journal.open(f"sqlite:///{path}")


def test_open_of_the_golden_journal_by_four_at_once_migrates_it_once(uri: str) -> None:
    load_golden(uri)
    gate = Barrier(4)

    def one(_: int) -> int:
        gate.wait(timeout=30)
        with Journal.open(uri) as journal:
            return journal.verify_decisions()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == [2] * 4
    assert versions(uri) == list(range(1, VERSION + 1))
