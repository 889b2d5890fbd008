"""Verifying: drift is found by object, and nothing is changed by looking."""

from __future__ import annotations

import psycopg
import pytest

from servers import Server
from sources import contents, value
from tracedb.errors import NotMigrated
from tracedb.migrate import migrate, status
from tracedb.source import Source
from tracedb.verify import verify


def test_a_migrated_database_is_as_expected(database: str) -> None:
    before = contents(database)

    assert verify(database) == []
    assert contents(database) == before


@pytest.mark.parametrize(
    ("statement", "object"),
    [
        ("drop view tracedb.trace_summary cascade", "view tracedb.trace_summary"),
        ("create table tracedb.stray (id int)", "table tracedb.stray"),
        ("alter table tracedb.llm_spans no force row level security", "table tracedb.llm_spans"),
        ("alter table tracedb.llm_spans add stray int", "column tracedb.llm_spans.stray"),
        ("grant select on tracedb.tenants to public", "grants on tracedb.tenants"),
        ("comment on table tracedb.tenants is 'x'", "comment on tracedb.tenants"),
        ("alter table tracedb.tenants owner to current_user", "table tracedb.tenants"),
    ],
)
def test_drift_is_found_by_object(database: str, statement: str, object: str) -> None:
    with psycopg.connect(database) as conn:
        conn.execute(statement)

    assert object in [difference.object for difference in verify(database)]


def test_an_empty_database_is_told_to_be_migrated(empty_database: str) -> None:
    with pytest.raises(NotMigrated, match="run `tracedb migrate`"):
        verify(empty_database)

    assert value(empty_database, "select to_regnamespace('tracedb')") is None


def test_verify_neither_waits_for_nor_stops_a_writer(database: str) -> None:
    with psycopg.connect(database) as writer:
        writer.execute("insert into tracedb.tenants (name) values ('busy')")

        assert verify(database) == []

        assert writer.execute("select count(*) from tracedb.tenants").fetchone() == (1,)


@pytest.mark.parametrize("built_by", ["the administrator", "a superuser before"])
def test_a_plain_administrator_migrates_and_verifies(
    server: Server, empty_database: str, template: str, built_by: str
) -> None:
    everything = [migration.id for migration in Source.read()]
    with psycopg.connect(empty_database, autocommit=True) as conn:
        database = conn.info.dbname
        conn.execute("create extension if not exists vector schema public")
        conn.execute("create role tracedb_test_admin login createrole password 'plain'")
        try:
            conn.execute("grant tracedb_owner to tracedb_test_admin with admin option")
            conn.execute(f'grant create on database "{database}" to tracedb_test_admin')
            if built_by == "a superuser before":
                migrate(empty_database)
            dsn = server.dsn(database, user="tracedb_test_admin", password="plain")

            applied = migrate(dsn)

            assert applied == (everything if built_by == "the administrator" else [])
            assert status(dsn).is_current
            assert verify(dsn) == []
        finally:
            conn.execute("drop owned by tracedb_test_admin cascade")
            conn.execute("drop role tracedb_test_admin")
