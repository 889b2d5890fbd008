"""Migrating among others and under fire: one at a time, restartable from anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yoyo.migrations
from yoyo import get_backend, read_migrations
from yoyo.backends.base import DatabaseBackend

import tracedb.migrate
from sources import add, contents, two, value, yoyo_uri
from tracedb import ledger, resources
from tracedb.errors import AlreadyRunning, MigrationError
from tracedb.migrate import migrate, rollback, status
from tracedb.source import Source

RUN = "import sys, pathlib, tracedb.migrate as m; m.migrate(source=pathlib.Path(sys.argv[1]))"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries follow at once."""
    monkeypatch.setattr(tracedb.migrate, "_pause", lambda seconds: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return two(tmp_path)


@pytest.fixture
def other(empty_database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session in the database, outside of any transaction."""
    with psycopg.connect(empty_database, autocommit=True) as conn:
        yield conn


# one at a time


def test_eight_at_once_on_an_empty_database_all_succeed(empty_database: str) -> None:
    def run(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tracedb", "migrate"],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "TRACEDB_DSN": empty_database},
        )

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, range(8)))

    assert [(result.returncode, result.stderr) for result in results if result.returncode] == []
    expected = [migration.id for migration in Source.read()]
    with psycopg.connect(empty_database) as conn:
        rows = conn.execute("select migration_id from tracedb._yoyo_migration order by 1")
        assert [id for (id,) in rows] == expected
        assert conn.execute("select * from tracedb.yoyo_lock").fetchall() == []


def test_a_second_migrator_waits_and_says_for_whom(
    empty_database: str, folder: Path, other: psycopg.Connection[Any]
) -> None:
    other.execute(resources.statements("ledger.sql")["lock"], ledger._LOCK)
    said: list[str] = []

    def let_go(message: str) -> None:
        said.append(message)
        other.execute("select pg_advisory_unlock_all()")

    applied = migrate(empty_database, source=folder, progress=let_go)

    assert applied == ["0001_account", "0002_age"]
    assert f"another migration is running (server process {other.info.backend_pid})" in said[0]


def test_a_second_migrator_that_may_not_wait_leaves(
    empty_database: str, folder: Path, other: psycopg.Connection[Any]
) -> None:
    other.execute(resources.statements("ledger.sql")["lock"], ledger._LOCK)

    with pytest.raises(AlreadyRunning) as error:
        migrate(empty_database, source=folder, wait=False)

    assert error.value.exit_code == 75


def test_a_plain_yoyo_at_work_is_respected(
    empty_database: str, folder: Path, other: psycopg.Connection[Any]
) -> None:
    migrate(empty_database, source=folder, to="0001")
    other.execute("insert into tracedb.yoyo_lock values (1, now() at time zone 'utc', 4321)")

    with pytest.raises(AlreadyRunning, match="process 4321"):
        migrate(empty_database, source=folder, wait=False)

    assert status(empty_database, source=folder).pending == ("0002_age",)


def test_the_lock_row_of_a_killed_yoyo_is_removed(empty_database: str, folder: Path) -> None:
    migrate(empty_database, source=folder, to="0001")
    with psycopg.connect(empty_database) as gone:
        gone.execute("insert into tracedb.yoyo_lock values (1, now() at time zone 'utc', 4321)")

    assert migrate(empty_database, source=folder) == ["0002_age"]
    assert value(empty_database, "select count(*) from tracedb.yoyo_lock") == 0


def test_a_plain_yoyo_is_kept_out_while_we_migrate(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[Any] = []
    record = ledger.record

    def look(backend: ledger.Backend, migration: Any) -> None:
        held.append(value(empty_database, "select count(*) from tracedb.yoyo_lock"))
        record(backend, migration)

    monkeypatch.setattr(ledger, "record", look)
    migrate(empty_database, source=folder)

    assert held == [1, 1]
    assert value(empty_database, "select count(*) from tracedb.yoyo_lock") == 0


# killed


def die_after(monkeypatch: pytest.MonkeyPatch, statement: int) -> None:
    """End the server process right after it ran this statement of a migration."""
    apply = yoyo.migrations.MigrationStep.apply

    def apply_and_die(self: Any, backend: Any, force: bool = False) -> None:
        apply(self, backend, force)
        if self.id == statement:
            backend.connection.execute("select pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(yoyo.migrations.MigrationStep, "apply", apply_and_die)


@pytest.mark.slow
def test_killed_after_a_statement_a_migration_leaves_nothing_and_the_next_run_completes_it(
    empty_database: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source.read()
    monkeypatch.setattr(Source, "read", lambda folder=None: source)
    monkeypatch.setattr(tracedb.migrate, "ATTEMPTS", 1)

    with ledger.session(empty_database, wait=True, say=print):
        pass  # now there is a ledger, and nothing else

    for migration in source:
        before = contents(empty_database)
        count = len(migration.steps.steps)
        # after each would be the square of their number; one transaction undoes them all alike
        sample = max(1, count // 8) if migration.is_transactional else 1
        for k in {*range(0, count, sample), count - 1}:
            with monkeypatch.context() as patch:
                die_after(patch, k)
                with pytest.raises(MigrationError):
                    migrate(empty_database, to=migration.id)
            if not migration.is_transactional:  # what is left need only be no obstacle
                migrate(empty_database, to=migration.id)
                rollback(empty_database)
            assert contents(empty_database) == before
        assert migrate(empty_database, to=migration.id) == [migration.id]

    assert contents(empty_database) == contents(database)


@pytest.mark.parametrize("moment", ["before the record", "after the record", "after the commit"])
def test_killed_around_the_record_the_next_run_converges(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    record = ledger.record
    commit = DatabaseBackend.commit

    def die(backend: Any) -> None:
        backend.connection.execute("select pg_terminate_backend(pg_backend_pid())")

    def record_or_die(backend: Any, migration: Any) -> None:
        if moment == "before the record":
            die(backend)
        record(backend, migration)
        if moment == "after the record":
            die(backend)
        # from here on the reply to the commit is what gets lost
        monkeypatch.setattr(DatabaseBackend, "commit", commit_and_die)

    def commit_and_die(backend: Any) -> None:
        commit(backend)
        die(backend)

    with monkeypatch.context() as patch:
        patch.setattr(tracedb.migrate, "ATTEMPTS", 1)
        patch.setattr(ledger, "record", record_or_die)
        with pytest.raises(MigrationError):
            migrate(empty_database, source=folder, to="0001")
    monkeypatch.undo()

    committed = ["0001_account"] if moment == "after the commit" else []
    assert list(status(empty_database, source=folder).applied) == committed
    migrate(empty_database, source=folder)
    assert status(empty_database, source=folder).is_current


def test_a_lost_connection_is_replaced_and_the_work_completed(
    empty_database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = ledger.record
    said: list[str] = []

    def die_once(backend: Any, migration: Any) -> None:
        monkeypatch.setattr(ledger, "record", record)
        backend.connection.execute("select pg_terminate_backend(pg_backend_pid())")

    monkeypatch.setattr(ledger, "record", die_once)
    applied = migrate(empty_database, source=folder, progress=said.append)

    assert applied == ["0001_account", "0002_age"]
    assert any("trying again (1 of" in message for message in said)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_after_a_killed_process_the_next_run_needs_no_hand(
    empty_database: str, folder: Path, other: psycopg.Connection[Any], end: signal.Signals
) -> None:
    add(folder, "0003_waits", "create table tracedb.late ();\nselect pg_advisory_lock(4711);")
    other.execute("select pg_advisory_lock(4711)")
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        env={**os.environ, "TRACEDB_DSN": empty_database},
        stderr=subprocess.DEVNULL,
    )
    stuck = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
    while other.execute(stuck).fetchone() != (1,):
        assert process.poll() is None

    process.send_signal(end)
    assert process.wait() != 0

    # only Ctrl-C cleans up; else the server still works for the dead process, behind its locks
    left = 0 if end == signal.SIGINT else 1
    assert other.execute("select count(*) from tracedb.yoyo_lock").fetchone() == (left,)

    def let_go(message: str) -> None:
        other.execute("select pg_advisory_unlock_all()")

    assert migrate(empty_database, source=folder, progress=let_go) == ["0003_waits"]


@pytest.mark.parametrize("query", [{}, {"schema": "tracedb,public"}])
def test_plain_yoyo_killed_between_commit_and_record_is_repaired_by_the_next_migrate(
    empty_database: str, database: str, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    with psycopg.connect(empty_database) as conn:
        conn.execute("create schema tracedb")
    backend = get_backend(yoyo_uri(empty_database, **query))

    def die(*args: Any, **kwargs: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, backend:
        patch.setattr(DatabaseBackend, "log_migration", die)
        with pytest.raises(SystemExit):
            backend.apply_migrations(read_migrations(str(resources.folder("migrations"))))

    migrate(empty_database)

    assert status(empty_database).is_current
    assert contents(empty_database) == contents(database)


# locks and indexes


def test_a_migration_that_waits_too_long_for_a_lock_steps_aside_and_tries_again(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, source=folder, to="0001")
    path = folder / "0002_age.sql"
    path.write_text(f"set local lock_timeout = '50ms';\n{path.read_text()}")
    said: list[str] = []

    with psycopg.connect(empty_database) as reader:
        reader.execute("select * from tracedb.account")

        def end_the_reader(message: str) -> None:
            said.append(message)
            if "lock timeout" in message:
                reader.rollback()

        applied = migrate(empty_database, source=folder, progress=end_the_reader)

    assert applied == ["0002_age"]
    assert len([message for message in said if "lock timeout" in message]) == 1


def test_retries_end(empty_database: str, folder: Path, other: psycopg.Connection[Any]) -> None:
    migrate(empty_database, source=folder, to="0001")
    path = folder / "0002_age.sql"
    path.write_text(f"set local lock_timeout = '10ms';\n{path.read_text()}")
    said: list[str] = []

    with other.transaction():
        other.execute("select * from tracedb.account")
        with pytest.raises(MigrationError, match="lock timeout"):
            migrate(empty_database, source=folder, progress=said.append)

    tries = [message for message in said if "trying again" in message]
    assert len(tries) == tracedb.migrate.ATTEMPTS - 1


CONCURRENTLY = """-- transactional: false

set lock_timeout = '2s';
drop index concurrently if exists tracedb.account_name_key;
create unique index concurrently account_name_key on tracedb.account (name);
"""


def test_an_interrupted_concurrent_index_is_built_again(empty_database: str, folder: Path) -> None:
    migrate(empty_database, source=folder)
    with psycopg.connect(empty_database) as conn:
        conn.execute("insert into tracedb.account values (2, 'a 100%% %%s sure')", [])
    (folder / "0003_key.sql").write_text(f"-- 0003_key.sql: names are unique.\n{CONCURRENTLY}")

    with pytest.raises(MigrationError, match="account_name_key"):
        migrate(empty_database, source=folder)
    assert status(empty_database, source=folder).invalid_indexes == ("account_name_key",)

    with psycopg.connect(empty_database) as conn:
        conn.execute("delete from tracedb.account where id = 2")
    assert migrate(empty_database, source=folder) == ["0003_key"]
    assert status(empty_database, source=folder).is_current


def test_an_invalid_index_that_a_migration_accepted_is_named(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, source=folder)
    with psycopg.connect(empty_database, autocommit=True) as conn:
        conn.execute("insert into tracedb.account values (2, 'a 100%% %%s sure')", [])
        with suppress(psycopg.errors.UniqueViolation):
            conn.execute(
                "create unique index concurrently account_name_key on tracedb.account (name)"
            )
    (folder / "0003_key.sql").write_text(
        "-- transactional: false\n"
        "create unique index concurrently if not exists account_name_key on tracedb.account (name);"
    )

    with pytest.raises(MigrationError, match=r"invalid indexes, .*: account_name_key"):
        migrate(empty_database, source=folder)
