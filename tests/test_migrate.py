"""Migrating and rolling back: what, in which order, from which source, on which database."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from servers import Server
from sources import add, contents, two, value
from sources import yoyo as plain_yoyo
from tracedb import resources
from tracedb.errors import (
    ConnectionFailed,
    MigrationEdited,
    MigrationError,
    MigrationForeign,
    NotFound,
    NotMigrated,
    SourceInvalid,
)
from tracedb.migrate import migrate, rollback, status, wait
from tracedb.source import Source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return two(tmp_path)


# what is applied, and in what order


def test_everything_pending_is_applied_once_and_in_order(empty_database: str, folder: Path) -> None:
    first = migrate(empty_database, source=folder)
    second = migrate(empty_database, source=folder)

    assert first == ["0001_account", "0002_age"]
    assert second == []
    assert status(empty_database, source=folder).is_current


def test_the_text_of_a_migration_reaches_the_server_unchanged(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, source=folder)

    assert value(empty_database, "select name from tracedb.account") == "a 100% %s sure"


def test_one_can_stop_at_a_migration_by_id_or_number(empty_database: str, folder: Path) -> None:
    by_number = migrate(empty_database, source=folder, to="0001")
    rest = migrate(empty_database, source=folder, to="0002_age")

    assert (by_number, rest) == (["0001_account"], ["0002_age"])
    with pytest.raises(NotFound, match="no migration 0009"):
        migrate(empty_database, source=folder, to="0009")


def test_a_dry_run_and_a_status_leave_an_empty_database_empty(
    empty_database: str, folder: Path
) -> None:
    would = migrate(empty_database, source=folder, dry_run=True)
    now = status(empty_database, source=folder)

    assert would == list(now.pending) == ["0001_account", "0002_age"]
    assert value(empty_database, "select to_regnamespace('tracedb')") is None


def test_the_ledger_is_in_schema_tracedb_and_extensions_are_not(empty_database: str) -> None:
    migrate(empty_database)

    ledgers = (
        "select relnamespace::regnamespace::text from pg_class where relname ~ '^_?yoyo_[a-z]+$'"
    )
    with psycopg.connect(empty_database) as conn:
        assert set(conn.execute(ledgers).fetchall()) == {("tracedb",)}
    home = "select extnamespace::regnamespace::text from pg_extension where extname = 'vector'"
    assert value(empty_database, home) == "public"


def test_rows_that_a_migration_returns_are_not_printed(
    empty_database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(tmp_path, "0001_chatty", "select set_config('a.b', 'printed', true);")

    migrate(empty_database, source=tmp_path)

    assert capsys.readouterr() == ("", "")


def test_settings_of_one_migration_do_not_reach_the_next(
    empty_database: str, tmp_path: Path
) -> None:
    add(
        tmp_path,
        "0001_sets",
        "set search_path to pg_catalog; set lock_timeout to '77s'; set role tracedb_owner;",
    )
    add(
        tmp_path,
        "0002_reads",
        "create table tracedb.seen as select current_setting('lock_timeout') as lock_timeout,"
        " current_setting('role') as role;",
    )

    migrate(empty_database, source=tmp_path)

    with psycopg.connect(empty_database) as conn:
        assert conn.execute("select * from tracedb.seen").fetchall() == [("2s", "none")]


def test_a_failing_migration_is_undone_and_named_and_earlier_ones_stay(
    empty_database: str, folder: Path
) -> None:
    add(folder, "0003_bad", "create table tracedb.half (id int);\nselect 1 / 0;")

    with pytest.raises(MigrationError, match="division by zero") as error:
        migrate(empty_database, source=folder)

    assert "at: select 1 / 0;" in str(error.value)
    assert "in migration 0003_bad" in str(error.value)
    assert value(empty_database, "select to_regclass('tracedb.half')") is None
    assert status(empty_database, source=folder).applied == ("0001_account", "0002_age")


# rolling back


def test_the_newest_is_rolled_back_unless_more_is_asked_for(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database, source=folder)

    would = rollback(empty_database, source=folder, dry_run=True)
    newest = rollback(empty_database, source=folder)
    migrate(empty_database, source=folder)
    everything = rollback(empty_database, source=folder, count=None)

    assert would == newest == ["0002_age"]
    assert everything == ["0002_age", "0001_account"]
    assert value(empty_database, "select to_regclass('tracedb.account')") is None


def test_one_can_roll_back_to_a_migration(empty_database: str, folder: Path) -> None:
    add(folder, "0003_more", "select 1;", "select 1;")
    migrate(empty_database, source=folder)

    undone = rollback(empty_database, source=folder, to="0001")

    assert undone == ["0003_more", "0002_age"]
    assert status(empty_database, source=folder).applied == ("0001_account",)


@pytest.mark.parametrize("rollback_sql", [None, "irreversible"])
def test_what_cannot_be_undone_is_refused_before_anything_is(
    empty_database: str, folder: Path, rollback_sql: str | None
) -> None:
    add(folder, "0003_final", "select 1;")
    if rollback_sql:
        (folder / "0003_final.rollback.sql").write_text("-- irreversible: the rows are gone\n")
    add(folder, "0004_more", "select 1;", "select 1;")
    migrate(empty_database, source=folder)

    with pytest.raises(MigrationError, match="0003_final cannot be rolled back"):
        rollback(empty_database, source=folder, count=2)

    assert "0004_more" in status(empty_database, source=folder).applied


def test_the_real_schema_rolls_back_with_its_ledger_and_comes_back(empty_database: str) -> None:
    before = migrate(empty_database)
    built = contents(empty_database)

    rollback(empty_database, count=None)
    assert status(empty_database).applied == ()
    assert migrate(empty_database) == before
    assert contents(empty_database) == built


# sources that are refused


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: folder, "no migrations in"),
        (lambda folder: add(folder, "post-apply", "select 1;").parent, "is not named as"),
        (lambda folder: add(folder, "20240101_01_abc-other", "").parent, "is not named as"),
        (lambda folder: add(folder, "0002_b", "-- depends: 0001_a\n").parent, "dependencies"),
    ],
    ids=["nonexistent", "empty", "hook", "other project's names", "missing dependency"],
)
def test_a_wrong_source_is_refused(
    empty_database: str, tmp_path: Path, build: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(SourceInvalid, match=message):
        migrate(empty_database, source=build(tmp_path))

    assert value(empty_database, "select to_regnamespace('tracedb')") is None


def test_a_released_file_that_was_edited_or_removed_is_named(
    empty_database: str, folder: Path
) -> None:
    script = Path(__file__).parents[1] / "scripts" / "freeze-migrations"
    subprocess.run([script, folder], check=True)
    (folder / "0001_account.rollback.sql").unlink()
    with (folder / "0002_age.sql").open("a") as file:
        file.write("select 1;\n")

    with pytest.raises(MigrationEdited, match=r"0001_account.rollback.sql, 0002_age.sql"):
        migrate(empty_database, source=folder)

    edited = status(empty_database, source=folder).edited
    assert set(edited) == {"0001_account.rollback.sql", "0002_age.sql"}


def test_a_file_edited_after_it_was_applied_is_named(empty_database: str, folder: Path) -> None:
    migrate(empty_database, source=folder)
    with (folder / "0001_account.sql").open("a") as file:
        file.write("select 1;\n")

    with pytest.raises(MigrationEdited, match=r": 0001_account.sql"):
        migrate(empty_database, source=folder)
    with pytest.raises(MigrationEdited):
        rollback(empty_database, source=folder)

    assert status(empty_database, source=folder).edited == ("0001_account.sql",)


def test_migrations_of_others_in_our_ledger_are_named(empty_database: str, folder: Path) -> None:
    add(folder, "0003_newer", "select 1;", "select 1;")
    migrate(empty_database, source=folder)
    (folder / "0003_newer.sql").unlink()

    with pytest.raises(MigrationForeign, match="0003_newer"):
        migrate(empty_database, source=folder)
    with pytest.raises(MigrationForeign):
        rollback(empty_database, source=folder)

    assert status(empty_database, source=folder).foreign == ("0003_newer",)


# other ways to the same schema


def test_another_project_with_equal_names_in_the_database_is_no_obstacle(
    empty_database: str, database: str, tmp_path: Path
) -> None:
    names = [migration.id for migration in Source.read()]
    for name in names:
        add(tmp_path / "theirs", name, f'create table public."{name}_of_theirs" (id int);')
    plain_yoyo(empty_database, tmp_path / "theirs")

    assert migrate(empty_database) == names
    assert contents(empty_database) == contents(database)


def test_a_database_of_plain_yoyo_is_taken_over_without_applying_anything(
    empty_database: str, database: str
) -> None:
    plain_yoyo(empty_database, resources.folder("migrations"))

    assert status(empty_database).is_current
    assert migrate(empty_database, dry_run=True) == []
    assert migrate(empty_database) == []
    assert status(empty_database).is_current
    assert contents(empty_database) == contents(database)
    assert value(empty_database, "select count(*) from tracedb._yoyo_migration") > 0


def test_a_plain_yoyo_on_our_ledger_finds_nothing_to_do(database: str) -> None:
    before = contents(database)

    plain_yoyo(database, resources.folder("migrations"), schema="tracedb,public")

    assert contents(database) == before
    assert value(database, "select to_regclass('public._yoyo_migration')") is None


def test_a_file_applied_by_plain_yoyo_has_no_known_content_and_is_not_called_edited(
    empty_database: str, folder: Path
) -> None:
    with psycopg.connect(empty_database) as conn:
        conn.execute("create schema tracedb")
    plain_yoyo(empty_database, folder, schema="tracedb,public")

    assert migrate(empty_database, source=folder) == []
    assert status(empty_database, source=folder).is_current


def test_a_database_of_psql_is_taken_over(empty_database: str, database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as conn:
        for path in resources.schema_files():
            conn.execute(path.read_bytes())

    migrate(empty_database)

    assert status(empty_database).is_current
    assert contents(empty_database) == contents(database)


# waiting


def test_waiting_ends_when_the_server_answers_and_is_migrated(
    empty_database: str, folder: Path
) -> None:
    def migrate_meanwhile(message: str) -> None:
        assert "0001_account" in message
        migrate(empty_database, source=folder)

    wait(empty_database, migrated=True, source=folder, progress=migrate_meanwhile)

    assert status(empty_database, source=folder).is_current


def test_waiting_ends_with_the_reason_when_the_time_is_up(
    empty_database: str, folder: Path, server: Server
) -> None:
    with pytest.raises(ConnectionFailed, match="nowhere_at_all"):
        wait(server.dsn("nowhere_at_all"), timeout=0)
    with pytest.raises(NotMigrated, match="0001_account"):
        wait(empty_database, timeout=0, migrated=True, source=folder)
