"""What a database remembers of its migrations: yoyo's tables in schema tracedb, and their lock."""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Self

import psycopg
from psycopg import sql
from psycopg.abc import Params
from psycopg.rows import TupleRow
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend
from yoyo.connections import parse_uri
from yoyo.migrations import default_migration_table

from tracedb import dsn as where
from tracedb import resources
from tracedb.errors import AlreadyRunning
from tracedb.source import Migration, Source

# the advisory lock of all migrators of one database: 'trac' in ASCII, and 1 for migrations
_LOCK = {"one": 1_953_653_091, "two": 1}

# how long a lock row of a plain `yoyo apply` that may be alive is respected, in seconds
_PATIENCE = 10.0

_pause = time.sleep

_SQL = resources.statements("ledger.sql")

Connection = psycopg.Connection[TupleRow]


class _Cursor(psycopg.Cursor[TupleRow]):
    """A cursor that hides result columns, since yoyo prints the rows of any statement on stdout."""

    @property
    def description(self) -> None:
        return None

    def execute(
        self,
        query: Any,
        params: Params | None = None,
        *,
        prepare: bool | None = None,
        binary: bool | None = None,
    ) -> Self:
        try:
            return super().execute(query, params, prepare=prepare, binary=binary)
        except psycopg.Error as error:
            lines = [line for line in str(query).splitlines() if not line.startswith("--")]
            error.add_note(f"at: {' '.join(' '.join(lines).split())[:100]}")
            raise


class Backend(PostgresqlPsycopgBackend):  # type: ignore[misc]  # yoyo has no types
    """yoyo over a connection that libpq opened: sockets, service files, odd passwords all work."""

    def __init__(self, conninfo: str) -> None:
        self.conninfo = conninfo
        # yoyo wants a URI to exist; nothing is read from this one
        super().__init__(parse_uri("postgresql+psycopg:///"), default_migration_table)

    def connect(self, dburi: object) -> Connection:
        return where.connect(self.conninfo, cursor_factory=_Cursor)

    def init_connection(self, connection: Connection) -> None:
        # first the schema of the ledger, for yoyo names its tables unqualified; then where this
        # server keeps its extensions
        connection.execute("reset search_path")
        connection.execute(_SQL["search_path"])

    def get_log_data(self, migration: Any = None, operation: str = "apply") -> dict[str, object]:
        # yoyo's own fails where the process has no user name, as in a container with a bare uid
        return {
            "id": str(uuid.uuid1()),
            "migration_id": migration and migration.id,
            "migration_hash": migration and migration.hash,
            "username": _user_name(),
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def start_afresh(self) -> None:
        """Undo what the last migration set, and bound how long the next one waits for others."""
        self.execute("reset role")
        self.execute("reset all")
        self.init_connection(self.connection)
        self.execute("set lock_timeout to '2s'")
        # lets the server notice that a killed migrator is gone; some platforms cannot
        with suppress(psycopg.Error):
            self.execute("set client_connection_check_interval to '5s'")


def _user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def applied(conn: Connection) -> list[str]:
    """Ids in the ledger, oldest first; none where there is no ledger."""
    if not _value(conn, "exists", name="tracedb._yoyo_migration"):
        return []
    return [id for (id,) in conn.execute(_SQL["applied"])]


def checksums(conn: Connection) -> dict[str, str]:
    """The sha256 of each applied file, where `tracedb migrate` applied it."""
    if not _value(conn, "exists", name="tracedb._migration_checksum"):
        return {}
    return dict(conn.execute(_SQL["checksums"]).fetchall())


def invalid_indexes(conn: Connection) -> list[str]:
    """Names of indexes that a broken `create index concurrently` left behind."""
    return [name for (name,) in conn.execute(_SQL["invalid_indexes"])]


def record(backend: Backend, migration: Migration) -> None:
    """Write down that a migration was applied, and from which file."""
    _speak_as_migrator(backend)
    backend.log_migration(migration.steps, "apply")
    backend.mark_one(migration.steps, log=False)
    _run(backend.connection, "record_checksum", id=migration.id, sha256=migration.sha256)


def forget(backend: Backend, migration: Migration) -> None:
    """Write down that a migration was rolled back, unless the ledger went with it."""
    _speak_as_migrator(backend)
    if _value(backend.connection, "exists", name="tracedb._yoyo_migration"):
        backend.log_migration(migration.steps, "rollback")
        backend.unmark_one(migration.steps, log=False)
        _run(backend.connection, "forget_checksum", id=migration.id)


def applied_elsewhere(conn: Connection, source: Source) -> list[str]:
    """Ids of ours that a plain `yoyo apply` recorded in another schema, if we have no ledger yet.

    It keeps its ledger in the first schema of its search path, mostly public. Only a schema that
    was built counts, so that another project's `0001_initial` is not mistaken for ours.
    """
    if applied(conn) or not _has_tables(conn):
        return []
    ledgers = conn.execute(_SQL["other_ledgers"]).fetchall()
    rows = [
        row
        for (name,) in ledgers
        for row in conn.execute(sql.SQL(_SQL["applied_in"]).format(ledger=sql.SQL(name)))
    ]
    return [migration.id for migration in source if (migration.id,) in rows]


def adopt(backend: Backend, source: Source, is_as_built: Callable[[Connection], bool]) -> list[str]:
    """Take over a schema that we did not build; the ids that need not be applied any more.

    Those that a plain yoyo recorded, or all of them if there is no ledger (`psql -f schema/*.sql`)
    and the schema is what this version builds.
    """
    conn = backend.connection
    known = applied_elsewhere(conn, source)
    if not known and not applied(conn) and _has_tables(conn) and is_as_built(conn):
        known = [migration.id for migration in source]
    with backend.transaction():
        for id in known:
            backend.mark_one(source[id].steps)
    return known


def _has_tables(conn: Connection) -> bool:
    return bool(_value(conn, "has_tables", ledger=list(resources.LEDGER)))


def share(conn: Connection) -> None:
    """Let every administrator who is a member of tracedb_owner use the ledger."""
    for (statement,) in _run(conn, "sharing", ledger=list(resources.LEDGER)).fetchall():
        conn.execute(statement)


@contextmanager
def session(conninfo: str, *, wait: bool, say: Callable[[str], None]) -> Iterator[Backend]:
    """A connection that holds the lock of all migrators, over a ledger that exists."""
    backend = Backend(conninfo)
    conn: Connection = backend.connection
    with conn:
        _lock_out_migrators(conn, wait=wait, say=say)
        try:
            _create(backend)
            _lock_out_yoyo(conn, wait=wait, say=say)
            # yoyo would wait for the lock row that we just took
            backend._is_locked = True
            backend.ensure_internal_schema_updated()
            yield backend
        finally:
            # one by one: the ledger may be gone with its schema, or the connection with its server
            with suppress(psycopg.Error):
                _run(conn, "drop_lock_row", pid=-os.getpid())
            with suppress(psycopg.Error):
                _run(conn, "unlock", **_LOCK)


def _lock_out_migrators(conn: Connection, *, wait: bool, say: Callable[[str], None]) -> None:
    # Polling, because a session that waits inside the server holds a snapshot, and a `create index
    # concurrently` of the migrator that has the lock would wait for it for ever.
    is_waiting = False
    while not _value(conn, "lock", **_LOCK):
        holder = _value(conn, "lock_holder", **_LOCK)
        if not wait:
            raise AlreadyRunning(f"another migration is running (server process {holder})")
        if not is_waiting:
            say(f"another migration is running (server process {holder}): waiting for it")
        is_waiting = True
        _pause(0.1)


def _lock_out_yoyo(conn: Connection, *, wait: bool, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + (_PATIENCE if wait else 0)
    while True:
        _run(conn, "clear_lock_row")
        if _value(conn, "take_lock_row", pid=-os.getpid()) is not None:
            return
        row = conn.execute(_SQL["lock_row"]).fetchone()
        if row and time.monotonic() > deadline:
            raise AlreadyRunning(
                f"a plain yoyo (process {row[0]}, since {row[1]:%Y-%m-%d %H:%M:%S} UTC) seems to be"
                " running on this ledger; if it is not: delete from tracedb.yoyo_lock"
            )
        _pause(0.2)


def _create(backend: Backend) -> None:
    conn = backend.connection
    if not _value(conn, "schema_exists"):
        _run(conn, "create_schema")
    if not _value(conn, "exists", name="tracedb.yoyo_lock"):
        backend.execute(backend.format_sql(backend.create_lock_table_sql))
    _run(conn, "create_checksums")


def _speak_as_migrator(backend: Backend) -> None:
    """A migration may have changed role and search path."""
    backend.execute("reset role")
    backend.init_connection(backend.connection)


def _run(conn: Connection, statement: str, /, **args: object) -> psycopg.Cursor[TupleRow]:
    return conn.execute(_SQL[statement], args)


def _value(conn: Connection, statement: str, /, **args: object) -> Any:
    row = _run(conn, statement, **args).fetchone()
    return row and row[0]
