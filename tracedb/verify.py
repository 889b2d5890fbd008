"""Whether a database has the schema that this version of tracedb would build there.

The server compares with itself: in one transaction that is always rolled back, the live schema is
listed and renamed, schema/*.sql is loaded in its place, and what came out is listed too. So
there is no snapshot to keep, and versions of PostgreSQL do not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg
from psycopg.rows import TupleRow

from tracedb import dsn as where
from tracedb import resources
from tracedb.errors import NotMigrated, PermissionDenied, TracedbError


@dataclass(frozen=True, slots=True)
class Difference:
    """One object that is not as expected: surplus if `expected` is None, missing if `found` is."""

    object: str
    expected: str | None
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"missing: {self.object}"
        if self.expected is None:
            return f"unexpected: {self.object}"
        return f"differs: {self.object}\n  expected: {self.expected}\n  found:    {self.found}"


def verify(dsn: str | None = None) -> list[Difference]:
    """What differs from schema/*.sql, by object name. Needs the rights of who migrates."""
    with where.connect(where.resolve(dsn)) as conn:
        if conn.execute(resources.statements("ledger.sql")["schema_exists"]).fetchone() == (False,):
            raise NotMigrated
        try:
            return compare(conn)
        except psycopg.errors.InsufficientPrivilege as error:
            raise PermissionDenied(f"only a role that may migrate can verify: {error}") from error
        except psycopg.errors.LockNotAvailable as error:
            raise TracedbError(f"the schema is being changed; try again: {error}") from error


def compare(conn: psycopg.Connection[TupleRow]) -> list[Difference]:
    """The same over an open connection that is in no transaction."""
    with conn.transaction(force_rollback=True):
        conn.execute("set local lock_timeout to '2s'")
        conn.execute("set local client_min_messages to warning")
        found = catalog(conn)
        if found:
            conn.execute("alter schema tracedb rename to tracedb_being_verified")
        conn.execute("reset search_path")
        for path in resources.schema_files():
            conn.execute(path.read_bytes())
            conn.execute("reset role")
        expected = catalog(conn)
    return [
        Difference(name, expected.get(name), found.get(name))
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]


def catalog(conn: psycopg.Connection[TupleRow]) -> dict[str, str]:
    """Every object of schema tracedb and its definition; to be called in a transaction."""
    conn.execute("set local search_path to ''")
    listing = conn.execute(resources.text("catalog.sql"), {"ledger": list(resources.LEDGER)})
    return dict(listing.fetchall())
