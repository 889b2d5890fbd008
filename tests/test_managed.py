"""Installed as on managed PostgreSQL: by an administrator who is no superuser."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

import actors
import matrix
import servers
import tracedb.server
import two_tenants
from servers import Server
from tracedb.migrate import migrate, rollback, status
from tracedb.source import Source
from tracedb.verify import verify

LINTS = sorted((Path(__file__).parent / "lints").glob("*.sql"))

ADMIN = "managed_admin"


@pytest.fixture(scope="module")
def fresh_server(server: Server) -> Iterator[str]:
    """A server on which no role of ours exists: roles belong to the whole cluster."""
    if "embedded" not in server.how:
        pytest.skip("needs a server of its own, which only the embedded one can give")
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-"))
    scratch.chmod(0o755)
    try:
        with tracedb.server.start(
            scratch / "data",
            settings=servers.SETTINGS | {"shared_buffers": "64MB"},
            bin_dir=servers.packaged_programs(servers.EMBEDDED[server.major]),
        ) as own:
            yield own.dsn
    finally:
        shutil.rmtree(scratch)


@pytest.fixture(scope="module")
def superuser(fresh_server: str) -> str:
    """The provider, who makes the administrator, the database and the extension."""
    with psycopg.connect(fresh_server, autocommit=True) as conn:
        conn.execute(f"create role {ADMIN} login createrole createdb".encode())
        conn.execute(f"create database managed owner {ADMIN} template template0".encode())
    superuser = make_conninfo(fresh_server, dbname="managed")
    with psycopg.connect(superuser) as conn:
        conn.execute("create extension vector")
    return superuser


@pytest.fixture(scope="module")
def managed(superuser: str) -> str:
    """The DSN of the administrator, who has migrated the database."""
    dsn = make_conninfo(superuser, user=ADMIN)
    assert migrate(dsn) == [migration.id for migration in Source.read()]
    return dsn


def test_the_administrator_has_no_power_but_to_create_roles(managed: str) -> None:
    with psycopg.connect(managed) as conn:
        assert conn.execute(
            "select rolsuper, rolbypassrls, rolcreaterole from pg_roles"
            " where rolname = session_user"
        ).fetchone() == (False, False, True)


def test_the_schema_is_as_expected_and_migrating_again_does_nothing(managed: str) -> None:
    assert migrate(managed) == []
    assert status(managed).is_current
    assert verify(managed) == []


@pytest.mark.parametrize("lint", LINTS, ids=lambda path: path.stem)
def test_the_schema_keeps_the_house_rules(superuser: str, managed: str, lint: Path) -> None:
    with psycopg.connect(superuser) as conn:
        assert conn.execute(lint.read_text().encode()).fetchall() == []


def test_no_tenant_notices_another(superuser: str, managed: str) -> None:
    with (
        psycopg.connect(superuser, autocommit=True) as admin,
        actors.roles(admin),
        psycopg.connect(superuser) as conn,
    ):
        two_tenants.fill(conn)
        found = matrix.findings(conn)
        conn.rollback()

    assert found == []


def test_the_administrator_reads_no_tenants_rows_without_taking_a_role(
    superuser: str, managed: str
) -> None:
    """It may act as the owner, as everybody who administers does; nothing gives it more."""
    with psycopg.connect(managed) as conn:
        conn.execute("set local role tracedb_owner")
        two_tenants.fill(conn)
        assert conn.execute("select count(*) from tracedb.llm_spans").fetchone() == (28,)
        assert conn.execute("select count(*) from tracedb.llm_spans_default").fetchone() == (6,)
        conn.execute("reset role")
        conn.execute("grant tracedb_app, tracedb_maintainer to current_user")
        conn.execute("set local role tracedb_app")
        assert conn.execute("select count(*) from tracedb.llm_spans").fetchone() == (0,)
        conn.execute("select tracedb.set_tenant(%s)", [two_tenants.A])
        assert conn.execute("select count(*) from tracedb.llm_spans").fetchone() == (14,)
        conn.execute("set local role tracedb_maintainer")
        assert conn.execute(
            "select min(stray_rows) from tracedb.default_partition_rows()"
        ).fetchone() == (2,)
        conn.execute("select count(*) from tracedb.drain_default_partitions()")
        assert conn.execute(
            "select sum(stray_rows) from tracedb.default_partition_rows()"
        ).fetchone() == (0,)
        conn.rollback()


def test_a_login_bound_to_a_tenant_can_be_made(managed: str) -> None:
    """And making it binds the administrator to nobody, though it is a member with admin option."""
    binding = f"tracedb_tenant_{two_tenants.A}"
    with psycopg.connect(managed) as conn:
        conn.execute(f'create role "{binding}"'.encode())
        conn.execute("create role customer login")
        conn.execute(f'grant tracedb_app, "{binding}" to customer'.encode())
        conn.commit()
        try:
            conn.execute("select tracedb.set_tenant(%s)", [two_tenants.B])
            conn.execute("set local role tracedb_owner")
            tenant = conn.execute("select tracedb.current_tenant_id()").fetchone()
            assert tenant == (two_tenants.B,)
            with psycopg.connect(managed, user="customer") as customer:
                customer.execute("select tracedb.set_tenant(%s)", [two_tenants.B])
                tenant = customer.execute("select tracedb.current_tenant_id()").fetchone()
                assert tenant == (two_tenants.A,)
        finally:
            conn.rollback()
            conn.execute(f'drop role customer, "{binding}"'.encode())


def test_everything_can_be_rolled_back_and_migrated_again(managed: str) -> None:
    ids = [migration.id for migration in Source.read()]

    assert rollback(managed, count=None) == ids[::-1]
    assert migrate(managed) == ids
    assert verify(managed) == []
