"""A tenant set by one borrower of a connection is never there for the next."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from socket import AF_INET, SOCK_STREAM, socket
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import ConnectionPool

import tracedb.server
import two_tenants
from clones import clone
from servers import Server
from two_tenants import A, B

BORROWS = 1000
LOGIN = "tracedb_test_pooled"


@pytest.fixture(scope="module")
def database(server: Server, template: str) -> Iterator[str]:
    """Two tenants' rows, and a login that is an app: the superuser would see everything."""
    with clone(server, template) as dsn:
        with psycopg.connect(dsn) as conn:
            two_tenants.fill(conn)
        server.admin.execute(f"drop role if exists {LOGIN}".encode())
        server.admin.execute(f"create role {LOGIN} login password 'secret'".encode())
        try:
            server.admin.execute(f"grant tracedb_app to {LOGIN}".encode())
            yield make_conninfo(dsn, user=LOGIN, password="secret")
        finally:
            server.admin.execute(f"drop role {LOGIN}".encode())


@pytest.fixture(scope="module")
def proxy(database: str) -> Iterator[str]:
    """The same database through PgBouncer, which gives its one connection to each transaction."""
    program = shutil.which("pgbouncer")
    if program is None:
        pytest.skip("PgBouncer is not installed")
    target = conninfo_to_dict(database)
    with closing(socket(AF_INET, SOCK_STREAM)) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-"))
    scratch.chmod(0o755)
    (scratch / "users.txt").write_text(f'"{LOGIN}" "secret"\n')
    (scratch / "pgbouncer.ini").write_text(
        f"[databases]\n* = host={target['host']} port={target.get('port', 5432)}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
        f"auth_type = plain\nauth_file = {scratch}/users.txt\n"
        "pool_mode = transaction\ndefault_pool_size = 1\nserver_reset_query =\n"
        "ignore_startup_parameters = extra_float_digits\n"
    )
    # It refuses to run as root, as PostgreSQL does.
    account = tracedb.server._account()
    process = subprocess.Popen(
        [program, "--quiet", scratch / "pgbouncer.ini"],
        user=account and account.pw_uid,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    dsn = make_conninfo(database, host="127.0.0.1", port=port)
    try:
        wait_until_it_answers(dsn, process)
        yield dsn
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(scratch)


def wait_until_it_answers(dsn: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(10_000):
        assert process.poll() is None, "the proxy ended"
        with suppress(psycopg.OperationalError), psycopg.connect(dsn):
            return
    raise AssertionError("the proxy does not answer")


class Borrower:
    """Borrows, looks what the last one left, sets a tenant, and ends in one of several ways."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ends: dict[str, int] = {}

    def borrow(self, conn: psycopg.Connection[Any]) -> None:
        assert state(conn) == (None, 0), "left by an earlier borrower"
        tenant = self.random.choice([A, B, None])
        conn.execute("select tracedb.set_tenant(%s)", [tenant])
        assert state(conn) == (tenant, 6 if tenant else 0)
        if self.random.random() < 0.3:
            with conn.transaction():
                conn.execute("select tracedb.set_tenant(%s)", [self.random.choice([A, B])])
        end = self.random.choice(["commit", "rollback", "raise", "fail", "return"])
        self.ends[end] = self.ends.get(end, 0) + 1
        if end == "commit":
            conn.commit()
            assert state(conn) == (None, 0)
        elif end == "rollback":
            conn.rollback()
            assert state(conn) == (None, 0)
        elif end == "raise":
            raise Interrupted
        elif end == "fail":
            conn.execute("select 1 / 0")


class Interrupted(Exception):
    """Something in the borrower's code went wrong."""


def state(conn: psycopg.Connection[Any]) -> tuple[Any, ...] | None:
    """The tenant that the session acts for, and how many traces it sees."""
    return conn.execute(
        "select tracedb.current_tenant_id(), (select count(*) from tracedb.execution_traces)"
    ).fetchone()


def run(dsn: str, seed: int, **options: Any) -> Borrower:
    """A pool of one connection, borrowed many times."""
    borrower = Borrower(seed)
    backends = set()
    with ConnectionPool(dsn, min_size=1, max_size=1, kwargs=options, open=True) as pool:
        for _ in range(BORROWS):
            with suppress(Interrupted, psycopg.errors.DivisionByZero), pool.connection() as conn:
                backends.add(conn.info.backend_pid)
                borrower.borrow(conn)
    assert len(backends) == 1, "every borrower had the same connection"
    assert sum(borrower.ends.values()) == BORROWS
    assert set(borrower.ends) == {"commit", "rollback", "raise", "fail", "return"}
    return borrower


def test_a_pool_leaks_no_tenant(database: str) -> None:
    run(database, seed=1)


def test_a_pool_behind_a_transaction_pooling_proxy_leaks_no_tenant(proxy: str) -> None:
    run(proxy, seed=2, prepare_threshold=None)


def test_clients_that_share_the_proxys_connection_do_not_see_each_others_tenant(
    proxy: str,
) -> None:
    chance = random.Random(3)
    with (
        psycopg.connect(proxy, prepare_threshold=None) as one,
        psycopg.connect(proxy, prepare_threshold=None) as two,
    ):
        servers_used = set()
        for _ in range(BORROWS // 4):
            conn, tenant = chance.choice([(one, A), (two, B)])
            assert state(conn) == (None, 0)
            conn.execute("select tracedb.set_tenant(%s)", [tenant])
            assert state(conn) == (tenant, 6)
            row = conn.execute("select pg_backend_pid()").fetchone()
            servers_used.add(row and row[0])
            chance.choice([conn.commit, conn.rollback])()

    assert len(servers_used) == 1, "both used the same connection to the server"


def test_the_probe_finds_a_tenant_that_outlives_its_transaction(database: str) -> None:
    """What set_tenant must not do: a setting of the session stays for the next borrower."""
    with ConnectionPool(database, min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as conn:
            conn.execute("select set_config('tracedb.tenant_id', %s, false)", [str(A)])
        with pool.connection() as conn, pytest.raises(AssertionError, match="earlier borrower"):
            Borrower(4).borrow(conn)
